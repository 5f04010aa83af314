"""Masks: numbers that a file may not change, sizes that fit the displayed image, and 255 in place of a class."""

import os
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.folders import NAMES, SAMPLES, SMALL, make_folder, read_everything, save_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.data.check import check_dataset
from toco_lab.data.classes import DataError, class_names
from toco_lab.data.classes import save_mask as save_palette_mask
from toco_lab.data.masks import check_classes_shown, read_mask
from toco_lab.data.own_folder import complete_config
from toco_lab.data.readers import missing_truth, open_dataset
from toco_lab.evaluation.evaluate import evaluate_model
from toco_lab.method.model import ToCo

CASES = SAMPLES.parent / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason=f"no bad cases: {CASES} is not there")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (30, 20)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jpeg", "gif", "webp"])
def test_formats_that_change_numbers_are_refused(tmp_path, image, kind):
    mask = Image.new("L", (30, 20), 3).convert("P") if kind == "gif" else Image.new("L", (30, 20), 3)
    mask.save(tmp_path / "mask.png", kind)
    with pytest.raises(
        DataError, match=r"mask .*mask\.png (is a (JPEG|GIF) inside|has mode RGB).*8-bit grey or palette"
    ):
        read_mask(tmp_path / "mask.png", image, 20)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_masks_of_few_bits_are_refused_and_palette_masks_are_read(tmp_path, image, bits):
    """A decoder gives 85 (or 17) for class 1 of a grey file, and 255, not counted, for the last class."""
    numbers = np.zeros((20, 30), np.uint8)
    numbers[3:5] = 1
    palette = Image.fromarray(numbers)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.save(tmp_path / "mask.png", bits=bits)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", image, 20), numbers)
    _write_grey(tmp_path / "mask.png", numbers, bits)
    with pytest.raises(DataError, match=rf"mask\.png is a grey PNG of {bits} bits.*8-bit grey or palette PNG"):
        read_mask(tmp_path / "mask.png", image, 20)


def _write_grey(path: Path, numbers: np.ndarray, bits: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = numbers.shape
    unpacked = np.unpackbits(numbers[..., None], axis=2)[..., -bits:].reshape(height, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in unpacked)
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def test_masks_of_16_bits_are_refused(tmp_path, image):
    Image.fromarray(np.full((20, 30), 3, np.uint16)).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"mask\.png has mode I;16, i.e. numbers of more than 8 bits.*8-bit grey"):
        read_mask(tmp_path / "mask.png", image, 20)


def test_a_mask_with_an_orientation_of_its_own_is_refused(tmp_path, image):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (30, 20)).save(tmp_path / "mask.png", exif=exif)
    with pytest.raises(DataError, match=r"mask\.png has an EXIF orientation.*save it without EXIF data"):
        read_mask(tmp_path / "mask.png", image, 20)


def test_a_pipe_and_an_empty_file_are_refused(tmp_path, image):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"pipe\.png is no regular file, but a pipe"):
        read_mask(tmp_path / "pipe.png", image, 20)
    with pytest.raises(DataError, match=r"cannot decode mask .*empty\.png: it is empty.*make the mask anew"):
        read_mask(tmp_path / "empty.png", image, 20)


# --- properties -------------------------------------------------------------------------------------------------------


MASKS = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([*range(21), 255])
)
FEW = settings(max_examples=60, derandomize=True, deadline=None)


@FEW
@given(MASKS)
def test_what_is_written_is_read(numbers):
    with tempfile.TemporaryDirectory() as folder:
        image, path = written(Path(folder), numbers)
        np.testing.assert_array_equal(read_mask(path, image, 20), numbers)


@FEW
@given(MASKS, st.data())
def test_a_mask_with_other_bytes_is_refused_or_right(numbers, data):
    with tempfile.TemporaryDirectory() as folder:
        image, path = written(Path(folder), numbers)
        content = path.read_bytes()
        place = data.draw(st.integers(0, len(content) - 1))
        path.write_bytes(content[:place] + data.draw(st.binary(max_size=3)) + content[place + 1 :])
        try:
            found = read_mask(path, image, 20)
        except DataError as error:
            assert "mask.png" in str(error)
        else:
            np.testing.assert_array_equal(found, numbers)


def written(folder: Path, numbers: np.ndarray) -> tuple[Path, Path]:
    Image.new("RGB", numbers.shape[::-1]).save(folder / "image.png")
    save_palette_mask(folder / "mask.png", numbers)
    return folder / "image.png", folder / "mask.png"


# --- size -------------------------------------------------------------------------------------------------------------


def test_a_mask_fits_the_image_as_displayed(voc):
    """Stored 30 x 20, displayed 20 x 30: the mask of the stored pixels is refused, and EXIF is named."""
    root = Path(voc.data_root)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(root / "JPEGImages/two.jpg", exif=exif)
    with pytest.raises(DataError, match=r"two\.png is 30x20, its image .*two\.jpg is 20x30\. .*as stored.*EXIF"):
        read_everything(voc)
    save_mask(root, "two", [8], size=(30, 20))
    read_everything(voc)
    assert open_dataset(voc, "train").image(1).shape[:2] == (30, 20)


def test_swapped_sides_name_exif(voc):
    save_mask(Path(voc.data_root), "two", [3], size=(30, 20))
    with pytest.raises(
        DataError, match=r"two\.png is 20x30, its image .*two\.jpg is 30x20\. With its sides swapped.*EXIF"
    ):
        read_everything(voc)


