"""The folder of pseudo labels: VOC's layout, what it refuses to overwrite, and the same bytes after a kill."""

import csv
import json

import numpy as np
import pytest
from helpers.labelled_runs import CAM_KINDS, as_folder, files_of, voc_run
from PIL import Image

from toco_lab.config import Config
from toco_lab.data.classes import PALETTE, DataError
from toco_lab.data.readers import open_dataset
from toco_lab.evaluation import label_folder, pseudo_labels
from toco_lab.evaluation.evaluate import protocol_record
from toco_lab.evaluation.pseudo_labels import KINDS, Thresholds, write_pseudo_labels


def test_masks_are_palette_pngs_in_vocs_colours_and_layout(written):
    for kind in CAM_KINDS:
        with Image.open(written.out / kind / "SegmentationClass/toy_val_000000.png") as file:
            assert file.mode == "P" and file.size == (48, 48)
            assert file.getpalette() == PALETTE.flatten().tolist()
        names = (written.out / kind / "ImageSets/Segmentation/val.txt").read_text().split()
        assert names == [f"toy_val_{index:06d}" for index in range(3)]
        assert sorted(path.stem for path in (written.out / kind / "SegmentationClass").iterdir()) == names
    voc_reader = Config.preset("voc_vit_b").replace(data_root=str(written.out / "seed"))
    assert open_dataset(voc_reader, "val").mask(0).shape == (48, 48)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "kind"),
    [
        ("SegmentationClass", "seed"),  # below the masks
        ("VOC2012/..", "VOC2012"),  # the data set itself would become the folder of a kind
        ("JPEGImages/deep", "seed"),
        ("link", "seed"),
    ],
)
def test_output_that_would_be_read_as_truth_is_refused(out, kind, tmp_path, monkeypatch):
    run = voc_run(tmp_path)
    root = tmp_path / "VOC2012"
    (root / "link" / "seed").mkdir(parents=True)
    (root / "link/seed/SegmentationClass").symlink_to(root / "SegmentationClassAug")
    monkeypatch.setitem(KINDS, "VOC2012", "cam")
    before = files_of(root)
    where = tmp_path / out if out.startswith("VOC2012") else root / out
    with pytest.raises(ValueError, match=r"this run reads its (ground truth|images) from .*another --out"):
        write_pseudo_labels(run, out=where, kinds=[kind], progress=False)
    assert files_of(root) == before
    beside = write_pseudo_labels(run, out=root / "pseudo", kinds=["seed"], progress=False)  # this harms nobody
    assert beside.num_images == 3
    with pytest.raises(ValueError, match="reads its images from"):
        write_pseudo_labels(run, out=root, kinds=["seed"], images="copy", progress=False)


def test_a_folder_of_something_else_is_left_alone(toy_run, tmp_path):
    (tmp_path / "seed/SegmentationClass").mkdir(parents=True)
    (tmp_path / "seed/SegmentationClass/toy_val_000000.png").write_bytes(b"drawn by hand")
    with pytest.raises(ValueError, match=r"seed holds files and no protocol.json.*another --out"):
        write_pseudo_labels(toy_run, split="val", out=tmp_path, progress=False)
    (tmp_path / "seed/protocol.json").write_text("{")
    with pytest.raises(ValueError, match=r"protocol.json is damaged: JSON was expected.*another --out"):
        write_pseudo_labels(toy_run, split="val", out=tmp_path, progress=False)
    assert (tmp_path / "seed/SegmentationClass/toy_val_000000.png").read_bytes() == b"drawn by hand"


def test_another_protocol_is_refused_with_what_differs(toy_run, tmp_path):
    options = {"out": tmp_path, "kinds": ["seed"], "progress": False}
    write_pseudo_labels(toy_run, split="val", **options)
    before = files_of(tmp_path)
    with pytest.raises(ValueError, match=r"low_threshold \(0.5 there, 0.25 wanted\)\. Delete .*seed"):
        write_pseudo_labels(toy_run, split="val", thresholds=Thresholds(0.25, 0.5), **options)
    with pytest.raises(ValueError, match=r"split \('val' there, 'train' wanted\)"):
        write_pseudo_labels(toy_run, **options)
    assert files_of(tmp_path) == before


def test_a_folder_of_an_older_version_is_continued_and_keeps_its_protocol(toy_run, tmp_path):
    options = {"split": "val", "out": tmp_path, "kinds": ["seed"], "progress": False}
    write_pseudo_labels(toy_run, **options)
    path = tmp_path / "seed/protocol.json"
    record = json.loads(path.read_text())
    assert record.pop("decoder") is None  # toy scenes are in no file
    path.write_text(json.dumps(record))
    before = files_of(tmp_path)
    write_pseudo_labels(toy_run, **options)
    assert files_of(tmp_path) == before
    path.write_text(json.dumps(record | {"decoder": "as stored"}))
    with pytest.raises(ValueError, match=r"decoder \('as stored' there, None wanted\)\. Delete .*seed"):
        write_pseudo_labels(toy_run, **options)


