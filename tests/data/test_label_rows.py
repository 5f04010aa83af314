"""Tables of labels and lists of classes as people write them: understood by a stated rule, or refused by name."""

import io
import json
import random

import numpy as np
import pytest
from helpers.folders import TABLE, classes_of, make_folder, write_xml

from tests.fuzz.cases import fault_of_message
from toco_lab.data.class_lists import read_classes
from toco_lab.data.classes import DataError
from toco_lab.data.image_labels import labelled_names, onehot, read_label_names, read_labels, read_xml_names
from toco_lab.data.label_arrays import read_label_arrays
from toco_lab.data.own_folder import complete_config

EXPECTED = {"one": ["cat"], "two": ["ant", "dog"], "three": []}


@pytest.mark.parametrize(
    "text",
    [
        "name,labels\none,cat\ntwo,ant;dog\nthree,\n",
        " Name , LABELS\none,cat\ntwo, ant ; dog;\nthree,\n",
        "name;labels\none;cat\ntwo;ant;dog\nthree;\n",
        'name;labels\none;cat\ntwo;"ant;dog"\nthree;\n',
        "name\tlabels\none\tcat\ntwo\tant;dog\nthree\t\n",
        '"name","labels"\n"one","cat"\n"two","ant;dog"\n"three",""\n,\n\n',
        "split,labels,name\ntrain,cat,one\ntrain,ant;dog,two\nval,,three\n",
        "name,labels\none,cat,\ntwo,ant;dog,\nthree,,\n",
    ],
)
def test_tables_that_are_understood(tmp_path, text):
    (tmp_path / "labels.csv").write_text(text)
    assert read_label_names(tmp_path / "labels.csv") == EXPECTED


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,labels\none,cat,dog\n", "line 2: 3 cells, the header has 2: 'dog' belongs to no column"),
        ("name,labels\none,cat\n,dog\n", "line 3: a row without a name of an image"),
        ("name,labels\none\n", "line 2: 1 of 2 cells"),
        ("one,cat\ntwo,dog\n", "line 1: the header needs `name` and `labels`.*first row is 'one', 'cat'"),
        ("name,cat,dog\none,0,1\n", "line 1: the header needs.*first row is 'name', 'cat', 'dog'"),
        ("name,labels,labels\none,cat,dog\n", "the header needs `name` and `labels` once each"),
        ('name,labels\none,"cat\n', "line 2: unexpected end of data"),
        ("", "it is empty"),
        ("name,labels\none,cat\none,cat\n", "has 'one' more than once"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, words):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=rf"labels.csv.*{words}"):
        read_label_names(tmp_path / "labels.csv")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"one": "cat"}, "image 'one': class names must be a list, got \"cat\""),
        ({"one": {"cat": 1}}, "image 'one': class names must be a list"),
        ({"one": [0, 1]}, "image 'one': a class is given by its name in quotes, got 0"),
        ({"one": [None]}, "image 'one': a class is given by its name in quotes, got null"),
        ({"one": [["cat"]]}, "image 'one': a class is given by its name"),
        ([["one", ["cat"]]], r"it begins with '\[', not with a \{"),
    ],
)
def test_json_that_is_refused(tmp_path, content, words):
    (tmp_path / "labels.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"labels.json has the wrong layout \({words}"):
        read_label_names(tmp_path / "labels.json")


def test_a_truncated_json(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps(TABLE)[:-9])
    with pytest.raises(DataError, match=r"labels.json has the wrong layout \(.*line 1 column"):
        read_label_names(tmp_path / "labels.json")


# --- class names ------------------------------------------------------------------------------------------------------


def test_spaces_and_composed_letters_do_not_make_another_class(tmp_path):
    (tmp_path / "labels.csv").write_text("name,labels\none, traffic  light ;Ka\u0308fer\n", encoding="utf-8")
    labels = read_labels(tmp_path / "labels.csv", ("cat", "K\u00e4fer", "traffic light"))
    assert classes_of(labels["one"]) == [2, 3]


def test_capitals_are_no_other_class_but_a_hint():
    with pytest.raises(DataError, match=r"unknown class 'CAT' in a.csv.*did you mean 'cat'\?"):
        onehot(["CAT"], ("cat", "dog"), "a.csv")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"one": ["Cat"], "two": ["cat"]}, "labels of labels.csv .*name 'Cat' and 'cat' as different classes"),
        ({"one": ["hot dog"], "two": ["hot_dog"]}, "name 'hot dog' and 'hot_dog' as different classes"),
        ({"one": ["cat", "background"], "two": ["dog"]}, "names background, which is no class"),
        ({"one": ["0"], "two": ["1"]}, "labels.csv .*hold 0 and 1 in place of class names"),
        ({"one": ["cat|dog"], "two": ["dog"]}, r"name the class 'cat\|dog', which looks like several"),
    ],
)
def test_classes_that_a_table_names_by_accident(tmp_path, rows, words):
    cfg = make_folder(tmp_path, rows)
    with pytest.raises(DataError, match=words):
        complete_config(cfg)


