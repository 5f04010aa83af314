"""The small files that a run or a sweep left, read in one place: a fault is named with file and field.

A field that is not named here may be there: another version of this package wrote it.
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from toco_lab.files import read_text
from toco_lab.words import counted

REMEDY = "Delete it to have it made anew, or bring back a copy"

# what a JSON file holds: a kind, an object by its fields, a list by its element; "*" is every field, "?" may be absent
SHAPES: dict[str, Any] = {
    "status": {
        "state": "text", "step?": "count", "steps?": "count", "seconds?": "time", "total_seconds?": "time",
        "error?": "text",
    },
    "env": [
        {
            "start": "text", "command?": ["text"], "device?": "text", "packages?": {"*?": "text"},
            "git?": {"commit": "text", "dirty?": "switch"}, "process?": {"host": "text", "pid": "count"},
        }
    ],
    "protocol": {"*": {"checkpoint": "text", "images?": "count"}},
    "images": {"*": {"checkpoint": "text", "images": "count"}},
    "failure": {"error": "text", "traceback?": "text"},
    "initial_weights": {"file": "text", "hash": "text"},
    "tracker": {"id": "text", "where": "text", "step?": "count", "picture?": "count", "results?": "text"},
}  # fmt: skip
_KINDS = {
    "text": ("text", lambda value: isinstance(value, str)),
    "switch": ("true or false", lambda value: isinstance(value, bool)),
    "count": ("a whole number of 0 or more", lambda value: type(value) is int and 0 <= value < 2**63),
    "time": ("a number of 0 or more", lambda value: type(value) in (int, float) and 0 <= value < math.inf),
}
_JSON_NAMES: dict[type, str] = {dict: "object", list: "list"}


@dataclass(frozen=True)
class Columns:
    """What a table must have: columns of words and of numbers; columns of numbers that it may have, or all others."""

    text: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    more_numbers: tuple[str, ...] = ()
    all_numbers: bool = False


TABLES = {
    "evaluation": Columns(text=("target", "class"), numbers=("iou",), more_numbers=("over_activation", "boundary_iou")),
    "images": Columns(text=("target", "class"), numbers=("label", "truth", "predicted", "hits", "pixels")),
    "layer_cams": Columns(text=("site",), numbers=("layer", "threshold", "miou")),
    "metrics": Columns(numbers=("step",), all_numbers=True),
    "thresholds": Columns(text=("target", "split"), numbers=("images", "threshold", "miou")),
    "smoothing": Columns(text=("site", "metric", "variant"), numbers=("layer", "value"), more_numbers=("tokens",)),
}


def damaged(path: Path, expected: str, error: object, remedy: str = REMEDY) -> ValueError:
    """The error about a small file: which, what was expected, what is wrong, and what to do."""
    return ValueError(f"{path} is damaged: {expected} was expected ({' '.join(str(error).split())}). {remedy}")


# --- json -------------------------------------------------------------------------------------------------------------


def read_json_file(path: Path, shape: Any = None, *, remedy: str = REMEDY) -> Any:
    """A small JSON file that a run, a sweep or a notebook wrote.

    Args:
        path: The file.
        shape: What it must hold, as in `SHAPES`; None allows anything.
        remedy: What mends the file, for the message.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: Naming the file, the field, what was expected and what to do, if it is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, nested without end
        raise damaged(path, "JSON", error, remedy) from error
    _check_shape(path, found, shape, "", remedy)
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"`{next(name for name in names if names.count(name) > 1)}` stands there twice")
    return found


def _check_shape(path: Path, value: Any, shape: Any, where: str, remedy: str) -> None:
    """ValueError naming the file and the first field that is not as its shape says."""
    if shape is None:
        return
    at = f" for `{where}`" if where else ""
    if isinstance(shape, str):
        words, fits = _KINDS[shape]
        if not fits(value):
            raise damaged(path, words + at, f"{_short(value)} is there", remedy)
        return
    if not isinstance(value, type(shape)):
        expected = f"a JSON {_JSON_NAMES[type(shape)]}{at}"
        raise damaged(path, expected, f"a {type(value).__name__} is there: {_short(value)}", remedy)
    if isinstance(value, list):
        for number, one in enumerate(value):
            _check_shape(path, one, shape[0], f"{where}[{number}]", remedy)
        return
    for key, inner in shape.items():
        name, optional = key.removesuffix("?"), key.endswith("?")
        for field in value if name == "*" else [name]:
            place = f"{where}.{field}" if where else field
            if field not in value and not optional:
                raise damaged(path, f"a field `{place}`", f"there are: {', '.join(value) or 'none'}", remedy)
            if not (optional and value.get(field) is None):
                _check_shape(path, value[field], inner, place, remedy)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- csv --------------------------------------------------------------------------------------------------------------


