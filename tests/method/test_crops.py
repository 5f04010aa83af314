"""Local crops by hand: where they lie, what they show, how they are drawn and cut."""

import pytest
import torch

from toco_lab.method import crops as crop_module
from toco_lab.method import labels
from toco_lab.method.crops import LocalCrops, cut_local_views, sample_local_crops


def region_with(uncertain=(), foreground=(), size=(32, 40)):
    region = torch.zeros(1, *size, dtype=torch.int64)
    for rows, columns in uncertain:
        region[0, rows, columns] = labels.UNCERTAIN
    for rows, columns in foreground:
        region[0, rows, columns] = labels.FOREGROUND
    return region


def test_crops_are_centred_on_uncertain_pixels():
    region = region_with(uncertain=[(slice(10, 14), slice(20, 24))])
    crops = sample_local_crops(region, crop_size=8, num_crops=6, generator=torch.Generator().manual_seed(0))
    centres = crops.top + 4, crops.left + 4
    assert ((centres[0] >= 10) & (centres[0] < 14) & (centres[1] >= 20) & (centres[1] < 24)).all()
    assert len(set(zip(crops.top[0].tolist(), crops.left[0].tolist(), strict=True))) == 6  # without replacement
    assert (crops.positive == 1).all()  # at least 9 of 64 pixels ... see the next test for the limit


@pytest.mark.parametrize("content, minimum, flag", [
    ("area", 0.49, 1.0), ("area", 0.5, 0.0), ("double_foreground", 0.98, 1.0), ("double_foreground", 0.985, 0.0),
])  # fmt: skip
def test_content_counts_foreground_once_or_twice(content, minimum, flag):
    region = region_with(uncertain=[(slice(16, 17), slice(20, 21))])  # one candidate: the crop's place is known
    region[0, 12:20, 16:20] = labels.FOREGROUND  # the left half of that crop, 12..19 x 16..23
    region[0, 16, 20] = labels.UNCERTAIN
    region[0, 12, 16] = labels.BACKGROUND  # in exchange: 32 of 64 pixels, 31 of them foreground
    crops = sample_local_crops(
        region, crop_size=8, num_crops=1, candidates="uncertain", content=content, min_content=minimum
    )
    assert (crops.top.item(), crops.left.item()) == (12, 16)
    assert crops.positive.item() == flag


def test_crops_stay_inside_the_valid_box_when_sound():
    region = torch.full((2, 32, 40), labels.UNCERTAIN)
    box = torch.tensor([[4, 20, 10, 30], [0, 6, 0, 40]])  # the second is lower than a crop
    crops = sample_local_crops(
        region, crop_size=8, num_crops=50, valid_box=box, generator=torch.Generator().manual_seed(0)
    )
    assert crops.top[0].min() >= 4 and crops.top[0].max() + 8 <= 20
    assert crops.left[0].min() >= 10 and crops.left[0].max() + 8 <= 30
    assert (crops.top[1] == 0).all() and crops.left[1].max() > 10  # too low for a crop: around it, and free along it
    free = sample_local_crops(region, crop_size=8, num_crops=50, generator=torch.Generator().manual_seed(0))
    assert free.top[0].min() < 4


def test_without_candidates_any_position_will_do():
    region = torch.full((1, 32, 40), labels.FOREGROUND)
    crops = sample_local_crops(region, crop_size=8, num_crops=4, generator=torch.Generator().manual_seed(0))
    assert crops.top.shape == (1, 4) and crops.flags.tolist() == [[1.0] * 6]


@pytest.mark.parametrize("size", [7, 32, 34])
def test_crops_that_cannot_move_are_refused(size):
    with pytest.raises(ValueError, match=f"crop_size {size}"):
        sample_local_crops(torch.zeros(1, 32, 40), crop_size=size, num_crops=1)


def test_cut_local_views_are_view_major_copies_of_the_right_pixels():
    image = torch.arange(2 * 3 * 16 * 20, dtype=torch.float32).view(2, 3, 16, 20)
    crops = LocalCrops(torch.tensor([[0, 3], [5, 7]]), torch.tensor([[1, 2], [0, 11]]), torch.ones(2, 2), 6)
    views = cut_local_views(image, crops)
    assert views.shape == (4, 3, 6, 6)
    for view in range(2):
        for i in range(2):
            top, left = crops.top[i, view], crops.left[i, view]
            assert torch.equal(views[view * 2 + i], image[i, :, top : top + 6, left : left + 6])


@pytest.mark.parametrize("draw", [crop_module._draw_by_permutation, crop_module._draw_by_rank])
def test_crops_are_drawn_evenly_from_the_places_wanted(draw):
    wanted = torch.tensor([[True, False, True, True, False, True], [False] * 5 + [True], [False] * 6])
    allowed = torch.tensor(
        [[True] * 6, [True, True, False, True, False, True], [False, True, False, False, False, True]]
    )
    generator, times = torch.Generator().manual_seed(0), 4000
    drawn = draw(wanted.repeat(times, 1), allowed.repeat(times, 1), 3, generator).view(times, 3, 3)
    assert drawn.sort(2).values.diff(dim=2)[:, :2].min() > 0  # no place twice while there are enough
    pools = wanted[0], allowed[1], allowed[2]  # one wanted place is too few for three crops: any allowed one
    for image, pool in enumerate(pools):
        shares = drawn[:, image].flatten().bincount(minlength=6) / (3 * times)
        torch.testing.assert_close(shares, pool / pool.sum(), atol=0.015, rtol=0)
    assert (drawn[:, 2, 0] == drawn[:, 2, 2]).all()  # two places in turn


def test_no_host_waits_for_the_region_mask_off_the_cpu(monkeypatch):
    """On another device crops are drawn without asking how many places there are."""
    asked = []
    monkeypatch.setattr(crop_module, "_draw_by_permutation", lambda *_: asked.append("counted"))
    monkeypatch.setattr(
        crop_module, "_draw_by_rank", lambda wanted, *_: torch.zeros(len(wanted), 2, dtype=torch.int64, device="meta")
    )
    region = torch.ones(3, 20, 20, dtype=torch.int64, device="meta")  # has no values: whoever asked for one would fail
    box = torch.zeros(3, 4, dtype=torch.int64, device="meta")
    crops = sample_local_crops(region, crop_size=8, num_crops=2, valid_box=box)
    assert crops.positive.shape == (3, 2) and not asked
