"""Text that people write: encodings, names with spaces, composed letters, folders and extensions in names."""

import codecs
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from helpers.folders import TABLE, make_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from toco_lab.commands.app import main
from toco_lab.data.classes import DataError
from toco_lab.data.image_labels import onehot, read_label_names, read_labels
from toco_lab.data.label_tables import write_labels
from toco_lab.data.layouts import LAYOUTS, read_list, write_list
from toco_lab.data.names import by_image, match_names
from toco_lab.data.own_folder import complete_config, write_split
from toco_lab.data.readers import open_dataset
from toco_lab.files import read_text
from toco_lab.sweeps.grid import Grid

SUFFIXES = (".jpg", ".png")
LAYOUT = LAYOUTS["folder"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_unicode_is_read_whatever_its_encoding_and_line_ends(tmp_path, encoding, end):
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    (tmp_path / "a.txt").write_bytes(mark + f"Kätzchen{end}dog{end}".encode(encoding))
    assert read_text(tmp_path / "a.txt") == "Kätzchen\ndog\n"


@pytest.mark.parametrize(
    "data", [b"dog\nK\xe4tzchen\n", b"dog\r\nbad \x80\r\n", b"dog\n\0\n", "dog\nü\n".encode("utf-16")[:-1]]
)
def test_other_bytes_are_refused_with_file_line_and_remedy(tmp_path, data):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.txt, line 2: .* is not UTF-8.*Save the file again as UTF-8"):
        read_text(tmp_path / "a.txt")


def test_every_reader_of_text_refuses_latin_1(tmp_path):
    for name, text in (
        ("train.txt", "Kätzchen\n"),
        ("labels.csv", "name,labels\none,Kätzchen\n"),
        ("labels.json", '{"one": ["Kätzchen"]}'),
        ("grid.yaml", "name: Kätzchen\npreset: smoke\n"),
    ):
        (tmp_path / name).write_text(text, encoding="cp1252")
    with pytest.raises(DataError, match=r"train\.txt, line 1: .*UTF-8"):
        read_list(tmp_path, LAYOUT, "train")
    for name, line in (("labels.csv", 2), ("labels.json", 1)):
        with pytest.raises(DataError, match=rf"{name}, line {line}: .*UTF-8"):
            read_label_names(tmp_path / name)
    with pytest.raises(ValueError, match=r"grid\.yaml, line 1: .*UTF-8"):
        Grid.from_yaml(tmp_path / "grid.yaml")
    cfg = make_folder(tmp_path / "pets", TABLE)
    (tmp_path / "pets/classes.txt").write_text("Kätzchen\n", encoding="cp1252")
    with pytest.raises(DataError, match=r"classes\.txt, line 1: .*UTF-8"):
        complete_config(cfg)


def test_marks_within_joined_files_are_left_out(tmp_path):
    (tmp_path / "train.txt").write_bytes("\ufeffone\n\ufefftwo\n\ufeff".encode())
    assert read_list(tmp_path, LAYOUT, "train")[1] == ["one", "two"]


def test_class_names_are_the_same_with_composed_and_decomposed_letters():
    composed, decomposed = (unicodedata.normalize(form, "Kätzchen") for form in ("NFC", "NFD"))
    for classes, name in (([composed, "dog"], decomposed), ([decomposed, "dog"], composed)):
        assert onehot([name], classes, "labels.csv").tolist() == [1, 0]


def test_names_of_which_none_fits_are_shown_side_by_side(tmp_path):
    cfg = make_folder(tmp_path, TABLE)
    rename(tmp_path, {name: f"{name} .jpg" for name in TABLE})  # a space before the dot
    with pytest.raises(DataError, match=r"6 images, 0 of them with a label.* labels.csv names 'five', .* 'five '"):
        open_dataset(complete_config(cfg), "train")


def test_a_list_has_one_name_a_line(tmp_path):
    names = ["WhatsApp Image at 10.00.00", "two  spaces", "plain", "tab\tinside"]
    write_list(tmp_path / "train.txt", names)
    assert read_list(tmp_path, LAYOUT, "train")[1] == names
    for name in ("ends ", " begins", "line\nbreak"):
        with pytest.raises(DataError, match=r"val\.txt cannot list the image .*Rename the file"):
            write_list(tmp_path / "val.txt", ["one", name])
    assert not (tmp_path / "val.txt").exists()


def rename(root: Path, names: dict[str, str]) -> None:
    for old, new in names.items():
        (root / f"images/{old}.jpg").rename(root / f"images/{new}")


def test_a_folder_of_names_with_spaces_is_read_as_the_same_images_before_and_after_its_lists_are_written(tmp_path):
    cfg = make_folder(tmp_path, {f"my {name}": labels for name, labels in TABLE.items()})
    rename(tmp_path, {name: f"my {name}.jpg" for name in TABLE})
    cfg = complete_config(cfg)
    before = [open_dataset(cfg, split).names for split in ("train", "val")]
    assert write_split(cfg)
    assert [open_dataset(cfg, split).names for split in ("train", "val")] == before
    assert sorted(before[0] + before[1]) == sorted(f"my {name}" for name in TABLE)


def test_a_file_name_that_is_not_utf_8_is_refused_by_name(tmp_path, capsys):
    make_folder(tmp_path, TABLE)
    (tmp_path / "classes.txt").write_text("ant\ncat\ndog\n")
    try:
        (tmp_path / "images/one.jpg").rename(tmp_path / "images" / os.fsdecode(b"caf\xe9.jpg"))
    except OSError:
        pytest.skip("this file system has no names that are not UTF-8")
    for command in ("check", "show", "labels"):
        assert main(["data", command, str(tmp_path), "--out", str(tmp_path / "out.png")]) == 2
        said = capsys.readouterr()
        assert r"images has a file whose name is not UTF-8: 'caf\udce9.jpg'. Rename it" in said.out + said.err, command


def test_names_are_matched_where_one_image_is_meant():
    decomposed = unicodedata.normalize("NFD", "Kätzchen")
    known = {"im1": 1, decomposed: 2, "10.00.00": 3}
    for written, meant in (
        ("im1", "im1"), ("im1.JPG", "im1"), ("a/im1.png", "im1"), ("C:\\a\\im1.jpg", "im1"), ("Kätzchen", decomposed),
        ("images/Kätzchen.jpg", decomposed), ("10.00.00", "10.00.00"), ("10.00.00.jpg", "10.00.00"),
        ("im1.txt", "im1.txt"), ("im2.jpg", "im2.jpg"),
    ):  # fmt: skip
        assert match_names([written], known, SUFFIXES) == [meant], written
    both = {decomposed, unicodedata.normalize("NFC", "Kätzchen")}
    assert match_names(["a/Kätzchen.jpg"], both, SUFFIXES) == ["a/Kätzchen.jpg"]  # two images may be meant
    with pytest.raises(DataError, match=r"labels has 'im1' and 'im1.jpg', which mean the same image"):
        by_image({"im1": 1, "im1.jpg": 2}, known, SUFFIXES, "labels")


def test_lists_and_tables_with_folders_extensions_and_composed_letters(tmp_path):
    cfg = make_folder(tmp_path, {"images/one.JPG": ["cat"], "two.jpg": ["dog"], "Kätzchen": [], "four": ["cat"]})
    rename(tmp_path, {"three": unicodedata.normalize("NFD", "Kätzchen") + ".jpg"})
    (tmp_path / "train.txt").write_text("images/one.jpg\ntwo.JPG\nKätzchen\n", encoding="utf-16")
    (tmp_path / "val.txt").write_text("four\r\n")
    reader = open_dataset(complete_config(cfg), "train")
    assert [reader.image_label(index).tolist() for index in range(3)] == [[1, 0], [0, 1], [0, 0]]
    assert np.array_equal(reader.image(0), np.array(Image.open(tmp_path / "images/one.jpg")))


def test_a_list_of_one_class_is_named(tmp_path):
    cfg = make_folder(tmp_path, TABLE)
    (tmp_path / "train.txt").write_text("one  1\ntwo -1\n")
    with pytest.raises(DataError, match=r"line 'one  1' of .*train\.txt has a second column.*Keep the names alone"):
        open_dataset(complete_config(cfg), "train")


# --- properties -------------------------------------------------------------------------------------------------------


FEW = settings(
    max_examples=80, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LETTERS = st.text(st.sampled_from("abZ09 _-.,()&é日ü'"), min_size=1, max_size=8)
NAMES = LETTERS.map(str.strip).filter(bool)
CLASSES = ("cat", "dog", "café")
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])
ENDS = st.sampled_from(["\n", "\r\n", "\r"])


