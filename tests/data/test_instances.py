"""Objects one by one: of scenes, of COCO's outlines, of pieces of a mask; half-open boxes."""

import numpy as np
import pytest
from helpers.coco import box, crowd, make_coco
from helpers.folders import SAMPLES, make_voc, needs_samples, toy
from scipy import ndimage

from toco_lab.config import Config
from toco_lab.data.classes import COCO_CLASSES, DataError
from toco_lab.data.instances import OUTLINES, PIECES, SCENES, Instance, components, pieces_of_mask, true_instances
from toco_lab.data.readers import open_dataset
from toco_lab.data.toy import MIN_VISIBLE, make_scene
from toco_lab.data.toy_parts import make_parts_scene

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


def test_a_box_is_half_open():
    mask = np.zeros((10, 20), bool)
    mask[2, 3] = True
    assert Instance(1, mask).box == (3, 2, 4, 3)  # one pixel is one wide and one high
    mask[5, 19] = True
    assert Instance(1, mask).box == (3, 2, 20, 6)
    assert Instance(1, np.ones((10, 20), bool)).box == (0, 0, 20, 10)


def test_pieces_touch_at_corners_and_small_ones_are_left_out():
    mask = np.zeros((20, 20), np.uint8)  # 0.5 % are 2 pixels
    mask[0, 0] = mask[1, 1] = 3  # one piece of 2 pixels, over a corner
    mask[10:12, 10] = 1
    mask[15, 15] = 1  # one pixel
    mask[18:, :] = 255
    assert [piece.sum() for piece in components(mask == 1)] == [2, 1]
    assert [(one.number, one.box, one.score, one.crowd) for one in pieces_of_mask(mask)] == [
        (1, (10, 10, 11, 12), 1.0, False), (3, (0, 0, 2, 2), 1.0, False),
    ]  # fmt: skip


def test_objects_of_scenes_tile_the_mask():
    for make in (make_scene, make_parts_scene):
        for index in range(10):
            scene = make(1, index)
            assert np.array_equal(scene.instances > 0, scene.mask > 0) and scene.instances.dtype == np.uint8
            pairs = {(number, place) for number, place in zip(scene.mask.flat, scene.instances.flat, strict=True)}
            assert len(pairs) == len(np.unique(scene.mask)) == scene.instances.max() + 1  # unlike classes


def test_scenes_of_one_class_hold_several_objects_that_often_touch():
    counts, joined = [], 0
    for index in range(60):
        scene, again = make_scene(5, index, same_class=True), make_scene(5, index, same_class=True)
        assert np.array_equal(scene.image, again.image)
        assert len(np.unique(scene.mask)) == 2 and np.array_equal(scene.instances > 0, scene.mask > 0)
        places, pixels = np.unique(scene.instances[scene.instances > 0], return_counts=True)
        assert places.tolist() == list(range(1, len(places) + 1)) and pixels.min() >= MIN_VISIBLE
        counts.append(len(places))
        joined += ndimage.label(scene.mask, np.ones((3, 3)))[1] < len(places)
    assert set(counts) == {1, 2, 3} and joined > 0.7 * sum(count > 1 for count in counts)


@pytest.mark.parametrize("world", ["shapes", "parts", "same_class"])
def test_the_reader_of_a_world_gives_its_objects(world):
    cfg = toy(toy_world=world, val_images=3)
    reader = open_dataset(cfg, "val")
    origin, of = true_instances(cfg, reader, "val")
    assert origin == SCENES
    for index in range(3):
        mask, places, found = reader.mask(index), reader.instances(index), of(index)
        assert len(found) == places.max()
        for place, one in enumerate(found, start=1):
            assert np.array_equal(one.mask, places == place) and (mask[one.mask] == one.number).all()
    if world == "same_class":
        assert np.array_equal(reader.image(1), make_scene(1, 1, size=cfg.crop_size, same_class=True).image)


def test_worlds_have_digests_of_their_own():
    shapes = Config.preset("toy")
    assert shapes.replace(toy_world="same_class").digest() != shapes.digest()


def test_objects_of_coco_are_its_outlines_and_crowds_are_named(tmp_path):
    objects = [box(1, 18, 2, 3, 10, 9), box(2, 18, 8, 3, 14, 9), box(3, 1, 20, 0, 30, 20)]
    cfg = make_coco(tmp_path, [*objects, crowd(4, 17, 2, 20, 30)])
    reader = open_dataset(cfg, "train")
    origin, of = true_instances(cfg, reader, "train")
    assert origin == OUTLINES and len(reader) == 1
    assert [(COCO_CLASSES[one.number - 1], one.box, one.crowd) for one in of(0)] == [
        ("dog", (2, 3, 10, 9), False), ("dog", (8, 3, 14, 9), False),  # they overlap, and each is whole
        ("person", (20, 0, 30, 20), False), ("cat", (0, 0, 2, 20), True),
    ]  # fmt: skip


def test_masks_alone_have_component_boxes(tmp_path):
    cfg = make_voc(tmp_path)
    reader = open_dataset(cfg, "train")
    origin, of = true_instances(cfg, reader, "train")
    assert origin == PIECES and origin.startswith("component boxes")
    assert [[(one.number, one.box) for one in of(index)] for index in range(3)] == [
        [(3, (5, 1, 9, 2))], [(8, (5, 1, 9, 2))], [(3, (5, 1, 9, 2)), (8, (5, 2, 9, 3))],
    ]  # fmt: skip
    reader.mask = lambda index: None
    with pytest.raises(DataError, match="one has no mask: its boxes are not known"):
        of(0)


@pytest.mark.data
@needs_samples
def test_the_sample_of_coco_has_its_objects():
    root = SAMPLES / "coco_sample"
    if not root.is_dir():
        pytest.skip(f"no sample of COCO at {root}")
    cfg = Config.preset("coco_vit_b").replace(data_root=str(root))
    reader = open_dataset(cfg, "val")
    origin, of = true_instances(cfg, reader, "val")
    found = [of(index) for index in range(len(reader))]
    assert origin == OUTLINES
    assert (len(found), sum(map(len, found)), sum(one.crowd for part in found for one in part)) == (97, 815, 6)
    assert all(one.mask.shape == reader.mask(0).shape for one in found[0])
