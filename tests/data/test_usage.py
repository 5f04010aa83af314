"""What a folder's run uses and leaves out; images without a class; a class on every image; options without effect."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.folders import SMALL, TABLE, make_folder, save_mask, write_xml
from PIL import Image

from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.data.check import check_dataset
from toco_lab.data.classes import DataError
from toco_lab.data.own_folder import complete_config, folder_names
from toco_lab.data.readers import open_dataset
from toco_lab.data.unused import refuse_unused
from toco_lab.data.usage import folder_usage
from toco_lab.runs.run_dir import RunDir
from toco_lab.sweeps.grid import Grid


@pytest.fixture
def gaps(tmp_path) -> Config:
    """A folder with one file of each kind that no run reads."""
    cfg = make_folder(tmp_path, {**TABLE, "ghost": ["cat"], "deep": ["dog"]})
    images = tmp_path / "images"
    for name in ("sub/deep.jpg", "sub/one.jpg", "a/twin.jpg", "b/twin.jpg", "bare.jpg", "._one.jpg"):
        (images / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (50, 40)).save(images / name)
    (images / "phone.heic").write_bytes(b"")
    (tmp_path / "classes.txt").write_text("ant\ncat\ndog\n")
    (tmp_path / "masks").mkdir()
    save_mask(tmp_path, "lost", [1], folder="masks", size=(40, 50))
    (tmp_path / "masks/one.bmp").write_bytes(b"")
    return complete_config(cfg)


LEFT_OUT = {
    "images/phone.heic": "has an extension that is not read. Images end in .jpg",
    "images/sub/one.jpg": "has the name of another image",
    "images/a/twin.jpg": "has the name of another image",
    "images/b/twin.jpg": "has the name of another image",
    "images/bare.jpg": "has no label",
    "ghost": "is a row of labels.csv without an image",
    "masks/lost.png": "is a mask without an image",
    "masks/one.bmp": "has an extension that is not read. Masks are PNGs",
}


def test_a_linked_subfolder_is_not_passed_over(tmp_path):
    cfg = make_folder(tmp_path / "own", TABLE)
    far = tmp_path / "far"
    far.mkdir()
    Image.new("RGB", (50, 40)).save(far / "more.jpg")
    (tmp_path / "own/images/more").symlink_to(far)
    (tmp_path / "own/images/back").symlink_to(tmp_path / "own")
    problems = check_dataset(complete_config(cfg), "train", progress=False).problems
    reason = "is a link to a folder, which is not followed. Put the folder itself there"
    assert [sum(p.startswith(f"not used: images/{name} {reason}") for p in problems) for name in ("more", "back")] == [
        1,
        1,
    ]
    masks = tmp_path / "masked"
    (masks / "images").mkdir(parents=True)
    (masks / "masks").mkdir()
    Image.new("RGB", (50, 40)).save(masks / "images/one.jpg")
    (masks / "masks/all").symlink_to(far)
    with pytest.raises(DataError, match=r"\(masks/all is a link to a folder, which is not followed\)"):
        complete_config(cfg.replace(data_root=str(masks), classes=None))


def test_what_is_left_out_is_listed_with_the_reason(gaps, tmp_path):
    problems = check_dataset(gaps, "train", progress=False).problems
    for what, reason in LEFT_OUT.items():
        assert sum(problem.startswith(f"not used: {what} {reason}") for problem in problems) == 1, (what, problems)
    assert len(problems) == len(LEFT_OUT)
    names = [name for split in ("train", "val") for name in open_dataset(gaps, split).names]
    assert sorted(names) == sorted([*TABLE, "deep"])  # of the subfolder, the image that no other shares its name with


@pytest.mark.parametrize("below", ["images/one.jpg", "masks/one.png"])
def test_pipes_and_broken_links_are_said_by_name(tmp_path, below):
    """They have the name of an image or a mask: they are not passed over as if nothing lay there."""
    cfg = make_folder(tmp_path, TABLE)
    (tmp_path / "classes.txt").write_text("ant\ncat\ndog\n")
    (tmp_path / "masks").mkdir()
    for name in TABLE:
        save_mask(tmp_path, name, [1, 2, 3], folder="masks", size=(40, 50))
    for make, cause in (
        (os.mkfifo, "no regular file, but a pipe"),
        (lambda path: path.symlink_to(tmp_path / "nowhere"), "there is no file"),
        (lambda path: path.symlink_to(path), "symbolic links"),
    ):
        (tmp_path / below).unlink()
        make(tmp_path / below)
        reports = [check_dataset(complete_config(cfg), split, progress=False) for split in ("train", "val")]
        problems = [problem for report in reports for problem in report.problems]
        assert any(below in problem and cause in problem for problem in problems), (cause, problems)


def test_lists_leave_images_out(tmp_path):
    cfg = complete_config(make_folder(tmp_path, TABLE))
    for split, text in (("train", "one\ntwo\n"), ("val", "three\n"), ("test", "four\n")):
        (tmp_path / f"{split}.txt").write_text(text)
    usage = folder_usage(cfg)
    assert usage.used == {"train": 2, "val": 1}
    assert usage.problems() == [f"not used: images/{name}.jpg stands in no list. Add its name to one" for name in
                                ("five", "six")]  # fmt: skip
    assert folder_usage(Config.preset("smoke")) is None


def test_no_problem_means_that_every_file_is_used(tmp_path):
    cfg = complete_config(make_folder(tmp_path, TABLE))
    assert check_dataset(cfg, "train", progress=False).problems == []
    assert folder_usage(cfg).lines()[0] == "images used: 5 train, 1 val; left out: none"


def test_a_class_on_every_image_carries_no_information(tmp_path):
    cfg = complete_config(make_folder(tmp_path, {name: ["cat", *TABLE[name]] for name in TABLE}))
    words = "warning: every image shows 'cat'"
    assert any(note.startswith(words) for note in check_dataset(cfg, "train", progress=False).notes)
    assert folder_usage(cfg).lines()[-1].startswith(words)
    cfg = complete_config(make_folder(tmp_path / "other", TABLE))
    assert "every image" not in str(check_dataset(cfg, "train", progress=False))


def test_images_of_both_splits_and_one_list_for_both(tmp_path):
    cfg = complete_config(make_folder(tmp_path, TABLE))
    with pytest.raises(DataError, match=r"no lists, and train_split and val_split are both 'train'"):
        open_dataset(cfg.replace(val_split="train"), "train")
    (tmp_path / "train.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "val.txt").write_text("three\nfour\n")
    for same, said in ((cfg, "three"), (cfg.replace(val_split="train"), "one, three, two")):
        assert f"warning: images of both splits: {said}; scores on them say little" in folder_usage(same).lines()


def test_a_folder_in_which_no_image_shows_anything(tmp_path):
    cfg = make_folder(tmp_path, {name: [] for name in TABLE})
    (tmp_path / "classes.txt").write_text("cat\n")
    problems = check_dataset(complete_config(cfg), "train", progress=False).problems
    assert len(problems) == 1 and "no image of train" in problems[0] and "has a class" in problems[0]


def test_images_of_which_none_has_a_class_are_said_at_the_start(tmp_path):
    cfg = complete_config(make_folder(tmp_path, {name: [] for name in TABLE}).replace(classes=("cat",), num_classes=1))
    assert any("no training image" in line and "nothing can be learned" in line for line in folder_usage(cfg).lines())


def test_images_without_a_class_train_as_background(tmp_path, capsys):
    make_folder(tmp_path / "pets", {**{name: [] for name in TABLE}, "one": ["cat"], "two": ["dog"]})
    command = ["train", "folder", "--data-root", str(tmp_path / "pets"), "--root", str(tmp_path), "--name", "run"]
    assert main([*command, *SMALL, "--no-evaluate"]) == 0
    printed = capsys.readouterr().out
    assert "images used: 5 train, 1 val; left out: none" in printed
    assert "training images without any class, all background: " in printed
    rows = RunDir(tmp_path / "run").read_table("metrics")
    losses = rows.filter(like="loss")
    assert RunDir(tmp_path / "run").status()["state"] == "done"
    assert losses.size and losses.notna().all().all() and (losses.abs() < 100).all().all()


# --- every kind of label, every layout --------------------------------------------------------------------------------


def with_masks(root, endings=("",) * 6, numbers=(1, 1, 1, 1, 1, 1)) -> Config:
    """A folder whose labels are masks, one for each image, of the given classes and with the given ends of names."""
    cfg = make_folder(root)
    (root / "classes.txt").write_text("ant\ncat\ndog\n")
    (root / "masks").mkdir()
    for name, ending, number in zip(TABLE, endings, numbers, strict=True):
        save_mask(root, f"{name}{ending}", [number] if number else [], folder="masks", size=(40, 50))
    return cfg


def test_masks_with_an_end_of_their_own_and_other_capitals_are_matched(tmp_path):
    cfg = complete_config(with_masks(tmp_path, ("_mask", "_labels", "_Seg", "", "_gt", "_label")))
    (tmp_path / "masks/four.png").rename(tmp_path / "masks/FOUR.PNG")
    assert check_dataset(cfg, "train", progress=False).problems == []
    assert folder_usage(cfg).lines()[0] == "images used: 5 train, 1 val; left out: none"
    reader = open_dataset(cfg, "train")
    assert {reader.mask_path(index).name for index in range(len(reader))} < {
        "one_mask.png", "two_labels.png", "three_Seg.png", "FOUR.PNG", "five_gt.png", "six_label.png"}  # fmt: skip


def test_two_masks_that_mean_one_image(tmp_path):
    cfg = with_masks(tmp_path)
    save_mask(tmp_path, "one_mask", [1], folder="masks", size=(40, 50))
    with pytest.raises(ValueError, match=r"masks .*has 'one_mask' and 'one', which mean the same image. Keep one"):
        open_dataset(complete_config(cfg), "train")


def test_masks_whose_names_fit_no_image_are_named(tmp_path):
    cfg = with_masks(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        path.rename(path.with_name(f"mask_{path.name}"))
    words = r"6 images, 0 of them with a label: too few to split\..* masks names 'mask_\w+', an image is called '\w+'"
    with pytest.raises(ValueError, match=words):
        folder_names(complete_config(cfg), "train")


def test_a_dry_run_without_data_says_so_once(tmp_path, capsys):
    assert main(["train", "voc_vit_b", "--data-root", str(tmp_path), "--dry-run"]) == 0
    assert "NOT READY: no images below data_root" in capsys.readouterr().out


def test_capitals_in_lists_and_tables(tmp_path):
    cfg = make_folder(tmp_path, {name.upper(): labels for name, labels in TABLE.items()})
    (tmp_path / "train.txt").write_text("One\nTWO.JPG\n")
    (tmp_path / "val.txt").write_text("three\nfour\nfive\nsix\n")
    cfg = complete_config(cfg)
    assert open_dataset(cfg, "train").names == ["one", "two"] and folder_usage(cfg).problems() == []


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("masks/two.bmp", r"no mask for 'two' of .* \(masks/two.bmp is there, but masks end in .png\)"),
        ("masks/two_mask.gif", r"no mask for 'two' of .* \(masks/two_mask.gif is there, but masks end in .png\)"),
        ("images/seven.heic", r"no image for 'seven' of .* \(images/seven.heic is there, but images end in .jpg"),
    ],
)
def test_a_file_that_nearly_fits_is_named(tmp_path, file, words):
    cfg = complete_config(with_masks(tmp_path))
    (tmp_path / "masks/two.png").unlink()
    (tmp_path / file).write_bytes(b"")
    (tmp_path / "train.txt").write_text("one\ntwo\nseven\n" if "seven" in file else "one\ntwo\n")
    problems = check_dataset(cfg, "train", progress=False).problems
    assert any(re.search(words, problem) for problem in problems), problems


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("masks/one.bmp", "files like masks/one.bmp do not: masks are PNGs, not .bmp"),
        ("Annotations/one.json", "files like Annotations/one.json do not: annotations are .xml files, not .json"),
        ("tags.csv", "tags.csv is read if it is given as label_source"),
    ],
)
def test_labels_that_cannot_be_found_name_what_is_there(tmp_path, file, words):
    cfg = make_folder(tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"")
    with pytest.raises(ValueError, match=f"does not say what is in its images .{words}"):
        complete_config(cfg)


def test_rows_of_an_npy_and_images_without_one(tmp_path):
    cfg = make_folder(tmp_path)
    (tmp_path / "classes.txt").write_text("ant\ncat\ndog\n")
    rows = {name: np.eye(3, dtype=np.float32)[index % 3] for index, name in enumerate(TABLE) if name != "six"}
    np.save(tmp_path / "labels.npy", {**rows, "ghost": np.ones(3)}, allow_pickle=True)
    cfg = complete_config(cfg.replace(label_source="labels.npy"))
    assert check_dataset(cfg, "train", progress=False).problems == [
        "not used: images/six.jpg has no label. Add one, or take it away",
        "not used: ghost is a row of labels.npy without an image. Add the image, or take it away",
    ]


@pytest.mark.parametrize("source", ["xml", "masks", "labels.npy"])
def test_the_start_of_training_knows_labels_of_every_kind(tmp_path, source):
    """All images but one show class 1, and that one shows nothing; then all show it."""
    cfg = with_masks(tmp_path, numbers=(1, 0, 1, 1, 1, 1))
    for name in TABLE:
        write_xml(tmp_path, name, *(["ant"] if name != "two" else []))
    vectors = {name: np.array([name != "two", 0, 0], np.float32) for name in TABLE}
    np.save(tmp_path / "labels.npy", vectors, allow_pickle=True)
    (tmp_path / "train.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "val.txt").write_text("four\nfive\nsix\n")
    cfg = complete_config(cfg.replace(label_source=source))
    usage = folder_usage(cfg)
    assert (usage.looked_at, usage.without_class, usage.everywhere) == (3, 1, [])
    assert "  training images without any class, all background: 1" in usage.lines()
    (tmp_path / "train.txt").write_text("one\nthree\n")
    (tmp_path / "val.txt").write_text("two\nfour\nfive\nsix\n")
    assert (
        folder_usage(cfg).everywhere == ["ant"] and "warning: every image shows 'ant'" in folder_usage(cfg).lines()[-1]
    )


def test_a_label_that_cannot_be_read_leaves_no_run(tmp_path, capsys):
    with_masks(tmp_path / "pets", numbers=(9, 9, 9, 9, 9, 9))
    command = ["train", "folder", "--data-root", str(tmp_path / "pets"), "--root", str(tmp_path / "runs"), *SMALL]
    assert main([*command, "--no-evaluate"]) == 2
    assert re.search(r"mask .*png holds \[9\]; allowed are 0..3", capsys.readouterr().err)
    assert not (tmp_path / "runs").exists()


def test_official_layouts_say_what_they_leave_out(voc):
    root = Path(voc.data_root)
    (root / "JPEGImages/deep").mkdir()
    for name in ("JPEGImages/spare.jpg", "JPEGImages/deep/far.jpg", "JPEGImages/phone.heic"):
        Image.new("RGB", (30, 20)).save(root / name, format="JPEG")
    save_mask(root, "lost", [1])
    report = check_dataset(voc, "train", progress=False)
    assert [problem.partition(". ")[0] for problem in report.problems] == [
        "not used: JPEGImages/deep/far.jpg lies in a subfolder, which is not looked into",
        "not used: JPEGImages/phone.heic has an extension that is not read",
        "not used: lost is a mask without an image",
    ]
    assert any(note.startswith("1 not used (JPEGImages/spare.jpg): stands in no list") for note in report.notes)
    assert "3 problems; 1 file or name is not used, see the notes" in str(report)
    assert "left out: 4" in folder_usage(voc).lines()[0]


# --- options without effect -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train smoke --data-root MY", "data_root='MY' has no effect.*'toy'.*train folder --data-root MY"),
        ("train smoke --label-source a.csv", "label_source='a.csv' has no effect.*'toy'"),
        ("train smoke --crowds ignore", "crowds='ignore' has no effect.*'toy'.*another data set"),
        ("train voc_vit_b --crowds ignore", "crowds='ignore' has no effect.*'voc'.*coco"),
        ("data check smoke --data-root MY", "data_root='MY' has no effect"),
        ("data labels smoke --data-root MY", "data_root='MY' has no effect"),
    ],
)
def test_an_option_that_the_run_does_not_use_is_an_error(command, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    assert re.search(words, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["labels", "smoke"], "'toy' makes its images itself: it has no files to read labels from"),
        (["show", "smoke", "--count", "0"], "--count must be at least 1 image, got 0"),
        (["check", "smoke", "--count", "-3"], "--count must be at least 1 image, got -3"),
    ],
)
def test_commands_that_have_nothing_to_do_say_why(command, words, tmp_path, capsys):
    assert main(["data", *command, "--out", str(tmp_path / "out.csv")]) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_folder_and_a_data_root_are_one_too_many(tmp_path, capsys):
    assert main(["data", "check", str(tmp_path), "--data-root", "other"]) == 2
    assert "two folders given" in capsys.readouterr().err


def test_grids_and_other_data_sets():
    with pytest.raises(ValueError, match="data_root='MY' has no effect"):
        Grid(name="g", preset="smoke", axes={"data_root": ["MY"]}).runs()
    refuse_unused(Config.preset("smoke").replace(dataset="folder", data_root="MY"), ["dataset", "data_root"])


@pytest.mark.parametrize("kept", [0, 1])
def test_a_folder_without_images_is_said(tmp_path, kept):
    cfg = make_folder(tmp_path, TABLE)
    for path in sorted((tmp_path / "images").iterdir())[kept:]:
        path.unlink()
    counts = "has 1 image, 1 of them with a label" if kept else "has 0 images, 0 of them with a label"
    with pytest.raises(DataError, match=f"{counts}: too few to split"):
        folder_names(complete_config(cfg), "train")


def test_pictures_of_another_kind_and_a_file_for_a_folder_are_refused(tmp_path, capsys):
    for command in ("check", "show"):
        assert main(["data", command, "smoke", "--out", str(tmp_path / "x.docx")]) == 2
        assert "--out must end in .png" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    for name in ("voc", "coco"):
        assert main(["data", "prepare", name, str(tmp_path / "file")]) == 2
        assert f"{tmp_path / 'file'} is no folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
