"""What is drawn, as numbers: means and spreads per layer or step, bars per class, points and means per score.

`interactive` (plotly) and `printed` (matplotlib) draw from these, so that both show the same values. A series is a
table with a row per point: x, mean, low and high (the ends of the band), and the columns that its function names.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from toco_lab.figures.counted import images_measured, number_range
from toco_lab.vocabulary import (
    AFTER_ATTENTION,
    AFTER_BLOCK,
    EMBEDDING,
    F1,
    FINAL_NORM,
    MEAN_SCORES,
    MIOU,
    NO_NORM,
    TITLES,
    TUNED,
)
from toco_lab.words import counted

Metric = tuple[str, str]  # (metric, variant)


# --- over-smoothing per layer -----------------------------------------------------------------------------------------


def rows_of_metrics(frame: pd.DataFrame, metrics: Iterable[Metric]) -> pd.DataFrame:
    """The rows of some metrics in a table of `smoothing.smoothing_per_layer`.

    Raises:
        ValueError: If there are none; the message lists the metrics of the table.
    """
    metrics, pairs = list(metrics), pd.MultiIndex.from_frame(frame[["metric", "variant"]])
    rows = frame[pairs.isin(metrics)]
    if rows.empty:
        there = "; ".join(f"{metric} ({variant})" for metric, variant in dict.fromkeys(pairs))
        raise ValueError(f"no rows of {', '.join(f'{m} ({v})' for m, v in metrics)}; the table has {there}")
    return rows


def rows_of_metric(frame: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """The rows of one metric; they may be none."""
    return frame[(frame["metric"] == metric[0]) & (frame["variant"] == metric[1])]


def metrics_of(frame: pd.DataFrame) -> list[Metric]:
    """Every (metric, variant) of a table, in its order."""
    return list(frame[["metric", "variant"]].drop_duplicates().itertuples(index=False, name=None))


def layer_series(rows: pd.DataFrame, *, norm_x: float) -> pd.DataFrame:
    """Mean and quartiles over images, at every layer of one model for one metric.

    Args:
        rows: Of `smoothing.smoothing_per_layer`.
        norm_x: Place of the final norm, which is no block.

    Returns:
        x (embedding 0, after the attention of block k: k - 1/2, after block k: k), mean, low and high (lower and upper
        quartile), over (how many images, and runs, these are of, in words), apart (the final norm, which belongs to no
        line).
    """
    apart = rows["site"] == FINAL_NORM
    x = (rows["layer"] - 0.5 * (rows["site"] == AFTER_ATTENTION)).where(~apart, norm_x)
    places = rows.assign(x=x, apart=apart).groupby(["apart", "x"])
    values = places["value"]
    quartiles = values.quantile([0.25, 0.75]).unstack().set_axis(["low", "high"], axis=1)
    over = {place: images_measured(part) for place, part in places}
    return values.agg(mean="mean").join(quartiles).assign(over=pd.Series(over)).reset_index()


def sublayer_changes(rows: pd.DataFrame) -> pd.DataFrame:
    """What each attention and each MLP adds to a metric of one model: blocks as rows, columns attention and MLP.

    Args:
        rows: Of `smoothing.smoothing_per_layer`, one metric, sites patch embedding, after attention, after block.
    """
    means = rows.groupby(["site", "layer"])["value"].mean()
    middle, after = means[AFTER_ATTENTION], means[AFTER_BLOCK]
    before = pd.concat([means[EMBEDDING], after]).shift(1).reindex(middle.index)
    return pd.DataFrame({"attention": middle - before, "MLP": after - middle})


def cam_quality_series(quality: pd.DataFrame, threshold: str) -> pd.DataFrame:
    """CAM quality at every layer of one model.

    Args:
        quality: Rows of `evaluation.layer_cam_quality`.
        threshold: "own" for the threshold of the config, "best" for the best one of each layer.

    Returns:
        x (blocks from 1, the final norm one behind the last), mean (mIoU, per cent), threshold, apart (the final norm).
    """
    rows = quality[quality[threshold]].drop_duplicates(["site", "layer"])
    apart = rows["site"] == FINAL_NORM
    columns = {"x": rows["layer"] + apart, "mean": 100 * rows["miou"], "threshold": rows["threshold"], "apart": apart}
    return pd.DataFrame(columns)


def layer_ticks(rows: pd.DataFrame, *, sparse: bool = False) -> dict[int, str]:
    """Ticks of an axis of blocks: about four if `sparse`, or if there are many; "norm" for the final norm."""
    sites = set(rows["site"])
    last, normed = int(rows["layer"].max()), FINAL_NORM in sites
    step = max(1, last // 4) if sparse or last > 12 else 1
    ticks = {tick: str(tick) for tick in range(0 if EMBEDDING in sites else 1, last + 1, step)}
    if normed and sparse:
        ticks.pop(last, None)  # no room beside "norm"
    return ticks | ({last + 1: "norm"} if normed else {})


def measured_at(rows: pd.DataFrame, *, variants: bool = True) -> str:
    """Variants, sites with their norms, token set, N and the number of images of a table, in words."""
    sites = rows[["site", "norm"]].drop_duplicates().itertuples(index=False)
    places = ", ".join(f"{site} ({'raw' if norm == NO_NORM else norm})" for site, norm in sites)
    counts = sorted(rows["tokens"].unique()) if "tokens" in rows else []
    count = f", N = {counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else "") if counts else ""
    named = ", ".join(rows["variant"].unique()) + "; " if variants else ""
    images = images_measured(rows)
    return f"{named}{places}; {', '.join(rows['token_set'].unique())}{count}" + (f"; over {images}" if images else "")


# --- training and evaluation ------------------------------------------------------------------------------------------


def training_columns(frames: Iterable[pd.DataFrame]) -> list[str]:
    """Columns of metrics.csv that have a title and a value other than zero in one of the frames."""
    frames = list(frames)
    return [name for name in TITLES if any(name in frame and frame[name].fillna(0).any() for frame in frames)]


def training_series(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """A column of metrics.csv over the step: x, mean, low and high (lowest and highest) of the rows of each step.

    Shares are in per cent. A loss begins where it is first counted: a term that a run does not use has no points.
    """
    rows = frame[frame[column].notna()]
    if column.endswith("_loss"):
        rows = rows[rows["step"] >= rows.loc[rows[column] != 0, "step"].min()]
    values = rows[column] * (100 if is_share(column) else 1)
    stats = values.groupby(rows["step"]).agg(mean="mean", low="min", high="max")
    return stats.rename_axis("x").reset_index()


def is_share(column: str) -> bool:
    """Whether a column of metrics.csv is a share in [0, 1], which figures show in per cent."""
    return column.startswith("val_") or column.endswith("_share")


def training_title(column: str) -> str:
    """Heading of the panel of a column of metrics.csv."""
    return TITLES.get(column, column) + ", %" * is_share(column)


@dataclass(frozen=True)
class ClassBars:
    """IoU of one target.

    Attributes:
        target: Its name.
        classes: Names of the classes; `mIoU`, the mean, comes last.
        percent: Run -> IoU of each class, in per cent; NaN where a class has none.
    """

    target: str
    classes: list[str]
    percent: dict[str, list[float]]


def class_bars(evaluation: pd.DataFrame) -> list[ClassBars]:
    """IoU of each class as grouped bars, per target; scores of image labels (F1) and the second scores of CAMs, at a
    tuned threshold, are left out.

    Args:
        evaluation: Columns run, target, class, iou (in [0, 1]).
    """
    bars = []
    drawn = (evaluation["class"] != F1) & ~evaluation["target"].isin(TUNED.values())
    for target, rows in evaluation[drawn].groupby("target", sort=False):
        classes = sorted(dict.fromkeys(rows["class"]), key=lambda name: name == MIOU)  # stable: the mean goes last
        percent = {
            run: (100 * part.set_index("class")["iou"].reindex(classes)).tolist()
            for run, part in rows.groupby("run", sort=False)
        }
        bars.append(ClassBars(target, classes, percent))
    return bars


# --- thresholds -------------------------------------------------------------------------------------------------------

MARKS = {"chosen": "tuned threshold", "configured": "threshold of the config"}  # column of a curve -> what it marks


def curve_title(rows: pd.DataFrame) -> str:
    """Heading of a panel of threshold curves: which CAM on which images."""
    on = " or ".join(dict.fromkeys(rows["split"]))
    return f"{TITLES[rows['target'].iloc[0]]}, {counted(number_range(rows['images']), 'image')} of {on}"


def curve_panels(curves: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each panel: every CAM on the images that are scored, beside it on those of the choice."""
    order = dict.fromkeys(curves["target"])
    parts = [curves[(curves["target"] == cam) & (curves["tuned_on"] == tuned)] for cam in order for tuned in (0, 1)]
    return [part for part in parts if len(part)]


