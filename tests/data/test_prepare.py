"""VOC with SBD and COCO made ready from tiny stand-ins of the official archives, and tables of labels. No network."""

import errno
import hashlib
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.coco import box, crowd, make_coco
from helpers.folders import classes_of, make_folder, make_voc, save_mask, write_xml
from PIL import Image
from scipy.io import savemat

from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.data import archives as unpacking
from toco_lab.data import prepare_voc as module_of_voc
from toco_lab.data.archives import Archive, fetch
from toco_lab.data.classes import DataError
from toco_lab.data.image_labels import read_label_names
from toco_lab.data.label_tables import label_table, write_labels
from toco_lab.data.prepare_coco import prepare_coco
from toco_lab.data.prepare_voc import prepare_voc
from toco_lab.data.readers import open_dataset

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
# one is in SBD and VOC's train, two only in SBD, three in SBD and VOC's val, four only in VOC's train
SBD = {"train": ["one", "two"], "val": ["three", "five"]}
VOC = {"train": ["one", "four"], "val": ["three"]}
AUG = ["five", "four", "one", "two"]


def write_sbd(folder: Path) -> None:
    (folder / "cls").mkdir(parents=True)
    for split, names in SBD.items():
        (folder / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            mask = np.zeros((20, 30), np.uint8)
            mask[3, 5:9] = 12
            savemat(folder / f"cls/{name}.mat", {"GTcls": {"Segmentation": mask, "Boundaries": np.zeros(2)}})


def write_voc(folder: Path) -> None:
    for below in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / below).mkdir(parents=True)
    for name in ("one", "two", "three", "four", "five"):
        Image.new("RGB", (30, 20)).save(folder / f"JPEGImages/{name}.jpg")
    for split, names in VOC.items():
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names))
        for name in names:
            save_mask(folder, name, [5, 255])


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """A folder with both archives unpacked."""
    write_voc(tmp_path / "VOCdevkit/VOC2012")
    write_sbd(tmp_path / "benchmark_RELEASE/dataset")
    return tmp_path


# --- VOC --------------------------------------------------------------------------------------------------------------


def test_train_aug_is_voc_and_sbd_without_val(unpacked):
    words = prepare_voc(unpacked, subset=True, progress=False)
    assert "train_aug.txt: 4 images; 2 masks written" in words
    cfg = Config.preset("voc_vit_b").replace(data_root=str(unpacked))
    reader = open_dataset(cfg, "train_aug")
    assert reader.names == AUG
    labels = {name: classes_of(reader.image_label(place)) for place, name in enumerate(AUG)}
    assert labels == {"five": [12], "four": [5], "one": [5], "two": [12]}, "VOC's own mask is the better one"
    out = unpacked / "VOCdevkit/VOC2012/SegmentationClassAug"
    assert sorted(path.name for path in out.iterdir()) == ["five.png", "two.png"]
    with Image.open(out / "two.png") as file:
        assert file.mode == "P" and np.array(file)[3].tolist() == [0] * 5 + [12] * 4 + [0] * 21


def test_another_number_than_10582_is_refused_with_the_lists(unpacked):
    with pytest.raises(
        DataError, match=r"4 names, it must be 10582.*SBD train 2 \(8498\).*VOC val 1 \(1449\).*--subset"
    ):
        prepare_voc(unpacked, progress=False)
    assert not list(unpacked.rglob("train_aug.txt")) and not list(unpacked.rglob("SegmentationClassAug"))


