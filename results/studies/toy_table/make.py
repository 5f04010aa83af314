"""What the toy table has beyond its grid: standard errors, four findings with their verdicts, CAMs side by side.

Run by `python -m toco_lab study toy_table`.
"""

import textwrap
from pathlib import Path

import numpy as np
import pandas as pd

from toco_lab.config import Config
from toco_lab.data.classes import PALETTE
from toco_lab.data.toy import TOY_CLASSES
from toco_lab.evaluation import gallery_rows
from toco_lab.figures import pictures
from toco_lab.reports.studies import Study, machine_of, markdown_lines
from toco_lab.runs.run_dir import RunDir
from toco_lab.sweeps.sweep import sweep_table
from toco_lab.training.checkpoints import load_run_model

FINAL, AUXILIARY, SEGMENTATION, TUNED = "final CAM", "auxiliary CAM", "segmentation", ", tuned threshold"
SCORES = {
    "cam_mIoU": FINAL,
    "cam_tuned_mIoU": FINAL + TUNED,
    "cam_aux_mIoU": AUXILIARY,
    "cam_aux_tuned_mIoU": AUXILIARY + TUNED,
    "seg_mIoU": SEGMENTATION,
}  # in points
SIMILARITIES = {
    "similarity_first": "similarity, first block",
    "similarity_last": "similarity, last block",
    "positive_cosine": "cosine of positive pairs",
    "negative_cosine": "cosine of negative pairs",
}
END = ("", "![final CAMs of a plain classifier and of full ToCo](figure.png)", "")


def write(study: Study, root: Path) -> str:
    """The table of the finished runs with its findings; the figure where both of its runs are there."""
    table = sweep_table(root, study.grid)
    table = table[table["state"] == "done"]
    if set(table["row"]) != {run.row for run in study.grid.runs()} or table["seed"].nunique() < 2:
        raise ValueError(f"the findings need every row with two seeds or more; `{study.command}` makes them")
    runs = [RunDir(root / study.grid.folder / name) for name in table["run"]]
    frame = table[["row", "seed"]].assign(seconds=[run.status()["seconds"] for run in runs])
    frame = frame.assign(**{title: 100 * table[name] for name, title in SCORES.items()})
    frame = frame.assign(**{title: table[name] for name, title in SIMILARITIES.items()})
    frame = frame.sort_values("seed", kind="stable")
    text = markdown(study, frame, machine_of(runs[-1]))
    study.keep(frame.round(4), text, picture(study, root), dpi=60)
    return text


def findings(frame: pd.DataFrame) -> list[str]:
    """The four findings, each with its figures and whether it holds. Rows are compared seed by seed (paired)."""
    column = {row: group.set_index("seed") for row, group in frame.groupby("row")}
    base, first, last = column["baseline"], SIMILARITIES["similarity_first"], SIMILARITIES["similarity_last"]
    rise = base[last].mean() - base[first].mean()
    lines = [
        verdict(
            rise >= 0.15, f"(a) baseline: the last block's similarity is {rise:+.2f} above the first's (wanted 0.15)"
        )
    ]
    for tuned, at in ((TUNED, " at the tuned threshold"), ("", "")):
        gap = base[AUXILIARY + tuned].mean() - base[FINAL + tuned].mean()
        text = f"(b) baseline: the final CAM is {gap:.1f} points below the auxiliary CAM{at} (wanted 5)"
        lines.insert(1, verdict(gap >= 5, text))
    for plain, ptc in (("baseline", "+ PTC"), ("baseline + seg + reg", "+ PTC + seg + reg")):
        fewer = (column[ptc][last] < column[plain][last]).sum()
        gains = {tuned: column[ptc][FINAL + tuned] - column[plain][FINAL + tuned] for tuned in ("", TUNED)}
        said = [f"{gain.mean():+.1f} points{tuned and ' at the tuned threshold'} (standard error of the paired "
                f"difference {sem(gain):.1f})" for tuned, gain in gains.items()]  # fmt: skip
        text = (
            f"(c) {ptc} against {plain}: similarity of the last block lower in {fewer} of {len(gains[''])} seeds; "
            f"final CAM {', '.join(said)}"
        )
        holds = fewer == len(gains[""]) and all(gain.mean() > 2 * sem(gain) for gain in gains.values())
        lines.append(verdict(holds, text))
    return lines + [lead_of_full_toco(column, score) for score in (FINAL, FINAL + TUNED, SEGMENTATION)]


