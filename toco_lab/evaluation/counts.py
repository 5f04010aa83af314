"""What an evaluation counts image by image, and the tables that follow from it."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from toco_lab.config import Config
from toco_lab.data.loader import EvalSample
from toco_lab.evaluation.boundary import boundary, boundary_counts, boundary_iou
from toco_lab.evaluation.samples import mask_of
from toco_lab.evaluation.scores import confusion_matrix, iou_scores, label_f1
from toco_lab.evaluation.thresholds import (
    CURVE,
    ThresholdCounts,
    TunedThresholds,
    curve_rows,
    curve_thresholds,
    mark_chosen,
)
from toco_lab.training.processes import total
from toco_lab.vocabulary import CAM, CAM_AUX, F1, LABELS, MIOU, TUNED


class Counts:
    """What is counted over the images of this process: a confusion matrix and the boundary pixels of each map, each CAM
    at every threshold, and F1 of the image labels.

    Attributes:
        tuned: Target -> the threshold of its second label map, for `predict`; empty without one.
    """

    def __init__(self, cfg: Config, maps: Sequence[str], tuned: TunedThresholds | None, device: torch.device) -> None:
        """`maps` are targets with a label map; `tuned` is None where only the config's threshold counts."""
        self._cfg, self._maps, self._chosen = cfg, maps, tuned
        labels = cfg.num_classes + 1  # with background
        found = {target: tuned.of(target) if tuned else None for target in maps}
        self.tuned = {target: threshold for target, threshold in found.items() if threshold is not None}
        self._matrices = {
            target: torch.zeros(labels, labels, dtype=torch.int64, device=device)
            for target in (*maps, *(TUNED[target] for target in self.tuned))
        }
        self._boundaries = {target: matrix.new_zeros(3, labels) for target, matrix in self._matrices.items()}
        cams = [target for target in maps if tuned and target in (CAM, CAM_AUX)]
        self._thresholds = {cam: ThresholdCounts(curve_thresholds(cfg), labels, device) for cam in cams}
        self._f1 = torch.zeros(2, dtype=torch.float64, device=device)  # sum, number of images

    def add(self, group: Sequence[EvalSample], label: Tensor, predicted: Mapping[str, Tensor]) -> None:
        """Count images of one size with their image labels (B, C) and what `predict` says of them."""
        if self._matrices:
            truth = torch.stack([mask_of(sample) for sample in group]).to(label.device)
            edges = boundary(truth)
            for target, matrix in self._matrices.items():
                matrix += confusion_matrix(predicted[target], truth, len(matrix))
                self._boundaries[target] += boundary_counts(predicted[target], truth, len(matrix), edges=edges)
            for cam, counts in self._thresholds.items():
                counts.add(predicted[f"{cam}_scores"], predicted[f"{cam}_winners"], truth)
        if LABELS in predicted:
            f1 = label_f1(label, predicted[LABELS]).double()
            self._f1 += torch.stack([f1.sum(), torch.tensor(len(f1), device=f1.device)])

    def state(self) -> dict[str, Tensor]:
        """All that was counted, by name, for `load`: the tensors themselves."""
        parts = {"f1": self._f1}
        parts |= {f"matrix {target}": matrix for target, matrix in self._matrices.items()}
        parts |= {f"boundary {target}": counts for target, counts in self._boundaries.items()}
        return parts | {f"thresholds {cam}": one.histogram for cam, one in self._thresholds.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state` of equal targets; KeyError or RuntimeError for another, and nothing is loaded then."""
        pairs = [(mine, state[name]) for name, mine in self.state().items()]
        if any(mine.shape != theirs.shape for mine, theirs in pairs):
            raise RuntimeError("these counts are of other classes or thresholds")
        for mine, theirs in pairs:
            mine.copy_(theirs)

    def table(self, names: Sequence[str]) -> tuple[pd.DataFrame, dict[str, int]]:
        """`evaluate.Evaluation.table` of the images of all processes together, which all must call this.

        With it the number of classes that each mIoU is the mean of, by target.
        """
        rows: list[tuple[str, str, float, float, float]] = []
        in_mean, over = {}, self._cfg.miou_over
        for target in [name for first in self._maps for name in (first, TUNED.get(first)) if name]:
            if target not in self._matrices:
                rows += [(target, MIOU, math.nan, math.nan, math.nan)] * (self._chosen is not None)
                continue
            matrix = total(self._matrices[target]).cpu()
            in_mean[target] = int((matrix.sum(1) > 0).sum()) if over == "present" else len(matrix)
            scores = iou_scores(matrix, over=over)
            wrong = scores.over_activation
            edges = boundary_iou(total(self._boundaries[target]).cpu())
            mean_edge = (edges[matrix.sum(1) > 0] if over == "present" else edges).mean().item()
            columns = zip(names, scores.iou.tolist(), wrong.tolist(), edges.tolist(), strict=True)
            rows += [(target, *row) for row in columns]
            rows.append((target, MIOU, scores.miou.item(), wrong[1:].nanmean().item(), mean_edge))
        f1, count = total(self._f1).tolist()
        if count:
            rows.append((LABELS, F1, f1 / count, math.nan, math.nan))
        return pd.DataFrame(rows, columns=["target", "class", "iou", "over_activation", "boundary_iou"]), in_mean

    def curve(self, split: str, images: int) -> pd.DataFrame:
        """`evaluate.Evaluation.curve` of the images of all processes together, which all must call this."""
        if self._chosen is None:
            return pd.DataFrame(columns=CURVE)
        over = self._cfg.miou_over
        rows = [
            curve_rows(counts, self._cfg, cam, split, images, over=over, tuned_on=False)
            for cam, counts in self._thresholds.items()
        ]
        parts = [part for part in (self._chosen.curve, *rows) if len(part)]
        return mark_chosen(pd.concat(parts, ignore_index=True), self._chosen.best) if parts else self._chosen.curve
