"""What was written as pseudo labels, in numbers: shares of pixels, mIoU, and labels that say nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.data.classes import label_names
from toco_lab.data.loader import EvalSample
from toco_lab.evaluation.gallery import NUM_IMAGES
from toco_lab.evaluation.samples import image_label_of
from toco_lab.evaluation.scores import pseudo_label_iou, pseudo_label_matrix
from toco_lab.vocabulary import MIOU
from toco_lab.words import counted


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """What `write_pseudo_labels` wrote; `str(...)` is meant to be read.

    Attributes:
        out: Folder of the kinds.
        split, num_images, num_masks: The list, its images, and how many of them have a true mask.
        shares: Share of all pixels in [0, 1], a row per class, background and `ignored`, a column per kind.
        miou: By kind, over the images that have a mask, in [0, 1]; empty without masks. Without ignored pixels it is
            what `evaluate` says; with them see `scores.pseudo_label_iou`.
        constant: By kind, images that show a class and whose label is one value throughout.
        shown: Names and rows of the first images, for `figures.cam_gallery`.
    """

    out: Path
    split: str
    num_images: int
    num_masks: int
    shares: pd.DataFrame
    miou: dict[str, float]
    constant: dict[str, list[str]]
    shown: list[tuple[str, dict[str, np.ndarray | None]]] = field(repr=False)

    def __str__(self) -> str:
        """Counts, a table in per cent, and constant labels."""
        table = 100 * self.shares
        if self.miou:
            table.loc[MIOU] = 100 * pd.Series(self.miou)
        decided = " of the pixels that are not ignored" if self.shares.loc["ignored"].any() else ""
        measured = f"; mIoU{decided} over {self.num_masks} of them that have a mask" if self.miou else ""
        lines = [
            f"{counted(self.num_images, 'image')} of {self.split}, pseudo labels in {self.out}",
            f"per cent of the pixels{measured}",
            table.to_string(float_format="{:.1f}".format),
        ]
        for kind, names in self.constant.items():
            if names:
                lines.append(f"one value throughout: {kind} of {counted(len(names), 'image')} ({first_names(names)})")
        return "\n".join(lines)


class Tally:
    """Counts over labels of several kinds, image by image."""

    def __init__(self, kinds: Sequence[str], num_classes: int) -> None:
        """`num_classes` is C, without background."""
        self._kinds = {kind: _KindTally(num_classes + 1) for kind in kinds}
        self._num_masks = 0
        self._shown: list[tuple[str, dict[str, np.ndarray | None]]] = []
        self.image_labels: dict[str, np.ndarray] = {}  # of the images so far, by name

    def add(self, sample: EvalSample, labels: Mapping[str, np.ndarray]) -> None:
        """Count the labels of an image, (H, W) uint8 by kind."""
        for kind, tally in self._kinds.items():
            tally.add(sample, labels[kind])
        if len(self._shown) < NUM_IMAGES:
            truth = None if sample.mask is None else sample.mask.numpy()
            self._shown.append((sample.name, {"image": sample.raw, "truth": truth, **labels}))
        self._num_masks += sample.mask is not None
        self.image_labels[sample.name] = image_label_of(sample).numpy()

    def summary(self, out: Path, split: str, cfg: Config) -> PseudoLabels:
        """What was counted."""
        kinds = self._kinds.items()
        rows = [*label_names(cfg), "ignored"]
        return PseudoLabels(
            out=out,
            split=split,
            num_images=len(self.image_labels),
            num_masks=self._num_masks,
            shares=pd.DataFrame({kind: tally.shares() for kind, tally in kinds}, index=rows),
            miou={kind: tally.miou(cfg.miou_over) for kind, tally in kinds} if self._num_masks else {},
            constant={kind: tally.constant for kind, tally in kinds},
            shown=self._shown,
        )


class _KindTally:
    """Counts over the labels of one kind, which has K values without 255."""

    def __init__(self, num_labels: int) -> None:
        self._num_labels = num_labels  # K
        self._pixels = np.zeros(IGNORE_INDEX + 1, np.int64)
        self._matrix = torch.zeros(num_labels, num_labels + 1, dtype=torch.int64)
        self.constant: list[str] = []

    def add(self, sample: EvalSample, label: np.ndarray) -> None:
        self._pixels += np.bincount(label.ravel(), minlength=IGNORE_INDEX + 1)
        if image_label_of(sample).any() and is_constant(label):
            self.constant.append(sample.name)
        if sample.mask is not None:
            self._matrix += pseudo_label_matrix(torch.from_numpy(label), sample.mask, self._num_labels)

    def shares(self) -> np.ndarray:
        """Share of the pixels with each value, and with 255; (K + 1,)."""
        return np.append(self._pixels[: self._num_labels], self._pixels[IGNORE_INDEX]) / self._pixels.sum()

    def miou(self, over: str) -> float:
        """See `PseudoLabels.miou`."""
        iou = pseudo_label_iou(self._matrix)
        return (iou[self._matrix.sum(1) > 0] if over == "present" else iou).mean().item()


def is_constant(label: np.ndarray) -> bool:
    """Whether a label map (H, W) is one value throughout."""
    return bool((label == label.flat[0]).all())


def first_names(names: Sequence[str]) -> str:
    """The first five names as a list with commas."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