def lead_of_full_toco(column: dict[str, pd.DataFrame], score: str) -> str:
    """Finding (d) in one score: full ToCo against the best other row of the ladder."""
    full, rest = column["full ToCo"], {r: c for r, c in column.items() if not r.startswith("full")}
    second = max(rest, key=lambda row: rest[row][score].mean())
    gains = full[score] - rest[second][score]
    lead, error = gains.mean(), sem(gains)
    text = (
        f"(d) full ToCo in {score}: {lead:+.1f} points against the best other row of the ladder ({second}), "
        f"standard error of the paired difference {error:.1f}"
    )
    return verdict(lead > error, text)


def verdict(holds: bool, text: str) -> str:
    """A Markdown list item that says whether a finding holds."""
    return f"- {'**holds**' if holds else '**does not hold**'}: {text}."


def sem(values: pd.Series) -> float:
    """Standard error of the mean."""
    return values.std(ddof=1) / np.sqrt(len(values))


def markdown(study: Study, frame: pd.DataFrame, machine: str) -> str:
    """Mean and standard error per row, with the protocol above and the findings below."""
    cfg = next(run.config for run in study.grid.runs() if run.row == "full ToCo")
    protocol = (
        f"Toy world, preset `{cfg.preset_name}` ({cfg.steps} steps of {cfg.batch_size}), {frame['seed'].nunique()} "
        f"seeds, mean ± standard error; {frame['seconds'].mean():.0f} s of training a run on one thread ({machine}). "
        f"mIoU in points over {cfg.val_images} validation scenes: CAM scales "
        f"{cfg.cam_scales} with flip, background threshold {cfg.background_threshold} (tuned: for each run and CAM the "
        f"one of 0.05 to 0.80 that is best on {cfg.threshold_images} training images), CAMs masked by the true image "
        "labels, no CRF. Similarity: metric 1a (mean absolute cosine, off-diagonal) of the raw residual stream after a "
        f"block; pairs by the true mask, after the last block. {weights(cfg)} The pseudo "
        "label of the segmentation loss comes from the auxiliary CAM, as in the first stage of the COCO preset."
    )
    lines = []
    for row, part in frame.groupby("row", sort=False):
        cells = [f"{part[c].mean():.1f} ± {sem(part[c]):.1f}" for c in SCORES.values()]
        cells += [f"{part[c].mean():.2f} ± {sem(part[c]):.3f}" for c in SIMILARITIES.values()]
        lines.append([row, *cells])
    table = markdown_lines(["", *SCORES.values(), *SIMILARITIES.values()], lines)
    return "\n".join(
        [*textwrap.wrap(protocol, 120), "", *table, "", *findings(frame), "", *END, f"    {study.command}", ""]
    )


def weights(cfg: Config) -> str:
    """What the preset gives the terms, for the protocol."""
    return (
        f"Weights: PTC {cfg.w_ptc}, CTC {cfg.w_ctc}, seg {cfg.w_seg}, reg {cfg.w_reg}; thresholds {cfg.low_threshold} "
        f"and {cfg.high_threshold}; {cfg.num_local_crops} local crops, positive above {cfg.crop_min_content:.0%} of "
        "content."
    )


def picture(study: Study, root: Path, num_images: int = 4):
    """The same scenes with the final CAM of the baseline and of full ToCo, first seed: a matplotlib figure."""
    first = {run.row: run.folder for run in reversed(study.grid.runs(root))}
    plain, full = (gallery_rows(*load_run_model(RunDir(first[row])), num_images) for row in ("baseline", "full ToCo"))
    rows = [
        {
            "image": one["image"],
            "truth": one["truth"],
            "final CAM, baseline": one["CAM"],
            "final CAM, full ToCo": other["CAM"],
            "segmentation, full ToCo": other["segmentation"],
        }
        for one, other in zip(plain, full, strict=True)
    ]
    return pictures.cam_gallery(rows, palette=PALETTE, class_names=("background", *TOY_CLASSES))
