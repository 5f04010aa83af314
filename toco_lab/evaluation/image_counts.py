"""Pixel counts of every image, class by class: what scores of single images and of objects by their size follow from.

One pass over a split counts the truth, the prediction and their common pixels of each class that an image shows or is
said to show. A run keeps these counts in `images.csv`, so that no later question needs its model again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from toco_lab.backbones.weights import weights_hash
from toco_lab.config import Config
from toco_lab.data.classes import label_names
from toco_lab.data.loader import EvalSample
from toco_lab.evaluation.evaluate import evaluate_model, protocol_record
from toco_lab.evaluation.of_runs import measure_run, name_of_split
from toco_lab.evaluation.prediction import learnt_targets
from toco_lab.evaluation.samples import mask_of
from toco_lab.evaluation.scores import confusion_matrix
from toco_lab.files import require
from toco_lab.method.face import CamModel
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.processes import everywhere
from toco_lab.vocabulary import CAM, CAM_AUX, LABELS, SEG, TUNED

COLUMNS = ["image", "target", "label", "class", "truth", "predicted", "hits", "pixels"]
COUNTED = (CAM, CAM_AUX, SEG)  # unless asked for others; a run that does not learn one of them leaves it out
FILE = "images"  # .csv and .json in the folder of a run


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """The pixel counts of one model on the images of a split.

    Attributes:
        table: A row per image, target and class that is in its truth or its prediction, background too: image, target,
            label (0 background, 1..C), class (its name), truth, predicted, hits (pixels of the class in either, and in
            both), pixels (of the image, without those of no class).
        protocol: Target -> what defines its label maps, as in `Evaluation.protocol`.
    """

    table: pd.DataFrame
    protocol: dict[str, dict[str, Any]]

    def of(self, target: str) -> pd.DataFrame:
        """The rows of a target.

        Raises:
            ValueError: If it was not counted.
        """
        if target not in self.protocol:
            raise ValueError(f"no counts of {target!r}; there are: {', '.join(self.protocol)}")
        return self.table[self.table["target"] == target].reset_index(drop=True)


def class_counts(matrix: Tensor) -> Tensor:
    """Pixels of each class in the truth, in the prediction and in both: (..., 3, K) of matrices (..., K, K) with the
    truth in rows.
    """
    return torch.stack([matrix.sum(-1), matrix.sum(-2), matrix.diagonal(dim1=-2, dim2=-1)], dim=-2)


class _Counter:
    """Counts what `evaluate_model` shows to its `observe`."""

    def __init__(self, names: Sequence[str], targets: Sequence[str]) -> None:
        self._names, self._targets = names, targets
        self.rows: list[tuple[str, str, int, str, int, int, int, int]] = []

    def add(self, group: Sequence[EvalSample], predicted: Mapping[str, Tensor]) -> None:
        """Count the label maps (B, H, W) of images of one size."""
        for target in self._targets:
            if target not in predicted:
                continue
            for sample, label in zip(group, predicted[target].cpu(), strict=True):
                counts = class_counts(confusion_matrix(label, mask_of(sample), len(self._names)))
                pixels = int(counts[0].sum())
                for number in (counts[:2].sum(0) > 0).nonzero().flatten().tolist():
                    row = (sample.name, target, number, self._names[number], *counts[:, number].tolist(), pixels)
                    self.rows.append(row)


def measure_images(
    model: CamModel,
    cfg: Config,
    *,
    targets: Sequence[str] | None = None,
    split: str | None = None,
    checkpoint: str = "",
    progress: bool = True,
) -> ImageCounts:
    """Count the pixels of each image of a split, in one evaluation.

    Args:
        model: It is put into evaluation mode, and its mode is restored afterwards.
        cfg: Protocol: sizes, scales, thresholds.
        targets: Label maps to count, as in `evaluate_model`; None takes those of `COUNTED` that the run learns. A CAM
            is counted at its tuned threshold as well, as `cam_tuned` beside `cam`, where the config has one.
        split: None takes `cfg.val_split`.
        checkpoint: Hash of the weights, for the protocol.
        progress: Show a progress bar.

    Raises:
        ValueError: As `evaluate_model`, and if no target is a label map.
    """
    require(cfg, Config, "cfg", ": it is that of the run, run.config()")
    maps = [target for target in (targets or learnt_targets(cfg, COUNTED)) if target != LABELS]
    if not maps:
        raise ValueError("image labels have no pixels to count: name a CAM or the segmentation")
    counter = _Counter(label_names(cfg), [name for first in maps for name in (first, TUNED.get(first)) if name])
    found = evaluate_model(
        model, cfg, targets=maps, split=split, checkpoint=checkpoint, observe=counter.add, progress=progress
    )
    rows = [row for part in everywhere(counter.rows) for row in part]
    table = pd.DataFrame(rows, columns=COLUMNS)
    counted = set(table["target"])
    return ImageCounts(table, {target: record for target, record in found.protocol.items() if target in counted})


def images_of_run(
    run: RunDir,
    *,
    targets: Sequence[str] | None = None,
    split: str | None = None,
    device: str = "auto",
    progress: bool = True,
) -> ImageCounts:
    """The pixel counts of a run's last checkpoint, from images.csv in its folder, or measured and written there.

    A split other than `val_split` has files of its own, images_<split>.csv and .json. Arguments and errors as in
    `measure_images`.

    Raises:
        ValueError: If another process is at work in the folder of the run, or `run` is none.
        OSError: Before the work, if nothing can be written there.
    """
    require(run, RunDir, "run", ": open one with RunDir(folder)")
    cfg = run.config()
    asked = tuple(targets or learnt_targets(cfg, COUNTED))
    checkpoint = weights_hash(run.checkpoints()[-1]) if run.checkpoints() else ""
    old = _kept(run, name_of_split(FILE, cfg, split), cfg, split or cfg.val_split, checkpoint)
    if old is not None and set(asked) <= set(old.protocol):
        return old

    def measure(*args: Any, **options: Any) -> ImageCounts:
        new = measure_images(*args, targets=asked, progress=progress, **options)
        return new if old is None else _joined(old, new)

    return measure_run(run, FILE, measure, split=split, device=device)


def _joined(old: ImageCounts, new: ImageCounts) -> ImageCounts:
    """Both, the new rows where both have a target."""
    rest = old.table[~old.table["target"].isin(list(new.protocol))]
    return ImageCounts(pd.concat([rest, new.table], ignore_index=True), old.protocol | new.protocol)


def _kept(run: RunDir, name: str, cfg: Config, split: str, checkpoint: str) -> ImageCounts | None:
    """What the run has of this checkpoint and this protocol; None where that is nothing, or damaged."""
    try:
        table, protocol = run.read_table(name, text=("image", "class")), run.read_json(name)
    except (FileNotFoundError, ValueError):
        return None
    valid = {}
    for target, record in protocol.items():
        wanted = protocol_record(cfg, target, split, int(record.get("images", -1)), checkpoint)
        wanted.pop("background_threshold")  # a tuned one is not that of the config
        if all(record.get(key) == value for key, value in wanted.items()):
            valid[target] = record
    rows = table[table["target"].isin(list(valid))].reset_index(drop=True)
    return ImageCounts(rows, valid) if valid and set(COLUMNS) <= set(rows) else None