def test_a_killed_command_continues(unpacked, monkeypatch):
    read, asked = module_of_voc._read_sbd, []

    def killed(path):
        asked.append(path.stem)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(module_of_voc, "_read_sbd", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare_voc(unpacked, subset=True, progress=False)
    assert not list(unpacked.rglob("train_aug.txt"))
    prepare_voc(unpacked, subset=True, progress=False)
    assert asked == ["five", "two", "two"] and len(list(unpacked.rglob("train_aug.txt"))) == 1


def test_damaged_and_missing_files(unpacked):
    (unpacked / "benchmark_RELEASE/dataset/cls/two.mat").write_bytes(b"no matlab")
    with pytest.raises(DataError, match=r"cannot read .*two.mat.*Unpack SBD again"):
        prepare_voc(unpacked, subset=True, progress=False)
    (unpacked / "VOCdevkit/VOC2012/JPEGImages/two.jpg").unlink()
    with pytest.raises(DataError, match=r"1 image of train_aug, like two.jpg, is not in"):
        prepare_voc(unpacked, subset=True, progress=False)


def test_every_missing_archive_is_named(tmp_path, capsys):
    assert main(["data", "prepare", "voc", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    for part in (f"put into {tmp_path}", "VOCtrainval_11-May-2012.tar from https://", "benchmark.tgz from https://"):
        assert part in error


def archives(monkeypatch: pytest.MonkeyPatch, folder: Path, *, wrong: bool = False) -> None:
    """Tiny archives in `folder`, whose checksums the module then knows."""
    made = []
    for name, write, top, inside in (
        ("voc.tar", write_voc, "VOCdevkit", "VOC2012"), ("sbd.tgz", write_sbd, "benchmark_RELEASE", "dataset"),
    ):  # fmt: skip
        write(folder / "source" / top / inside)
        with tarfile.open(folder / name, "w:gz" if name.endswith("tgz") else "w") as file:
            file.add(folder / "source" / top, top)
        content = (folder / name).read_bytes()
        made.append(Archive(name, f"https://nowhere.invalid/{name}", top, hashlib.md5(content).hexdigest()))
        if wrong:
            (folder / name).write_bytes(content[:-100])
    monkeypatch.setattr(module_of_voc, "voc_archives", lambda: tuple(made))


def test_archives_are_checked_and_unpacked(tmp_path, monkeypatch, capsys):
    archives(monkeypatch, tmp_path)
    assert main(["data", "prepare", "voc", str(tmp_path), "--subset"]) == 0
    assert "4 images; 2 masks" in capsys.readouterr().out
    assert not list(tmp_path.glob(".*")), "nothing half unpacked is left"


def test_a_damaged_archive(tmp_path, monkeypatch):
    archives(monkeypatch, tmp_path, wrong=True)
    with pytest.raises(DataError, match=r"voc.tar is incomplete or damaged: its MD5 is not .*Remove it;"):
        prepare_voc(tmp_path, subset=True)
    assert not (tmp_path / "VOCdevkit").exists()


def pack(folder: Path, members: dict[str, bytes], name: str) -> None:
    """A tar or zip with these members, as they are named."""
    if name.endswith(".zip"):
        with zipfile.ZipFile(folder / name, "w") as zipped:
            for member, content in members.items():
                zipped.writestr(member, content)
        return
    with tarfile.open(folder / name, "w") as packed:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
@pytest.mark.parametrize(
    ("member", "words"),
    [
        ("../outside.txt", "cannot unpack .*a.(tar|zip): .*outside.*Remove it and fetch it again"),
        ("top/../../outside.txt", "cannot unpack .*a.(tar|zip): .*outside"),
        ("other/file.txt", "a.(tar|zip) holds no top; beside it there is: other. It is another archive"),
        ("top/VOC2007/file.txt", "a.(tar|zip) holds no top/VOC2012; beside it there is: VOC2007. .*another year"),
    ],
)
def test_archives_with_other_members(tmp_path, name, member, words):
    folder = tmp_path / "data"
    folder.mkdir()
    pack(folder, {member: b"x"}, name)
    with pytest.raises(DataError, match=words):
        fetch(folder, [Archive(name, "https://nowhere.invalid", "top", holds=("VOC2012",))], download=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["data", name], "nothing is left, and nothing outside"


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_an_archive_of_zeros_fills_no_disk(tmp_path, monkeypatch, name):
    monkeypatch.setattr(unpacking, "SMALL_BYTES", 10**6)
    members = {f"top/{number}": bytes(2 * 10**6) for number in range(3)}
    if name.endswith(".zip"):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as packed:
            for member, content in members.items():
                packed.writestr(member, content)
    else:
        with tarfile.open(tmp_path / name, "w:gz") as packed:
            for member, content in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                packed.addfile(info, io.BytesIO(content))
    wanted = [Archive(name, "https://nowhere.invalid", "top")]
    with pytest.raises(
        DataError, match=rf"cannot unpack .*{name}: its first \d files? would take .* limit is 100 times"
    ):
        fetch(tmp_path, wanted, download=False)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    monkeypatch.setattr(unpacking, "SMALL_BYTES", 10**7)
    fetch(tmp_path, wanted, download=False)
    assert len(list((tmp_path / "top").iterdir())) == 3


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
@pytest.mark.parametrize("share", [0, 0.5, 0.9])
def test_truncated_archives_without_a_checksum(tmp_path, name, share):
    pack(tmp_path, {f"top/{number}": bytes(3000) for number in range(9)}, name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * 27000)])
    with pytest.raises(DataError, match=rf"cannot unpack .*{name}: .*Remove it and fetch it again"):
        fetch(tmp_path, [Archive(name, "https://nowhere.invalid", "top")], download=False)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_full_disk_is_no_reason_to_fetch_again(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    pack(tmp_path, {"top/a": b"x"}, "a.tar")
    monkeypatch.setattr("toco_lab.data.archives._extract", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*\.top\.unpacking'"):
        fetch(tmp_path, [Archive("a.tar", "https://nowhere.invalid", "top")], download=False)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros((20, 31), np.uint8), r"two.mat has a mask of the shape \(20, 31\), its image .*two.jpg is 30x20"),
        (
            np.full((20, 30), 300, np.uint16),
            "two.mat has a mask of uint16 from 300 to 300; SBD's are whole numbers 0..20",
        ),
        (np.full((20, 30), 0.5), "two.mat has a mask of float64"),
    ],
)
def test_masks_of_sbd_are_checked(unpacked, mask, words):
    path = unpacked / "benchmark_RELEASE/dataset/cls/two.mat"
    savemat(path, {"GTcls": {"Segmentation": mask, "Boundaries": np.zeros(2)}})
    with pytest.raises(DataError, match=words):
        prepare_voc(unpacked, subset=True, progress=False)
    assert not list(unpacked.rglob("two.png"))


def test_coco_of_another_year(tmp_path):
    make_coco(tmp_path, [box(1, 90, 0, 0, 20, 10)])
    path = tmp_path / "annotations/instances_train2014.json"
    path.rename(path.with_stem("instances_train2017"))
    with pytest.raises(DataError, match=r"instances_train2017.json is of 2017.*Put instances_train2014.json"):
        prepare_coco(tmp_path, subset=True, progress=False)


def test_a_download_that_fails_says_what_to_fetch_by_hand(tmp_path, monkeypatch):
    asked = []

    def download_url(url, root, filename, md5):
        asked.append((url, Path(root), filename, len(md5)))
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download_url)
    with pytest.raises(DataError, match=r"could not be downloaded \(no network\)\. fetch and put into") as error:
        prepare_voc(tmp_path, download=True)
    voc, sbd = module_of_voc.voc_archives()
    assert asked == [(voc.url, tmp_path, "VOCtrainval_11-May-2012.tar", 32)]
    assert voc.url in str(error.value) and sbd.url in str(error.value)


