"""Any folder as a data set: classes, source of the labels, lists; training on one; the MSRC samples if there."""

import pytest
from helpers.folders import NAMES, SAMPLES, SMALL, TABLE, classes_of, make_folder, needs_samples, save_mask, write_xml
from PIL import Image

from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.data.classes import DataError, class_names
from toco_lab.data.own_folder import complete_config, folder_names, write_split
from toco_lab.data.readers import open_dataset
from toco_lab.runs.run_dir import RunDir

# --- classes and labels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_a_table_names_the_classes(tmp_path, suffix):
    cfg = complete_config(make_folder(tmp_path / "pets", TABLE, suffix))
    assert (cfg.label_source, cfg.classes, cfg.num_classes) == (f"labels{suffix}", ("ant", "cat", "dog"), 3)
    assert class_names(cfg) == cfg.classes and complete_config(cfg) is cfg
    reader = open_dataset(cfg, "train")
    labels = {name: classes_of(reader.image_label(place)) for place, name in enumerate(reader.names)}
    assert {"two": [1, 3], "four": [1]} | labels == {"two": [1, 3], "four": [1], "five": [3]} | labels
    assert Config.from_json(cfg.to_json()) == cfg


def test_masks_and_classes_txt(tmp_path):
    cfg = make_folder(tmp_path)
    (tmp_path / "masks").mkdir()
    for name in NAMES:
        save_mask(tmp_path, name, [1, 255], folder="masks", size=(40, 50))
    with pytest.raises(DataError, match=r"classes.txt is missing.*line k is number k.*data check voc_vit_b"):
        complete_config(cfg)
    (tmp_path / "classes.txt").write_text("zebra\nant\n\n")
    cfg = complete_config(cfg)
    assert (cfg.label_source, cfg.classes, cfg.num_classes) == ("masks", ("zebra", "ant"), 2)
    # only images with a mask have a label, so three take part
    names = [name for split in ("train", "val") for name in open_dataset(cfg, split).names]
    assert sorted(names) == sorted(NAMES)
    save_mask(tmp_path, "one", [3], folder="masks", size=(40, 50))
    with pytest.raises(DataError, match=r"holds \[3\]; allowed are 0..2"):
        [open_dataset(cfg, split).mask(i) for split in ("train", "val") for i in range(2)]


def test_a_table_beside_masks_needs_classes_txt(tmp_path):
    """In alphabetical order the names of the table might be other classes than the masks' numbers."""
    cfg = make_folder(tmp_path, TABLE)
    (tmp_path / "masks").mkdir()
    save_mask(tmp_path, "one", [1], folder="masks", size=(40, 50))
    with pytest.raises(DataError, match=r"classes.txt is missing.*not of the numbers: ant, cat, dog\."):
        complete_config(cfg)


def test_xml_names_the_classes(tmp_path):
    cfg = make_folder(tmp_path)
    write_xml(tmp_path, "one", "dog", "cat", "dog")
    write_xml(tmp_path, "two", "cat")
    cfg = complete_config(cfg)
    assert (cfg.label_source, cfg.classes) == ("xml", ("cat", "dog"))
    assert sorted(open_dataset(cfg, "train").names + open_dataset(cfg, "val").names) == ["one", "two"]


def test_a_resolved_config_needs_no_folder(tmp_path):
    cfg = complete_config(make_folder(tmp_path / "pets", TABLE)).replace(data_root=str(tmp_path / "elsewhere/pets"))
    assert class_names(complete_config(cfg)) == ("ant", "cat", "dog")


def test_the_name_of_the_folder_is_in_the_digest(tmp_path):
    first, second = (complete_config(make_folder(tmp_path / name, TABLE)) for name in ("pets", "toys"))
    assert first.digest() != second.digest()
    assert first.digest() == first.replace(data_root=str(tmp_path / "moved/pets")).digest()


def test_errors(tmp_path):
    with pytest.raises(DataError, match=r"no folder given.*--data-root my/folder"):
        complete_config(Config.preset("folder"))
    with pytest.raises(DataError, match=r"no images below data_root .*images.*JPEGImages"):
        complete_config(Config.preset("folder").replace(data_root=str(tmp_path)))
    cfg = make_folder(tmp_path)
    with pytest.raises(DataError, match=r"does not say what is in its images: put labels.csv"):
        complete_config(cfg)
    with pytest.raises(DataError, match=r"have not been read: use `cfg = toco_lab.complete_config\(cfg\)`"):
        open_dataset(cfg, "train")
    (tmp_path / "labels.csv").write_text("name,labels\nuno.jpg,cat\ntwo,cat\n")
    with pytest.raises(DataError, match=r"1 of them with a label: too few to split"):
        open_dataset(complete_config(cfg), "train")
    (tmp_path / "train.txt").write_text("three\n")
    with pytest.raises(DataError, match=r"no entry for 'three' in label file labels.csv. Add it, or shorten"):
        open_dataset(complete_config(cfg), "train")
    with pytest.raises(DataError, match=r"no list .*val.txt.* lists in that folder: train"):
        open_dataset(complete_config(cfg), "val")
    (tmp_path / "labels.csv").write_text("name,labels\none,cat\none,dog\n")
    with pytest.raises(DataError, match=r"labels.csv has 'one' more than once"):
        complete_config(cfg)
    for text, words in (
        ("cat\nBackground\n", "names Background, which is number 0"),
        ("cat\ncat\n", "'cat' stands there more than once"),
    ):
        (tmp_path / "classes.txt").write_text(text)
        with pytest.raises(DataError, match=words):
            complete_config(cfg)


