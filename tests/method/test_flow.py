"""Optical flow: shifts that are known, warping against roll, the check of there and back by hand."""

import pytest
import torch
from torch import Tensor

from toco_lab.data.toy_clips import make_clip
from toco_lab.method.flow import EstimatedMotion, agreement, composed, in_image, match_blocks, warp


def constant(right: float, down: float, height: int = 20, width: int = 30) -> Tensor:
    return torch.tensor([float(right), float(down)])[None, :, None, None].expand(1, 2, height, width).clone()


@pytest.mark.parametrize("shift", [(0, 0), (3, 0), (0, -2), (-4, 5)])
def test_warping_by_a_shift_is_a_roll_inside(shift):
    right, down = shift
    maps = torch.randn(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    rolled = maps.roll((-down, -right), (2, 3))  # at x it shows what was at x + shift
    inside = in_image(constant(right, down))[0]
    assert inside.sum() == (20 - abs(down)) * (30 - abs(right))
    for nearest in (False, True):
        warped = warp(maps, constant(right, down), nearest=nearest)
        assert torch.allclose(warped[..., inside], rolled[..., inside], atol=1e-4)


def test_warping_by_half_a_pixel_is_the_mean_of_two():
    ramp = torch.arange(30.0).square().expand(1, 1, 20, 30)
    warped = warp(ramp, constant(0.5, 0))
    assert torch.allclose(warped[..., :29], (ramp[..., :29] + ramp[..., 1:]) / 2, atol=1e-3)
    assert torch.equal(warped[..., 29], ramp[..., 29])  # beyond the image the nearest pixel is taken


def test_there_and_back_by_hand():
    """|f + b|^2 < 0.01 (|f|^2 + |b|^2) + 0.5, at four pairs of flows."""
    for there, back, holds in (
        ((2, 0), (-2, 0), True),
        ((2, 0), (-1.2, 0), False),  # 0.64 is not below 0.01 (4 + 1.44) + 0.5 = 0.554
        ((2, 0), (-1.3, 0), True),  # 0.49 is below 0.01 (4 + 1.69) + 0.5 = 0.557
        ((8, 6), (-7, -5.5), True),  # 1.25 is below 0.01 (100 + 79.25) + 0.5 = 2.29
        ((2, 0), (2, 0), False),
    ):
        found = agreement(constant(*there), constant(*back))[0]
        inside = in_image(constant(*there))[0]
        assert (found[inside] == holds).all() and not found[~inside].any()


def test_the_way_back_is_read_where_the_way_leads():
    forward, backward = constant(5, 0), constant(0, 0)
    backward[..., 10:] = torch.tensor([-5.0, 0.0])[:, None, None]
    found = agreement(forward, backward)[0]
    # column 5 leads to column 10, which leads back; column 4 leads to column 9, which does not
    assert found[:, 5:25].all() and not found[:, :5].any() and not found[:, 25:].any()


def test_two_steps_are_one():
    first, second = constant(2, 1), constant(0, 0)
    second[:, 0] = torch.arange(30.0)  # grows to the right by 1 a pixel
    both = composed(first, second)
    assert torch.allclose(both[0, 0, :, :28], 2 + torch.arange(2.0, 30).expand(20, 28), atol=1e-4)
    assert (both[0, 1] == 1).all()


@pytest.mark.parametrize("shift", [(0, 0), (5, -3), (-8, 8)])
def test_the_flow_of_a_shift_is_found(shift):
    right, down = shift
    texture = 255 * torch.rand(1, 3, 64, 80, generator=torch.Generator().manual_seed(1))
    flow = match_blocks(texture, texture.roll((down, right), (2, 3)), patch=5)
    inside = flow[0, :, 12:-12, 12:-12]  # away from what came in at the edges
    assert torch.allclose(inside, torch.tensor([right, down])[:, None, None].float().expand_as(inside), atol=0.1)


def test_a_part_of_a_pixel_is_found():
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")

    def seen(right: float) -> Tensor:
        waves = torch.sin((columns - right) / 2.3) + torch.sin((columns - right) / 3.7 + rows / 2) + torch.sin(rows / 3)
        return (127 + 40 * waves).expand(1, 3, 64, 64)

    flow = match_blocks(seen(0), seen(2.4))
    assert flow[0, 0, 12:-12, 12:-12].mean().item() == pytest.approx(2.4, abs=0.2)
    assert flow[0, 1, 12:-12, 12:-12].abs().mean() < 0.2


def test_large_frames_are_matched_small_and_the_flow_is_in_their_pixels():
    small = 255 * torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(2))
    large = [picture.repeat_interleave(4, 2).repeat_interleave(4, 3) for picture in (small, small.roll(3, 3))]
    flow = match_blocks(*large, side=50, patch=5)
    assert flow.shape == (1, 2, 160, 200)
    assert flow[0, 0, 40:-40, 40:-40].median().item() == pytest.approx(12, abs=0.4)