# --- COCO -------------------------------------------------------------------------------------------------------------


def test_coco_is_painted_and_listed(tmp_path, capsys):
    items = [box(1, 90, 0, 0, 20, 10), box(2, 18, 0, 0, 5, 5) | {"image_id": 2, "segmentation": [[0, 0, 0, 0, 0, 0]]}]
    cfg = make_coco(tmp_path, items)
    assert main(["data", "prepare", "coco", str(tmp_path), "--subset"]) == 0
    printed = capsys.readouterr().out
    assert "1 mask in" in printed and "no object covers a pixel: COCO_train2014_000000000002" in printed
    assert len(list(tmp_path.glob("masks_from_json/*/*.png"))) == 2
    assert open_dataset(cfg, "train").names == ["COCO_train2014_000000000001"]
    (tmp_path / "lists/train.txt").write_text("mine\n")
    assert "kept" in prepare_coco(tmp_path, subset=True, progress=False)[0]
    assert (tmp_path / "lists/train.txt").read_text() == "mine\n"


def test_coco_numbers_and_archives(tmp_path):
    with pytest.raises(
        DataError, match=r"annotations_trainval2014.zip from http.*\n.*train2014.zip from .*\n.*val2014"
    ):
        prepare_coco(tmp_path)
    make_coco(tmp_path, [box(1, 90, 0, 0, 20, 10), crowd(2, 1, 25, 20, 30) | {"image_id": 2}])
    with pytest.raises(DataError, match=r"val2014.zip from"):
        prepare_coco(tmp_path)
    (tmp_path / "val2014").mkdir()
    for crowds in ("class", "ignore"):
        with pytest.raises(DataError, match=r"annotates 2 images, the official one of train2014 82081.*--subset"):
            prepare_coco(tmp_path, crowds=crowds)
    assert prepare_coco(tmp_path, crowds="ignore", subset=True, progress=False)[0].startswith("1 mask in")