def test_a_record_without_the_rule_of_the_decoder_equals_one_with_it(tmp_path):
    cfg = Config.preset("folder")
    record = protocol_record(cfg, "cam", "train", 3, "abc")
    assert "cam_relu" not in record and "cam_relu" not in protocol_record(
        cfg.replace(cam_relu=False), "seg", "val", 3, ""
    )
    assert protocol_record(cfg.replace(cam_relu=False), "cam_tuned", "train", 3, "abc")["cam_relu"] is False
    assert "EXIF orientation applied" in record["decoder"] and "16 bits / 257" in record["decoder"]
    folder = label_folder.LabelFolder(tmp_path / "seed")
    old = {key: value for key, value in record.items() if key != "decoder"}
    folder.write_protocol(old)
    folder.check_protocol(record)
    folder.write_protocol(record)
    assert "decoder" not in json.loads((tmp_path / "seed/protocol.json").read_text())
    with pytest.raises(ValueError, match=r"images \(3 there, 4 wanted\)"):
        folder.check_protocol(record | {"images": 4})


# --- killed and continued ---------------------------------------------------------------------------------------------


def test_killed_and_continued_gives_the_same_bytes_and_no_work_twice(toy_run, tmp_path, monkeypatch):
    options = {"split": "val", "kinds": ("seed", "refined"), "scores": True, "images": "link", "progress": False}
    monkeypatch.setattr(pseudo_labels, "BATCH", 2)
    whole = write_pseudo_labels(toy_run, out=tmp_path / "whole", **options)

    real_save, saved = label_folder.save_mask, []

    def save_five(path, *arguments, **keywords):
        if len(saved) == 5:  # two kinds of two scenes; of the third its seed alone
            raise KeyboardInterrupt
        saved.append(path)
        real_save(path, *arguments, **keywords)

    monkeypatch.setattr(label_folder, "save_mask", save_five)
    with pytest.raises(KeyboardInterrupt):
        write_pseudo_labels(toy_run, out=tmp_path / "part", **options)
    assert not (tmp_path / "part/seed/ImageSets").exists()  # no list: nobody takes it for finished
    monkeypatch.setattr(label_folder, "save_mask", real_save)

    real_cams, made = pseudo_labels.native_cams, []

    def counted(model, cfg, image, image_label):
        made.append(len(image))
        return real_cams(model, cfg, image, image_label)

    monkeypatch.setattr(pseudo_labels, "native_cams", counted)
    part = write_pseudo_labels(toy_run, out=tmp_path / "part", **options)
    assert made == [1]  # the first pair was finished
    assert files_of(tmp_path / "part") == files_of(tmp_path / "whole")
    assert part.shares.equals(whole.shares) and part.miou == whole.miou
    before = files_of(tmp_path / "part")
    more = write_pseudo_labels(toy_run, out=tmp_path / "part", **(options | {"kinds": ("seed", "aux")}))
    assert made == [1, 2, 1] and more.miou["seed"] == whole.miou["seed"]  # a kind is added, the other read
    assert before.items() <= files_of(tmp_path / "part").items()


def test_a_damaged_label_is_named(toy_run, tmp_path):
    options = {"split": "val", "out": tmp_path, "kinds": ["seed"], "progress": False}
    write_pseudo_labels(toy_run, **options)
    (tmp_path / "seed/SegmentationClass/toy_val_000001.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"toy_val_000001.png: .*Delete it"):
        write_pseudo_labels(toy_run, **options)


# --- images beside the labels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", ["link", "copy"])
def test_labels_have_the_native_size_of_each_image(images, tmp_path):
    run = voc_run(tmp_path)
    root, sizes = tmp_path / "VOC2012", {"one": (40, 26), "two": (31, 57), "three": (31, 57)}
    rng = np.random.default_rng(0)
    for name, (width, height) in sizes.items():
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(root / f"JPEGImages/{name}.jpg")
        mask = np.zeros((height, width), np.uint8)
        mask[:, :20] = 3
        Image.fromarray(mask).save(root / f"SegmentationClass/{name}.png")
    done = write_pseudo_labels(run, out=tmp_path / "out", kinds=["seed", "refined"], images=images, progress=False)
    for kind in ("seed", "refined"):
        reader = open_dataset(as_folder(done, kind, "train"), "train")
        assert [reader.mask(index).shape[::-1] for index in range(3)] == list(sizes.values())
    picture = tmp_path / "out/JPEGImages/one.jpg"
    assert picture.read_bytes() == (root / "JPEGImages/one.jpg").read_bytes()
    assert picture.is_symlink() == (images == "link")
    with (tmp_path / "out/seed/labels.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["name", "labels"], *([name, "bird"] for name in sizes)]
    assert done.num_masks == 3
    again = write_pseudo_labels(run, out=tmp_path / "out", kinds=["seed"], images="copy", progress=False)
    assert not picture.is_symlink() and again.miou["seed"] == done.miou["seed"]
