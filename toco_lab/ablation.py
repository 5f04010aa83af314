"""Ablations: rows of a table compared over seeds, never by one run.

    frame = sweep_table(root, grid)                  # or rows_of_runs([RunDir(path), ...])
    summary = summarise(frame)                       # against the grid's reference, or the first row
    wide_table(summary)                              # text cells: mean ± sd, paired difference with its interval

Two rows are compared seed by seed: with one seed they share initial weights and data order, so much of the spread
between runs cancels. The interval is Student's for the mean of these paired differences; it holds for one comparison,
not for the best of many.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from toco_lab.config import Config, config_differences
from toco_lab.runs import RunDir, final_scores

SIMILARITY = {"metric": "pairwise cosine", "variant": "absolute, off-diagonal"}  # metric 1a, of the raw residual stream
_PAIRS = {"positive_cosine": "positive cosine", "negative_cosine": "negative cosine"}


@dataclass(frozen=True)
class Score:
    """How a score of a run is shown: its title, the factor on the stored value, decimals, and which way is good.

    Attributes:
        title: For tables and figures.
        factor: 100 turns a share into points.
        digits: Decimals shown.
    """

    title: str
    factor: float = 1.0
    digits: int = 2


SCORES = {
    "cam_mIoU": Score("final CAM", 100, 1),
    "cam_aux_mIoU": Score("auxiliary CAM", 100, 1),
    "cam_refined_mIoU": Score("CAM + PAR", 100, 1),
    "seg_mIoU": Score("segmentation", 100, 1),
    "seg_crf_mIoU": Score("segmentation + CRF", 100, 1),
    "similarity_first": Score("similarity, first block"),
    "similarity_last": Score("similarity, last block"),
    "positive_cosine": Score("|cos| of positive pairs"),
    "negative_cosine": Score("|cos| of negative pairs"),
}
TITLES = {name: score.title for name, score in SCORES.items()}
SHOWN = ("cam_mIoU", "cam_aux_mIoU", "seg_mIoU", "similarity_last")  # of an ablation, unless asked for others


def run_scores(run: RunDir) -> dict[str, float]:
    """What a run reached: its mean scores in [0, 1] as `final_scores`, and the cosines of its patch tokens.

    `similarity_first`, `similarity_last`: mean |cos| of all pairs (metric 1a) after the first and the last block, raw;
    `positive_cosine`, `negative_cosine`: of pairs of one class and of two by the true mask, after the last block. What
    was not measured is missing.
    """
    found = final_scores(run)
    if not (run.path / "smoothing.csv").is_file():
        return found
    frame = run.read_table("smoothing")
    frame = frame[frame["site"] == "after block"]
    means = frame.groupby(["metric", "variant", "layer"])["value"].mean()
    first, last = frame["layer"].min(), frame["layer"].max()
    key = (SIMILARITY["metric"], SIMILARITY["variant"])
    wanted = {"similarity_first": (*key, first), "similarity_last": (*key, last)}
    wanted |= {name: (metric, "absolute, true label", last) for name, metric in _PAIRS.items()}
    return found | {name: float(means[place]) for name, place in wanted.items() if place in means.index}


def rows_of_runs(runs: Iterable[RunDir]) -> pd.DataFrame:
    """One line per run: row, seed, state, `run_scores`, run (folder name).

    Runs whose configs differ in the seed alone make one row, named by the fields in which the rows differ
    ("w_ctc=0.0, w_ptc=0.0"); a field that no result depends on (device, log interval) makes no row.
    """
    runs = list(runs)
    configs = {run.path: run.config() for run in runs}
    names = _row_names(configs.values())
    lines = []
    for run in runs:
        cfg = configs[run.path]
        line = {"row": names[cfg.digest()], "seed": cfg.seed, "state": run.status()["state"]}
        lines.append(line | run_scores(run) | {"run": run.name})
    return pd.DataFrame(lines, columns=None if lines else ["row", "seed", "state", "run"])


def _row_names(configs: Iterable[Config]) -> dict[str, str]:
    """A name for each digest: the fields in which the configs differ, by as few words as tell them apart."""
    unique = {cfg.digest(): cfg for cfg in configs}
    differing = config_differences(unique)
    names = {}
    for digest, cfg in unique.items():
        values = {name: values[digest] for name, values in differing.items() if name != "seed"}
        names[digest] = ", ".join(f"{name}={value}" for name, value in values.items()) or cfg.preset_name or "custom"
    for digest in [digest for digest, name in names.items() if list(names.values()).count(name) > 1]:
        names[digest] += f" ({digest})"
    return names


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
        scores: Columns to summarise; None takes those of `SHOWN` that are there.
        reference: Row that every other is compared with, or row -> its own reference; None takes the column `reference`
            of the frame, or, without one, its first row.
        confidence: Of the interval, in (0, 1).

    Returns:
        One line per row and score, in the order of the frame: row, score, mean, sd (of single runs), seeds, reference,
        difference (mean of row minus reference over the seeds both have), low, high (interval of that mean), pairs (the
        number of these seeds). Values as stored, in [0, 1]. sd is NaN for one seed, the interval for one pair; a row
        without a reference, and a reference itself, have no difference.

    Raises:
        ValueError: If the frame has none of the scores, the reference is no row, or the confidence is none.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    scores = [name for name in SHOWN if name in frame] if scores is None else list(scores)
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
            lines.append(line | _paired(values, by_seed[other], confidence, of="" if other == row else other))
    return pd.DataFrame(lines).sort_values(
        "row", key=lambda names: names.map(rows.index), kind="stable", ignore_index=True
    )


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

    Points for mIoU, cosines as they are. The number of seeds stands once, as a range where scores differ in it. A
    difference whose interval leaves out 0 ends in a star.
    """
    lines = []
    for row, part in summary.groupby("row", sort=False):
        counts = sorted(set(part["seeds"]))
        others = list(dict.fromkeys(name for name in part["reference"] if name))
        line = {
            "": row,
            "seeds": " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))),
            "against": ", ".join(others),
        }
        for one in part.to_dict("records"):
            score = SCORES.get(one["score"], Score(one["score"]))
            line[score.title] = _mean(one, score)
            line[f"difference, {score.title}"] = _difference(one, score)
        lines.append(line)
    table = pd.DataFrame(lines).set_index("")
    single = table["against"].replace("", np.nan).dropna().unique()
    return table.drop(columns="against") if len(single) <= 1 else table


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


