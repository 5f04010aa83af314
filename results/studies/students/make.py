"""What the study of second stages measures beyond its grid: students of every teacher, and the labels they learnt from.

Run by `python -m toco_lab study students`; students that are missing are trained here, because they need the labels.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from toco_lab.evaluation.evaluate import evaluate_model
from toco_lab.reports.studies import KEPT, Study, write_results
from toco_lab.runs.run_dir import RunDir
from toco_lab.runs.scores import run_scores
from toco_lab.students import make_student, pass_time, segmentation_weights
from toco_lab.training.checkpoints import load_run_model
from toco_lab.vocabulary import SEG

TEACHER, KIND, LABELS = "teacher", "refined", "labels (refined by PAR)"
RANDOM = {"pretrained": False, "weights": ""}
RESNET = {"backbone": "resnet10t", "output_stride": 8, "backbone_args": '{"channels": [16, 32, 64, 128]}'}
SIZES: Mapping[str, Mapping[str, Any]] = {
    "same size": {}, "random weights": RANDOM, "4 of 8 blocks": {"depth": 4}, "half width": {"embed_dim": 32},
    "ResNet": RANDOM | RESNET,
}  # fmt: skip
REFERENCES = {  # of the rows that learn from hard labels
    "same size": LABELS, "random weights": "true masks, random weights", "4 of 8 blocks": "true masks, 4 of 8 blocks",
    "half width": "true masks, half width", "ResNet": "hard, random weights",
}  # fmt: skip
SCORES = ("seg_mIoU", "seg_boundary", "similarity_last")
ON_TRAINING = "segmentation or labels, training scenes"


def write(study: Study, root: Path) -> str:
    """Table and summary of the finished runs, of the students of every finished teacher, and of their labels."""
    runs = study.grid.runs(root)
    teachers = [run.folder for run in runs if run.row == TEACHER and (run.folder / "protocol.json").is_file()]
    lines = [line for folder in teachers for line in student_lines(RunDir(folder))]
    return write_results(study, root, scores=SCORES, measures=measures, further_rows=pd.DataFrame(lines))


def student_lines(teacher: RunDir) -> Iterator[dict[str, Any]]:
    """A line for the labels of a teacher, and one for each of its students."""
    for size, changes in SIZES.items():
        for title, hard_only in (("hard", True), ("hard + soft", False)):
            made = make_student(teacher, kind=KIND, hard_only=hard_only, **changes)
            seed, scores = teacher.config().seed, {n: v for n, v in run_scores(made.run).items() if n in KEPT}
            if REFERENCES[size] == LABELS and hard_only:
                miou = 100 * made.labels.miou[KIND]
                yield {"row": LABELS, "reference": TEACHER, "seed": seed, ON_TRAINING: miou}
            reference = REFERENCES[size] if hard_only else f"hard, {size}"
            yield {"row": f"{title}, {size}", "reference": reference, "seed": seed} | scores | measures(made.run)


def measures(run: RunDir) -> dict[str, float]:
    """mIoU on the training scenes in points, size and speed of what segments."""
    model, cfg = load_run_model(run)
    whole = cfg.replace(val_images=0)  # all scenes that were labelled
    scores = evaluate_model(model, whole, targets=[SEG], split=cfg.train_split, progress=False).scores
    return {
        ON_TRAINING: 100 * scores[SEG],
        "million parameters": segmentation_weights(model) / 1e6,
        "ms an image": pass_time(model, cfg),
    }
