"""The check of a data set: every problem once, notes, the pictures; on tiny folders and on real samples if there."""

from pathlib import Path

import numpy as np
import pytest
from helpers.folders import NAMES, SAMPLES, make_voc, needs_samples, save_mask, toy, write_list
from PIL import Image

from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.data import classes, image_labels
from toco_lab.data.check import SHOWN_PROBLEMS, CheckReport, check_dataset, contact_sheet, shared_pictures
from toco_lab.data.classes import PALETTE
from toco_lab.data.readers import open_dataset


@pytest.fixture
def voc(tmp_path: Path) -> Config:
    """The VOC folder of `folders.make_voc` with a picture of its own for each image."""
    cfg = make_voc(tmp_path)
    for index, name in enumerate(NAMES):
        Image.new("RGB", (30, 20), (50 * index, 100, 50)).save(Path(cfg.data_root) / f"JPEGImages/{name}.jpg")
    return cfg


def test_check_collects_every_problem(voc):
    root = Path(voc.data_root)
    write_list(root, ["one", "two", "three", "three", "four"])
    save_mask(root, "one", [77])
    (root / "JPEGImages/two.jpg").write_bytes(b"")
    report = check_dataset(voc, "train", progress=False)
    assert len(report.problems) == len(set(report.problems))
    for part in ("'three' stands twice", "no image for 'four'", "no mask for 'four'", r"one.png holds [77]", "two.jpg"):
        assert sum(part in problem for problem in report.problems) == 1, (part, report.problems)
    assert (report.num_images, report.num_masks, report.sizes) == (5, 2, {(30, 20): 3})
    assert str(report).count("\n") >= len(report.problems) and "bird 2" in str(report)


def test_check_of_a_sound_set(voc):
    report = check_dataset(voc, "train", progress=False)
    assert report.problems == [] and report.num_masks == 3
    assert {name: count for name, count in report.class_images.items() if count} == {"bird": 2, "cat": 2}
    assert report.ignored == pytest.approx(4 / 1800)
    assert "0 problems" in str(report) and "width 30..30" in str(report)


def test_check_of_a_missing_folder_reports_it(voc, tmp_path):
    report = check_dataset(voc.replace(data_root=str(tmp_path / "nowhere")), "train", progress=False)
    assert len(report.problems) == 1 and "\n1 problem\n" in str(report)


def test_a_sound_set_has_no_notes(voc):
    report = check_dataset(voc, "train", progress=False)
    assert (report.notes, report.doubtful) == ([], {}) and "note:" not in str(report)


def test_notes_on_labels_that_differ_from_masks(voc):
    """`one` shows a bird and is called a cat: that label has no pixels, and the bird no label."""
    (Path(voc.data_root) / "labels.csv").write_text("name,labels\none,cat\ntwo,cat\nthree,bird;cat;dog\n")
    report = check_dataset(voc.replace(label_source="labels.csv"), "train", progress=False)
    assert report.notes[0].startswith("warning: every image shows 'cat'")
    assert report.notes[1:] == [
        "2 images have a label with a class that the mask does not show (one, three)",
        "1 image has a mask with a class that the label does not name (one)",
        "1 class is named by labels and shown by no mask (dog)",
    ]
    assert len(report.problems) == 1 and report.problems[0].startswith(
        "2 of 3 masks do not show the classes that the labels name. Line k of classes.txt must be the class that"
    )
    assert report.doubtful == {
        "one": ["label without pixels", "class without label"],
        "three": ["label without pixels"],
    }
    assert [name for name, _ in contact_sheet(voc, report)] == [
        "one\nlabel without pixels\nclass without label", "three\nlabel without pixels", "two",
    ]  # fmt: skip


def test_note_on_a_quantised_colour_mask(voc):
    """Number 1 in the colour of class 3 and number 2 in that of class 8; a grey palette says nothing."""
    path = Path(voc.data_root) / "SegmentationClass/one.png"
    mask = np.zeros((20, 30), np.uint8)
    mask[2, 5:9], mask[3, 5:9] = 1, 2
    picture = Image.fromarray(mask)
    for palette, doubted in (
        (PALETTE[[0, 3, 8]], True),
        (PALETTE, False),
        (np.repeat(np.arange(256, dtype=np.uint8), 3), False),
        (np.array([[0, 0, 0], [1, 2, 3], [4, 5, 6]], np.uint8), False),
    ):
        picture.putpalette(palette.tobytes())
        picture.save(path)
        report = check_dataset(voc, "train", progress=False)
        # the other masks have VOC's palette: its colours then stand for two numbers
        assert (len(report.problems), "palette" in report.doubtful.get("one", [])) == (int(doubted), doubted)
        assert any("(one)" in note and "quantised" in note for note in report.notes) == doubted