def curve_series(rows: pd.DataFrame) -> pd.DataFrame:
    """mIoU in per cent against the threshold, of one line of a panel: x, mean, low and high over its runs."""
    found = rows.assign(percent=100 * rows["miou"]).groupby("threshold")["percent"]
    return found.agg(mean="mean", low="min", high="max").rename_axis("x").reset_index()


def threshold_lines(curves: pd.DataFrame) -> pd.DataFrame:
    """Threshold curves of several models as one table: a panel for each CAM and set of images, a line per model; the
    tuned threshold of each run apart.

    Args:
        curves: Rows of thresholds.csv with a column `model`.
    """
    lines = []
    for panel in curve_panels(curves):
        for model, rows in panel.groupby("model", sort=False):
            chosen = rows[rows["chosen"]]
            marks = pd.DataFrame({"x": chosen["threshold"], "mean": 100 * chosen["miou"], "apart": True})
            parts = [part for part in (curve_series(rows).assign(apart=False), marks) if len(part)]
            line = pd.concat(parts, ignore_index=True).astype({"apart": bool})
            lines.append(line.assign(panel=curve_title(panel), line=model))
    return pd.concat(lines, ignore_index=True)


# --- ablations --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ScorePoints:
    """A score of an ablation: shares in points, other values as they are.

    Attributes:
        score: Its name.
        in_points: Whether it is a share in points.
        runs: A row per run that has the score: row, seed, value.
        means: A row per row of the ablation: row, mean, sd (0 for one seed), seeds; empty where every row has one seed.
        compared: Mean of the row that others are compared with; None where that row has no such score.
        over: Over how many images, and how many seeds, its means are, in words.
    """

    score: str
    in_points: bool
    runs: pd.DataFrame
    means: pd.DataFrame
    compared: float | None
    over: str


