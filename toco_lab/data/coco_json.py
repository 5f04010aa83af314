"""COCO's instances json, checked entry by entry: pycocotools would crash or hang on a wrong one, or read other memory.

What may be missing, and what stands in for it: `iscrowd` is 0, `area` is counted from the painted outline, and
categories that no object has need not be there. Everything else is refused with the entry's place and the remedy.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from toco_lab.data.classes import COCO_CLASSES, DataError
from toco_lab.files import did_you_mean

_TAKE = "Take the file from annotations_trainval2014.zip again"
_LISTS = ("images", "annotations", "categories")


def read_instances(path: Path) -> tuple[dict[str, Any], dict[int, int]]:
    """The content of an instances json, and the class number of each category id.

    Raises:
        DataError: If it is damaged, no such json, or one of its entries cannot be right.
    """
    try:
        with path.open("rb") as file:
            content = json.load(file)
        if not isinstance(content, dict):
            raise TypeError(f"it is a JSON {type(content).__name__}, not an object")
        for key in _LISTS:
            if not isinstance(content.get(key), list) or not all(isinstance(item, dict) for item in content[key]):
                raise TypeError(f"it has no list {key!r} of objects")
    except (ValueError, TypeError, RecursionError) as error:  # json calls a file that is cut off by the place
        raise DataError(f"{path} is no instances json ({error}). {_TAKE}: it may be cut off") from error
    try:
        numbers = class_numbers(content["categories"])
    except DataError as error:
        raise DataError(
            f"{path} is not COCO: {error}. Data of your own: make masks and read them as a folder"
        ) from error
    _check_images(content["images"], path)
    _check_annotations(content, numbers, path)
    return content, numbers


def class_numbers(categories: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """Category id -> class number: the place of the category's name among the 80, whose ids 1..90 have gaps.

    Raises:
        DataError: If a category has no id, an id or name comes twice, or the name is none of `COCO_CLASSES`.
    """
    numbers: dict[int, int] = {}
    for place, category in enumerate(categories):
        number, name = category.get("id"), category.get("name")
        if not _is_int(number):
            raise DataError(f"entry {place} of categories has the id {number!r}, which is no whole number")
        if name not in COCO_CLASSES:
            raise DataError(
                f"category {number} is {name!r}, which is no class of COCO{did_you_mean(str(name), COCO_CLASSES)}"
            )
        if number in numbers or COCO_CLASSES.index(name) + 1 in numbers.values():
            raise DataError(f"category {number}, {name!r}, stands twice in categories")
        numbers[number] = COCO_CLASSES.index(name) + 1
    return numbers


def _check_images(images: list[dict[str, Any]], path: Path) -> None:
    ids: set[int] = set()
    names: set[str] = set()
    for place, info in enumerate(images):
        number, name = info.get("id"), info.get("file_name")
        where = f"image {number!r} (entry {place} of images) of {path}"
        if not _is_int(number) or not isinstance(name, str) or not name:
            raise DataError(f"{where} needs an id that is a whole number and a file_name. {_TAKE}")
        if not all(_is_int(info.get(side)) and info[side] > 0 for side in ("height", "width")):
            raise DataError(f"{where} needs its height and width in pixels, got {info.get('height')!r} and "
                            f"{info.get('width')!r}. {_TAKE}")  # fmt: skip
        if number in ids or Path(name).stem in names:
            what = f"the id {number}" if number in ids else f"the file name {name!r}"
            raise DataError(f"{where} has {what} of an image before it. Take one of them out")
        ids.add(number)
        names.add(Path(name).stem)


def _check_annotations(content: dict[str, Any], numbers: Mapping[int, int], path: Path) -> None:
    images = {info["id"] for info in content["images"]}
    seen: set[int] = set()
    for place, item in enumerate(content["annotations"]):
        wrong = _wrong_fields(item, images, numbers, seen)
        if wrong:
            raise DataError(f"annotation {item.get('id')} of {path} (entry {place} of annotations) {wrong}")
        seen.add(item["id"])
        item.setdefault("iscrowd", 0)


def _wrong_fields(item: dict[str, Any], images: set[int], numbers: Mapping[int, int], seen: set[int]) -> str:
    """What is wrong with an annotation apart from its outline, and the remedy; "" if nothing is."""
    for field in ("id", "image_id", "category_id"):
        if not _is_int(item.get(field)):
            return f"has the {field} {item.get(field)!r}, which is no whole number. Add it, or take the annotation out"
    area = item.get("area", 0)
    for wrong, words in (
        (item["id"] in seen, "has the id of an annotation before it. Give it another, or take it out"),
        (
            item["image_id"] not in images,
            f"belongs to image_id {item['image_id']}, which `images` does not list. Add the image, or take it out",
        ),
        (
            item["category_id"] not in numbers,
            f"has category_id {item['category_id']}, which `categories` does not list. Correct it, or add the category",
        ),
        (item.get("iscrowd", 0) not in (0, 1), f"has iscrowd {item.get('iscrowd')!r}. It is 0 or 1"),
        (
            isinstance(area, bool) or not isinstance(area, (int, float)) or not math.isfinite(area),
            f"has area {area!r}, which is no number of pixels. Correct it, or leave area out: it is then counted",
        ),
    ):
        if wrong:
            return words
    return ""


def check_outline(item: Mapping[str, Any], height: int, width: int) -> None:
    """Raise ValueError, with the reason, for a segmentation that cannot be an object of an image of this size.

    A polygon is a list of three points x, y or more, no farther outside than the image is large; several make up one
    object. Run lengths are those of the whole image, as numbers or compressed into text.
    """
    outline = item.get("segmentation")
    if outline is None:
        raise ValueError("it has no segmentation" + (", only a bbox" if "bbox" in item else ""))
    if isinstance(outline, dict):
        _check_runs(outline, height, width)
        return
    if not isinstance(outline, list) or not outline:
        raise ValueError("its segmentation is empty" if outline == [] else "its segmentation is no list of polygons")
    for place, points in enumerate(outline):  # four numbers in the first place would be a box, later on they are a line
        if not isinstance(points, list) or len(points) < (4 if place else 6) or len(points) % 2:
            raise ValueError("a polygon is a list x1, y1, x2, y2, ... of three points or more")
        for axis, size in ((0, width), (1, height)):
            if not all(isinstance(value, (int, float)) and -size <= value <= 2 * size for value in points[axis::2]):
                raise ValueError(
                    f"a polygon has {'xy'[axis]} far outside the image, which is {width}x{height}, or no number"
                )


def _check_runs(outline: Mapping[str, Any], height: int, width: int) -> None:
    if outline.get("size") != [height, width]:
        raise ValueError(f"its run lengths are of size {outline.get('size')}, the image is {[height, width]}")
    counts = outline.get("counts")
    runs = _decompressed(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(_is_int(run) and run >= 0 for run in runs):
        raise ValueError("its run lengths are no list of numbers from 0 on, nor such a list compressed into text")
    if sum(runs) != height * width:
        raise ValueError(f"its run lengths cover {sum(runs)} pixels, the image has {height * width}")


def _decompressed(text: str) -> list[int]:
    """Run lengths from COCO's text: 5 bits a character, the sixth says that more follow.

    From the third run on these are differences to the run but one before.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"its run lengths hold the character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("its run lengths are cut off")
    return runs


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
