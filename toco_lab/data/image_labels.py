"""Readers of image labels: which classes an image shows, from masks, XML, CSV, JSON or npy files."""

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from toco_lab.data.classes import DataError
from toco_lab.data.label_arrays import read_label_arrays
from toco_lab.data.label_rows import label_rows, tidy
from toco_lab.files import did_you_mean


def label_of_mask(mask: np.ndarray, num_classes: int) -> np.ndarray:
    """float32 (C,) in {0, 1}: which classes 1..C occur in a mask."""
    return (np.bincount(mask.ravel(), minlength=256)[1 : num_classes + 1] > 0).astype(np.float32)


def read_labels(path: Path, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Image labels by image name, each float32 (C,) in {0, 1}.

    * `.csv`: header `name,labels`; class names separated by `;`. See `label_rows` for what else is understood
    * `.json`: {image name: [class name, ...]}
    * `.npy`: a pickled dict {image name: one-hot (C,)}, as the authors provide it; read without running code from it

    Raises:
        DataError: For another extension, an unknown class name, or a wrong layout.
    """
    if path.suffix.lower() == ".npy":
        arrays = read_label_arrays(path)
        return {name: _checked_onehot(path, name, values, len(classes)) for name, values in arrays.items()}
    named = read_label_names(path)
    return {name: onehot(labels, classes, f"label file {path}, image {name!r}") for name, labels in named.items()}


def read_label_names(path: Path) -> dict[str, list[str]]:
    """Class names by image name from a CSV or JSON label file, see `read_labels`; the names are not checked.

    Raises:
        DataError: For another extension, a wrong layout, or an image that is listed twice.
    """
    rows = label_rows(path)
    table = {name: [label for label in map(tidy, labels) if label] for name, labels in rows}
    if len(table) < len(rows):
        twice = next(name for name, count in Counter(name for name, _ in rows).items() if count > 1)
        raise DataError(f"label file {path} has {twice!r} more than once. Keep one row with all its classes")
    return table


def labelled_names(path: Path) -> list[str]:
    """Names of the images of which a label file says something, whatever its kind."""
    return list(read_label_arrays(path) if path.suffix.lower() == ".npy" else read_label_names(path))


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
    label, places = np.zeros(len(classes), np.float32), _places(tuple(classes))
    for name in map(tidy, labels):
        if name not in places:
            hint = did_you_mean(name, classes) or f"; there are: {', '.join(classes)}"
            raise DataError(f"unknown class {name!r} in {where}. Correct the name there{hint}")
        label[places[name]] = 1
    return label


@functools.lru_cache(maxsize=8)
def _places(classes: tuple[str, ...]) -> dict[str, int]:
    return {tidy(name): place for place, name in enumerate(classes)}


def _checked_onehot(path: Path, name: str, vector: np.ndarray | str, num_classes: int) -> np.ndarray:
    found = vector if isinstance(vector, str) else f"an array {vector.shape}{_range(vector)}"
    if isinstance(vector, str) or vector.shape != (num_classes,) or not np.isin(vector, (0, 1)).all():
        raise DataError(
            f"label file {path}, image {name!r}: need {num_classes} values of 0 or 1, got {found}. Use the file of "
            "this data set, or correct num_classes"
        )
    return vector.astype(np.float32)


def _range(vector: np.ndarray) -> str:
    if vector.dtype.kind not in "biuf":
        return f" of {vector.dtype}"
    return f" of {vector.dtype} from {vector.min():g} to {vector.max():g}" if vector.size else ""


def read_xml_label(path: Path, classes: Sequence[str]) -> np.ndarray:
    """float32 (C,) in {0, 1}: classes of a VOC or labelme annotation, objects marked `difficult` included."""
    return onehot(read_xml_names(path), classes, str(path))


def read_xml_names(path: Path) -> list[str]:
    """Class name of each object of a VOC or LabelMe annotation; objects that LabelMe marks as deleted do not count.

    Raises:
        DataError: If the file is missing, damaged or no such annotation. A document type is refused, since only it can
            declare entities: none is ever expanded.
    """
    try:
        parser = ElementTree.XMLParser(target=_WithoutDoctype())
        root = ElementTree.fromstring(path.read_bytes(), parser)
    except FileNotFoundError as error:
        raise DataError(f"no annotation {path}. Add it, or use label_source `masks` or a label file") from error
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # damaged; an unknown encoding; a document type
        raise DataError(f"cannot parse {path}: {error}. Copy the file again, or save it anew as plain XML") from error
    if root.tag != "annotation":
        raise DataError(
            f"{path} is no annotation of VOC or LabelMe: it begins with <{root.tag}>, not <annotation>. Export one "
            "such file for each image, or take it away"
        )
    objects = [item for item in root.findall("object") if (item.findtext("deleted") or "").strip() != "1"]
    names = [tidy(item.findtext("name") or "") for item in objects]
    if not all(names):
        raise DataError(f"{path} has an object without a name. Name it, or take it out")
    return names


class _WithoutDoctype(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError(f"it declares a document type, <!DOCTYPE {name} ...>, which may hold entities")
