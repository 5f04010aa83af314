"""One way to read a mask, and what no mask may do: hold other numbers than its classes, or 255 in place of a class."""

from pathlib import Path
from typing import Protocol

import numpy as np

from toco_lab.config import IGNORE_INDEX
from toco_lab.data.classes import DataError
from toco_lab.data.image_labels import label_of_mask
from toco_lab.data.images import header, load, orientation, sizes

_COPY_AGAIN = "The file is damaged: copy it again, or make the mask anew and save it as PNG"
_AS_PNG = "Save the class numbers as an 8-bit grey or palette PNG (toco_lab.PALETTE holds VOC's colours)"
# JPEG and its like mix the numbers of neighbours; GIF sorts its palette, so that numbers move
_CHANGING = ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000", "GIF")


def read_mask(path: Path, image: Path | None, num_classes: int) -> np.ndarray:
    """The numbers of a mask file, uint8 (H, W): 0 background, 1..C classes, 255 (`IGNORE_INDEX`) not counted.

    Palette and grey PNGs give the same numbers.

    Args:
        path: The mask.
        image: Its image, whose size as displayed the mask must have; None leaves the size to the caller.
        num_classes: C.

    Raises:
        DataError: If it cannot be decoded, cannot be the image's mask, or its numbers are no classes.
    """
    mask = _numbers(path)
    if image is not None:
        _check_size(mask, path, image)
    present = np.unique(mask)
    wrong = present[(present > num_classes) & (present != IGNORE_INDEX)].tolist()
    if wrong:
        raise DataError(
            f"mask {path} holds {wrong}; allowed are 0..{num_classes} and {IGNORE_INDEX}. Renumber the "
            "classes (COCO: 1..80 in order, not the annotation's ids 1..90) or correct num_classes"
        )
    return mask


def _numbers(path: Path) -> np.ndarray:
    file = header(path, f"mask {path}", _COPY_AGAIN)
    if file.mode not in ("P", "L"):
        wide = file.mode == "F" or file.mode.startswith("I")
        what = "numbers of more than 8 bits" if wide else "colours instead of class numbers"
        raise DataError(f"mask {path} has mode {file.mode}, i.e. {what}. {_AS_PNG}")
    if file.format in _CHANGING:
        raise DataError(f"mask {path} is a {file.format} inside, which changes class numbers. {_AS_PNG}")
    tiles = getattr(file, "tile", [])  # how the pixels are coded, part by part
    coding = tiles[0].args if file.format == "PNG" and tiles else ""
    if file.mode == "L" and coding in ("L;2", "L;4"):  # decoders stretch these to 0..255: class 1 becomes 85 or 17
        raise DataError(f"mask {path} is a grey PNG of {coding[-1]} bits, whose numbers decoders change. {_AS_PNG}")
    if orientation(file) > 1:
        raise DataError(
            f"mask {path} has an EXIF orientation, so that its numbers may or may not be turned already. Turn it as it "
            "should be displayed, and save it without EXIF data"
        )
    return np.array(load(path, f"mask {path}", _COPY_AGAIN))


def _check_size(mask: np.ndarray, path: Path, image: Path) -> None:
    shown, stored = sizes(header(image))
    size = mask.shape[1], mask.shape[0]
    if size == shown:
        return
    if size == stored:
        hint = (
            f"The mask fits the pixels as stored, {stored[0]}x{stored[1]}, but the image has an EXIF orientation and "
            "is read as it is displayed: turn the mask alike, or save the image without EXIF data"
        )
    elif size == shown[::-1]:
        hint = (
            "With its sides swapped the mask would fit: an EXIF orientation was probably lost, or applied to one of "
            "the two only. Turn one of them by a quarter, and look at both"
        )
    else:
        hint = "Make the mask anew from the original annotation, or resize it with nearest neighbour"
    raise DataError(f"mask {path} is {size[0]}x{size[1]}, its image {image} is {shown[0]}x{shown[1]}. {hint}")


class Masked(Protocol):
    """What `check_classes_shown` needs of a reader."""

    root: Path
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """Number of images."""

    def mask(self, index: int) -> np.ndarray | None:
        """uint8 (H, W), or None."""


def check_classes_shown(reader: Masked, split: str, count: int | None = None) -> None:
    """Refuse a list on which a prediction of background alone would be perfect; usually one mask is read.

    Args:
        reader: Of the split.
        split: Its name, for the error.
        count: How many images are scored, from the first on; None takes all.

    Raises:
        DataError: If no mask of the list has a pixel of a class, or one of those read is wrong.
    """
    numbers: set[int] = set()
    for index in range(len(reader) if count is None else count):
        mask = reader.mask(index)
        if mask is None:
            continue
        if label_of_mask(mask, len(reader.classes)).any():
            return
        numbers.update(np.unique(mask).tolist())
    if numbers:
        raise DataError(no_class_shown(f"of {split!r} in {reader.root}", IGNORE_INDEX in numbers))


def no_class_shown(where: str, has_ignored: bool) -> str:
    """The error for masks of which none has a pixel of a class; `where` says which, after "the masks"."""
    if has_ignored:
        return (
            f"the masks {where} hold no class: their only number above 0 is {IGNORE_INDEX}, which is not counted, so "
            "any model would score 100 %. Save the class as number 1 (a mask of 0 and 255: divide it by 255)"
        )
    return f"the masks {where} hold background alone: nothing can be scored. Number the classes 1, 2, ... in them"