def ablation_rows(summary: pd.DataFrame) -> list[str]:
    """The rows of an ablation, in the order of its summary."""
    return list(dict.fromkeys(summary["row"]))


def ablation_points(frame: pd.DataFrame, summary: pd.DataFrame) -> list[ScorePoints]:
    """Every run and the mean and spread of each row, per score of an ablation.

    Args:
        frame: One line per run: row, seed, scores.
        summary: Table of `reports.ablation.summarise` of that frame.
    """
    points = []
    for score, part in summary.groupby("score", sort=False):
        in_points = score.endswith(MEAN_SCORES)
        factor = 100 if in_points else 1
        runs = frame.loc[frame[score].notna(), ["row", "seed"]].assign(value=factor * frame[score])
        means = part[["row", "seeds"]].assign(mean=factor * part["mean"], sd=(factor * part["sd"]).fillna(0))
        reference = next((name for name in part["reference"] if name), ablation_rows(summary)[0])
        at_reference = float(means.set_index("row").loc[reference, "mean"])
        means = means[(means["seeds"] > 1).any() & (means["seeds"] > 0)]
        images = number_range(part["images"]) if "images" in part else ""
        seeds = counted(number_range(part["seeds"][part["seeds"] > 0]), "seed")  # a row may lack the score
        over = f"{counted(images, 'image')}, {seeds}" if images else seeds
        compared = None if math.isnan(at_reference) else at_reference
        points.append(ScorePoints(str(score), in_points, runs, means, compared, over))
    return points


# --- tables for `printed.line_panels` ---------------------------------------------------------------------------------


def training_lines(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Training curves of several runs as one table: a panel per column, a line per run."""
    lines = [
        training_series(frame, column).assign(panel=training_title(column), line=name, apart=False)
        for column in training_columns(frames.values())
        for name, frame in frames.items()
        if column in frame
    ]
    return pd.concat(lines, ignore_index=True) if lines else pd.DataFrame(columns=["panel"])


def layer_lines(frame: pd.DataFrame, metrics: Sequence[Metric]) -> pd.DataFrame:
    """Metrics per layer of several models as one table: a panel per metric, a line per model."""
    last = int(frame["layer"].max())
    lines = [
        layer_series(rows, norm_x=last + 1).assign(panel="\n".join(metric), line=model)
        for metric in metrics
        for model, rows in rows_of_metric(frame, metric).groupby("model", sort=False)
    ]
    return pd.concat(lines, ignore_index=True)


def cam_quality_lines(quality: pd.DataFrame) -> pd.DataFrame:
    """CAM quality of several models as one table: a panel per choice of threshold, a line per model."""
    titles = {"own": f"CAM {MIOU}, %, own threshold", "best": f"CAM {MIOU}, %, best threshold"}
    lines = [
        cam_quality_series(rows, threshold).assign(panel=title, line=model, low=float("nan"), high=float("nan"))
        for threshold, title in titles.items()
        for model, rows in quality.groupby("model", sort=False)
    ]
    return pd.concat(lines, ignore_index=True)