def complete_lines(path: Path, remedy: str = REMEDY) -> str:
    """Text of a file up to its last line end; empty if there is no file.

    Raises:
        ValueError: Naming the file, if it is no text.
    """
    if not path.is_file():
        return ""
    raw = path.read_bytes()
    try:
        text = raw[: raw.rfind(b"\n") + 1].decode("utf-8")
    except UnicodeDecodeError as error:
        raise damaged(path, "text in UTF-8", error, remedy) from error
    if "\0" in text:
        line = text.partition("\0")[0].count("\n") + 1
        raise damaged(path, "text", f"a zero byte in line {line}", remedy)
    return text


def read_rows(path: Path, text: str, columns: Columns, remedy: str = REMEDY) -> list[dict[str, str]]:
    """The rows of a table by column name, cells as they are written.

    Args:
        path: Where it was read, for messages.
        text: The table.
        columns: What it must have.
        remedy: What mends the file, for the message.

    Raises:
        ValueError: Naming the file, and the column or line that is wrong.
    """
    try:
        head, *rows = list(csv.reader(io.StringIO(text))) or [[]]
    except csv.Error as error:
        raise damaged(path, "a table", error, remedy) from error
    if not any(head):
        raise damaged(path, "a table with a line of column names", "it is empty", remedy)
    if twice := [name for name in head if head.count(name) > 1]:
        raise damaged(path, "one column of each name", f"column {twice[0]} stands there twice", remedy)
    if lacking := [name for name in (*columns.text, *columns.numbers) if name not in head]:
        raise damaged(
            path, f"a table with the columns {', '.join((*columns.text, *columns.numbers))}",
            f"no column {', '.join(lacking)}", remedy,
        )  # fmt: skip
    rows = [row for row in rows if row]
    for number, row in enumerate(rows, 2):
        if len(row) != len(head):
            raise damaged(path, f"{counted(len(head), 'cell')} in row {number}", f"there are {len(row)}", remedy)
    return [dict(zip(head, row, strict=True)) for row in rows]


def number_in(path: Path, row: Mapping[str, str], column: str, number: int, remedy: str = REMEDY) -> float:
    """A cell as a number, NaN for an empty one. Raises ValueError naming file, row (the names are row 1) and column."""
    try:
        return float(row[column] or "nan")
    except ValueError as error:
        found = f"{_short(row[column])} is there"
        raise damaged(path, f"a number in row {number}, column {column}", found, remedy) from error


def read_table_file(
    path: Path, columns: Columns, *, text: Sequence[str] = (), remedy: str = REMEDY, whole: str | None = None
) -> pd.DataFrame:
    """A table; an empty cell is a missing value, a word like None or NA stays a word.

    Args:
        path: The file.
        columns: What it must have.
        text: Further columns of words that may look like numbers (an image named 000012).
        remedy: What mends the file, for the message.
        whole: Its text, where that was read already.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: Naming the file, and the column or row that is wrong.
    """
    try:
        written = read_text(path) if whole is None else whole
    except ValueError as error:
        raise damaged(path, "text", error, remedy) from error
    if written and not written.endswith("\n"):
        raise damaged(path, "a line end after the last row", "the file is cut off", remedy)
    rows = read_rows(path, written, columns, remedy)
    words = dict.fromkeys((*columns.text, *text), str)
    frame = pd.read_csv(io.StringIO(written), keep_default_na=False, na_values=[""], dtype=words)
    checked = set(frame) if columns.all_numbers else {*columns.numbers, *columns.more_numbers} & set(frame)
    for name in frame:
        kind = frame[name].dtype.kind
        if kind == "f" or (name in checked and kind not in "iu"):  # pandas rounds in some versions; nan in letters
            cells = [number_in(path, row, name, number, remedy) for number, row in enumerate(rows, 2)]
            frame[name] = pd.Series(cells, frame.index, float)
    return frame
