"""Otsu's threshold against loops, and the trivial rows on images whose best answer is known."""

import numpy as np
import pytest
from PIL import Image

from toco_lab.config import Config
from toco_lab.data.classes import DataError, save_mask
from toco_lab.data.own_folder import complete_config
from toco_lab.evaluation.box_scores import ALL
from toco_lab.evaluation.otsu import OtsuRule, foreground, measure_otsu, otsu_rule, otsu_threshold


def slow_threshold(levels):
    best, found = -1.0, 0
    for threshold in range(256):
        low, high = levels[levels <= threshold].astype(float), levels[levels > threshold].astype(float)
        if len(low) and len(high):
            variance = len(low) * len(high) * (low.mean() - high.mean()) ** 2
            if variance > best * (1 + 1e-12):
                best, found = variance, threshold
    return found


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_that_of_loops(seed):
    rng = np.random.default_rng(seed)
    levels = (
        np.concatenate([rng.normal(70, 20, 300), rng.normal(170, 15, 60 * seed + 20)]).clip(0, 255).astype(np.uint8)
    )
    assert otsu_threshold(levels) == slow_threshold(levels)
    assert otsu_threshold(np.full(5, 9, np.uint8)) == 9


def test_the_brightest_channel_decides():
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 1], image[:2, :, 1] = 150, 250  # the largest mean
    image[:, :2, 0] = 255
    assert np.array_equal(foreground(image, above=True), np.arange(4)[:, None] < 2 + np.zeros(4))
    assert np.array_equal(foreground(image, above=False), ~foreground(image, above=True))


def test_a_pixel_has_the_most_frequent_class_that_is_told():
    image = np.zeros((2, 2, 3), np.uint8)
    image[0] = 200
    rule = OtsuRule(above=True, order=(3, 1, 2))
    assert rule.label(image).tolist() == [[3, 3], [0, 0]]
    assert rule.label(image, np.array([1, 1, 0])).tolist() == [[1, 1], [0, 0]]
    assert not rule.label(image, np.zeros(3)).any()


def dark_objects(tmp_path, masks=True) -> Config:
    """Six images: a dark square of class 1 or 2 on noise, or nothing but noise; class 2 covers more."""
    rng, names = np.random.default_rng(0), [f"tile_{i}" for i in range(6)]
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i, name in enumerate(names):
        image = rng.normal(200, 4, (24, 24, 3)).clip(0, 255).astype(np.uint8)
        mask = np.zeros((24, 24), np.uint8)
        if i % 3:
            mask[4 : 8 + 4 * (i % 3), 6:16] = i % 3
            image[mask > 0] = 60
        Image.fromarray(image).save(tmp_path / "images" / f"{name}.png")
        if masks:
            save_mask(tmp_path / "masks" / f"{name}.png", mask)
    (tmp_path / "classes.txt").write_text("nucleus\nvessel\n")
    rows = "\n".join(f"{name},{['', 'nucleus', 'vessel'][i % 3]}" for i, name in enumerate(names))
    (tmp_path / "labels.csv").write_text(f"name,labels\n{rows}\n")
    (tmp_path / "train.txt").write_text("\n".join(names[:3]))
    (tmp_path / "val.txt").write_text("\n".join(names[3:]))
    return complete_config(Config.preset("folder").replace(data_root=str(tmp_path)))


def test_dark_objects_are_found_and_so_is_noise_on_empty_images(tmp_path):
    cfg = dark_objects(tmp_path)
    rule = otsu_rule(cfg)
    assert not rule.above and rule.order == (2, 1)
    table = measure_otsu(cfg).set_index(["target", "class"])
    assert table.loc["cam", "dice"].tolist() == [1, 1, 1]
    # nobody tells: each object is called a vessel, and half of the noise is below its own threshold
    assert table.loc[("otsu", "nucleus"), "iou"] == 0
    assert 0.3 < table.loc[("otsu", ALL), "empty_area"] < 0.7 and table.loc["cam", "empty_area"].isna().all()


def test_without_masks_there_is_no_side_to_choose(tmp_path):
    with pytest.raises(DataError, match="no training image of 'train' has a mask, by which Otsu's side"):
        otsu_rule(dark_objects(tmp_path, masks=False))