@FEW
@given(names=st.lists(NAMES, min_size=1, max_size=5), encoding=ENCODINGS, end=ENDS)
def test_a_list_is_read_as_it_was_written(tmp_path, names, encoding, end):
    write_list(path := tmp_path / "train.txt", names)
    path.write_bytes(path.read_text(encoding="utf-8").replace("\n", end).encode(encoding))
    assert read_list(tmp_path, LAYOUT, "train")[1] == names


@FEW
@given(
    table=st.dictionaries(NAMES, st.lists(st.sampled_from(CLASSES), unique=True), min_size=1, max_size=4),
    kind=st.sampled_from(["csv", "json"]),
    encoding=ENCODINGS,
)
def test_a_table_is_read_as_it_was_written(tmp_path, table, kind, encoding):
    path = tmp_path / f"labels.{kind}"
    path.unlink(missing_ok=True)
    write_labels(path, table)
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    found = read_labels(path, CLASSES)
    assert {name: {CLASSES[place] for place in np.flatnonzero(label)} for name, label in found.items()} == {
        name: set(labels) for name, labels in table.items()
    }


@FEW
@given(kind=st.sampled_from(["csv", "json", "npy", "txt"]), data=st.data())
def test_spoilt_text_is_named_or_read_as_names_and_known_classes(tmp_path, kind, data):
    path = tmp_path / f"labels.{kind}"
    path.unlink(missing_ok=True)
    if kind == "npy":
        np.save(path, {"one": np.array([1.0, 0, 1]), "two": np.zeros(3)}, allow_pickle=True)
    elif kind == "txt":
        write_list(path, ["one", "two", "zwölf"])
    else:
        write_labels(path, {"one": ["cat", "café"], "two": []})
    good = path.read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    path.write_bytes(good[:place] + data.draw(st.binary(max_size=3)) + good[place + data.draw(st.integers(0, 4)) :])
    try:
        found = read_list(tmp_path, LAYOUT, "labels")[1] if kind == "txt" else read_labels(path, CLASSES)
    except DataError as error:
        assert path.name in str(error)
    else:
        assert all(isinstance(name, str) for name in found)
        assert kind == "txt" or all(set(label) <= {0, 1} for label in found.values())