def protocol_text(configs: Iterable[Config], frame: pd.DataFrame) -> str:
    """How the numbers of an ablation came about, in a few sentences: every table carries it.

    Args:
        configs: Of its runs.
        frame: Its table, for the number of seeds.
    """
    configs = list(configs)
    varying = set(config_differences({str(number): cfg for number, cfg in enumerate(configs)}))
    cfg, counts = configs[0], frame.groupby("row")["seed"].nunique()

    def said(field: str) -> str:
        return "varying" if field in varying else str(getattr(cfg, field))

    seeds = " to ".join(map(str, dict.fromkeys((counts.min(), counts.max())))) + " seed" + "s" * bool(counts.max() > 1)
    images = said("val_images") if cfg.val_images else "all"
    return (
        f"Data {said('dataset')}, preset {cfg.preset_name or 'custom'}, {said('steps')} steps of {said('batch_size')}; "
        f"{seeds}, mean ± standard deviation over runs. mIoU in points over {images} images of "
        f"{said('val_split')}: CAM scales {said('cam_scales')} with flip, CAMs masked by the true image labels, "
        f"background threshold {said('background_threshold')}, no CRF; segmentation scales {said('eval_seg_scales')}. "
        "Similarity: mean |cos| of all pairs of patch tokens (metric 1a), raw residual stream. Differences: row minus "
        "reference, paired by seed, with the 95 % interval of their mean (Student), * where it leaves out 0; each "
        "holds for itself, not for the best of many."
    )
