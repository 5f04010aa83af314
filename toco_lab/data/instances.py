"""The objects of an image one by one: those of toy scenes, those that COCO's json outlines, or pieces of a mask."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.data.classes import DataError
from toco_lab.data.coco_masks import CocoMasks, find_annotations
from toco_lab.data.readers import Reader, ToyReader

LEAST_AREA = 0.005  # share of the image: a smaller piece of a mask or of a map is no object
SCENES, OUTLINES = "objects of the scenes", "outlines of COCO's json"
PIECES = f"component boxes: 8-connected pieces of the masks, from {100 * LEAST_AREA:g} % of the image on"


@dataclass(frozen=True, eq=False)
class Instance:
    """One object of an image, true or predicted.

    Attributes:
        number: Its class, 1..C.
        mask: (H, W) bool, with at least one pixel.
        score: How sure a prediction is, in [0, 1]; 1 for a true object.
        crowd: A group that COCO outlines as one: a prediction in it is neither right nor wrong.
    """

    number: int
    mask: np.ndarray
    score: float = 1.0
    crowd: bool = False

    @cached_property
    def box(self) -> tuple[int, int, int, int]:
        """The extent of the mask, x0, y0, x1, y1 in pixels, the latter two one past the last pixel."""
        rows, columns = ndimage.find_objects(self.mask.astype(np.uint8))[0]
        return columns.start, rows.start, columns.stop, rows.stop


def components(where: np.ndarray, *, least: float = 0.0) -> list[np.ndarray]:
    """The 8-connected pieces of (H, W) bool, each (H, W) bool, row by row; those of less than `least` pixels are left
    out.
    """
    pieces, count = ndimage.label(where, np.ones((3, 3)))
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    return [pieces == place for place in range(1, count + 1) if sizes[place] >= least]


def pieces_of_mask(mask: np.ndarray) -> list[Instance]:
    """What stands in for objects where only a mask is known, (H, W) of labels: its pieces, class by class.

    Objects of one class that touch are one piece, and an object that another one cuts in two is two.
    """
    numbers = [int(number) for number in np.unique(mask) if number not in (0, IGNORE_INDEX)]
    least = LEAST_AREA * mask.size
    return [Instance(number, piece) for number in numbers for piece in components(mask == number, least=least)]


def true_instances(cfg: Config, reader: Reader, split: str) -> tuple[str, Callable[[int], list[Instance]]]:
    """The true objects of the images of a split.

    Args:
        cfg: Names the data set.
        reader: Of that split.
        split: Its name; COCO's json is the one of this split, if there is one.

    Returns:
        Where they come from (`SCENES`, `OUTLINES` or `PIECES`), and a function that gives those of an image by its
        place in the split. It raises DataError for an image without a mask or with a wrong outline.
    """
    if isinstance(reader, ToyReader):
        return SCENES, lambda index: _of_scene(reader.mask(index), reader.instances(index))
    paths = find_annotations(reader.root, split) if cfg.dataset == "coco" else []
    outlined = [CocoMasks(path, crowds=cfg.crowds) for path in paths]
    if any(name in part.classes for part in outlined for name in reader.names):
        return OUTLINES, lambda index: _outlined(outlined, reader.names[index])

    def pieces(index: int) -> list[Instance]:
        mask = reader.mask(index)
        if mask is None:
            raise DataError(f"{reader.names[index]} has no mask: its boxes are not known")
        return pieces_of_mask(mask)

    return PIECES, pieces


def _of_scene(mask: np.ndarray, instances: np.ndarray) -> list[Instance]:
    regions = [instances == place for place in range(1, int(instances.max()) + 1)]
    return [Instance(int(mask[region][0]), region) for region in regions]


def _outlined(outlined: list[CocoMasks], name: str) -> list[Instance]:
    part = next((part for part in outlined if name in part.classes), None)
    return [Instance(number, mask, crowd=crowd) for number, mask, crowd in part.objects(name)] if part else []