def test_a_comma_in_a_class_name_is_its_own_where_no_part_occurs_elsewhere(tmp_path):
    (tmp_path / "labels.csv").write_text('name,labels\none,"tench, Tinca"\ntwo,dog\n')
    cfg = make_folder(tmp_path)
    assert complete_config(cfg).classes == ("dog", "tench, Tinca")
    (tmp_path / "labels.csv").write_text('name,labels\none,"cat, dog"\ntwo,dog\n')
    (tmp_path / "classes.txt").write_text("dog\ncat, dog\n")
    assert complete_config(cfg).classes == ("dog", "cat, dog"), "classes.txt says that it is one"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat\n\ndog\n", "line 2 is empty.*line k is number k"),
        ("cat\nbackground\n", "names background, which is number 0"),
        ("__background__\ncat\n", "begins with __background__, which is number 0"),
        ("cat\nCat\n", "name 'Cat' and 'cat' as different classes"),
        ("\n\n", "is empty"),
    ],
)
def test_lists_of_classes_that_are_refused(tmp_path, text, words):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=rf"classes.txt.*{words}"):
        read_classes(tmp_path / "classes.txt")


# --- XML --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotations><image/></annotations>", "begins with <annotations>, not <annotation>"),
        ("<html><object><name>cat</name></object></html>", "begins with <html>"),
        ('<!DOCTYPE a [<!ENTITY x "cat">]><annotation><object><name>&x;</name></object></annotation>', "DOCTYPE a"),
        ('<!DOCTYPE a SYSTEM "other.dtd"><annotation/>', "DOCTYPE a"),
        ("", "no element found"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "encoding"),
    ],
)
def test_xml_that_is_no_annotation(tmp_path, text, words):
    (tmp_path / "one.xml").write_text(text)
    with pytest.raises(DataError, match=rf"one.xml.*{words}"):
        read_xml_names(tmp_path / "one.xml")


def test_entities_are_not_expanded(tmp_path):
    """A bomb of entities that would fill the memory, and one that would read another file."""
    (tmp_path / "secret.txt").write_text("cat")
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    external = f'<!ENTITY e9 SYSTEM "{(tmp_path / "secret.txt").as_uri()}">'
    for declared in (f'<!ENTITY e0 "cat">{levels}', external):
        text = f"<!DOCTYPE annotation [{declared}]><annotation><object><name>&e9;</name></object></annotation>"
        (tmp_path / "one.xml").write_text(text)
        with pytest.raises(DataError, match=r"cannot parse .*one.xml: it declares a document type"):
            read_xml_names(tmp_path / "one.xml")


def test_deleted_objects_of_labelme_do_not_count(tmp_path):
    write_xml(tmp_path, "one", "dog")
    path = tmp_path / "Annotations/one.xml"
    path.write_text(
        path.read_text().replace("</annotation>", "<object><name>cat</name><deleted>1</deleted></object></annotation>")
    )
    assert read_xml_names(path) == ["dog"]


# --- npy --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"one": np.array([0, 2, 1])},
            r"image 'one': need 3 values of 0 or 1, got an array \(3,\) of int64 from 0 to 2",
        ),
        ({"one": np.array([0, np.nan, 1])}, r"image 'one': need 3 values of 0 or 1, .*of float64"),
        ({"one": np.array(["0", "1", "1"])}, r"image 'one': need 3 values of 0 or 1, got an array \(3,\) of <U1"),
        ({"one": np.ones((1, 3))}, r"image 'one': need 3 values of 0 or 1, got an array \(1, 3\)"),
        ({"one": [1, [0], 1]}, "image 'one': need 3 values of 0 or 1"),
        ({"one": None}, "image 'one': need 3 values of 0 or 1"),
        ({7: np.ones(3)}, "has the key 7, which is no name of an image"),
        ({b"one": np.ones(3)}, "has the key b'one', which is no name of an image"),
        ([np.ones(3)], "refused to read .*not a dict"),
    ],
)
def test_label_vectors_that_are_refused(tmp_path, content, words):
    box = np.empty((), object)
    box[()] = content
    np.save(tmp_path / "labels.npy", box, allow_pickle=True)
    with pytest.raises(DataError, match=words) as error:
        read_labels(tmp_path / "labels.npy", ("ant", "cat", "dog"))
    assert "labels.npy" in str(error.value)


