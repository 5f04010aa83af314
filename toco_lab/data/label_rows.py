"""The rows of a label table as its file has them: names of images, each with names of classes, not checked."""

import csv
import io
import json
import unicodedata
from pathlib import Path
from typing import Any

from toco_lab.data.classes import DataError
from toco_lab.files import read_text
from toco_lab.words import counted

LABEL_LAYOUTS = (
    "CSV: header `name,labels`, class names separated by `;`; JSON: {name: [class names]}; npy: a dict {name: one-hot "
    "array}"
)
Rows = list[tuple[str, list[str]]]


def tidy(name: str) -> str:
    """A class name in which neither spaces around it nor doubled ones nor the way its letters are composed count."""
    return unicodedata.normalize("NFC", " ".join(name.split()))


def label_rows(path: Path) -> Rows:
    """Name and class names of each row of a CSV or JSON label file, in its order; a name may come twice.

    In a CSV, columns are separated by commas, or by semicolons or tabs where the header is; capitals and spaces in the
    header do not matter, other columns are not read, and rows without any text are passed over.

    Raises:
        DataError: For another extension or a wrong layout; the message names the line or the image.
    """
    if path.suffix.lower() not in (".csv", ".json"):
        raise DataError(f"label file {path} must end in .csv, .json or .npy")
    text = read_text(path, error=DataError)
    try:
        return _json_rows(text) if path.suffix.lower() == ".json" else _csv_rows(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"label file {path} has the wrong layout ({error}). {LABEL_LAYOUTS}") from error


class _Object(list):
    """The (key, value) pairs of a JSON object, so that repeated keys are seen."""


def _json_rows(text: str) -> Rows:
    table = json.loads(text, object_pairs_hook=_Object)
    if not isinstance(table, _Object):
        raise ValueError(f"it begins with {text.strip()[:1]!r}, not with a {{ and names of images")
    return [(name, _class_names(name, labels)) for name, labels in table]


def _class_names(image: str, labels: Any) -> list[str]:
    if not isinstance(labels, list) or isinstance(labels, _Object):
        raise ValueError(f"image {image!r}: class names must be a list, got {json.dumps(labels)[:60]}")
    if wrong := [label for label in labels if not isinstance(label, str)]:
        raise ValueError(f"image {image!r}: a class is given by its name in quotes, got {json.dumps(wrong[0])[:60]}")
    return labels


def _csv_rows(text: str) -> Rows:
    first = next((line for line in text.split("\n") if line.strip()), "")
    delimiter = "," if "," in first else next((mark for mark in ";\t" if mark in first), ",")
    table = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    rows: Rows = []
    columns: tuple[int, int, int] | None = None
    try:
        for cells in table:
            if not any(cell.strip() for cell in cells):
                continue
            if columns is None:
                columns = _columns(cells)
            else:
                rows.append(_csv_row(cells, *columns, delimiter))
    except (csv.Error, ValueError) as error:
        raise ValueError(f"line {table.line_num}: {error}") from error
    if columns is None:
        raise ValueError("it is empty")
    return rows


def _columns(header: list[str]) -> tuple[int, int, int]:
    """Places of the two columns that are read, and the number of all."""
    titles = [cell.strip().lower() for cell in header]
    if titles.count("name") != 1 or titles.count("labels") != 1:
        shown = ", ".join(repr(cell) for cell in header[:6])
        raise ValueError(f"the header needs `name` and `labels` once each, and the first row is {shown}")
    return titles.index("name"), titles.index("labels"), len(titles)


def _csv_row(cells: list[str], name: int, labels: int, count: int, delimiter: str) -> tuple[str, list[str]]:
    if len(cells) > count and delimiter == ";" and labels == count - 1:  # then `;` separates both columns and classes
        cells = [*cells[:labels], ";".join(cells[labels:])]
    spare = [cell for cell in cells[count:] if cell.strip()]
    if spare:
        raise ValueError(
            f"{counted(len(cells), 'cell')}, the header has {count}: {spare[0]!r} belongs to no column. Separate "
            "classes by `;`, and put a name that holds a comma into quotes"
        )
    if len(cells) <= max(name, labels):
        raise ValueError(
            f"{len(cells)} of {counted(count, 'cell')}; an image without a class has an empty cell, as in `one,`"
        )
    if not cells[name].strip():
        raise ValueError("a row without a name of an image. Add it, or take the row out")
    return cells[name].strip(), cells[labels].split(";")
