"""Lists, tables of labels, XML files and COCO's json."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from helpers import coco as coco_folder
from PIL import Image

from toco_lab.config import Config
from toco_lab.data.image_labels import read_labels, read_xml_names
from toco_lab.data.layouts import LAYOUTS, read_list, write_list
from toco_lab.data.own_folder import complete_config
from toco_lab.data.readers import open_dataset

from .cases import Case, by_command
from .mutate import VALUES, dumps, spoil, spoil_json

_LETTERS = "abcXYZ019 _-.()é日ü'&"
_CLASSES = ("cat", "dog", "ant", "café")


def _name(rng: Random) -> str:
    return "".join(rng.choices(_LETTERS, k=rng.randrange(1, 12))).strip() or "a"


def _encoded(rng: Random, text: str) -> tuple[str, bytes]:
    text = text.replace("\n", rng.choice(("\n", "\r\n", "\r")))
    encoding = rng.choice(("utf-8", "utf-8-sig", "utf-16"))
    return encoding, text.encode(encoding)


def _undecodable(rng: Random, text: str) -> tuple[str, bytes]:
    """Encodings that are refused where they cannot be told from others."""
    ways = {
        "latin-1": lambda: ("é\n" + text).encode("latin-1", "replace"),
        "UTF-16 without its mark": lambda: text.encode("utf-16-le"),
        "a zero byte": lambda: text.encode() + b"\0",
        "half a letter": lambda: text.encode() + "é".encode()[:1] + b"\n",
        "UTF-32": lambda: text.encode("utf-32"),
    }
    what = rng.choice(list(ways))
    return what, ways[what]()


# --- lists ------------------------------------------------------------------------------------------------------------


def list_(rng: Random, folder: Path) -> Case:
    """Lists in every encoding that is read, and in those that are refused."""
    names = [_name(rng) for _ in range(rng.randrange(1, 6))]
    path = folder / "train.txt"
    sound = rng.random() < 0.6
    write_list(path, names)
    text = path.read_text(encoding="utf-8")
    what, data = (_encoded if sound else _undecodable)(rng, text)
    path.write_bytes(data)

    def wrong(found: list[str]) -> str:
        return "" if sound and found == names else f"{found} instead of {names if sound else 'an error'}"

    return Case(what, lambda: read_list(folder, LAYOUTS["folder"], "train")[1], ["train.txt"], wrong, sound)


# --- tables of labels -------------------------------------------------------------------------------------------------


def _table(rng: Random) -> dict[str, list[str]]:
    return {
        f"{number} {_name(rng)}": rng.sample(_CLASSES, rng.randrange(len(_CLASSES)))
        for number in range(rng.randrange(1, 5))
    }


def _csv(table: dict[str, list[str]]) -> str:
    return "name,labels\n" + "".join(f'"{name}",{";".join(labels)}\n' for name, labels in table.items())


def _table_case(what: str, path: Path, table: dict[str, list[str]] | None, *, sound: bool = False) -> Case:
    def wrong(found: dict[str, np.ndarray]) -> str:
        shown = {name: [_CLASSES[place] for place in np.flatnonzero(label)] for name, label in found.items()}
        if table is None:
            return f"read as {shown}"
        return (
            ""
            if {name: set(labels) for name, labels in table.items()}
            == {name: set(labels) for name, labels in shown.items()}
            else f"{shown} instead of {table}"
        )

    return Case(what, lambda: read_labels(path, _CLASSES), [path.name], wrong, sound)


def table(rng: Random, folder: Path) -> Case:
    """CSV, JSON and npy as they are read."""
    content = _table(rng)
    kind = rng.choice(("csv", "json", "npy"))
    path = folder / f"labels.{kind}"
    if kind == "npy":
        arrays = {name: np.array([float(one in shown) for one in _CLASSES]) for name, shown in content.items()}
        np.save(path, arrays, allow_pickle=True)
        return _table_case("npy", path, content, sound=True)
    text = _csv(content) if kind == "csv" else json.dumps(content, ensure_ascii=rng.random() < 0.5)
    what, data = _encoded(rng, text)
    path.write_bytes(data)
    return _table_case(f"{kind}, {what}", path, content, sound=True)


def table_unfit(rng: Random, folder: Path) -> Case:
    """Tables with a fault."""
    content = _table(rng)
    first = next(iter(content))
    text = _csv(content)
    texts: dict[str, str | bytes] = {
        "no header": text.partition("\n")[2] or "a,cat\n",
        "another header": text.replace("name,labels", "image,class"),
        "semicolons between the columns": text.replace(",", ";"),
        "tabs between the columns": text.replace(",", "\t"),
        "classes in more columns": text + '"more",cat,dog\n',
        "a row of one column": text + "more\n",
        "a name twice": text + f'"{first}",cat\n',
        "an unknown class": text + "more,cow\n",
        "a class of other capitals": text + "more,Cat\n",
        "commas between the classes": text + 'more,"cat,dog"\n',
        "a quote without its end": text + '"more,cat\n',
        "nothing": "",
        "a column twice": text.replace("name,labels", "name,labels,labels").replace("\n", ",cat\n")[:-5] + "\n",
        "a name is empty": text + ",cat\n",
        "another encoding": _undecodable(rng, text)[1],
    }
    values: dict[str, Any] = {
        "a list of pairs": [[name, labels] for name, labels in content.items()],
        "a class as text": content | {"more": "cat"},
        "a dict of classes": content | {"more": {"cat": 1}},
        "no classes but null": content | {"more": None},
        "null among the classes": content | {"more": ["cat", None]},
        "a list among the classes": content | {"more": [["cat"]]},
        "numbers": content | {"more": [1, 2]},
        "one-hot vectors": content | {"more": [True, False]},
        "an unknown class": content | {"more": ["cow"]},
        "names in a dict of a dict": {"images": content},
        "no dict": rng.choice([value for value in VALUES if not isinstance(value, dict)]),
    }
    if rng.random() < 0.5:
        what = rng.choice(list(texts))
        path, data = folder / "labels.csv", texts[what]
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    else:
        what = rng.choice(list(values))
        path = folder / "labels.json"
        path.write_bytes(dumps(values[what]))
    understood = what.endswith("between the columns")  # refused, or the same table
    return _table_case(f"{path.suffix}: {what}", path, content if understood else None)


def table_spoilt(rng: Random, folder: Path) -> Case:
    """Spoilt bytes. Text has no checksum: what is read may be other names, but is a table of known classes."""
    content = _table(rng)
    path = folder / rng.choice(("labels.csv", "labels.json"))
    data = _csv(content).encode() if path.suffix == ".csv" else dumps(content)
    what, data = spoil(rng, data)
    path.write_bytes(data)

    def wrong(found: dict[str, np.ndarray]) -> str:
        fits = all(label.shape == (len(_CLASSES),) and np.isin(label, (0, 1)).all() for label in found.values())
        return "" if fits else f"read as {found}"

    return Case(f"{path.suffix}, {what}", lambda: read_labels(path, _CLASSES), [path.name], wrong)


def npy(rng: Random, folder: Path) -> Case:
    """A dict in an .npy, spoilt or of other things."""
    path = folder / "labels.npy"
    ones: dict[str, Any] = {"a": np.array([1.0, 0, 0, 1]), "b": np.zeros(4)}
    others: dict[str, Any] = {
        "another number of classes": {"a": np.zeros(3)},
        "a number that is neither 0 nor 1": {"a": np.array([0, 0.5, 0, 1])},
        "NaN": {"a": np.array([0, np.nan, 0, 1])},
        "two dimensions": {"a": np.zeros((1, 4))},
        "no dict": np.zeros(4),
        "a list": [1, 2],
        "text": {"a": np.array(["1", "0", "0", "1"])},
        "objects": {"a": np.array([1, None, 0, 1], dtype=object)},
        "class names": {"a": ["cat"]},
        "a function": {"a": print},
    }
    file = io.BytesIO()
    if rng.random() < 0.7:
        np.save(file, ones, allow_pickle=True)
        what, data = spoil(rng, file.getvalue())
    else:
        what = rng.choice(list(others))
        np.save(file, others[what], allow_pickle=True)
        data, ones = file.getvalue(), {}
    path.write_bytes(data)

    def wrong(found: dict[str, np.ndarray]) -> str:
        fits = all(label.shape == (len(_CLASSES),) and np.isin(label, (0, 1)).all() for label in found.values())
        return "" if ones and fits else f"read as {found}"

    return Case(what, lambda: read_labels(path, _CLASSES), [path.name], wrong)


def xml(rng: Random, folder: Path) -> Case:
    """Annotations of VOC and labelme."""
    names = [rng.choice(_CLASSES) for _ in range(rng.randrange(4))]
    objects = "".join(f"<object><name>{name}</name></object>" for name in names)
    good = f"<annotation><filename>a.jpg</filename>{objects}</annotation>"
    path = folder / "picture.xml"
    texts: dict[str, str | bytes] = {
        "another root": f"<annotations>{objects}</annotations>",
        "a page": "<html><body>404</body></html>",
        "an object without name": good.replace("</annotation>", "<object><pose>Left</pose></object></annotation>"),
        "an object of blank name": good.replace("</annotation>", "<object><name> </name></object></annotation>"),
        "an unknown encoding": f"<?xml version='1.0' encoding='none'?>{good}",
        "an encoding of more bytes": f"<?xml version='1.0' encoding='utf-32'?>{good}",
        "an unknown entity": good.replace("</annotation>", "&what;</annotation>"),
        "an entity of a file": f"<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/hostname'>]>{good[:-13]}&x;</annotation>",
        "nothing": "",
        "json": "{}",
        "not closed": good[:-3],
        "latin-1": f"<annotation><object><name>{'é'}</name></object></annotation>".encode("latin-1"),
    }
    way = rng.random()
    if way < 0.3:
        path.write_bytes(good.encode(rng.choice(("utf-8", "utf-8-sig", "utf-16"))))
        return Case("sound", lambda: read_xml_names(path), [path.name], lambda found: _other(found, names), sound=True)
    if way < 0.6:
        what = rng.choice(list(texts))
        data = texts[what]
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return Case(what, lambda: read_xml_names(path), [path.name], lambda found: f"read as {found}")
    what, data = spoil(rng, good.encode())
    path.write_bytes(data)
    return Case(what, lambda: read_xml_names(path), [path.name], lambda found: "" if all(found) else f"{found}")


def _other(found: Any, wanted: Any) -> str:
    return "" if found == wanted else f"{found} instead of {wanted}"


# --- COCO -------------------------------------------------------------------------------------------------------------


def coco(rng: Random, folder: Path) -> Case:
    """An instances json with one part replaced, dropped or renamed."""
    cfg = coco_folder.make_coco(folder, [coco_folder.box(1, 1, 2, 2, 9, 9), coco_folder.crowd(2, 3, 4, 20, 30)])
    path = folder / "annotations/instances_train2014.json"
    content = json.loads(path.read_text())
    if rng.random() < 0.25:
        what, data = spoil(rng, dumps(content))
    else:
        part = rng.choice(("images", "annotations", "annotations", "annotations", "categories", "all"))
        if part == "all":
            what, content = spoil_json(rng, content)
        else:
            what, content[part] = spoil_json(rng, content[part][:2])
            if part == "categories" and isinstance(content[part], list):
                content[part] += coco_folder.CATEGORIES[-3::-1]
        what, data = f"{part}: {what}", dumps(content)
    path.write_bytes(data)

    def read() -> list[tuple[np.ndarray | None, np.ndarray]]:
        reader = open_dataset(cfg, "train")
        return [(reader.mask(index), reader.image_label(index)) for index in range(len(reader))]

    def wrong(found: list[tuple[np.ndarray | None, np.ndarray]]) -> str:
        for mask, label in found:
            if mask is None or mask.shape != (20, 30) or label.shape != (80,):
                return f"mask {None if mask is None else mask.shape}, label {label.shape}"
        return ""

    return Case(what, read, [path.name], wrong)


# --- a whole folder ---------------------------------------------------------------------------------------------------


def _folder(root: Path) -> None:
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(noise).save(root / f"images/{number}.jpg")
        mask = np.zeros((40, 50), np.uint8)
        mask[:9, : 9 + number] = 1 + number % 2
        Image.fromarray(mask).save(root / f"masks/{number}.png")
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "labels.csv").write_text("name,labels\n0,cat\n1,dog\n2,cat\n3,dog\n")
    (root / "train.txt").write_text("0\n1\n")
    (root / "val.txt").write_text("2\n3\n")


def folder_(rng: Random, folder: Path) -> Case:
    """`data check` of a folder of which one file is spoilt: it is named, or everything is read as it was."""
    root = folder / "mine"
    _folder(root)
    faults: dict[str, tuple[str, Callable[[], Any]]] = {
        "an image cut off": ("2.jpg", lambda: _cut(root / "images/2.jpg")),
        "an image missing": ("2", (root / "images/2.jpg").unlink),
        "a mask cut off": ("2.png", lambda: _cut(root / "masks/2.png")),
        "a mask missing": ("2", (root / "masks/2.png").unlink),
        "a mask of another size": ("2.png", lambda: Image.new("L", (5, 5), 1).save(root / "masks/2.png")),
        "a mask number without class": ("2.png", lambda: Image.new("L", (50, 40), 3).save(root / "masks/2.png")),
        "a row without image": ("9", lambda: _append(root / "labels.csv", "9,cat\n")),
        "an image without row": ("5.jpg", lambda: Image.new("RGB", (50, 40)).save(root / "images/5.jpg")),
        "a line without image": ("9", lambda: _append(root / "val.txt", "9\n")),
        "a line twice": ("2", lambda: _append(root / "val.txt", "2\n")),
        "an empty list": ("val.txt", lambda: (root / "val.txt").write_text("")),
        "an empty classes.txt": ("classes.txt", lambda: (root / "classes.txt").write_text("")),
        "a class twice": ("classes.txt", lambda: (root / "classes.txt").write_text("cat\ncat\n")),
        "a class less": ("dog", lambda: (root / "classes.txt").write_text("cat\n")),
        "a list of another encoding": ("val.txt", lambda: (root / "val.txt").write_bytes("é2\n".encode("latin-1"))),
        "an image of another kind": ("7.gif", lambda: Image.new("RGB", (50, 40)).save(root / "images/7.gif")),
        "labels and masks that differ": ("2", lambda: _replace(root / "labels.csv", "2,cat", "2,dog")),
    }
    what = rng.choice([*faults, "nothing"])
    name = faults[what][0] if what in faults else ""
    if what in faults:
        faults[what][1]()
    check = by_command("data", "check", str(root), "--out", str(folder / "sheet.png"))
    if rng.random() < 0.3 or what == "nothing":  # in Python
        cfg = Config.preset("folder").replace(data_root=str(root))
        return Case(f"{what}, in Python", lambda: _read_folder(cfg), [name, "val.txt"], lambda found: "", not name)

    def said() -> str:
        try:
            return check()
        except ValueError as error:
            if "problem" not in str(error):
                raise
            return "refused"  # the problems themselves are on standard output

    return Case(what, said, [name], lambda found: "" if name in found or found == "refused" else "0 problems")


def _read_folder(cfg: Config) -> int:
    cfg = complete_config(cfg)
    for split in ("train", "val"):
        reader = open_dataset(cfg, split)
        for index in range(len(reader)):
            reader.image(index), reader.mask(index), reader.image_label(index)
    return len(reader)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def _append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def _replace(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))
