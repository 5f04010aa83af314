"""Ablations: rows of a table compared over seeds, never by one run.

    frame = sweep_table(root, grid)                  # or rows_of_runs([RunDir(path), ...])
    summary = summarise(frame)                       # against the grid's reference, or the first row
    wide_table(summary)                              # text cells: mean ± sd, paired difference with its interval

Two rows are compared seed by seed: with one seed they share initial weights and data order, so much of the spread
between runs cancels. The interval is Student's for the mean of these paired differences; it holds for one comparison,
not for the best of many.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from toco_lab.config import Config, config_differences
from toco_lab.figures.counted import number_range
from toco_lab.runs.scores import SCORED_IMAGES, SHOWN, SMOOTHING_IMAGES, Score, images_column, shown_as
from toco_lab.vocabulary import MIOU, TUNED
from toco_lab.words import counted


def summarise(
    frame: pd.DataFrame,
    *,
    scores: Iterable[str] | None = None,
    reference: str | Mapping[str, str] | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Mean, spread and paired comparison of every row, tidy.

    Args:
        frame: One line per run, with `row`, `seed` and scores: of `sweep_table` or `rows_of_runs`. Runs without a score
            (unfinished, failed) do not count for it. Two runs of one row and seed count once.
        scores: Columns to summarise; None takes those of `SHOWN` that some run has.
        reference: Row that every other is compared with, or row -> its own reference; None takes the column `reference`
            of the frame, or, without one, its first row.
        confidence: Of the interval, in (0, 1).

    Returns:
        One line per row and score, in the order of the frame: row, score, mean, sd (of single runs), seeds, reference,
        difference (mean of row minus reference over the seeds both have), low, high (interval of that mean), pairs (the
        number of these seeds), images (over how many images the score is, as text; "" where the frame does not say it).
        Values as stored, in [0, 1]. sd is NaN for one seed, the interval for one pair; a row
        without a reference, and a reference itself, have no difference.

    Raises:
        ValueError: If the frame has none of the scores, the reference is no row, or the confidence is none.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    scores = [name for name in SHOWN if name in frame and frame[name].notna().any()] if scores is None else list(scores)
    missing = [name for name in scores if name not in frame]
    if missing or not scores:
        raise ValueError(f"no score {', '.join(missing) or 'at all'} in the table; it has {', '.join(frame.columns)}")
    rows = list(dict.fromkeys(frame["row"]))
    if reference is None and "reference" in frame:
        named = frame[frame["reference"].notna() & (frame["reference"] != "")]
        reference = dict(zip(named["row"], named["reference"], strict=True))
    references = reference if isinstance(reference, Mapping) else dict.fromkeys(rows, reference or rows[0])
    unknown = [name for pair in references.items() for name in pair if name not in rows]
    if unknown:
        raise ValueError(f"reference {unknown[0]!r} is no row; there are: {', '.join(rows)}")
    lines = []
    for score in scores:
        by_seed = {row: part.groupby("seed")[score].first().dropna() for row, part in frame.groupby("row")}
        for row in rows:
            values, other = by_seed[row], references.get(row, row)
            line = {"row": row, "score": score, "mean": values.mean(), "sd": values.std(), "seeds": len(values)}
            line["images"] = _images(frame[frame["row"] == row], score)
            lines.append(line | _paired(values, by_seed[other], confidence, of="" if other == row else other))
    return pd.DataFrame(lines).sort_values(
        "row", key=lambda names: names.map(rows.index), kind="stable", ignore_index=True
    )


def _images(rows: pd.DataFrame, score: str) -> str:
    """Over how many images the runs of a row have a score, "" where that is not known."""
    column = images_column(score)
    return number_range(rows.loc[rows[score].notna(), column]) if column in rows else ""


def _paired(values: pd.Series, other: pd.Series, confidence: float, *, of: str) -> dict[str, Any]:
    """Mean difference over common seeds with its Student interval."""
    nothing = {"reference": of, "difference": np.nan, "low": np.nan, "high": np.nan, "pairs": 0}
    differences = (values - other).dropna()
    if not of or not len(differences):
        return nothing
    from scipy.special import stdtrit

    count, mean = len(differences), differences.mean()
    half = np.nan
    if count > 1:
        half = stdtrit(count - 1, 0.5 + confidence / 2) * differences.std() / np.sqrt(count)
    return nothing | {"difference": mean, "low": mean - half, "high": mean + half, "pairs": count}


def wide_table(summary: pd.DataFrame) -> pd.DataFrame:
    """A summary as a table of text: a line per row; per score "57.6 ± 3.3" and, beside it, "+26.9 [+20.1, +33.7]".

    Points for mIoU, cosines as they are. The number of seeds stands once, as a range where scores differ in it, and a
    score of fewer seeds then says of how many it is. The number of images stands once, by score where they differ. A
    difference whose interval leaves out 0 ends in a star.
    """
    over_known = "images" in summary and (summary["images"] != "").any()
    lines = []
    for row, part in summary.groupby("row", sort=False):
        there = part[part["seeds"] > 0]  # of a score that no run has a dash says all there is to say
        counts = sorted(set(there["seeds"])) or [0]
        others = list(dict.fromkeys(name for name in part["reference"] if name))
        line = {
            "": row,
            "seeds": " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))),
            "against": ", ".join(others),
        }
        for one in part.to_dict("records"):
            score = shown_as(one["score"])
            line[score.title] = _mean(one, score) + f" ({counted(str(one['seeds']), 'seed')})" * (
                0 < one["seeds"] < counts[-1]
            )
            line[f"difference, {score.title}"] = _difference(one, score)
        if over_known:
            line["images"] = _images_by_score(there) if len(there) else ""
        lines.append(line)
    table = pd.DataFrame(lines).set_index("")
    single = table["against"].replace("", np.nan).dropna().unique()
    return table.drop(columns="against") if len(single) <= 1 else table


def _images_by_score(part: pd.DataFrame) -> str:
    """Over how many images the scores of a row are: "100", or "100; 20 (similarity, last block)"."""
    titles: dict[str, list[str]] = {}
    for score, images in zip(part["score"], part["images"], strict=True):
        titles.setdefault(images or "unknown", []).append(shown_as(score).title)
    (most, _), *others = titles.items()
    return "; ".join([most, *(f"{images} ({', '.join(of)})" for images, of in others)])


def _mean(line: Mapping[str, Any], score: Score) -> str:
    if not line["seeds"]:
        return "-"
    spread = f" ± {score.factor * line['sd']:.{score.digits}f}" if line["seeds"] > 1 else ""
    return f"{score.factor * line['mean']:.{score.digits}f}{spread}"


def _difference(line: Mapping[str, Any], score: Score) -> str:
    if not line["pairs"]:
        return ""
    mean, low, high = (f"{score.factor * line[name]:+.{score.digits}f}" for name in ("difference", "low", "high"))
    if line["pairs"] == 1:
        return f"{mean} (one seed)"
    return f"{mean} [{low}, {high}]{'*' if line['low'] > 0 or line['high'] < 0 else ''}"


def has_seeds(frame: pd.DataFrame) -> bool:
    """Whether a row has runs of several seeds, so that there is a mean and a spread."""
    return bool((frame.groupby("row")["seed"].nunique() > 1).any())


def protocol_text(configs: Iterable[Config], frame: pd.DataFrame) -> str:
    """How the numbers of an ablation came about, in a few sentences: every table carries it.

    Args:
        configs: Of its runs.
        frame: Its table, for the number of seeds and of images.
    """
    configs = list(configs)
    varying = set(config_differences({str(number): cfg for number, cfg in enumerate(configs)}))
    cfg, counts = configs[0], frame.groupby("row")["seed"].nunique()

    def said(field: str) -> str:
        return "varying" if field in varying else str(getattr(cfg, field))

    seeds = counted(number_range(counts), "seed")
    asked = said("val_images") if cfg.val_images else "all"
    images, tokens = (number_range(frame.get(name, ())) for name in (SCORED_IMAGES, SMOOTHING_IMAGES))
    said_images = counted(images or asked, "image")
    said_tokens = f", over {counted(tokens, 'image')}" if tokens else ""
    tuned = (
        f" (tuned threshold: for each run and CAM the one of 0.05 to 0.80 that is best on {said('threshold_images')} "
        f"images of {said('train_split')}, never on those that are scored)"
    ) * any(frame.get(f"{name}_{MIOU}", pd.Series()).notna().any() for name in TUNED.values())
    unlike = " not all rows and scores over the same number, see the column images;" * (" to " in images + tokens)
    spread = ", mean ± standard deviation over runs" * has_seeds(frame)
    paired = (
        " Differences: row minus reference, paired by seed, with the 95 % interval of their mean (Student), * where it "
        "leaves out 0; each holds for itself, not for the best of many."
    ) * (len(counts) > 1 and has_seeds(frame))
    return (
        f"Data {said('dataset')}, preset {cfg.preset_name or 'custom'}, {said('steps')} steps of {said('batch_size')}; "
        f"{seeds}{spread}. mIoU in points over {said_images} of "
        f"{said('val_split')}:{unlike} CAM scales {said('cam_scales')} with flip, CAMs masked by the true image "
        f"labels, background threshold {said('background_threshold')}{tuned}, no CRF; segmentation scales "
        f"{said('eval_seg_scales')}. Similarity: mean |cos| of all pairs of patch tokens (metric 1a), raw residual "
        f"stream{said_tokens}.{paired}"
    )


def sweep_summary(table: pd.DataFrame) -> str:
    """A `sweep_table` as text: rows over seeds with their paired differences, or the states while there is no score."""
    try:
        return wide_table(summarise(table)).to_string()
    except ValueError:
        return table[["row", "seed", "state"]].to_string(index=False)
