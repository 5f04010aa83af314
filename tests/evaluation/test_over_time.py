"""Maps averaged over time, against means written out."""

import pytest
import torch
from torch import Tensor

from toco_lab.evaluation.over_time import fuse_frame, fuse_over_time


def still(holds: bool = True):
    return lambda frame, other: (torch.zeros(2, 8, 10), torch.full((8, 10), holds))


def random_maps(frames: int = 6, seed: int = 0) -> Tensor:
    return torch.rand(frames, 3, 8, 10, generator=torch.Generator().manual_seed(seed))


def test_equal_frames_keep_their_maps():
    maps = random_maps(1).expand(6, -1, -1, -1)
    for motion in (None, still(), still(False)):
        assert torch.allclose(fuse_over_time(maps, motion), maps, atol=1e-6)


def test_a_flickering_map_of_a_clip_that_stands_still_is_averaged():
    maps = torch.zeros(6, 1, 8, 10)
    maps[::2] = 1.0  # 1, 0, 1, 0, 1, 0
    expected = [2 / 3, 2 / 4, 3 / 5, 2 / 5, 2 / 4, 1 / 3]  # windows are shorter at the ends
    for motion in (None, still()):
        fused = fuse_over_time(maps, motion)
        assert fused.flatten(1).amin(1).tolist() == pytest.approx(expected, abs=1e-6)
        assert fused.flatten(1).amax(1).tolist() == pytest.approx(expected, abs=1e-6)
    assert fuse_over_time(maps, still(), window=1)[2].flatten().tolist() == pytest.approx([1 / 3] * 80)
    assert torch.equal(fuse_over_time(maps, still(), window=0), maps)


def test_only_pixels_where_the_motion_holds_count():
    maps, holds = random_maps(), torch.rand(6, 6, 8, 10, generator=torch.Generator().manual_seed(1)) > 0.4
    fused = fuse_over_time(maps, lambda frame, other: (torch.zeros(2, 8, 10), holds[frame, other]))
    for frame in range(6):
        for row in range(8):
            for column in range(10):
                others = [o for o in range(max(0, frame - 2), min(6, frame + 3)) if o != frame]
                counted = [frame] + [o for o in others if holds[frame, o, row, column]]
                mean = maps[counted, :, row, column].mean(0)
                assert torch.allclose(fused[frame, :, row, column], mean, atol=1e-6)
    alone = fuse_over_time(maps, still(False))
    assert torch.equal(alone, maps)


def test_neighbours_are_warped_along_the_motion():
    """A map that moves one pixel to the right a frame is the same map, seen from each frame."""
    own = random_maps(1)[0]
    maps = torch.stack([own.roll(frame, 2) for frame in range(5)])
    flow = torch.zeros(2, 8, 10)

    def motion(frame: int, other: int) -> tuple[Tensor, Tensor]:
        return flow + torch.tensor([other - frame, 0.0])[:, None, None], torch.ones(8, 10, dtype=torch.bool)

    fused = fuse_frame(2, dict(enumerate(maps)), motion)
    assert torch.allclose(fused[..., 2:-2], maps[2][..., 2:-2], atol=1e-5)
    assert not torch.allclose(fuse_frame(2, dict(enumerate(maps)), None)[..., 2:-2], maps[2][..., 2:-2], atol=0.1)


def test_what_cannot_be_averaged_is_named():
    maps = {3: torch.zeros(1, 8, 10)}
    assert torch.equal(fuse_frame(3, maps, still()), maps[3])  # no neighbour is there
    with pytest.raises(ValueError, match=r"frame 2 has no maps; there are those of \[3\]"):
        fuse_frame(2, maps, None)
    with pytest.raises(ValueError, match="window must be at least 0 frames, got -1"):
        fuse_frame(3, maps, None, window=-1)
