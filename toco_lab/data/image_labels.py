"""Readers of image labels: which classes an image shows, from masks, XML, CSV, JSON or npy files."""

import csv
import io
import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import numpy as np

from toco_lab.data.classes import DataError
from toco_lab.files import did_you_mean, read_text
from toco_lab.words import counted

_LABEL_LAYOUTS = (
    "CSV: header `name,labels`, class names separated by `;`; JSON: {name: [class names]}; npy: a dict {name: one-hot "
    "array}"
)


def label_of_mask(mask: np.ndarray, num_classes: int) -> np.ndarray:
    """float32 (C,) in {0, 1}: which classes 1..C occur in a mask."""
    return (np.bincount(mask.ravel(), minlength=256)[1 : num_classes + 1] > 0).astype(np.float32)


def read_labels(path: Path, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Image labels by image name, each float32 (C,) in {0, 1}.

    * `.csv`: header `name,labels`; class names separated by `;`
    * `.json`: {image name: [class name, ...]}
    * `.npy`: a pickled dict {image name: one-hot (C,)}, as the authors provide it; read without running code from it

    Raises:
        DataError: For another extension, an unknown class name, or a wrong layout.
    """
    try:
        if path.suffix == ".npy":
            arrays = _read_pickled_arrays(path)
            return {str(name): _checked_onehot(path, name, values, len(classes)) for name, values in arrays.items()}
    except (AttributeError, TypeError) as error:
        raise DataError(f"label file {path} has the wrong layout ({error!r}). {_LABEL_LAYOUTS}") from error
    named = read_label_names(path)
    return {name: onehot(labels, classes, f"label file {path}, image {name!r}") for name, labels in named.items()}


def read_label_names(path: Path) -> dict[str, list[str]]:
    """Class names by image name from a CSV or JSON label file, see `read_labels`; the names are not checked.

    Raises:
        DataError: For another extension, a wrong layout, or an image that is listed twice.
    """
    if path.suffix not in (".csv", ".json"):
        raise DataError(f"label file {path} must end in .csv, .json or .npy")
    text = read_text(path, error=DataError)
    try:
        if path.suffix == ".json":
            rows = json.loads(text, object_pairs_hook=list)  # keeps repeated names
            rows = [(name, [str(label) for label in _as_list(labels)]) for name, labels in rows]
        else:
            table_rows = csv.DictReader(io.StringIO(text), strict=True)
            rows = [(row["name"].strip(), row["labels"].split(";")) for row in table_rows]
    except (KeyError, AttributeError, TypeError, ValueError, RecursionError, csv.Error) as error:
        raise DataError(f"label file {path} has the wrong layout ({error!r}). {_LABEL_LAYOUTS}") from error
    table = {name: [label.strip() for label in labels if label.strip()] for name, labels in rows}
    if len(table) < len(rows):
        twice = next(name for name, count in Counter(name for name, _ in rows).items() if count > 1)
        raise DataError(f"label file {path} has {twice!r} more than once. Keep one row with all its classes")
    return table


def _as_list(labels: object) -> list:
    if not isinstance(labels, list):
        raise TypeError(f"class names must be a list, got {labels!r}")
    return labels


def find_label_file(source: str, root: Path) -> Path:
    """The file that `label_source` names, as a path of its own or below the data set's folder; DataError if neither."""
    for path in (Path(source), root / source):
        if path.is_file():
            return path
    raise DataError(f"label_source is neither `masks` nor `xml`, and there is no file {source} or {root / source}")


def onehot(labels: Iterable[str], classes: Sequence[str], where: str) -> np.ndarray:
    """float32 (C,) in {0, 1}: 1 for each of the class names `labels`.

    Raises:
        DataError: For an unknown class; the message says that it stands in `where`.
    """
    label = np.zeros(len(classes), np.float32)
    for name in labels:
        if name not in classes:
            hint = did_you_mean(name, classes) or f"; there are: {', '.join(classes)}"
            raise DataError(f"unknown class {name!r} in {where}. Correct the name there{hint}")
        label[classes.index(name)] = 1
    return label


def _checked_onehot(path: Path, name: str, values: np.ndarray, num_classes: int) -> np.ndarray:
    vector = np.asarray(values)
    if vector.shape != (num_classes,) or not np.isin(vector, (0, 1)).all():
        raise DataError(
            f"label file {path}, image {name!r}: need {counted(num_classes, 'value')} of 0 or 1, got an array "
            f"{vector.shape}. Use the file of this data set, or correct num_classes"
        )
    return vector.astype(np.float32)


def read_xml_label(path: Path, classes: Sequence[str]) -> np.ndarray:
    """float32 (C,) in {0, 1}: classes of a VOC or labelme annotation, objects marked `difficult` included."""
    return onehot(read_xml_names(path), classes, str(path))


def read_xml_names(path: Path) -> list[str]:
    """Class name of each object of a VOC or labelme annotation; DataError if it is missing or damaged."""
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
    except FileNotFoundError as error:
        raise DataError(f"no annotation {path}. Add it, or use label_source `masks` or a label file") from error
    except ElementTree.ParseError as error:
        raise DataError(f"cannot parse {path}: {error}. Copy the file again") from error
    names = [(item.findtext("name") or "").strip() for item in objects]
    if not all(names):
        raise DataError(f"{path} has an object without a name. Name it, or take it out")
    return names


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds numpy arrays in plain containers and refuses everything else, so a label file cannot run code."""

    _RECONSTRUCT: ClassVar[Any] = np.empty(0).__reduce__()[0]  # where numpy keeps it has moved between versions
    _ALLOWED: ClassVar[dict[tuple[str, str], Callable[..., Any]]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    }

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
        return self._ALLOWED[module, name]


def _read_pickled_arrays(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = headers[version](file)
            if shape != () or dtype.kind != "O":
                raise ValueError(f"it holds an array {shape} of {dtype}, not a dict")
            return _ArrayUnpickler(file).load().item()
        except (pickle.UnpicklingError, LookupError, ValueError, EOFError, AttributeError, TypeError) as error:
            raise DataError(f"refused to read {path}: {error}. Use a CSV or JSON label file instead") from error
