"""Class names of each data set, the colours of their masks, and the error for bad data."""

from pathlib import Path

import numpy as np
from PIL import Image

from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.data import toy, toy_land, toy_parts, toy_tissue
from toco_lab.files import atomic_write, require
from toco_lab.vocabulary import BACKGROUND
from toco_lab.words import counted

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

TOY_WORLDS: dict[str, tuple[str, ...]] = {  # Config.toy_world -> its classes
    "shapes": toy.TOY_CLASSES,
    "parts": toy_parts.PARTS_CLASSES,
    "same_class": toy.TOY_CLASSES,
    "tissue": toy_tissue.TISSUE_CLASSES,
    "land": toy_land.LAND_CLASSES,
}


class DataError(ValueError):
    """Something is wrong with the data; the message says what, in which file, and how to mend it."""


def voc_palette() -> np.ndarray:
    """The VOC colour map, (256, 3) uint8: bits 0, 1, 2 of a label are the top bits of R, G, B, 3, 4, 5 the next."""
    labels = np.arange(256)
    shifts = np.arange(8)[:, None, None]  # which triple of bits
    bits = labels[:, None] >> (3 * shifts + np.arange(3)) & 1  # (8, 256, 3)
    return (bits << (7 - shifts)).sum(0).astype(np.uint8)


PALETTE = voc_palette()
MAX_CLASSES = IGNORE_INDEX - 1  # a mask has 8 bits, 0 is background


def save_mask(path: Path, mask: np.ndarray) -> None:
    """Write class numbers, (H, W) uint8, as a palette PNG: a viewer shows VOC's colours, a reader gets the numbers."""
    picture = Image.fromarray(mask)
    picture.putpalette(PALETTE.tobytes())
    with atomic_write(path) as file:
        picture.save(file, format="PNG")


def class_names(cfg: Config) -> tuple[str, ...]:
    """Names of the `cfg.num_classes` foreground classes; name k belongs to label k + 1 of a mask.

    Raises:
        DataError: If the classes of a folder have not been read, or their number is not `num_classes`.
    """
    require(cfg, Config, "cfg", ": make one with Config.preset(name)")
    if cfg.dataset == "folder" and cfg.classes is None:
        raise DataError(
            f"the classes of folder {cfg.data_root or '(none given)'} have not been read: use "
            "`cfg = toco_lab.complete_config(cfg)`, as the commands do, or give the config's `classes`"
        )
    known = {"toy": TOY_WORLDS[cfg.toy_world], "voc": VOC_CLASSES, "coco": COCO_CLASSES, "folder": cfg.classes or ()}
    names = tuple(known[cfg.dataset])
    if len(names) != cfg.num_classes:
        world = f" (toy_world {cfg.toy_world!r})" if cfg.dataset == "toy" else ""
        raise DataError(
            f"{cfg.dataset} has {counted(len(names), 'class')}{world}, the config says num_classes={cfg.num_classes}"
        )
    return names


def label_names(cfg: Config) -> tuple[str, ...]:
    """Names of the labels 0..C of a mask: the background, then `class_names`."""
    return (BACKGROUND, *class_names(cfg))