def test_coco_archives_are_unpacked(tmp_path):
    make_coco(tmp_path / "source", [box(1, 90, 0, 0, 20, 10)])
    for name, top in (("annotations_trainval2014.zip", "annotations"), ("train2014.zip", "train2014")):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            for path in (tmp_path / "source" / top).iterdir():
                file.write(path, f"{top}/{path.name}")
    (tmp_path / "val2014").mkdir()
    assert len(prepare_coco(tmp_path, subset=True, progress=False)) == 1
    assert (tmp_path / "train2014/COCO_train2014_000000000001.jpg").is_file()


# --- tables of labels -------------------------------------------------------------------------------------------------


def test_labels_from_masks(tmp_path, capsys):
    cfg = make_voc(tmp_path)
    save_mask(Path(cfg.data_root), "three", [])
    out = tmp_path / "labels.json"
    assert main(["data", "labels", "voc_vit_b", "--data-root", cfg.data_root, "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == {"one": ["bird"], "three": [], "two": ["cat"]}
    printed = capsys.readouterr().out
    assert "3 images, 2 classes" in printed and "without a class, all background for training: 1 (three)" in printed
    assert main(["data", "labels", "voc_vit_b", "--data-root", cfg.data_root, "--out", str(out)]) == 2
    assert "exists. Remove it, or choose another --out" in capsys.readouterr().err


def test_labels_from_xml_make_a_folder_ready(tmp_path):
    make_folder(tmp_path)
    write_xml(tmp_path, "one", "dog", "cat", "dog")
    write_xml(tmp_path, "two", "cat")
    assert main(["data", "labels", str(tmp_path), "--source", "xml"]) == 0
    assert (tmp_path / "labels.csv").read_text() == "name,labels\none,dog;cat\ntwo,cat\n"
    assert read_label_names(tmp_path / "labels.csv") == {"one": ["dog", "cat"], "two": ["cat"]}


def test_label_errors(tmp_path):
    cfg = make_folder(tmp_path)
    with pytest.raises(DataError, match=r"no XML files in .*Annotations: .*--source masks"):
        label_table(cfg, "xml")
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match=r"no masks in masks or SegmentationClass below .*--source xml"):
        label_table(cfg, "masks")
    write_xml(tmp_path, "one", "")
    with pytest.raises(DataError, match=r"one.xml has an object without a name"):
        label_table(cfg, "xml")
    with pytest.raises(DataError, match=r"ends in .csv or .json, got .*labels.txt"):
        write_labels(tmp_path / "labels.txt", {})
    voc = make_voc(tmp_path / "voc")
    write_xml(Path(voc.data_root), "one", "persn")
    with pytest.raises(DataError, match=r"unknown class 'persn' in .*did you mean 'person'"):
        label_table(voc, "xml")
