"""Readers: on tiny folders made here, on toy scenes, on real samples if there."""

from pathlib import Path

import numpy as np
import pytest
from helpers.folders import MEAN, NAMES, STD, classes_of, needs_samples, read_everything, save_mask, toy, write_list
from PIL import Image

from toco_lab.data.classes import DataError
from toco_lab.data.loader import TrainSamples, eval_samples
from toco_lab.data.readers import missing_truth, open_dataset

# --- folders, images, masks -------------------------------------------------------------------------------------------


def test_palette_and_grey_masks_give_the_same_labels(voc):
    root = Path(voc.data_root)
    palette = save_mask(root, "one", [3, 8, 255], mode="P")
    first = open_dataset(voc, "train").mask(0)
    save_mask(root, "one", [3, 8, 255], mode="L")
    second = open_dataset(voc, "train").mask(0)
    assert first.dtype == second.dtype == np.uint8
    assert np.array_equal(first, palette) and np.array_equal(second, palette)


def test_official_masks_come_first_but_sbd_for_train_aug(voc):
    root = Path(voc.data_root)
    save_mask(root, "one", [5], folder="SegmentationClassAug")
    save_mask(root, "four", [6], folder="SegmentationClassAug")
    Image.new("RGB", (30, 20)).save(root / "JPEGImages/four.jpg")
    for split in ("train", "train_aug"):
        write_list(root, ["one", "two", "four"], split)
    labels = {s: [classes_of(open_dataset(voc, s).image_label(i)) for i in range(3)] for s in ("train", "train_aug")}
    assert labels == {"train": [[3], [8], [6]], "train_aug": [[5], [8], [6]]}


@pytest.mark.parametrize("levels_up", [0, 1, 2])
def test_data_root_may_point_above_the_folder(voc, tmp_path, levels_up):
    (tmp_path / "VOCdevkit").mkdir()
    root = Path(voc.data_root).rename(tmp_path / "VOCdevkit/VOC2012")
    reader = open_dataset(voc.replace(data_root=str([root, *root.parents][levels_up])), "train")
    assert reader.names == list(NAMES) and reader.image(0).shape == (20, 30, 3)


def test_grey_jpeg_becomes_rgb_and_exif_orientation_is_applied(voc):
    root = Path(voc.data_root)
    Image.new("L", (30, 20), 77).save(root / "JPEGImages/one.jpg")
    turned = Image.new("RGB", (20, 30))
    turned.getexif()[0x0112] = 6  # "turn by 90 degrees"
    turned.save(root / "JPEGImages/two.jpg", exif=turned.getexif())
    reader = open_dataset(voc, "train")
    assert reader.image(0).shape == (20, 30, 3) and (reader.image(0) == 77).all()
    assert reader.image(1).shape == (20, 30, 3) and reader.mask(1).shape == (20, 30)


# --- errors: each names the file and the remedy -----------------------------------------------------------------------


def test_error_missing_folder(voc, tmp_path):
    with pytest.raises(DataError, match=r"nowhere/VOCdevkit/VOC2012/JPEGImages.*data/README.md"):
        open_dataset(voc.replace(data_root=str(tmp_path / "nowhere")), "train")


def test_error_missing_list(voc):
    with pytest.raises(DataError, match=r"no list .*vall.txt; lists in that folder: train\. .*correct the split"):
        open_dataset(voc, "vall")


def test_error_empty_list(voc):
    write_list(Path(voc.data_root), [])
    with pytest.raises(DataError, match=r"train.txt is empty.*one file name a line"):
        open_dataset(voc, "train")


def test_error_duplicates_and_missing_images_are_counted(voc):
    write_list(Path(voc.data_root), ["one", "one", "five.jpg", "six"])
    with pytest.raises(DataError, match=r"'one' stands twice in .*train.txt. Remove.*and 4 more; .*check") as error:
        open_dataset(voc, "train")
    assert "five" not in str(error.value)
    write_list(Path(voc.data_root), ["one", "five.jpg"])
    with pytest.raises(DataError, match=r"no image for 'five.jpg' of .*train.txt in JPEGImages.*without folder"):
        open_dataset(voc, "train")


