"""CAMs and labels by hand: known grids, mirror images, thresholds, boxes, crops."""

import pytest
import torch
import torch.nn.functional as F

from toco_lab.config import Config
from toco_lab.method import cam, labels, present
from toco_lab.method import crops as crop_module
from toco_lab.method.crops import LocalCrops, cut_local_views, sample_local_crops
from toco_lab.method.model import ToCo


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ToCo(Config.preset("smoke")).eval()


def slow_multi_scale(model, image, scales):
    """The definition, one image and one pass at a time."""
    maps = []
    for x in image:
        total = 0
        for s in scales:
            size = int(x.shape[1] * s), int(x.shape[2] * s)
            scaled = F.interpolate(x[None], size=size, mode="bilinear", align_corners=False)
            pair = []
            for flip in (False, True):
                cam = model(scaled.flip(3) if flip else scaled).cam
                cam = F.interpolate(cam, size=tuple(x.shape[1:]), mode="bilinear", align_corners=False)
                pair.append(cam.flip(3) if flip else cam)
            total = total + torch.maximum(*pair).clamp(min=0)
        for channel in total[0]:
            channel -= channel.min()
            channel /= channel.max() + 1e-5
        maps.append(total[0])
    return torch.stack(maps)


@pytest.mark.parametrize("size", [(32, 32), (40, 56)])
def test_multi_scale_cam_is_its_definition(model, size):
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = slow_multi_scale(model, image, (1.0, 0.5, 1.5))
        plain = model.encode(image)
    for given in (None, plain):
        maps = cam.multi_scale_cam(model, image, (1.0, 0.5, 1.5), plain=given)
        torch.testing.assert_close(maps.cam, expected, atol=2e-5, rtol=0)
    assert not torch.allclose(maps.cam, maps.cam_aux)


def test_multi_scale_cam_of_a_mirror_image_is_the_mirror_image(model):
    image = torch.randn(1, 3, 32, 48)
    straight = cam.multi_scale_cam(model, image, (1.0, 0.5)).cam
    mirrored = cam.multi_scale_cam(model, image.flip(-1), (1.0, 0.5)).cam
    torch.testing.assert_close(mirrored.flip(-1), straight, atol=1e-5, rtol=0)


# none, one, all, a different number in each image
LABELS = {
    "none": torch.zeros(3, 6),
    "one": torch.eye(6)[[4, 0, 2]],
    "all": torch.ones(3, 6),
    "mixed": torch.tensor([[0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 1, 0]]).float(),
}


