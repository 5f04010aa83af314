"""The trivial method that no network may be worse than: Otsu's threshold on the brightest channel of each image.

Otsu, IEEE Transactions on Systems, Man, and Cybernetics 9 (1979), section II: the threshold with the largest variance
between the two heaps of grey levels. Nothing is learned but which of the two sides is foreground, and which class is
the most frequent one.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.data.classes import DataError, class_names
from toco_lab.data.image_labels import label_of_mask
from toco_lab.data.readers import Reader, open_dataset
from toco_lab.evaluation.domain_scores import COLUMNS, MaskCounts
from toco_lab.vocabulary import CAM

UNTOLD = "otsu"  # target of which nobody tells the image labels; `cam` is told, as the CAMs are


@dataclass(frozen=True)
class OtsuRule:
    """What the training images decide.

    Attributes:
        above: Whether what is brighter than the threshold is foreground, or what is not.
        order: The classes, 1..C, the one with most training pixels first: a foreground pixel has the first one that is
            present.
    """

    above: bool
    order: tuple[int, ...]

    def label(self, image: np.ndarray, present: np.ndarray | None = None) -> np.ndarray:
        """Label map (H, W) int64 of an image (H, W, 3) uint8: 0 background, else one class.

        Args:
            image: RGB.
            present: The classes that are told to be there, (C,) in {0, 1}; None tells nothing, and the first class of
                all is taken.
        """
        allowed = [number for number in self.order if present is None or present[number - 1]]
        return foreground(image, above=self.above) * np.int64(allowed[0] if allowed else 0)


def otsu_threshold(levels: np.ndarray) -> int:
    """The grey level t in 0..255 for which levels <= t and levels > t differ most; the lowest of equals.

    Args:
        levels: Of any shape, uint8, at least one.

    Returns:
        The threshold; the level itself where there is only one, so that nothing is above it.

    Example:
        >>> otsu_threshold(np.array([10, 12, 200, 202], np.uint8))
        12
    """
    counts = np.bincount(levels.ravel(), minlength=256).astype(float)
    below, sums = counts.cumsum(), (counts * np.arange(256)).cumsum()
    above = below[-1] - below
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = sums / below - (sums[-1] - sums) / above
    variance = np.where((below > 0) & (above > 0), below * above * gap**2, -1.0)
    return int(variance.argmax()) if variance.max() > 0 else int(levels.max())


def foreground(image: np.ndarray, *, above: bool) -> np.ndarray:
    """(H, W) bool: the side of Otsu's threshold in the channel of an image (H, W, 3) uint8 with the largest mean."""
    levels = image[..., int(image.reshape(-1, 3).mean(0).argmax())]
    bright = levels > otsu_threshold(levels)
    return bright if above else ~bright


def otsu_rule(cfg: Config) -> OtsuRule:
    """The rule of the training images that have a mask, of `cfg.threshold_images` spread over the list at most.

    Raises:
        DataError: If none has a mask.
    """
    reader = open_dataset(cfg, cfg.train_split)
    places = [index for index, has_mask in enumerate(reader.has_masks()) if has_mask]
    if not places:
        raise DataError(f"no training image of {cfg.train_split!r} has a mask, by which Otsu's side would be chosen")
    number = min(cfg.threshold_images or len(places), len(places))
    hits, pixels = {True: np.zeros(2), False: np.zeros(2)}, np.zeros(cfg.num_classes)
    for place in range(number):
        image, mask = _read(reader, places[place * len(places) // number])
        counted, truth = mask != IGNORE_INDEX, (mask > 0) & (mask != IGNORE_INDEX)
        pixels += np.bincount(mask[counted], minlength=cfg.num_classes + 1)[1:]
        for side, sums in hits.items():
            found = foreground(image, above=side) & counted
            sums += (found & truth).sum(), (found | truth).sum()
    iou = {side: both / max(1.0, either) for side, (both, either) in hits.items()}
    return OtsuRule(bool(iou[True] > iou[False]), tuple((np.argsort(-pixels, kind="stable") + 1).tolist()))


def measure_otsu(cfg: Config, *, split: str | None = None) -> pd.DataFrame:
    """Scores of Otsu's threshold on a split, a table as `DomainEvaluation.table`.

    Target `cam` is told the true image labels, as a CAM is; target `otsu` is told nothing and says how much it finds on
    empty images.

    Raises:
        DataError: If a file cannot be read, or no training image has a mask.
    """
    rule, split = otsu_rule(cfg), split or cfg.val_split
    reader = open_dataset(cfg, split)
    told, untold = MaskCounts(cfg.num_classes), MaskCounts(cfg.num_classes)
    for index in range(min(len(reader), cfg.val_images or len(reader))):
        image, mask = _read(reader, index)
        present = label_of_mask(mask, cfg.num_classes)
        truth, label = torch.from_numpy(mask)[None].long(), torch.from_numpy(present)[None]
        told.add(torch.from_numpy(rule.label(image, present))[None], truth, label)
        untold.add(torch.from_numpy(rule.label(image))[None], truth, label)
    names = class_names(cfg)
    return pd.DataFrame([*told.rows(CAM, names), *untold.rows(UNTOLD, names)], columns=list(COLUMNS))


def _read(reader: Reader, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) and mask (H, W), both uint8; DataError without a mask."""
    mask = reader.mask(index)
    if mask is None:
        raise DataError(f"{reader.names[index]} has no mask: there is nothing to score. Take it off the list")
    return reader.image(index), mask
