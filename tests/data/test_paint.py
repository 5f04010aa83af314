"""Painted folders: what lies in them, and that the recipe reads it."""

import numpy as np
import pytest
from PIL import Image

from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.data.classes import DataError
from toco_lab.data.own_folder import complete_config
from toco_lab.data.paint import paint_folder
from toco_lab.data.readers import open_dataset
from toco_lab.data.toy_land import LAND_CLASSES
from toco_lab.data.toy_tissue import make_tissue_scene


def test_scans_are_squares_of_scenes_with_masks_and_labels(tmp_path):
    made = paint_folder(tmp_path / "scans", images=2, across=2, side=64, first=3, progress=False)
    assert (made.images, made.side) == (2, 128) and "2 images of 128 x 128 pixels" in str(made)
    scan = np.load(tmp_path / "scans" / "images" / "scan_0004.npy")
    mask = np.array(Image.open(tmp_path / "scans" / "masks" / "scan_0004.png"))
    assert scan.dtype == np.uint16 and scan.shape == (128, 128, 3) and 2000 < scan.max() <= 4095
    for place, number in enumerate(range(7, 11)):  # the second image begins after four scenes
        scene, top, left = make_tissue_scene(0, number, size=64), 64 * (place // 2), 64 * (place % 2)
        there = scan[top : top + 64, left : left + 64]
        assert np.array_equal(np.rint(there / (4095 / 255)).astype(np.uint8), scene.image)
        assert np.array_equal(mask[top : top + 64, left : left + 64], scene.mask)
    assert (tmp_path / "scans" / "classes.txt").read_text() == "granular cell\n"


def test_labels_say_what_an_image_shows(tmp_path):
    made = paint_folder(tmp_path, images=12, across=1, side=48, progress=False)
    lines = dict(line.split(",") for line in (tmp_path / "labels.csv").read_text().splitlines()[1:])
    empty = {f"scan_{number:04d}" for number in range(12) if not make_tissue_scene(0, number, size=48).mask.any()}
    assert {name for name, shown in lines.items() if not shown} == empty and made.without_class == len(empty) > 0


def test_windows_of_a_painted_folder_are_its_scenes(tmp_path):
    """The way of docs/domains.md and of notebook 12: paint, convert, read."""
    assert main(["data", "paint", str(tmp_path / "scans"), "--world", "land", "--images", "3", "--across", "2"]) == 0
    made = ["--side", "96", "--levels", "range", "--bits", "12"]
    assert main(["data", "convert", str(tmp_path / "scans"), str(tmp_path / "windows"), *made]) == 0
    cfg = complete_config(Config.preset("folder").replace(data_root=str(tmp_path / "windows")))
    reader = open_dataset(cfg, None)
    assert len(reader) == 12 and reader.classes == LAND_CLASSES
    scene = open_dataset(Config.preset("toy_land"), "train")
    assert np.array_equal(reader.image(3), scene.image(3))  # 12 bits and back
    assert np.array_equal(reader.mask(0), scene.mask(0)) and np.array_equal(reader.mask(3), scene.mask(3))


def test_what_cannot_be_painted_is_refused(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="there is not empty"):
        paint_folder(tmp_path / "there", images=1)
    with pytest.raises(ValueError, match=r"unknown world 'tisue'.*tissue"):
        paint_folder(tmp_path / "new", world="tisue")
    with pytest.raises(ValueError, match="across must be at least 1, got 0"):
        paint_folder(tmp_path / "new", across=0)
    assert not (tmp_path / "new").exists()
