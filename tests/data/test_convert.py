"""From a folder of large images of many bits to windows that train: pixels, labels and lists of every window."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.data.bands import as_picture
from toco_lab.data.check import check_dataset
from toco_lab.data.classes import DataError, save_mask
from toco_lab.data.convert import convert_folder, preparation
from toco_lab.data.own_folder import complete_config
from toco_lab.data.readers import open_dataset
from toco_lab.evaluation.evaluate import protocol_record

SIDE = 40


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Five arrays of 90 x 70 pixels and 4 bands: two with masks, two without (one healthy, one not), one small."""
    rng, root = np.random.default_rng(0), tmp_path / "scans"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for name, shape in (
        ("a", (90, 70)),
        ("b", (90, 70)),
        ("healthy", (90, 70)),
        ("ill", (90, 70)),
        ("small", (40, 30)),
    ):
        np.save(root / f"images/{name}.npy", rng.integers(0, 4000, (*shape, 4), dtype=np.uint16))
    mask = np.zeros((90, 70), np.uint8)
    mask[5:10, 60:70], mask[85:, :3], mask[45, 35] = 2, 1, 255
    save_mask(root / "masks/a.png", mask)
    save_mask(root / "masks/b.png", np.zeros((90, 70), np.uint8))
    (root / "classes.txt").write_text("cyst\ntumour\n")
    (root / "labels.csv").write_text("name,labels\na,cyst;tumour\nb,\nhealthy,\nill,cyst\nsmall,tumour\n")
    return root


def test_a_window_has_the_pixels_the_mask_and_the_labels_of_its_place(scans: Path, tmp_path: Path) -> None:
    made = convert_folder(scans, tmp_path / "ready", side=SIDE, bands=(4, 2, 1), progress=False)
    cfg = complete_config(Config.preset("folder").replace(data_root=str(tmp_path / "ready")))
    assert cfg.label_source == "labels.csv" and cfg.classes == ("cyst", "tumour")
    reader = open_dataset(cfg, "train")
    every = {**dict(zip(reader.names, range(len(reader)), strict=True))}
    val = open_dataset(cfg, "val")
    assert len(every) + len(val) == made.written == 3 * 6 + 1 and made.left_out == ["ill"]
    raw, mask = np.load(scans / "images/a.npy"), np.array(Image.open(scans / "masks/a.png"))
    picture, shown = as_picture(raw, "a", bands=(4, 2, 1)), {}
    where = {name: (reader, index) for name, index in every.items()}
    where |= {name: (val, index) for index, name in enumerate(val.names)}
    for top in (0, 40, 50):
        for left in (0, 30):
            name = f"a_y{top:05d}_x{left:05d}"
            split, index = where[name]
            part = slice(top, top + SIDE), slice(left, left + SIDE)
            assert np.array_equal(split.image(index), picture[part])
            assert np.array_equal(split.mask(index), mask[part])
            shown[top, left] = split.image_label(index).tolist()
    assert shown == {
        (0, 0): [0, 0],
        (0, 30): [0, 1],
        (40, 0): [0, 0],
        (40, 30): [0, 0],
        (50, 0): [1, 0],
        (50, 30): [0, 0],
    }
    for name in where:  # of a healthy image every window is healthy, a small one is its only window
        if name[0] in "bhs":
            split, index = where[name]
            assert split.image_label(index).tolist() == ([0, 1] if name == "small" else [0, 0])
    assert made.without_class == sum(not any(row) for row in shown.values()) + 12
    assert "left out: 1 image (ill) with a class and no mask" in str(made)
    assert not check_dataset(cfg, "train", progress=False).problems


def test_windows_of_one_image_are_in_one_list(scans: Path, tmp_path: Path) -> None:
    convert_folder(scans, tmp_path / "drawn", side=SIDE, bands=(1, 2, 3), progress=False)
    lists = [(tmp_path / f"drawn/{split}.txt").read_text().split() for split in ("train", "val")]
    images = [{name.split("_")[0] for name in names} for names in lists]
    assert images[0] and images[1] and not images[0] & images[1]
    (scans / "train.txt").write_text("b\nhealthy\n")
    (scans / "val.txt").write_text("a\n")
    convert_folder(scans, tmp_path / "given", side=SIDE, bands=(1, 2, 3), progress=False)
    names = (tmp_path / "given/val.txt").read_text().split()
    assert len(names) == 6 and {name[0] for name in names} == {"a"}


def test_the_protocol_says_how_the_folder_was_made(scans: Path, tmp_path: Path) -> None:
    assert main(["data", "convert", str(scans), str(tmp_path / "ready"), "--bands", "4", "2", "1"]) == 0
    cfg = Config.preset("folder").replace(data_root=str(tmp_path / "ready"))
    record = json.loads((tmp_path / "ready/prepared.json").read_text())
    assert record["bands"] == [4, 2, 1] and record["side"] == 0 and "percentiles 1 to 99" in record["rule"]
    assert protocol_record(cfg, "cam", "val", 3, "")["prepared"] == record
    plain = Config.preset("folder").replace(data_root=str(scans))
    assert preparation(plain) == {} == preparation(Config.preset("toy"))
    assert "prepared" not in protocol_record(Config.preset("toy"), "cam", "val", 3, "")
    assert sorted(path.stem for path in (tmp_path / "ready/images").iterdir()) == ["a", "b", "healthy", "ill", "small"]


def test_images_alone_are_converted_too(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    grey = np.random.default_rng(1).integers(100, 900, (50, 60), dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "raw/x.png")
    made = convert_folder(tmp_path / "raw", tmp_path / "ready", progress=False)
    found = np.array(Image.open(tmp_path / "ready/images/x.png"))
    assert made.written == 1 and np.array_equal(found, as_picture(grey[..., None], "x")) and found.max() == 255
    assert not (tmp_path / "ready/labels.csv").exists()


def test_what_is_wrong_is_said(scans: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.npy has 4 bands: choose three"):
        convert_folder(scans, tmp_path / "one", progress=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    with pytest.raises(DataError, match="full is not empty"):
        convert_folder(scans, tmp_path / "full", progress=False)
    with pytest.raises(ValueError, match="side must be a number of pixels"):
        convert_folder(scans, tmp_path / "two", side=-1, progress=False)
    with pytest.raises(ValueError, match="bits must be 9 to 32, for levels 'range', got 12 and 'percentile'"):
        convert_folder(scans, tmp_path / "two", bits=12, progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no image in .*empty"):
        convert_folder(tmp_path / "empty", tmp_path / "three", progress=False)
    save_mask(scans / "masks/healthy.png", np.zeros((90, 71), np.uint8))
    with pytest.raises(DataError, match=r"healthy.png is 71x90, its image .* is 70x90"):
        convert_folder(scans, tmp_path / "four", bands=(1, 2, 3), progress=False)
    (scans / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"classes.txt is missing"):
        convert_folder(scans, tmp_path / "five", bands=(1, 2, 3), progress=False)