def test_arrays_as_numpy_can_write_them_are_read(tmp_path):
    """Every type of numbers, both byte orders and both layouts; plain lists as well."""
    rows = {code: np.array([1, 0, 1], code) for code in "?bhiqBHIQefd"}
    rows |= {f">{code}": np.array([1, 0, 1], f">{code}") for code in "ie"}
    rows |= {"list": [1, 0, True], "tuple": (1.0, 0, 1), "strided": np.array([1, 1, 0, 0, 1, 1])[::2]}
    np.save(tmp_path / "labels.npy", rows, allow_pickle=True)
    found = read_labels(tmp_path / "labels.npy", ("ant", "cat", "dog"))
    assert {name: label.tolist() for name, label in found.items()} == {name: [1, 0, 1] for name in rows}
    both = {"c": np.arange(6.0).reshape(2, 3), "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3))}
    np.save(tmp_path / "labels.npy", both, allow_pickle=True)
    assert all(np.array_equal(value, both["c"]) for value in read_label_arrays(tmp_path / "labels.npy").values())


def array_state(**changed: object) -> bytes:
    """A label file of one array whose state is partly another; numpy itself would take it at its word."""
    parts = {"version": 1, "shape": (3,), "type": np.dtype("f8"), "fortran": False, "content": bytes(24)} | changed
    state = tuple(parts.values())

    class Stand:
        def __reduce__(self):
            return (np.empty(0).__reduce__()[0], (np.ndarray, (0,), b"b"), state)

    box = np.empty((), object)
    box[()] = {"one": Stand()}
    file = io.BytesIO()
    np.save(file, box, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, ""),
        ({"content": bytes(23)}, r"an array in it is damaged: 23 bytes for an array \(3,\) of <f8"),
        ({"content": b""}, "an array in it is damaged: 0 bytes"),
        ({"shape": (2**40, 2**40)}, "the shape of an array in it is damaged"),
        ({"shape": (-3,)}, "the shape of an array in it is damaged"),
        ({"shape": 3}, "the shape of an array in it is damaged"),
        ({"shape": (1,) * 40}, "the shape of an array in it is damaged"),
        ({"type": "f8"}, "the type of an array in it is damaged"),
        ({"type": np.dtype("O")}, "the content of an array in it is damaged"),
        ({"type": np.dtype([("a", "f8")])}, "it holds an array of records"),
        ({"content": [0.0, 1.0, 0.0]}, "the content of an array in it is damaged"),
        ({"type": np.dtype("M8[s]")}, "."),
    ],
)
def test_an_array_that_is_not_what_it_says_is_refused_before_it_is_built(tmp_path, changed, words):
    path = tmp_path / "labels.npy"
    path.write_bytes(array_state(**changed))
    if not changed:
        assert read_labels(path, ("ant", "cat", "dog"))["one"].tolist() == [0, 0, 0]
        return
    with pytest.raises(DataError, match=words) as error:
        read_labels(path, ("ant", "cat", "dog"))
    assert "labels.npy" in str(error.value) and "object at" not in str(error.value)


@pytest.mark.parametrize("seed", range(4))
def test_no_damaged_label_file_ends_the_process_or_speaks_python(tmp_path, seed):
    """Each byte is put out of order once; what is read still, are vectors of 0 and 1."""
    rng, path = random.Random(seed), tmp_path / "labels.npy"
    np.save(path, {"a": np.array([1.0, 0, 0, 1]), "b": np.zeros(4)}, allow_pickle=True)
    sound = path.read_bytes()
    for place in range(seed, len(sound), 4):
        path.write_bytes(sound[:place] + rng.randbytes(rng.randrange(1, 9)) + sound[place + rng.randrange(9) :])
        try:
            found = read_labels(path, ("ant", "cat", "cow", "dog"))
        except DataError as error:
            assert fault_of_message(str(error), ["labels.npy"]) == "", place
        else:
            assert all(set(label) <= {0, 1} and label.shape == (4,) for label in found.values())


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (4,), }", r"holds an array \(4,\) of <f8, not a dict"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (), }", r"holds an array \(\) of <f8, not a dict"),
        ("{'descr': '|O', 'fortran_order': a, 'shape': (), }", "its header is damaged"),
        ("", "its header is damaged"),
    ],
)
def test_a_header_of_something_else_is_named(tmp_path, header, words):
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\x80\x04N."
    (tmp_path / "labels.npy").write_bytes(content)
    with pytest.raises(DataError, match=f"refused to read .*labels.npy: it.*{words.removeprefix('its')}"):
        read_labels(tmp_path / "labels.npy", ("ant",))


def test_names_of_every_kind_of_label_file(tmp_path):
    np.save(tmp_path / "a.npy", {"one": np.ones(3), "two": np.zeros(3)}, allow_pickle=True)
    (tmp_path / "a.json").write_text(json.dumps({"one": [], "two": []}))
    assert labelled_names(tmp_path / "a.npy") == labelled_names(tmp_path / "a.json") == ["one", "two"]
