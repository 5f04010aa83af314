"""A folder of images of many bits, many bands or thousands of pixels, made into one that can be trained on.

Each image becomes an RGB PNG of 8 bits, or several: windows of one side, with their masks and with labels that hold of
the window. `prepared.json` says by which rule; the protocol of every number has it (`preparation`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from toco_lab.config import Config
from toco_lab.data.bands import NUMBERS, Levels, as_picture, read_bands, rule
from toco_lab.data.class_lists import read_classes
from toco_lab.data.classes import MAX_CLASSES, DataError, save_mask
from toco_lab.data.image_labels import label_of_mask, read_label_names
from toco_lab.data.label_tables import write_labels
from toco_lab.data.layouts import LAYOUTS, find_list, locate, read_list, write_list
from toco_lab.data.masks import read_mask
from toco_lab.data.names import MASK_ENDINGS, by_image, match_names
from toco_lab.data.own_folder import LABEL_FILES, VAL_SHARE, mask_files
from toco_lab.data.windows import window_starts
from toco_lab.files import atomic_write
from toco_lab.progress import progress_bar
from toco_lab.words import counted

RECORD = "prepared.json"
_LAYOUT = LAYOUTS["folder"]


@dataclass(frozen=True)
class Conversion:
    """What a call of `convert_folder` did.

    Attributes:
        target: The folder.
        images: That were read.
        written: PNGs that were written.
        without_class: How many of these show no class, where labels are known.
        left_out: Images that show a class and have no mask: nothing says which of their windows shows it.
    """

    target: Path
    images: int
    written: int
    without_class: int
    left_out: list[str]

    def __str__(self) -> str:
        """In a few lines."""
        lines = [f"{self.target}: {counted(self.written, 'PNG')} of {counted(self.images, 'image')}, "
                 f"{self.without_class} without a class"]  # fmt: skip
        if self.left_out:
            some = ", ".join(self.left_out[:3]) + ", ..." * (len(self.left_out) > 3)
            lines.append(
                f"left out: {counted(len(self.left_out), 'image')} ({some}) with a class and no mask, larger than a "
                "window: nothing says which window shows it"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class _Source:
    """What lies in a folder: images by name, masks, class names of each image (None: no table), classes, its lists."""

    images: dict[str, Path]
    masks: Mapping[str, Path]
    labels: Mapping[str, list[str]] | None
    classes: tuple[str, ...]
    lists: dict[str, list[str]]


def convert_folder(
    source: Path,
    target: Path,
    *,
    side: int = 0,
    levels: Levels = "percentile",
    bits: int = 0,
    bands: tuple[int, ...] | None = None,
    progress: bool = True,
) -> Conversion:
    """Write the images of a folder as RGB PNGs of 8 bits, or as windows of them, with masks, labels and lists.

    The grey levels of an image are found before it is cut, so that its windows fit together. Windows lie side by side;
    the last ones of a row and column overlap the ones before. A window shows the classes of which its mask has a pixel.
    Without a mask it shows what the image is said to show where it is the whole image, and nothing where the image is
    said to show nothing. All windows of an image are in the list of the image; without lists a fifth of the images is
    drawn for validation.

    Args:
        source: With `images/`, or images alone; beside them what a folder may hold: masks, labels.csv or labels.json,
            classes.txt, lists. Also read are TIFFs of any bands, and arrays .npy of (H, W) or (H, W, bands).
        target: A new folder.
        side: Of a window, in pixels; 0 cuts nothing.
        levels: How more than 8 bits become 8, see `bands.as_picture`.
        bits: That are used, for levels `range`; 0 takes those of the type of number.
        bands: The three bands that become red, green, blue, counted from 1.
        progress: Show a progress bar.

    Raises:
        DataError: If there is no image, something in the folder is wrong, or `target` is not empty.
        ValueError: For a negative side, or bits outside 9 to 32 or beside percentiles, which read none.
    """
    if side < 0:
        raise ValueError(f"side must be a number of pixels, 0 to cut nothing, got {side}")
    if bits and (levels != "range" or not 8 < bits <= 32):
        raise ValueError(f"bits must be 9 to 32, for levels 'range', got {bits} and {levels!r}")
    if target.exists() and any(target.iterdir()):
        raise DataError(f"{target} is not empty. Give a new folder, or empty it")
    there = _read_source(source)
    table: dict[str, list[str]] = {}
    pieces: dict[str, list[str]] = {}
    left_out: list[str] = []
    for name in progress_bar(sorted(there.images), "convert", shown=progress):
        numbers = read_bands(there.images[name])
        mask = _mask_of(there, name, numbers.shape[:2])
        shown = None if there.labels is None else there.labels.get(name)
        windows = _windows(numbers.shape[:2], side)
        if mask is None and shown and len(windows) > 1:
            left_out.append(name)
            continue
        picture = as_picture(numbers, str(there.images[name]), levels=levels, bits=bits, bands=bands)
        pieces[name] = []
        for top, left in windows:
            piece = name if len(windows) == 1 else f"{name}_y{top:05d}_x{left:05d}"
            rows, columns = slice(top, top + side or None), slice(left, left + side or None)
            _write_png(target / "images" / f"{piece}.png", picture[rows, columns])
            if mask is not None:
                save_mask(target / "masks" / f"{piece}.png", np.ascontiguousarray(mask[rows, columns]))
                present = label_of_mask(mask[rows, columns], len(there.classes))
                table[piece] = [one for one, is_there in zip(there.classes, present, strict=True) if is_there]
            elif shown is not None:
                table[piece] = shown
            pieces[name].append(piece)
    _write_rest(target, there, table, pieces)
    record = {"rule": rule(levels, bits, bands), "side": side, "levels": levels, "bits": bits, "bands": bands}
    with atomic_write(target / RECORD, "w") as file:
        json.dump(record | {"images": len(there.images), "left_out": len(left_out)}, file, indent=1)
    written = sum(map(len, pieces.values()))
    return Conversion(target, len(there.images), written, sum(not row for row in table.values()), left_out)


def preparation(cfg: Config) -> dict[str, Any]:
    """What the protocol of a number says of a folder that `convert_folder` made; {} of every other data set."""
    path = Path(cfg.data_root) / RECORD
    if cfg.dataset != "folder" or not cfg.data_root or not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}. Convert the folder again") from error
    return {"prepared": record}


def _read_source(source: Path) -> _Source:
    root = source
    suffixes = (*_LAYOUT.suffixes, *NUMBERS)
    has_folder = any((root / folder).is_dir() for folder in _LAYOUT.images)
    images = locate(root, _LAYOUT.images if has_folder else (".",), suffixes, nested=has_folder)
    if not images:
        raise DataError(f"no image in {source} or {source / 'images'}: they end in {', '.join(suffixes)}")
    masks = by_image(mask_files(root), images, suffixes, "masks", MASK_ENDINGS)
    file = next((root / name for name in LABEL_FILES if (root / name).is_file()), None)
    labels = None if file is None else by_image(read_label_names(file), images, suffixes, f"label file {file}")
    path = root / "classes.txt"
    if masks and not path.is_file():
        raise DataError(f"{path} is missing: it names the numbers in the masks, one class a line")
    classes = read_classes(path) if path.is_file() else ()
    lists = {}
    for split in ("train", "val"):
        if find_list(root, _LAYOUT, split):
            lists[split] = match_names(read_list(root, _LAYOUT, split)[1], images, suffixes)
    return _Source(images, masks, labels, classes, lists)


def _mask_of(there: _Source, name: str, size: tuple[int, ...]) -> np.ndarray | None:
    if name not in there.masks:
        return None
    mask = read_mask(there.masks[name], None, len(there.classes) or MAX_CLASSES)
    if mask.shape != size:
        raise DataError(
            f"mask {there.masks[name]} is {mask.shape[1]}x{mask.shape[0]}, its image {there.images[name]} is "
            f"{size[1]}x{size[0]}. Make the mask anew, or resize it with nearest neighbour"
        )
    return mask


def _windows(size: tuple[int, ...], side: int) -> list[tuple[int, int]]:
    """First row and column of each window; one where `side` is 0."""
    if not side:
        return [(0, 0)]
    rows, columns = (window_starts(length, side, side) for length in size)
    return [(top, left) for top in rows for left in columns]


def _write_png(path: Path, picture: np.ndarray) -> None:
    with atomic_write(path) as file:
        Image.fromarray(np.ascontiguousarray(picture)).save(file, format="PNG")


def _write_rest(target: Path, there: _Source, table: Mapping[str, list[str]], pieces: Mapping[str, list[str]]) -> None:
    """labels.csv, classes.txt and the lists, where there is something to say."""
    if not table:
        return
    write_labels(target / "labels.csv", table)
    if there.classes:
        write_list(target / "classes.txt", there.classes)
    lists = there.lists or _drawn([name for name in pieces if any(piece in table for piece in pieces[name])])
    for split, names in lists.items():
        found = [piece for name in names for piece in pieces.get(name, []) if piece in table]
        if found:
            write_list(target / f"{split}.txt", found)


def _drawn(names: list[str]) -> dict[str, list[str]]:
    """A fifth of the images for validation, the same every time: windows of one image never are in both lists."""
    if len(names) < 2:
        return {}
    order = np.random.default_rng(0).permutation(len(names))
    val = {names[place] for place in order[: max(1, round(VAL_SHARE * len(names)))]}
    return {"train": [one for one in names if one not in val], "val": [one for one in names if one in val]}
