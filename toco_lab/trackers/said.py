"""What there is to tell about a run: numbers, curves over layers, tables and a picture, from rows and files."""

import hashlib
import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from toco_lab.config import Config
from toco_lab.data.classes import PALETTE, label_names
from toco_lab.evaluation.gallery import load_gallery
from toco_lab.runs.run_dir import RunDir
from toco_lab.runs.scores import run_scores
from toco_lab.vocabulary import AFTER_BLOCK, MEAN_ABSOLUTE_COSINE, MEAN_SCORES, NEGATIVE_COSINE, POSITIVE_COSINE

NUM_PICTURES = 4  # images in the picture of CAMs, from the first of the validation list on
_CURVES = {
    "pairwise_cosine": MEAN_ABSOLUTE_COSINE,
    "positive_cosine": POSITIVE_COSINE,
    "negative_cosine": NEGATIVE_COSINE,
}
_FINAL_FILES = ("evaluation.csv", "protocol.json", "smoothing.csv")
_DOTS_PER_INCH = 80


def row_scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row of metrics.csv under the names that trackers show: `train/cls_loss`, `validation/cam`.

    What was not measured (NaN) is left out, as is the step.
    """
    named = {
        f"validation/{name.removeprefix('val_')}" if name.startswith("val_") else f"train/{name}": float(value)
        for name, value in row.items()
        if name != "step"
    }
    return {name: value for name, value in named.items() if not math.isnan(value)}


def final_scalars(run: RunDir) -> dict[str, float]:
    """What a finished run reached, {"final/cam_mIoU": 0.52, ...}; scores in [0, 1] as in its files."""
    found = {f"final/{name}": value for name, value in run_scores(run).items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in found.items() if not math.isnan(value)}


def smoothing_per_layer(run: RunDir) -> dict[str, dict[int, float]]:
    """Means over images after each block, by layer: {"smoothing/pairwise_cosine": {1: 0.4, ...}, ...}."""
    if not run.is_measured:
        return {}
    frame = run.read_table("smoothing")
    frame = frame[frame["site"] == AFTER_BLOCK]
    means = frame.groupby(["metric", "variant", "layer"])["value"].mean().dropna()
    there = {name: key for name, key in _CURVES.items() if key in means.index.droplevel("layer")}
    return {
        f"smoothing/{name}": {int(layer): float(value) for layer, value in means.loc[key].items()}
        for name, key in there.items()
    }


def final_tables(run: RunDir) -> dict[str, pd.DataFrame]:
    """`scores`, a row per target with its mean score and its whole protocol, and `iou_per_class`."""
    if not run.is_evaluated:
        return {}
    table, protocol = run.read_table("evaluation"), run.read_json("protocol")
    means = table[table["class"].isin(MEAN_SCORES)].set_index("target")["iou"]
    rows = [{"target": target, "score": means[target]} | protocol.get(target, {}) for target in means.index]
    return {"scores": pd.DataFrame(rows), "iou_per_class": table}


def final_picture(run: RunDir) -> bytes | None:
    """The first images of the run's gallery as a PNG; None if it has none."""
    gallery = load_gallery(run)
    return cam_picture(gallery.rows, run.config(), title=run.name) if gallery and gallery.rows else None


def cam_picture(rows: Mapping[str, Mapping[str, np.ndarray | None]], cfg: Config, *, title: str) -> bytes:
    """CAMs over the first images, as a PNG.

    Args:
        rows: By image name, as in `Gallery`; the first `NUM_PICTURES` are drawn.
        cfg: Names the classes.
        title: Heading.
    """
    from toco_lab.figures.pictures import cam_gallery

    names = list(rows)[:NUM_PICTURES]
    figure = cam_gallery(
        [rows[name] for name in names], palette=PALETTE, class_names=label_names(cfg), names=names, title=title
    )
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DOTS_PER_INCH)
    return file.getvalue()


def digest_of_results(run: RunDir) -> str:
    """A word that is another one as soon as the results of a run are others; empty if there are none yet."""
    files = [run.path / name for name in _FINAL_FILES]
    content = b"".join(path.read_bytes() for path in files if path.is_file())
    return hashlib.sha256(content).hexdigest()[:12] if content else ""