@pytest.fixture
def one_thread():
    """With one thread torch has a kernel of its own that resizes three channels, and rounds otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [None, (120, 88)])
@pytest.mark.parametrize("label", LABELS.values(), ids=LABELS)
def test_maps_of_present_classes_are_those_of_all_classes_masked(model, label, size, one_thread):
    """To the bit: no operation mixes classes."""
    torch.manual_seed(1)
    image, scales = torch.randn(3, 3, 96, 80), (1.0, 0.5, 1.5)
    dense = cam.multi_scale_cam(model, image, scales)
    most = int(label.sum(1).max())
    for bound in (None, max(1, most), min(6, most + 2)):
        found = cam.multi_scale_cam(model, image, scales, image_label=label, max_present=bound, size=size)
        for head in ("cam", "cam_aux"):
            expected = getattr(dense, head) if size is None else cam.resize_each(getattr(dense, head), size)
            assert torch.equal(getattr(found, head), labels.mask_by_label(expected, label))
            assert bool(getattr(found, head).any()) == bool(most)


def test_only_present_classes_are_resized(model, monkeypatch):
    resized, resize = [], cam.resize
    monkeypatch.setattr(cam, "resize", lambda maps, size: resized.append(maps.shape) or resize(maps, size))
    cam.multi_scale_cam(model, torch.randn(3, 3, 32, 32), (1.0,), image_label=LABELS["mixed"])
    assert resized == [(2 * 2 * 3 * 3, 1, 4, 4)]  # heads x mirroring x images x classes of the image with the most


def test_slots():
    slots = present.Slots.of(LABELS["mixed"])
    assert slots.classes[:, :2].tolist() == [[0, 1], [1, 2], [4, 0]] and slots.classes[1, 2] == 5
    assert slots.present.tolist() == [[False] * 3, [True] * 3, [True, False, False]]
    maps = torch.randn(2, 3, 6, 2, 2)
    taken = slots.take(maps)
    for image in range(3):
        for slot in range(3):
            assert torch.equal(taken[:, image, slot], maps[:, image, slots.classes[image, slot]])
    assert torch.equal(slots.spread(taken), maps * LABELS["mixed"][:, :, None, None])
    assert present.Slots.of(LABELS["mixed"], 2).classes.tolist() == slots.classes[:, :2].tolist()
    with pytest.raises(ValueError, match=r"\(3, 6\).*\(3, 5, 2, 2\)"):
        slots.take(torch.zeros(3, 5, 2, 2))


def test_labels_of_a_hand_made_map():
    cam = torch.tensor([[[[0.9, 0.6], [0.3, 0.2]], [[1.0, 0.1], [0.5, 0.0]]]])  # two classes on 2 x 2
    only_first, both = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    box = torch.tensor([[0, 2, 0, 2]])
    assert labels.cam_to_label(cam, only_first, threshold=0.5).tolist() == [[[1, 1], [0, 0]]]
    assert labels.cam_to_label(cam, both, threshold=0.5).tolist() == [[[2, 1], [0, 0]]]  # 0.5 is not above 0.5
    confident = labels.confident_label(cam, both, low=0.25, high=0.7, valid_box=box)
    assert confident.tolist() == [[[2, 255], [255, 0]]]
    assert labels.region_mask(cam, both, low=0.25, high=0.7).tolist() == [[[2, 1], [1, 0]]]
    assert labels.cam_to_label(cam, both * 0, threshold=0.5).tolist() == [[[0, 0], [0, 0]]]
    half = torch.tensor([[0, 1, 0, 2]])
    assert labels.cam_to_label(cam, both, threshold=0.5, valid_box=half).tolist() == [[[2, 1], [255, 255]]]


def test_wrong_label_shape_is_named():
    with pytest.raises(ValueError, match=r"\(1, 3\).*\(1, 2, 2, 2\)"):
        labels.mask_by_label(torch.zeros(1, 2, 2, 2), torch.zeros(1, 3))


def test_token_labels_divide_the_box_by_the_patch_only_when_sound():
    cam = torch.ones(1, 1, 32, 32)
    settings = {"low": 0.2, "high": 0.7, "patch_size": 8}
    box = torch.tensor([[0, 20, 4, 32]])  # rows 0..1 are whole; the first column is cut by the box
    sound = labels.token_labels(cam, torch.ones(1, 1), (4, 4), box, **settings)
    assert sound[0].tolist() == [[255, 1, 1, 1], [255, 1, 1, 1], [255] * 4, [255] * 4]
    released = labels.token_labels(cam, torch.ones(1, 1), (4, 4), box, **settings, box_units="pixels")
    assert released[0].tolist() == [[255] * 4] * 4  # column 4 in pixels lies outside the grid: everything is ignored


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


def test_labels_in_slots_get_their_classes_back():
    slots = present.Slots.of(torch.tensor([[0, 1, 0, 1.0], [1, 0, 0, 0], [0, 0, 0, 0]]))
    label = torch.tensor([[[0, 1, 2, 255]], [[1, 0, 255, 1]], [[0, 0, 255, 0]]])
    assert slots.class_label(label).tolist() == [[[0, 2, 4, 255]], [[1, 0, 255, 1]], [[0, 0, 255, 0]]]


def test_there_is_a_slot_even_where_no_class_is():
    assert present.Slots.of(torch.zeros(2, 3), most=0).present.tolist() == [[False], [False]]


def test_cams_of_slots_are_those_of_their_classes(model):
    label, image = LABELS["mixed"], torch.randn(len(LABELS["mixed"]), 3, 32, 32)
    slots = present.Slots.of(label)
    short, whole = cam.slot_cams(model, image, slots, (1.0, 0.5)), cam.multi_scale_cam(model, image, (1.0, 0.5))
    for name in ("cam", "cam_aux"):
        assert torch.equal(slots.spread(getattr(short, name)), labels.mask_by_label(getattr(whole, name), label))


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