def test_error_missing_mask(voc):
    (Path(voc.data_root) / "SegmentationClass/two.png").unlink()
    with pytest.raises(DataError, match=r"no mask for 'two' of .*SegmentationClass.*or give a label file"):
        open_dataset(voc, "train")


@pytest.mark.parametrize("share", [0, 0.5])
def test_error_damaged_jpeg(voc, share):
    path = Path(voc.data_root) / "JPEGImages/two.jpg"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"cannot decode .*two.jpg.*damaged"):
        read_everything(voc)


def test_error_damaged_mask(voc):
    path = Path(voc.data_root) / "SegmentationClass/two.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"cannot decode .*two.png.*damaged"):
        read_everything(voc)


def test_error_mask_of_another_size(voc):
    save_mask(Path(voc.data_root), "two", [3], size=(30, 21))
    with pytest.raises(DataError, match=r"two.png is 21x30, its image .*two.jpg is 30x20. Make the mask anew"):
        read_everything(voc)


def test_error_mask_values(voc):
    save_mask(Path(voc.data_root), "two", [20, 21, 90, 255])
    with pytest.raises(DataError, match=r"two.png holds \[21, 90\]; allowed are 0..20 and 255. Renumber"):
        read_everything(voc)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1"])
def test_error_mask_mode(voc, mode):
    save_mask(Path(voc.data_root), "two", [3], mode=mode)
    with pytest.raises(DataError, match=rf"two.png has mode {mode}, i.e. colours.*8-bit grey or palette PNG"):
        read_everything(voc)


def test_an_image_without_a_class_is_read_as_all_background(voc):
    save_mask(Path(voc.data_root), "two", [255])
    read_everything(voc)
    assert eval_samples(voc, MEAN, STD)[1].image_label.sum() == 0
    assert any(sample.label.sum() == 0 for sample in map(TrainSamples(voc, MEAN, STD).__getitem__, range(3)))


def test_two_images_of_one_name(voc):
    Image.new("RGB", (30, 20)).save(Path(voc.data_root) / "JPEGImages/two.png")
    with pytest.raises(DataError, match=r"two images are called .*JPEGImages/two\.\*.*Rename or remove"):
        open_dataset(voc, "train")


def test_missing_truth_says_how_much_is_missing(voc):
    assert missing_truth(voc) == ""
    table = Path(voc.data_root) / "labels.csv"
    table.write_text("name,labels\none,bird\ntwo,cat\nthree,bird\n")
    (Path(voc.data_root) / "SegmentationClass/two.png").unlink()
    words = missing_truth(voc.replace(label_source="labels.csv"))
    assert words.startswith("1 of 3 images of 'train'") and "mIoU of CAM and segmentation cannot be measured" in words


# --- toy --------------------------------------------------------------------------------------------------------------


def test_toy_streams():
    train, val = open_dataset(toy(), "train"), open_dataset(toy(val_images=4), "val")
    assert (len(train), len(val)) == (7, 4)
    images = {reader.image(i).tobytes() for reader in (train, val) for i in range(len(reader))}
    assert len(images) == 11, "train and val share a scene"
    present = np.unique(train.mask(2))
    assert classes_of(train.image_label(2)) == [c for c in present.tolist() if c not in (0, 255)]


def test_toy_errors():
    with pytest.raises(DataError, match="toy has no split 'test'; there are: train, val"):
        open_dataset(toy(), "test")
    with pytest.raises(DataError, match="give val_images"):
        open_dataset(toy(val_images=0), "val")


# --- real samples -----------------------------------------------------------------------------------------------------


@needs_samples
@pytest.mark.data
def test_voc_sample_palette_and_grey_files_are_the_same_labels(voc_sample):
    official, aug = open_dataset(voc_sample, "train"), open_dataset(voc_sample, "train_aug")
    for name in official.names[:20]:
        first, second = official.names.index(name), aug.names.index(name)
        assert np.array_equal(official.mask(first), aug.mask(second)), name
