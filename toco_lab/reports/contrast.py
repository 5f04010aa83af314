"""What the studies of class token contrast measure of a run beyond its scores."""

import math

from toco_lab.runs.run_dir import RunDir
from toco_lab.vocabulary import CAM, CAM_AUX, MIOU, TITLES

# columns of metrics.csv, where a run has them: cosine of the projections of global views and of local crops
CROP_COSINES = {
    "ctc_positive_cosine": "cosine of positive crops",
    "ctc_negative_cosine": "cosine of negative crops",
}
LAST = 0.25  # share of the training over whose rows the cosines are averaged: its end


def contrast_measures(run: RunDir) -> dict[str, float]:
    """By heading: over-activation of both CAMs, in [0, 1], and at the end of training the cosines of crops.

    A run without class token contrast, and one that recorded no cosines, has NaN for them.
    """
    table, metrics = run.read_table("evaluation"), run.read_table("metrics")
    means = table[table["class"] == MIOU].set_index("target")["over_activation"]
    titles = {CAM: "final CAM", CAM_AUX: TITLES[CAM_AUX]}
    end = metrics[metrics["step"] >= (1 - LAST) * metrics["step"].max()]
    found = {f"over-activation, {title}": float(means[target]) for target, title in titles.items()}
    return found | {title: float(end[name].mean()) if name in end else math.nan for name, title in CROP_COSINES.items()}
