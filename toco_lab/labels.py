"""Classes, colours and image labels: class names, the VOC palette, and every way image labels can be given."""

import csv
import difflib
import json
import pickle
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import numpy as np

from toco_lab import toy
from toco_lab.config import Config

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator",
    "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip


class DataError(ValueError):
    """Something is wrong with the data; the message says what, in which file, and how to mend it."""


def voc_palette() -> np.ndarray:
    """The VOC colour map, (256, 3) uint8: bits 0, 1, 2 of a label are the top bits of R, G, B, 3, 4, 5 the next."""
    labels = np.arange(256)
    shifts = np.arange(8)[:, None, None]  # which triple of bits
    bits = labels[:, None] >> (3 * shifts + np.arange(3)) & 1  # (8, 256, 3)
    return (bits << (7 - shifts)).sum(0).astype(np.uint8)


PALETTE = voc_palette()


def class_names(cfg: Config) -> tuple[str, ...]:
    """Names of the `cfg.num_classes` foreground classes; name k belongs to label k + 1 of a mask."""
    known = {"toy": toy.TOY_CLASSES, "voc": VOC_CLASSES, "coco": COCO_CLASSES}
    if cfg.dataset not in known:
        raise DataError(f"no reader for dataset {cfg.dataset!r}; there are: {', '.join(known)}")
    names = tuple(known[cfg.dataset])
    if len(names) != cfg.num_classes:
        raise DataError(f"{cfg.dataset} has {len(names)} classes, the config says num_classes={cfg.num_classes}")
    return names


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
            table = _read_pickled_arrays(path)
            return {str(name): _checked_onehot(path, name, values, len(classes)) for name, values in table.items()}
        if path.suffix == ".json":
            table = json.loads(path.read_text())
        elif path.suffix == ".csv":
            with path.open(newline="") as file:
                rows = [(row["name"], row["labels"]) for row in csv.DictReader(file)]
            table = {name: [label.strip() for label in labels.split(";") if label.strip()] for name, labels in rows}
        else:
            raise DataError(f"label file {path} must end in .csv, .json or .npy")
        return {name: _onehot(labels, classes, f"label file {path}, image {name!r}") for name, labels in table.items()}
    except (KeyError, AttributeError, TypeError, json.JSONDecodeError) as error:
        raise DataError(
            f"label file {path} has the wrong layout ({error!r}). CSV: header `name,labels`, class names separated by "
            "`;`; JSON: {name: [class names]}; npy: a dict {name: one-hot array}"
        ) from error


def find_label_file(source: str, root: Path) -> Path:
    for path in (Path(source), root / source):
        if path.is_file():
            return path
    raise DataError(f"label_source is neither `masks` nor `xml`, and there is no file {source} or {root / source}")


def _onehot(labels: Iterable[str], classes: Sequence[str], where: str) -> np.ndarray:
    onehot = np.zeros(len(classes), np.float32)
    for label in labels:
        if label not in classes:
            near = difflib.get_close_matches(str(label), classes, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(classes)}"
            raise DataError(f"unknown class {label!r} in {where}. Correct the name there; {hint}")
        onehot[classes.index(label)] = 1
    return onehot


def _checked_onehot(path: Path, name: str, values: np.ndarray, num_classes: int) -> np.ndarray:
    onehot = np.asarray(values)
    if onehot.shape != (num_classes,) or not np.isin(onehot, (0, 1)).all():
        raise DataError(
            f"label file {path}, image {name!r}: need {num_classes} values of 0 or 1, got an array {onehot.shape}. Use "
            "the file of this data set, or correct num_classes"
        )
    return onehot.astype(np.float32)


def read_xml_label(path: Path, classes: Sequence[str]) -> np.ndarray:
    """Classes of a VOC or labelme annotation, objects marked `difficult` included."""
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
    except FileNotFoundError as error:
        raise DataError(f"no annotation {path}. Add it, or use label_source `masks` or a label file") from error
    except ElementTree.ParseError as error:
        raise DataError(f"cannot parse {path}: {error}. Copy the file again") from error
    return _onehot([(item.findtext("name") or "").strip() for item in objects], classes, str(path))


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds numpy arrays in plain containers and refuses everything else, so a label file cannot run code."""

    _RECONSTRUCT = np.empty(0).__reduce__()[0]  # where numpy keeps it has moved between versions
    _ALLOWED: ClassVar = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    }

    def find_class(self, module: str, name: str) -> Callable:
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