def test_flat_frames_do_not_move():
    flat = torch.full((1, 3, 48, 48), 90.0)
    assert match_blocks(flat, flat).abs().max() < 0.51


def test_the_flow_of_a_toy_clip_beats_no_flow_and_the_check_finds_its_better_part():
    clip = make_clip(1, 3, frames=2)
    frames = torch.from_numpy(clip.image).permute(0, 3, 1, 2)
    there, back = match_blocks(frames[:1], frames[1:]), match_blocks(frames[1:], frames[:1])
    true, seen = torch.from_numpy(clip.forward).permute(0, 3, 1, 2), torch.from_numpy(~clip.occluded)
    error, none = (one.square().sum(1).sqrt() for one in (there - true, true))
    holds = agreement(there, back)
    assert error[seen].mean() < 0.5 * none[seen].mean()
    assert error[seen & holds].mean() < error[seen & ~holds].mean() and holds[seen].float().mean() > 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [({"radius": 0}, "radius must be at least 1, got 0"), ({"patch": 4}, "patch must be odd and at least 1, got 4"),
     ({"side": -1}, "side must be at least 0, got -1")],
)  # fmt: skip
def test_wrong_numbers_are_named(options, message):
    frames = torch.zeros(1, 3, 48, 48)
    with pytest.raises(ValueError, match=message):
        match_blocks(frames, frames, **options)
    with pytest.raises(ValueError, match=r"frames must be two \(B, 3, H, W\) of one shape"):
        match_blocks(frames, frames[..., 1:])
    with pytest.raises(ValueError, match=r"flow \(1, 2, 20, 30\) does not fit maps \(1, 3, 48, 48\)"):
        warp(frames, constant(0, 0))
    with pytest.raises(ValueError, match=r"must be of floats, got torch\.uint8 and torch\.float32"):
        warp(frames[..., :20, :30].byte(), constant(0, 0))


def test_estimated_motion_composes_the_steps_and_matches_each_pair_once(monkeypatch):
    frames = 255 * torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(3))
    clip = torch.cat([frames.roll(2 * step, 3) for step in range(4)])
    asked = []

    def counting(image: Tensor, other: Tensor, **options: int) -> Tensor:
        asked.append(options)
        return match_blocks(image, other, **options)

    monkeypatch.setattr("toco_lab.method.flow.match_blocks", counting)
    motion = EstimatedMotion(clip, patch=5, radius=4)
    flow, holds = motion(0, 2)
    steps = [match_blocks(clip[a][None], clip[b][None], patch=5, radius=4) for a, b in ((0, 1), (1, 2), (2, 1), (1, 0))]
    there, back = composed(*steps[:2]), composed(*steps[2:])
    assert torch.equal(flow, there[0]) and torch.equal(holds, agreement(there, back)[0])
    assert flow[0, 10:-10, 10:-12].mean().item() == pytest.approx(4, abs=0.1)
    motion(2, 0), motion(1, 2), motion(0, 1)
    assert len(asked) == 4 and asked[0] == {"radius": 4, "patch": 5, "side": 128}
    with pytest.raises(ValueError, match="frame 1 has no flow to itself"):
        motion(1, 1)