def test_labels_of_which_few_differ_from_the_masks_are_no_problem(voc):
    (Path(voc.data_root) / "labels.csv").write_text("name,labels\none,bird\ntwo,cat\nthree,bird\n")
    report = check_dataset(voc.replace(label_source="labels.csv"), "train", progress=False)
    assert report.problems == [] and len(report.notes) == 1 and "(three)" in report.notes[0]


def test_a_palette_that_is_sorted_anew_for_each_mask_is_a_problem(voc):
    """The same red is class 3 in one mask and class 8 in the other; masks that agree are no problem."""
    mask = np.zeros((20, 30), np.uint8)
    for name, number, red in (("one", 3, 3), ("two", 8, 8), ("three", 3, 3)):
        mask[2, 5:9] = number
        colours = np.zeros((256, 3), np.uint8)
        colours[red] = 250, 7, 9
        picture = Image.fromarray(mask)
        picture.putpalette(colours.tobytes())
        picture.save(Path(voc.data_root) / f"SegmentationClass/{name}.png")
    report = check_dataset(voc, "train", progress=False)
    assert len(report.problems) == 1 and "palette was sorted anew for each file" in report.problems[0]
    assert "1 mask gives" in report.problems[0] and "(two)" in report.problems[0]
    write_list(Path(voc.data_root), ["one", "three"])
    assert check_dataset(voc, "train", progress=False).problems == []


def test_a_number_of_two_colours_is_a_problem(voc):
    """Colour pictures that were quantised one by one: number 1 is red in one mask and green in the next."""
    mask = np.zeros((20, 30), np.uint8)
    mask[2, 5:9] = 1
    for name, colour in (("one", (128, 0, 0)), ("two", (0, 128, 0)), ("three", (128, 0, 0))):
        picture = Image.fromarray(mask)
        picture.putpalette([0, 0, 0, *colour])
        picture.save(Path(voc.data_root) / f"SegmentationClass/{name}.png")
    report = check_dataset(voc, "train", progress=False)
    assert len(report.problems) == 1 and "a number another colour" in report.problems[0]
    assert "(two)" in report.problems[0]


def test_masks_of_0_and_255_are_a_problem(voc):
    """They train from labels, and would score 100 % without a single class in them."""
    root = Path(voc.data_root)
    (root / "labels.csv").write_text("name,labels\none,bird\ntwo,bird\nthree,bird\n")
    for name in NAMES:
        save_mask(root, name, [255])
    report = check_dataset(voc.replace(label_source="labels.csv"), "train", progress=False)
    assert any(
        f"the masks of 'train' in {root} hold no class: their only number above 0 is 255" in problem
        and "Save the class as number 1" in problem
        for problem in report.problems
    )
    assert "3 masks have 255, which is not counted, as the only foreground (one, two, three)" in report.notes
    assert "1 class is named by labels and shown by no mask (bird)" in report.notes


def test_what_reading_changes_is_noted(voc):
    root = Path(voc.data_root) / "JPEGImages"
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (30, 20), "grey").save(root / "one.jpg", exif=exif)
    Image.new("RGBA", (30, 20)).save(root / "two.jpg", "png")
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    frames[0].save(root / "three.jpg", "tiff", save_all=True, append_images=frames[1:])
    assert [note for note in check_dataset(voc, "train", progress=False).notes if "same" not in note] == [
        "1 image is turned as the EXIF orientation says: the masks must be, too (one)",
        "1 image has an alpha channel or a transparent colour: what is transparent becomes white (two)",
        "1 image holds several pictures, of which the first is read (three)",
    ]


def test_nearly_black_images_are_noted(voc):
    """A microscope's 12 bits in a file of 16 bits: 4095 of 65535 becomes 16 of 255."""
    root = Path(voc.data_root)
    (root / "JPEGImages/two.jpg").unlink()
    Image.fromarray(np.linspace(0, 4095, 600).reshape(20, 30).astype(np.uint16)).save(root / "JPEGImages/two.png")
    notes = check_dataset(voc, "train", progress=False).notes
    assert any("1 image is nearly black" in note and "(two, " not in note and "two" in note for note in notes), notes


def test_notes_on_equal_pictures(voc):
    root = Path(voc.data_root)
    (root / "JPEGImages/four.jpg").write_bytes((root / "JPEGImages/two.jpg").read_bytes())
    save_mask(root, "four", [8])
    write_list(root, [*NAMES, "four"])
    write_list(root, ["one", "four"], "val")
    train, val = (check_dataset(voc, split, progress=False) for split in ("train", "val"))
    assert train.notes == ["1 picture lies there under several names (two = four)"] and val.notes == []
    assert shared_pictures(train, val) == [
        "2 pictures of val are in train too: scores on them say little (one, two = four)"
    ]
    assert shared_pictures(val, CheckReport("voc", "test")) == []


