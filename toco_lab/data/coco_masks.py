"""COCO's annotations as masks of class numbers, straight from the official instances json.

A mask is painted when it is first asked for and kept in a cache folder whose name depends on the content of the json
and on how crowds are painted: another json or another choice never finds old masks.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toco_lab.config import IGNORE_INDEX
from toco_lab.data.classes import COCO_CLASSES, DataError, save_mask
from toco_lab.data.coco_json import check_outline, read_instances
from toco_lab.data.image_labels import onehot
from toco_lab.files import atomic_write

CACHE = "masks_from_json"  # beside the folder `annotations`, or in the user's cache where that is read-only
_VERSION = "1"  # of `paint_mask`: another order of painting needs another number


def find_annotations(root: Path, split: str | None = None) -> list[Path]:
    """The files annotations/instances_*.json: those of a split (instances_train2014), or all if it has none."""
    paths = sorted((root / "annotations").glob("instances_*.json"))
    return [path for path in paths if split and path.stem.startswith(f"instances_{split}")] or paths


def paint_mask(
    annotations: Sequence[Mapping[str, Any]],
    numbers: Mapping[int, int],
    outline: Callable[[Mapping[str, Any]], np.ndarray],
    size: tuple[int, int],
    *,
    crowds: str,
) -> np.ndarray:
    """uint8 (H, W): 0 background, 1..80 classes; smaller objects lie on larger ones, and all of them on the crowds.

    Crowds lie below because their outline is coarse. Which object is on top changes scores by points: compare numbers
    only if they come from masks made alike.

    Args:
        annotations: Annotations of one image, in any order; the area of one without `area` is that of its outline.
        numbers: Class number of each category id.
        outline: (H, W) of an annotation, above 0 where its object is (`COCO.annToMask`).
        size: (H, W).
        crowds: `class` paints crowd regions as their class, `ignore` as 255.
    """

    def order(item: Mapping[str, Any]) -> tuple[bool, float, int]:
        area = item["area"] if "area" in item else np.count_nonzero(outline(item))
        return not item["iscrowd"], -float(area), item["id"]

    mask = np.zeros(size, np.uint8)
    for item in sorted(annotations, key=order):
        number = IGNORE_INDEX if item["iscrowd"] and crowds == "ignore" else numbers[item["category_id"]]
        mask[outline(item) > 0] = number
    return mask


class CocoMasks:
    """Masks and image labels of one instances json.

    The json of COCO's training images takes half a minute and some GB of memory to read. After the first time the names
    and labels come from a small index in the cache, and the json is read again only to paint a mask.

    Attributes:
        path: The json.
        crowds: `class` or `ignore`, see `paint_mask`.
        folder: Cache of the painted masks.
        classes: Class numbers annotated in each image, by its name.
    """

    def __init__(self, path: Path, *, crowds: str = "class") -> None:
        """`path` is annotations/instances_*.json; DataError if it is no such json or not of COCO's 80 classes."""
        self.path, self.crowds = path, crowds
        status = path.stat()
        key = _key(path, status.st_size, status.st_mtime_ns)
        self.folder = _cache_folder(path.parent.parent) / f"{path.stem}-{crowds}-{key}"
        index = self.folder / "index.json"
        known = _read_index(index)
        if known is None:
            known = self._classes()
            with atomic_write(index, "w") as file:
                json.dump(known, file)
        self.classes: dict[str, list[int]] = known

    def image_label(self, name: str) -> np.ndarray:
        """float32 (80,) in {0, 1}: the classes annotated in an image, hidden objects included, ignored crowds not."""
        return onehot([COCO_CLASSES[number - 1] for number in self.classes[name]], COCO_CLASSES, str(self.path))

    def mask_path(self, name: str) -> Path:
        """The PNG of an image, painted now if it is not there; KeyError for an unknown name."""
        path = self.folder / f"{name}.png"
        if not path.is_file():
            save_mask(path, self._paint(name))
        return path

    def objects(self, name: str) -> Iterator[tuple[int, np.ndarray, bool]]:
        """Class number, outline (H, W) bool, and whether it is a crowd, of each object of an image that has a pixel.

        Raises:
            DataError: If an outline cannot be read.
            KeyError: For an unknown name.
        """
        for item in self._annotations(name):
            where = self._outline(item) > 0
            if where.any():
                yield self._opened[1][item["category_id"]], where, bool(item["iscrowd"])

    def prepare(self, names: Iterable[str]) -> None:
        """Read the json now if one of these masks is not painted yet: loader processes, which are forked, share it.

        Raises:
            DataError: If one of those masks cannot be painted.
        """
        there = {path.stem for path in self.folder.glob("*.png")}
        for name in sorted(set(names) - there):
            for item in self._annotations(name):
                self._check_outline(item)

    @functools.cached_property
    def _opened(self) -> tuple[Any, dict[int, int]]:
        from pycocotools.coco import COCO

        content, numbers = read_instances(self.path)
        coco = COCO()
        coco.dataset = content
        with contextlib.redirect_stdout(io.StringIO()):  # it reports every stage
            coco.createIndex()
        return coco, numbers

    @property
    def _coco(self) -> Any:
        return self._opened[0]

    @functools.cached_property
    def _image_ids(self) -> dict[str, int]:
        return {Path(info["file_name"]).stem: number for number, info in self._coco.imgs.items()}

    def _classes(self) -> dict[str, list[int]]:
        index, numbers = {}, self._opened[1]
        for name in sorted(self._image_ids):
            counted = [item for item in self._annotations(name) if not (item["iscrowd"] and self.crowds == "ignore")]
            if counted:  # nothing to learn from an image without a class, nothing to score
                index[name] = sorted({numbers[item["category_id"]] for item in counted})
        return index

    def _annotations(self, name: str) -> list[dict[str, Any]]:
        return self._coco.imgToAnns[self._image_ids[name]]

    def _paint(self, name: str) -> np.ndarray:
        info = self._coco.imgs[self._image_ids[name]]
        size = info["height"], info["width"]
        return paint_mask(self._annotations(name), self._opened[1], self._outline, size, crowds=self.crowds)

    def _check_outline(self, item: Mapping[str, Any]) -> None:
        info = self._coco.imgs[item["image_id"]]
        try:
            check_outline(item, info["height"], info["width"])
        except ValueError as error:
            raise DataError(
                f"annotation {item['id']} of {self.path} has no readable outline: {error}. Take the file from "
                "annotations_trainval2014.zip again, take the annotation out, or (labels alone) use label_source "
                "`annotations`"
            ) from error

    def _outline(self, item: Mapping[str, Any]) -> np.ndarray:
        self._check_outline(item)
        return self._coco.annToMask(item)


def _read_index(path: Path) -> dict[str, list[int]] | None:
    """What the cache says of the classes; None where it has nothing, or something damaged: it is made again."""
    try:
        known = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    allowed = set(range(1, len(COCO_CLASSES) + 1))
    is_sound = isinstance(known, dict) and all(isinstance(c, list) and allowed.issuperset(c) for c in known.values())
    return known if is_sound else None


@functools.lru_cache(maxsize=8)  # half a GB is not hashed again for every reader; size and time only guard this memory
def _key(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256")
    content.update(_VERSION.encode())
    return content.hexdigest()[:12]


def _cache_folder(root: Path) -> Path:
    if os.access(root, os.W_OK):
        return root / CACHE
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "toco_lab" / CACHE
