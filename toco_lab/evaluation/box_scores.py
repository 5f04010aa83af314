"""How good are boxes and instance masks? CorLoc, and average precision by torchmetrics and pycocotools."""

import math
from collections.abc import Iterable, Sequence

import pandas as pd
import torch
from torch import Tensor
from torchvision.ops import box_iou

from toco_lab.data.instances import Instance

OVERLAP = 0.5  # IoU from which on a box has found an object
PRECISIONS = (0.25, 0.5)  # IoU of the average precisions
ALL = "all"  # row of the table over all classes
AP = {("bbox", 0.25): "box_ap25", ("bbox", 0.5): "box_ap50", ("segm", 0.25): "mask_ap25", ("segm", 0.5): "mask_ap50"}
COLUMNS = ("class", "pairs", "objects", "predicted", "corloc", *AP.values())  # of a table of scores


def best_box_iou(predicted: Iterable[Instance], true: Iterable[Instance]) -> float:
    """IoU of the box with the highest score and the true box that it meets best, both of one class of one image.

    Returns:
        In [0, 1]; 0 without a predicted box, NaN where no object is known. Crowds are no objects.
    """
    known = [one for one in true if not one.crowd]
    best = max(predicted, key=lambda one: one.score, default=None)
    if not known:
        return math.nan
    return float(box_iou(boxes_of([best]), boxes_of(known)).max()) if best else 0.0


def best_overlaps(predicted: Iterable[Instance], true: Iterable[Instance]) -> dict[int, float]:
    """`best_box_iou` of each class of which the image shows an object; the objects are those of one image."""
    predicted, true = list(predicted), list(true)
    numbers = sorted({one.number for one in true if not one.crowd})
    return {
        number: best_box_iou(*([one for one in part if one.number == number] for part in (predicted, true)))
        for number in numbers
    }


def boxes_of(instances: Sequence[Instance]) -> Tensor:
    """Boxes (n, 4) float64: x0, y0, x1, y1, half-open."""
    return torch.tensor([one.box for one in instances], dtype=torch.float64).reshape(-1, 4)


class BoxScores:
    """Predicted objects against the true ones, image by image.

    CorLoc (Deselaers et al., ECCV 2010) is the share of pairs of an image and a class, of which the image shows an
    object, whose best box (highest score) has an IoU of at least `OVERLAP` with one of its true boxes. Average
    precision is COCO's, interpolated at 101 recalls, with at most 100 objects of a class in an image.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        """`class_names` are those of the classes 1..C."""
        from torchmetrics.detection import MeanAveragePrecision  # brings audio: a second

        self._names = class_names
        self._overlaps: dict[int, list[float]] = {}
        self._objects: dict[int, int] = {}
        self._predicted: dict[int, int] = {}
        self._precision = MeanAveragePrecision(
            iou_type=("bbox", "segm"), iou_thresholds=list(PRECISIONS), extended_summary=True
        )

    def add(self, predicted: Sequence[Instance], true: Sequence[Instance], size: tuple[int, int]) -> None:
        """Count an image of (H, W) pixels: all of its predicted objects and all true ones."""
        for number, overlap in best_overlaps(predicted, true).items():
            self._overlaps.setdefault(number, []).append(overlap)
        for counts, instances in ((self._objects, true), (self._predicted, predicted)):
            for one in instances:
                counts[one.number] = counts.get(one.number, 0) + (not one.crowd)
        found = _for_torchmetrics(predicted, size)
        found["scores"] = torch.tensor([one.score for one in predicted], dtype=torch.float32)
        wanted = _for_torchmetrics(true, size)
        wanted["iscrowd"] = torch.tensor([int(one.crowd) for one in true], dtype=torch.int64)
        self._precision.update([found], [wanted])

    def table(self) -> pd.DataFrame:
        """A row for all classes, then one per class that occurs, columns `COLUMNS`; scores in [0, 1].

        `pairs` counts images with a true object of the class, `objects` those objects, `predicted` the predicted ones.
        CorLoc of all classes is over all pairs, average precision the mean over the classes with an object. A score is
        NaN where there is nothing to score.
        """
        numbers = sorted({*self._objects, *self._predicted})
        precision = self._average_precision()
        rows = [self._row(number, precision) for number in numbers]
        overlaps = [one for part in self._overlaps.values() for one in part]
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        means = table[list(AP.values())].mean().to_dict()
        sums = {name: int(table[name].sum()) for name in ("pairs", "objects", "predicted")}
        first = {"class": ALL, "corloc": localised(overlaps), **sums, **means}
        return pd.DataFrame([first, *rows], columns=list(COLUMNS))

    def _row(self, number: int, precision: dict[int, dict[str, float]]) -> dict[str, float | str]:
        overlaps = self._overlaps.get(number, [])
        counts = {"pairs": len(overlaps), "objects": self._objects.get(number, 0)}
        scores = precision.get(number, dict.fromkeys(AP.values(), math.nan))
        counts |= {"predicted": self._predicted.get(number, 0)}
        return {"class": self._names[number - 1], "corloc": localised(overlaps), **counts, **scores}

    def _average_precision(self) -> dict[int, dict[str, float]]:
        """Class -> average precisions by column; NaN where there is no object."""
        if not self._objects and not self._predicted:
            return {}
        computed = self._precision.compute()
        numbers = computed["classes"].reshape(-1).tolist()
        found: dict[int, dict[str, float]] = {number: {} for number in numbers}
        for (kind, overlap), column in AP.items():
            curves = computed[f"{kind}_precision"][PRECISIONS.index(overlap), :, :, 0, -1]  # (recalls, classes)
            for number, curve in zip(numbers, curves.T, strict=True):
                found[number][column] = float(curve.mean()) if (curve >= 0).all() else math.nan  # -1: no object
        return found


def localised(overlaps: Sequence[float]) -> float:
    """CorLoc of the IoUs of the best boxes; NaN of none."""
    return sum(one >= OVERLAP for one in overlaps) / len(overlaps) if overlaps else math.nan


def _for_torchmetrics(instances: Sequence[Instance], size: tuple[int, int]) -> dict[str, Tensor]:
    masks = [torch.from_numpy(one.mask) for one in instances]
    return {
        "boxes": boxes_of(instances).float(),
        "masks": torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool),
        "labels": torch.tensor([one.number for one in instances], dtype=torch.int64),
    }
