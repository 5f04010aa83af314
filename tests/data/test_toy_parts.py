"""The toy world of parts: scenes from numbers alone, heads in sight, coats that two kinds share, and their reader."""

import hashlib
import pickle

import numpy as np
import pytest

from toco_lab.config import Config
from toco_lab.data import toy, toy_drawing, toy_parts
from toco_lab.data.check import check_dataset
from toco_lab.data.classes import DataError, class_names
from toco_lab.data.readers import open_dataset
from toco_lab.data.toy_parts import BODY, HEAD, PARTS_CLASSES, make_parts_scene
from toco_lab.data.unused import refuse_unused

CFG = Config.preset("toy_parts").replace(train_images=4, val_images=3)


def test_a_scene_depends_on_its_numbers_alone():
    first = make_parts_scene(0, 7, objects=3)
    make_parts_scene(3, 1)
    again = make_parts_scene(0, 7, objects=3)
    assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in ("image", "mask", "part"))
    for other in (make_parts_scene(0, 8, objects=3), make_parts_scene(1, 7, objects=3)):
        assert not np.array_equal(first.image, other.image)


def test_scenes_stay_what_they_are():
    """To the bit: scores of two versions are of the same scenes."""
    made = hashlib.sha256()
    for seed, index, options in ((0, 0, {}), (1, 57, {"objects": 1}), (0, 999, {"objects": 3}), (2, 5, {"size": 64})):
        scene = make_parts_scene(seed, index, **options)
        made.update(scene.image.tobytes() + scene.mask.tobytes() + scene.part.tobytes())
    assert made.hexdigest() == "eaeaacff9a1e3bbbb2d64e9d18112ae4b01d39640ca28751fa72aa839222e6c5"


@pytest.mark.parametrize("objects", [1, 3])
def test_every_animal_has_a_head_in_sight_and_a_body_larger_than_it(objects):
    counts = []
    for index in range(40):
        scene = make_parts_scene(4, index, objects=objects)
        assert (
            scene.image.shape == (96, 96, 3) and scene.image.dtype == scene.mask.dtype == scene.part.dtype == np.uint8
        )
        assert np.array_equal(scene.part > 0, scene.mask > 0)  # parts tile the animals
        labels = np.unique(scene.mask[scene.mask > 0])
        counts.append(len(labels))
        for label in labels:
            head, body = ((scene.mask == label) & (scene.part == part) for part in (HEAD, BODY))
            assert head.sum() >= 0.7 * np.pi * 8**2  # the smallest head, and a quarter of it hidden
            assert body.sum() >= 2 * toy.MIN_VISIBLE and (objects > 1 or body.sum() > 2 * head.sum())
            rows, columns = (head | body).nonzero()
            if objects == 1:  # much longer than a local crop of the preset
                assert max(np.ptp(rows), np.ptp(columns)) > 2 * CFG.local_crop_size
    assert set(counts) == {1} if objects == 1 else np.mean(counts) > 2.8 and max(counts) == 3


def test_the_number_of_animals_is_drawn_unless_it_is_given():
    assert {len(np.unique(make_parts_scene(5, index).mask)) - 1 for index in range(30)} == {1, 2, 3}


def test_heads_tell_the_kind_and_coats_only_the_pair():
    """One animal painted as each kind, from the same numbers: in a pair the coats are equal and the heads are not."""
    painted = []
    animal = toy_parts._drawn(np.random.default_rng(1), 96)[0]
    for kind in range(len(PARTS_CLASSES)):
        image = np.zeros((96, 96, 3), np.float32)
        toy_parts._paint(np.random.default_rng(2), image, animal, kind)
        painted.append(image)
    for kind in range(0, len(PARTS_CLASSES), 2):
        one, twin, stranger = painted[kind], painted[kind + 1], painted[(kind + 2) % len(PARTS_CLASSES)]
        assert np.array_equal(one[animal.body], twin[animal.body])
        assert not np.array_equal(one[animal.body], stranger[animal.body])
        assert abs(one[animal.head] - twin[animal.head]).mean() > 0.1
    assert all(image[~animal.inside].max() == 0 for image in painted)


def test_the_mask_is_where_the_animals_were_painted(monkeypatch):
    def flat(rng, image, animal, kind):
        image[animal.inside] = 1.0, 0.0, 1.0

    monkeypatch.setattr(toy_parts, "_paint", flat)
    monkeypatch.setattr(toy_drawing, "background", lambda rng, size: np.zeros((size, size, 3), np.float32))
    for index in range(5):
        scene = make_parts_scene(0, index, objects=2)
        assert np.array_equal(scene.image[..., 0] > 128, scene.mask > 0)


@pytest.mark.parametrize("wrong", [{"objects": 4}, {"objects": -1}, {"objects": 1.0}, {"size": 40}])
def test_a_number_out_of_its_range_is_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a whole number"):
        make_parts_scene(0, 0, **wrong)


def test_the_reader_gives_images_masks_labels_and_parts_of_one_scene():
    for split, seed in (("train", 0), ("val", 1)):
        reader = pickle.loads(pickle.dumps(open_dataset(CFG.replace(toy_objects=1), split)))  # as to a loader process
        scene = make_parts_scene(seed, 2, objects=1)
        assert np.array_equal(reader.image(2), scene.image) and np.array_equal(reader.mask(2), scene.mask)
        assert np.array_equal(reader.part(2), scene.part) and reader.classes == PARTS_CLASSES
        assert reader.image_label(2).nonzero()[0].tolist() == [scene.mask.max() - 1]
    assert not check_dataset(CFG, "val").problems


def test_worlds_have_names_digests_and_scenes_of_their_own():
    shapes = CFG.replace(toy_world="shapes")
    assert class_names(CFG) == PARTS_CLASSES and class_names(shapes) == toy.TOY_CLASSES
    assert shapes.digest() != CFG.digest() != CFG.replace(toy_objects=1).digest()
    before = Config.preset("toy").replace(crop_candidates="uncertain", ctc_between="negative")
    assert before.digest() == "6fd8d628"  # of every toy run made before there were two worlds
    assert not hasattr(open_dataset(shapes, "val"), "part")


def test_options_of_the_worlds_are_refused_where_nothing_reads_them():
    with pytest.raises(ValueError, match="toy_objects 1 is for toy_world 'parts'"):
        Config.preset("toy").replace(toy_objects=1)
    with pytest.raises(DataError, match="toy_world='parts' has no effect"):
        refuse_unused(Config.preset("voc_vit_b").replace(toy_world="parts"), ["toy_world"])
