"""The second stage of a finished run: its pseudo labels, a student that learns from them, and all three in one table.

    student = make_student(RunDir("results/RUN"), depth=4)
    print(student)

The student has the data, size of images, steps and rates of its teacher; what is smaller is said by config fields.
"""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from toco_lab.config import Config
from toco_lab.evaluation.label_summary import PseudoLabels
from toco_lab.evaluation.pseudo_labels import Thresholds, write_pseudo_labels
from toco_lab.experiment import make, open_run
from toco_lab.files import require
from toco_lab.method.face import CamModel
from toco_lab.methods import FEW_MASKS, has_cams
from toco_lab.relations import VIT_SIZES
from toco_lab.runs.listing import final_scores
from toco_lab.runs.run_dir import RunDir
from toco_lab.runs.small_files import read_json_file
from toco_lab.training.checkpoints import load_run_model
from toco_lab.training.teacher import check_finished, check_teacher
from toco_lab.vocabulary import MIOU, SEG

SHARES = {"w_seg": 0.5, "w_soft": 0.5}  # of hard and soft labels, where there are both
TIMED_PASSES = 9
COLUMNS = ("what", "split", "images", MIOU, "million parameters", "ms an image")


@dataclass(frozen=True, eq=False)
class Student:
    """What `make_student` made; `str(...)` is meant to be read.

    Attributes:
        run: The student.
        labels: What it learnt from, with their mIoU where the training images have masks.
        table: Teacher, labels and student, columns `COLUMNS`: mIoU of the segmentation in points, the weights that a
            segmentation needs, and the median time of one pass of one training crop. NaN: not measured, or none.
    """

    run: RunDir
    labels: PseudoLabels
    table: pd.DataFrame

    def __str__(self) -> str:
        """The table with a dash where there is no number."""
        digits = {MIOU: "{:.1f}".format, "million parameters": "{:.2f}".format, "ms an image": "{:.1f}".format}
        return self.table.to_string(index=False, na_rep="-", formatters=digits)


def student_config(teacher: RunDir, labels: Path, *, hard_only: bool = False, **changes: Any) -> Config:
    """The config of a student: the teacher's, with the method `supervised` and these changes.

    A student of fewer blocks starts from the first ones of the pretrained weights, one of another width from random
    weights.

    Args:
        teacher: A finished run.
        labels: Folder of its pseudo labels, OUT/<kind>.
        hard_only: Learn from the labels alone; else by half from the teacher's segmentation.
        **changes: Config fields.

    Raises:
        ValueError: If the teacher is not finished, has no segmentation to give beside the labels, or a change does not
            fit.
    """
    cfg = check_finished(teacher)
    if "backbone" in changes and changes["backbone"] != cfg.backbone:
        changes = {"weights": ""} | changes
    elif any(name in changes and not _fits(changes[name], getattr(cfg, name), name) for name in VIT_SIZES):
        changes = {"weights": "", "pretrained": False} | changes
    soft = {} if hard_only else {"soft_teacher": _from_here(teacher.path)} | SHARES
    all_labels = {name: getattr(Config(), name) for name in FEW_MASKS} | {"mask_source": _from_here(labels)}
    student = cfg.replace(**{"method": "supervised"} | all_labels | soft | changes)
    if student.soft_teacher:
        check_teacher(student)
    return student


def _fits(size: int | None, of_teacher: int | None, field: str) -> bool:
    """Whether a ViT of this size can start from the weights that its teacher started from."""
    fewer_blocks = field == "depth" and size is not None and (of_teacher is None or size < of_teacher)
    return size == of_teacher or fewer_blocks


def make_student(
    teacher: RunDir,
    *,
    kind: str | None = None,
    hard_only: bool = False,
    root: Path | str | None = None,
    name: str | None = None,
    progress: bool = True,
    **changes: Any,
) -> Student:
    """Write the pseudo labels of the training split, train a student on them, evaluate it. Killed, the call continues.

    Labels that are there are taken as they are, with the thresholds and the refinement they were written with.

    Args:
        teacher: A finished run.
        kind: Of the pseudo labels; None takes `refined`, or `seg` of a run without CAMs.
        hard_only: As in `student_config`.
        root: Folder that holds the student's; None takes the one that holds the teacher's.
        name: Folder name below it; None takes `Config.run_name`.
        progress: Show progress bars.
        **changes: Config fields of the student.

    Raises:
        ValueError: As `student_config`, `write_pseudo_labels` and `open_run`.
    """
    require(teacher, RunDir, "teacher", ": open one with RunDir(folder)")
    cfg = check_finished(teacher)
    kind = kind or ("refined" if has_cams(cfg) else SEG)
    folder = teacher.path / "pseudo_labels" / cfg.train_split / kind
    planned = student_config(teacher, folder, hard_only=hard_only, **changes)  # what does not fit is said at once
    labels = write_pseudo_labels(teacher, kinds=[kind], device=planned.device, progress=progress, **_as_written(folder))
    run = open_run(planned, teacher.path.parent if root is None else root, name=name)
    make(run, progress=progress)
    return Student(run, labels, _table(teacher, labels, kind, run))


def _from_here(path: Path) -> str:
    """A path as a config keeps it: below the current folder relative to it, so that a project can be moved."""
    whole, here = path.resolve(), Path.cwd()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else whole)


def _as_written(folder: Path) -> dict[str, Any]:
    """The thresholds and the refinement of labels that are there, or were begun."""
    if not (folder / "protocol.json").is_file():
        return {}
    there = read_json_file(folder / "protocol.json", {}, remedy=f"Delete {folder}")
    low, high = there.get("low_threshold"), there.get("high_threshold")
    asked: dict[str, Any] = {} if low is None or high is None else {"thresholds": Thresholds(low, high)}
    return asked | ({"refine": there["refinement"]} if "refinement" in there else {})


def _table(teacher: RunDir, labels: PseudoLabels, kind: str, student: RunDir) -> pd.DataFrame:
    rows = [_row("teacher", teacher), _row("student", student)]
    miou = 100 * labels.miou[kind] if labels.miou else float("nan")
    rows.insert(1, (f"labels ({kind})", labels.split, labels.num_images, miou, float("nan"), float("nan")))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(what: str, run: RunDir) -> tuple[str, str, int, float, float, float]:
    model, cfg = load_run_model(run)
    record = run.read_json("protocol").get(SEG, {}) if run.is_evaluated else {}
    miou = 100 * final_scores(run).get(f"{SEG}_{MIOU}", float("nan"))
    return what, cfg.val_split, record.get("images", 0), miou, segmentation_weights(model) / 1e6, pass_time(model, cfg)


def segmentation_weights(model: CamModel) -> int:
    """How many weights encoder and decoder have; heads that only training needs do not count."""
    parts = [part for part in (model.encoder, model.decoder) if part is not None]
    return sum(p.numel() for part in parts for p in part.parameters())


@torch.no_grad()
def pass_time(model: CamModel, cfg: Config) -> float:
    """Milliseconds that one pass of one image of `cfg.crop_size` takes on the model's device, median of a few."""
    image = torch.zeros(1, 3, cfg.crop_size, cfg.crop_size, device=next(model.parameters()).device)
    seconds = []
    for _ in range(TIMED_PASSES + 1):
        began = time.perf_counter()
        model(image).logits.sum().item()  # waits for a GPU
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds[1:])  # the first one warms up
