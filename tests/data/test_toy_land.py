"""The toy world of land: four classes that touch, none in the middle, masks where things were painted."""

import hashlib
import pickle

import numpy as np
import pytest

from toco_lab.config import Config
from toco_lab.data import toy_land
from toco_lab.data.classes import class_names
from toco_lab.data.readers import open_dataset
from toco_lab.data.toy import MIN_VISIBLE
from toco_lab.data.toy_land import FIELD, LAND_CLASSES, ORCHARD, ROAD, ROOF, make_land_scene

CFG = Config.preset("toy_land").replace(train_images=4, val_images=3)
SCENES = [make_land_scene(7, index) for index in range(300)]
LABELS = (FIELD, ORCHARD, ROAD, ROOF)


def test_every_class_is_in_about_half_of_the_scenes_and_no_scene_shows_all():
    shown = np.array([[(scene.mask == label).any() for label in LABELS] for scene in SCENES])
    # 0.9 * (0.3 + 2 * 0.4 + 3 * 0.3) / 4 = 0.45, with a standard deviation of 0.029
    assert (abs(shown.mean(0) - 0.45) < 0.1).all() and shown.sum(1).max() == 3
    assert 0.05 < (~shown.any(1)).mean() < 0.16
    assert all(np.bincount(scene.mask.ravel(), minlength=5)[1:][row].min(initial=MIN_VISIBLE) >= MIN_VISIBLE
               for scene, row in zip(SCENES, shown, strict=True))  # fmt: skip


def test_no_class_lives_in_the_middle():
    """Of each class the share of the middle ninth is near that of any other part of the image."""
    masks = np.stack([scene.mask for scene in SCENES])
    for label in LABELS:
        everywhere, middle = (masks == label).mean(), (masks[:, 32:64, 32:64] == label).mean()
        assert 0.6 < middle / everywhere < 1.7, label


def test_classes_touch():
    def borders(mask):
        sides = [(mask[:, 1:], mask[:, :-1]), (mask[1:], mask[:-1])]
        return {
            tuple(sorted(pair)) for a, b in sides for pair in zip(a[a != b].tolist(), b[a != b].tolist(), strict=True)
        }

    met = set().union(*(borders(scene.mask) for scene in SCENES))
    assert met == {(a, b) for a in range(5) for b in range(a + 1, 5)}


def test_the_mask_is_where_things_were_painted(monkeypatch):
    """Everything painted in the number of its label over black ground, so that the image is the mask."""

    def plain(label):
        def paint(rng, image, inside, *_):
            image[inside] = label / 10

        return paint

    roof = toy_land._draw_roof

    def draw_roof(rng, image, beside):
        inside = roof(rng, image, beside)
        image[inside] = ROOF / 10
        return inside

    monkeypatch.setattr(toy_land, "_meadow", lambda rng, size: np.zeros((size, size, 3), np.float32))
    monkeypatch.setattr(toy_land, "_paint_parcel", lambda rng, image, inside, label: plain(label)(rng, image, inside))
    monkeypatch.setattr(toy_land, "_paint_road", plain(ROAD))
    monkeypatch.setattr(toy_land, "_draw_roof", draw_roof)
    seen = set()
    for index in range(20):
        scene = make_land_scene(0, index)
        levels, labels = scene.image.mean(2) / 255, set(np.unique(scene.mask).tolist())
        assert np.abs(levels - scene.mask / 10).max() < 0.16  # noise of 0.03
        for label in labels:
            assert levels[scene.mask == label].mean() == pytest.approx(label / 10, abs=0.02)
        seen |= labels
    assert seen == {0, *LABELS}


def test_a_scene_depends_on_its_numbers_alone_and_stays_what_it_is():
    made = hashlib.sha256()
    for seed, index, size in ((0, 0, 96), (0, 6, 96), (1, 57, 96), (0, 5, 64)):
        scene, again = make_land_scene(seed, index, size=size), make_land_scene(seed, index, size=size)
        assert np.array_equal(scene.image, again.image) and np.array_equal(scene.mask, again.mask)
        made.update(scene.image.tobytes() + scene.mask.tobytes() + scene.instances.tobytes())
    assert made.hexdigest() == "3b1d3e41a391df7fd755a68666b1e42e3c76e7655099a67161ff9e6efd37d840"


@pytest.mark.parametrize("size", [48, 256])
def test_other_sizes(size):
    for index in range(20 if size == 48 else 3):
        scene = make_land_scene(2, index, size=size)
        assert scene.image.shape == (size, size, 3) and scene.instances.max() < 128
        assert np.array_equal(scene.instances > 0, scene.mask > 0)


def test_the_reader_gives_the_scenes():
    for split, seed in (("train", 0), ("val", 1)):
        reader = pickle.loads(pickle.dumps(open_dataset(CFG, split)))
        scene = make_land_scene(seed, 2)
        assert np.array_equal(reader.image(2), scene.image) and np.array_equal(reader.mask(2), scene.mask)
        assert reader.classes == LAND_CLASSES == class_names(CFG)


def test_scenes_that_are_too_large_are_refused():
    with pytest.raises(ValueError, match="size must be a whole number of at most 512, got 520"):
        make_land_scene(0, 0, size=520)
    with pytest.raises(ValueError, match="crop_size 520 is the side of a scene, and those of toy_world 'land'"):
        CFG.replace(crop_size=520, image_size=520)