# --- lists ------------------------------------------------------------------------------------------------------------


def test_lists_are_drawn_once_and_written_down(tmp_path):
    cfg = complete_config(make_folder(tmp_path, TABLE))
    train, val = folder_names(cfg, "train"), folder_names(cfg.replace(seed=5), "val")
    assert (len(train), len(val)) == (5, 1) and sorted(train + val) == sorted(TABLE)
    assert open_dataset(cfg, "train").names == train and not (tmp_path / "train.txt").exists()
    assert write_split(cfg) == (
        f"{tmp_path} had no lists: wrote train.txt with 5 images and val.txt with 1 image, drawn at random"
    )
    assert (tmp_path / "train.txt").read_text().split() == train
    Image.new("RGB", (50, 40)).save(tmp_path / "images/zero.jpg")
    assert open_dataset(cfg, "val").names == val and write_split(cfg) == "" and folder_names(cfg, "train") is None


def test_images_with_masks_are_drawn_for_validation(tmp_path):
    cfg = make_folder(tmp_path, TABLE)
    (tmp_path / "classes.txt").write_text("ant\ncat\ndog\n")
    (tmp_path / "masks").mkdir()
    save_mask(tmp_path, "five", [3], folder="masks", size=(40, 50))
    assert folder_names(complete_config(cfg), "val") == ["five"]


def test_lists_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(path, mode):
        raise PermissionError("read-only")

    cfg = complete_config(make_folder(tmp_path, TABLE))
    monkeypatch.setattr("toco_lab.data.layouts.atomic_write", refuse)
    with pytest.raises(DataError, match=r"cannot write train.txt: read-only. .*put train and val.txt there yourself"):
        write_split(cfg)


# --- the commands -----------------------------------------------------------------------------------------------------


def test_a_folder_without_masks_trains_and_says_what_it_cannot_measure(tmp_path, capsys):
    make_folder(tmp_path / "pets", TABLE)
    command = ["train", "folder", "--data-root", str(tmp_path / "pets"), "--root", str(tmp_path), "--name", "run"]
    assert main([*command, *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "wrote train.txt with 5 images" in printed
    assert "no mIoU: 1 of 1 image of 'val'" in printed and "cannot be measured" in printed
    run = RunDir(tmp_path / "run")
    assert run.status()["state"] == "done" and (run.path / "smoothing.csv").is_file()
    table = run.read_table("evaluation")
    assert table[["target", "class"]].to_numpy().tolist() == [["labels", "F1"]] and 0 <= table["iou"][0] <= 1
    assert run.read_json("protocol")["labels"]["images"] == 1
    assert main(["evaluate", str(run.path)]) == 0  # none asked for: what can be measured
    assert main(["evaluate", str(run.path), "--targets", "cam"]) == 2
    assert "1 of 1 image of split 'val' has no mask, the first is" in capsys.readouterr().err
    assert (run.config().classes, run.config().num_classes) == (("ant", "cat", "dog"), 3)


def test_check_of_a_folder(tmp_path, capsys):
    make_folder(tmp_path / "pets", TABLE)
    assert main(["data", "check", str(tmp_path / "pets"), "--out", str(tmp_path / "a.png")]) == 0
    printed = capsys.readouterr().out
    assert "folder train: 5 images, 0 masks" in printed and "the folder has no lists" in printed
    assert not (tmp_path / "pets/train.txt").exists()


@needs_samples
@pytest.mark.data
def test_msrc_trains_and_is_evaluated_by_one_command(tmp_path, capsys):
    """23 classes, no background class, 255 where it is void."""
    root = str(SAMPLES / "msrc_v2")
    assert main(["train", "folder", "--data-root", root, "--root", str(tmp_path), "--name", "msrc", *SMALL]) == 0
    run = RunDir(tmp_path / "msrc")
    assert run.config().num_classes == 23 and run.config().classes[:2] == ("building", "grass")
    table = run.read_table("evaluation")
    assert table["class"].nunique() == 26 and table.loc[table["class"] == "mIoU", "iou"].between(0, 1).all()
    assert len(open_dataset(run.config(), "train")) == 316