# --- classes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [(255, "their only number above 0 is 255.*number 1"), (0, "background alone.*Number the classes")],
)
def test_a_list_whose_masks_hold_no_class_is_not_scored(voc, value, words):
    root = Path(voc.data_root)
    (root / "labels.csv").write_text("name,labels\none,bird\ntwo,bird\nthree,bird\n")
    cfg = voc.replace(label_source="labels.csv")
    for name in NAMES:
        save_mask(root, name, [value])
    with pytest.raises(
        DataError, match=rf"the masks of 'train' in .*VOC2012 hold {'no class: ' if value else ''}{words}"
    ):
        missing_truth(cfg)
    save_mask(root, "three", [value, 4])  # one pixel of a class is enough
    assert missing_truth(cfg) == ""
    reader = open_dataset(cfg, "train")
    check_classes_shown(reader, "train")
    with pytest.raises(DataError, match="the masks of 'train'"):
        check_classes_shown(reader, "train", count=2)


def test_masks_of_0_and_255_stop_training_and_evaluation(tmp_path, capsys):
    """By the command, before a run's folder is there, and in Python."""
    cfg = make_folder(tmp_path / "mine", {name: ["crack"] for name in ("a", "b", "c", "d", "e")})
    names = sorted(path.stem for path in (tmp_path / "mine/images").iterdir())
    (tmp_path / "mine/labels.csv").write_text("name,labels\n" + "".join(f"{name},crack\n" for name in names))
    (tmp_path / "mine/classes.txt").write_text("crack\n")
    (tmp_path / "mine/masks").mkdir()
    for name in names:
        mask = np.zeros((40, 50), np.uint8)
        mask[5:9] = 255
        Image.fromarray(mask).save(tmp_path / f"mine/masks/{name}.png")
    folder = str(tmp_path / "mine")
    assert main(["train", "folder", "--data-root", folder, "--root", str(tmp_path / "runs")]) == 2
    assert "hold no class: their only number above 0 is 255" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert main(["data", "check", folder, "--out", str(tmp_path / "sheet.png")]) == 2
    changes = {"dataset": "folder", "data_root": folder, "label_source": "labels.csv"}
    cfg = Config.preset("smoke").replace(classes=("crack",), num_classes=1, **changes)
    with pytest.raises(DataError, match="hold no class: their only number above 0 is 255"):
        evaluate_model(ToCo(cfg), cfg, progress=False)


def test_masks_that_show_other_classes_than_the_labels_are_said_beside_the_scores(tmp_path, capsys):
    """classes.txt in another order than the masks' numbers: training runs, and its scores mean nothing."""
    table = {"one": ["ant"], "two": ["cat"], "three": ["ant"], "four": ["cat"], "five": ["ant"], "six": ["cat"]}
    make_folder(tmp_path / "mine", table)
    (tmp_path / "mine/classes.txt").write_text("ant\ncat\n")
    (tmp_path / "mine/masks").mkdir()
    for name, labels in table.items():
        save_mask(tmp_path / "mine", name, [2 if labels == ["ant"] else 1], folder="masks", size=(40, 50))
    run, folder = str(tmp_path / "runs/one"), str(tmp_path / "mine")
    words = f"warning: scores on 'val' in {folder}: 1 of 1 mask does not show the classes that the labels name"
    assert (
        main(["train", "folder", "--data-root", folder, "--root", str(tmp_path / "runs"), "--name", "one", *SMALL]) == 0
    )
    said = capsys.readouterr().out
    assert said.count(words) == 2 and said.index(words) < said.index("run folder:") < said.rindex(words)
    assert main(["evaluate", run]) == 0 and words in capsys.readouterr().out
    assert main(["evaluate", run, "--split", "train"]) == 0
    assert "scores on 'train'" in (said := capsys.readouterr().out) and "5 of 5 masks" in said


def test_more_classes_than_a_mask_can_hold_are_refused_with_their_number(tmp_path):
    cfg = make_folder(tmp_path / "mine")
    (tmp_path / "mine/labels.csv").write_text("name,labels\n")
    for count in (254, 255, 300):
        (tmp_path / "mine/classes.txt").write_text("".join(f"c{number}\n" for number in range(count)))
        if count == 254:
            assert len(class_names(complete_config(cfg))) == 254
            continue
        with pytest.raises(DataError, match=rf"mine has {count} classes \(classes\.txt.*holds 254 beside background"):
            complete_config(cfg)


def test_no_order_of_classes_is_suggested(tmp_path):
    cfg = make_folder(tmp_path / "mine")
    (tmp_path / "mine/labels.csv").write_text("name,labels\na,zebra;ant\n")
    (tmp_path / "mine/masks").mkdir()
    Image.new("L", (50, 40), 1).save(tmp_path / "mine/masks/a.png")
    with pytest.raises(
        DataError, match=r"classes\.txt is missing.*order of the alphabet and not of the numbers: ant, zebra"
    ):
        complete_config(cfg)


# --- cases ------------------------------------------------------------------------------------------------------------


@needs_cases
@pytest.mark.data
def test_the_case_of_300_classes():
    with pytest.raises(DataError, match="classes_300 has 300 classes"):
        complete_config(Config.preset("folder").replace(data_root=str(CASES / "classes_300")))


@needs_cases
@pytest.mark.data
@pytest.mark.parametrize(("case", "words"), [("bin255", "only number above 0 is 255"), ("exif90", "")])
def test_cases(case, words):
    cfg = complete_config(Config.preset("folder").replace(data_root=str(CASES / case)))
    report = check_dataset(cfg, cfg.val_split, progress=False)
    assert any(words in problem for problem in report.problems) if words else report.problems == [], str(report)