def test_a_long_list_of_problems_is_cut_in_the_summary_only():
    report = CheckReport("voc", "train", problems=[f"wrong {number}" for number in range(SHOWN_PROBLEMS + 5)])
    assert str(report).endswith(f"wrong {SHOWN_PROBLEMS - 1}\n... and 5 more") and "25 problems" in str(report)
    assert report.text().endswith("wrong 24")


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_the_sheet_shows_the_worst_first_and_what_can_be_read(voc):
    root = Path(voc.data_root)
    (root / "JPEGImages/three.jpg").write_bytes(b"")
    colours = save_mask(root, "two", [3], mode="RGB")
    report = check_dataset(voc, "train", progress=False)
    sheet = dict(contact_sheet(voc, report))
    # without its image the size of a mask cannot be compared, and without its mask there is no label
    assert list(sheet) == ["three\nimage\nmask\nlabel", "two\nmask\nlabel", "one"]
    assert sheet["three\nimage\nmask\nlabel"]["image"] is None
    assert sheet["three\nimage\nmask\nlabel"]["mask"].shape == (20, 30)
    assert sheet["two\nmask\nlabel"]["mask"].shape == (*colours.shape, 3)
    assert np.array_equal(sheet["one"]["mask"], open_dataset(voc, "train").mask(0))
    assert len(contact_sheet(voc, report, 1)) == 1
    scenes = toy(train_images=3)
    assert [row["mask"].shape for _, row in contact_sheet(scenes, check_dataset(scenes, "train", progress=False))] == [
        (96, 96)
    ] * 3


def test_the_command_writes_summary_pictures_and_a_long_list(voc, tmp_path, capsys):
    write_list(Path(voc.data_root), NAMES, "train_aug")
    write_list(Path(voc.data_root), NAMES, "val")
    command = ["data", "check", "voc_vit_b", "--data-root", voc.data_root, "--out", str(tmp_path / "sheet.png")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "voc train_aug: 3 images, 3 masks" in printed and "3 pictures of val are in train_aug too" in printed
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG") and not (tmp_path / "sheet.txt").exists()
    write_list(Path(voc.data_root), [*NAMES, *(f"absent{n}" for n in range(15))], "val")
    save_mask(Path(voc.data_root), "one", [200])
    assert main(command) == 2
    assert "32 problems in voc train_aug, val" in capsys.readouterr().err
    assert "no image for 'absent14'" in (tmp_path / "sheet.txt").read_text()
    assert main(["data", "check", "no/such/place"]) == 2
    assert "neither a folder, nor a config file, nor a preset; presets are: toy" in capsys.readouterr().err


# --- real samples -----------------------------------------------------------------------------------------------------


@needs_samples
@pytest.mark.data
@pytest.mark.slow
def test_all_of_voc_sample(voc_sample):
    """660 images: 506 in train_aug, 154 in val."""
    reports = {split: check_dataset(voc_sample, split, progress=False) for split in ("train_aug", "val")}
    for report in reports.values():
        assert report.problems == [], str(report)
    assert [report.num_masks for report in reports.values()] == [506, 154]
    total = {name: sum(r.class_images[name] for r in reports.values()) for name in classes.VOC_CLASSES}
    known = {"aeroplane": 0, "bicycle": 11, "bird": 12, "bottle": 39, "cat": 172, "person": 226, "tvmonitor": 33}
    assert total | known == total
    widths = [width for report in reports.values() for width, _ in report.sizes.elements()]
    assert (min(widths), max(widths), len(widths)) == (267, 500, 660)
    assert 0.02 < reports["val"].ignored < 0.1  # the border of the official masks


@needs_samples
@pytest.mark.data
@pytest.mark.slow
def test_coco_sample():
    cfg = Config.preset("coco_vit_b").replace(data_root=str(SAMPLES / "coco_sample"), num_workers=0)
    reports = [check_dataset(cfg, split, progress=False) for split in ("train", "val")]
    assert [report.num_images for report in reports] == [51, 97]
    assert [report.problems for report in reports] == [[], []]
    assert sum(any(r.class_images[name] for r in reports) for name in classes.COCO_CLASSES) == 74
    reader = open_dataset(cfg.replace(label_source="lists/cls_labels_onehot.npy"), "train")
    grey = reader.names.index("COCO_train2014_000000000086")
    assert reader.image(grey).shape[2] == 3
    agree = [
        np.array_equal(reader.image_label(i), image_labels.label_of_mask(reader.mask(i), 80))
        for i in range(len(reader))
    ]
    assert all(agree)
