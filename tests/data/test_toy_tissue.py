"""The toy world of tissue: exact cells, two images in five without one, kinds that differ in their nucleus alone."""

import hashlib
import pickle

import numpy as np
import pytest
from scipy import ndimage

from toco_lab.config import Config
from toco_lab.data import toy_tissue
from toco_lab.data.classes import DataError, class_names
from toco_lab.data.readers import open_dataset
from toco_lab.data.toy_tissue import TISSUE_CLASSES, make_tissue_scene

CFG = Config.preset("toy_tissue").replace(train_images=4, val_images=3)
SCENES = [make_tissue_scene(7, index) for index in range(300)]


def test_two_scenes_in_five_show_no_cell_of_the_class():
    empty = [not scene.mask.any() for scene in SCENES]
    assert abs(np.mean(empty) - 0.4) < 3 * np.sqrt(0.4 * 0.6 / len(SCENES))
    assert set(np.unique([scene.mask for scene in SCENES])) == {0, 1}


def test_cells_of_the_class_cover_two_to_five_per_cent_and_are_whole_discs():
    shares, places, counts = [], [], []
    for scene in SCENES:
        if not scene.mask.any():
            continue
        shares.append(scene.mask.mean())
        labels = np.unique(scene.instances[scene.instances > 0])
        assert np.array_equal(scene.instances > 0, scene.mask > 0) and labels.tolist() == [*range(1, len(labels) + 1)]
        counts.append(len(labels))
        for label in labels:
            inside = scene.instances == label
            rows, columns = inside.nonzero()
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert ndimage.label(inside)[1] == 1 and abs(height - width) <= 1
            assert inside.sum() == pytest.approx(np.pi / 4 * height * width, rel=0.12)  # a disc, no part hidden
            assert 11 <= height <= 26
            places.append((rows.mean(), columns.mean()))
    assert 0.0185 <= min(shares) < 0.022 and 0.045 < max(shares) <= 0.05
    assert set(counts) == {1, 2}
    middle = np.mean([28 <= row < 68 and 28 <= column < 68 for row, column in places])
    assert middle < 0.4  # 17 % of the image: a cell need not be in the middle


def test_kinds_differ_in_the_nucleus_alone_and_not_in_its_brightness():
    ground = np.full((96, 96, 3), 0.8, np.float32)
    for seed in range(6):
        cells, centre = [], np.array([40.0, 50.0])
        for granular in (True, False):
            image = ground.copy()
            inside = toy_tissue._draw_cell(np.random.default_rng(seed), image, centre, 11.05, granular=granular)
            cells.append(image)
            assert np.array_equal(inside, np.hypot(*(np.indices((96, 96)) - centre[:, None, None])) < 11.05)
        differs = (cells[0] != cells[1]).any(2)
        assert 0 < differs.sum() and (np.hypot(*np.subtract(differs.nonzero(), centre[:, None])) < 0.95 * 11).all()
        assert cells[0].mean() == pytest.approx(cells[1].mean(), rel=1e-4)
        assert cells[0][inside].std() > cells[1][inside].std()


def test_a_scene_depends_on_its_numbers_alone_and_stays_what_it_is():
    made = hashlib.sha256()
    for seed, index, size in ((0, 0, 96), (0, 2, 96), (1, 57, 96), (0, 5, 64)):
        scene = make_tissue_scene(seed, index, size=size)
        again = make_tissue_scene(seed, index, size=size)
        assert np.array_equal(scene.image, again.image) and scene.image.shape == (size, size, 3)
        made.update(scene.image.tobytes() + scene.mask.tobytes() + scene.instances.tobytes())
    assert made.hexdigest() == "5ee0200b007893ed13cc64993badce731a76dafc0087aa64f1d300fbd67fef73"
    assert not np.array_equal(make_tissue_scene(0, 1).image, make_tissue_scene(1, 1).image)


def test_a_larger_scene_shows_the_same_share():
    large = [make_tissue_scene(0, index, size=256).mask.mean() for index in range(12)]
    assert all(share == 0 or 0.0185 < share < 0.05 for share in large) and max(large) > 0


def test_the_reader_gives_the_scenes_and_empty_labels():
    for split, seed in (("train", 0), ("val", 1)):
        reader = pickle.loads(pickle.dumps(open_dataset(CFG, split)))
        assert reader.classes == TISSUE_CLASSES == class_names(CFG)
        for index in range(3):
            scene = make_tissue_scene(seed, index)
            assert np.array_equal(reader.image(index), scene.image)
            assert np.array_equal(reader.instances(index), scene.instances)
            assert reader.image_label(index).tolist() == [float(scene.mask.any())]
    with pytest.raises(DataError, match=r"toy has 1 class \(toy_world 'tissue'\), the config says num_classes=6"):
        class_names(Config.preset("toy").replace(toy_world="tissue"))


@pytest.mark.parametrize("wrong", [{"size": 40}, {"seed": -1}, {"index": 0.5}])
def test_a_number_out_of_its_range_is_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a whole number"):
        make_tissue_scene(**({"seed": 0, "index": 0} | wrong))
