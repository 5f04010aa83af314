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
    assert (crops.kind == 1).all()  # at least 9 of 64 pixels ... see the next test for the limit


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
    assert crops.kind.item() == flag


@pytest.mark.parametrize("centre, shown, kind", [
    (labels.UNCERTAIN, 33, 1), (labels.UNCERTAIN, 32, 255),  # of 64 pixels; more than half is asked for
    (labels.BACKGROUND, 4, 0), (labels.BACKGROUND, 5, 255), (labels.BACKGROUND, 63, 255),
    (labels.FOREGROUND, 64, 255), (labels.FOREGROUND, 1, 255),
])  # fmt: skip
def test_the_kind_follows_from_the_centre_and_from_what_the_crop_shows(centre, shown, kind):
    region = torch.zeros(1, 9, 9, dtype=torch.int64)  # one crop of side 8 fits, at 0, 0
    places = [(y, x) for y in range(8) for x in range(8) if (y, x) != (4, 4)]
    for y, x in places[: shown - (centre != labels.BACKGROUND)]:
        region[0, y, x] = labels.FOREGROUND
    region[0, 4, 4] = centre
    crops = sample_local_crops(
        region, crop_size=8, num_crops=2, candidates="not_foreground", min_content=0.5, max_negative=4 / 64,
        between="ignore",
    )  # fmt: skip
    assert crops.kind.tolist() == [[kind, kind]]  # the only place, drawn twice
    assert crops.flags.tolist() == [[1, 1, kind, kind]]  # global views are positives, whatever they show


def both_kinds(region, number, *, seed=0, **options):
    return sample_local_crops(
        region, crop_size=8, num_crops=number, candidates="not_foreground", min_content=0.3, between="ignore",
        generator=torch.Generator().manual_seed(seed), **options,
    )  # fmt: skip


def object_scene():
    """An object with an uncertain rim in the middle of background; most centres make a crop that is ignored."""
    return region_with(uncertain=[(slice(10, 24), slice(10, 24))], foreground=[(slice(14, 20), slice(14, 20))])


def kinds_by_loop(region, minimum, most):
    """The kind of a crop of side 8 at every corner, counted pixel by pixel."""
    height, width = region.shape
    kinds = torch.full((height - 8, width - 8), 255.0)
    for top in range(height - 8):
        for left in range(width - 8):
            shown = sum(int(value > 0) for row in region[top : top + 8, left : left + 8].tolist() for value in row) / 64
            centre = region[top + 4, left + 4]
            if centre == labels.UNCERTAIN and shown > minimum:
                kinds[top, left] = 1
            if centre == labels.BACKGROUND and shown <= most:
                kinds[top, left] = 0
    return kinds


@pytest.mark.parametrize("number", [1, 2, 7, 8])
def test_the_larger_half_of_the_crops_are_positives_and_the_others_negatives(number):
    region = object_scene().repeat(3, 1, 1)
    crops = both_kinds(region, number)
    assert (crops.kind == 1).sum(1).tolist() == [-(-number // 2)] * 3 and (crops.kind == 0).sum(1)[0] == number // 2
    table = kinds_by_loop(region[0], 0.3, 0.05)
    assert torch.equal(table[crops.top, crops.left], crops.kind) and (table == 255).float().mean() > 0.15
    for image in range(3):
        assert len(set(zip(crops.top[image].tolist(), crops.left[image].tolist(), strict=True))) == number


def test_crops_of_a_kind_are_drawn_evenly_from_all_its_places():
    region = region_with(uncertain=[(slice(12, 16), slice(12, 15))], size=(24, 24))
    table = kinds_by_loop(region[0], 0.1, 0.05)
    crops = sample_local_crops(
        region.repeat(6000, 1, 1), crop_size=8, num_crops=2, candidates="not_foreground", min_content=0.1,
        between="ignore", generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    for column, kind in ((0, 1), (1, 0)):
        places = crops.top[:, column] * 16 + crops.left[:, column]
        shares = places.bincount(minlength=256) / 6000
        pool = (table == kind).flatten().float()
        torch.testing.assert_close(shares, pool / pool.sum(), atol=0.02, rtol=0)


def test_where_a_kind_is_rare_the_other_fills_up_and_then_centres_without_a_kind():
    nothing = torch.zeros(1, 32, 40, dtype=torch.int64)
    everything = torch.full_like(nothing, labels.UNCERTAIN)
    only_foreground = torch.full_like(nothing, labels.FOREGROUND)
    crops = both_kinds(torch.cat([nothing, everything, only_foreground]), 6)
    assert crops.kind.tolist() == [[0] * 6, [1] * 6, [255] * 6]
    assert len(set(zip(crops.top[0].tolist(), crops.left[0].tolist(), strict=True))) == 6  # both halves, no place twice
    thin = nothing.clone()
    thin[:, 16] = labels.UNCERTAIN  # uncertain centres whose crops show too little, and background next to them
    thin[:, :, ::8] = labels.FOREGROUND  # in every crop: nothing is clean background
    left_out = both_kinds(thin, 6)
    centres = thin[0, left_out.top + 4, left_out.left + 4]
    assert (left_out.kind == 255).all() and (centres < labels.FOREGROUND).all()


def test_both_kinds_stay_inside_the_valid_box():
    box = torch.tensor([[4, 28, 4, 36]])
    crops = both_kinds(object_scene(), 40, valid_box=box)
    assert crops.top.min() >= 4 and crops.top.max() + 8 <= 28 and crops.left.min() >= 4 and crops.left.max() + 8 <= 36
    assert {0, 1} <= set(crops.kind.flatten().tolist())


def test_uncertain_centres_alone_give_no_negative():
    crops = sample_local_crops(object_scene(), crop_size=8, num_crops=6, min_content=0.3, between="ignore")
    assert set(crops.kind.flatten().tolist()) == {1}


def test_content_everywhere_is_exact():
    weight = torch.randint(0, 3, (2, 33, 41), generator=torch.Generator().manual_seed(0)).float()
    found = crop_module._content_everywhere(weight, 6)
    assert found.shape == (2, 28, 36)
    for top, left in ((0, 0), (13, 29), (27, 35)):
        expected = weight[:, top : top + 6, left : left + 6].double().sum((1, 2)) / 36
        assert torch.equal(found[:, top, left], expected.float())


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
    assert crops.kind.shape == (3, 2) and not asked


def test_both_kinds_are_drawn_off_the_cpu_without_a_value_of_the_region_mask(monkeypatch):
    """A tensor on the device `meta` has no values: whoever asked for one, as a wait of the host does, would fail."""
    real = crop_module._random_scores
    monkeypatch.setattr(crop_module, "_random_scores", lambda like, generator: real(like, generator).to("meta"))
    region = torch.ones(3, 20, 20, dtype=torch.int64, device="meta")
    crops = both_kinds(region, 5, valid_box=torch.zeros(3, 4, dtype=torch.int64, device="meta"))
    for found in (crops.top, crops.left, crops.kind):
        assert found.device.type == "meta" and found.shape == (3, 5)
    assert crops.flags.shape == (3, 7)
