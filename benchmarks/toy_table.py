"""The README's toy table: seven rows, five seeds, one schedule and one threshold, with the paper's findings checked.

    python benchmarks/toy_table.py            # about half an hour; killed, it continues where it was

Writes every run below results/toy_table, one CSV row per run to benchmarks/results/toy_table.csv, and the table with
its findings to benchmarks/results/toy_table.md, a picture of both to toy_table.png.
"""

import argparse
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from toco_lab.config import Config
from toco_lab.data.classes import PALETTE
from toco_lab.data.toy import TOY_CLASSES
from toco_lab.evaluation.evaluate import evaluate_run
from toco_lab.evaluation.example_maps import gallery_rows
from toco_lab.experiment import train
from toco_lab.figures import pictures
from toco_lab.files import atomic_write
from toco_lab.runs.environment import environment
from toco_lab.runs.run_dir import RunDir
from toco_lab.smoothing.per_layer import smoothing_of_run
from toco_lab.training.checkpoints import load_run_model

HERE = Path(__file__).parent / "results"
NO_CONTRAST, NO_CTC, NO_SEG = {"w_ptc": 0.0, "w_ctc": 0.0}, {"w_ctc": 0.0}, {"w_seg": 0.0, "w_reg": 0.0}
ROWS = {
    "baseline": NO_CONTRAST | NO_SEG,
    "+ PTC": NO_CTC | NO_SEG,
    "+ PTC + CTC": NO_SEG,
    "baseline + seg + reg": NO_CONTRAST,
    "+ PTC + seg + reg": NO_CTC,
    "full ToCo": {},
    "full ToCo, released oddities": {},
}
SCORES = {"cam": "final CAM", "cam_aux": "auxiliary CAM", "seg": "segmentation"}
SIMILARITIES = {
    "first": "similarity, first block",
    "last": "similarity, last block",
    "positive": "cosine of positive pairs",
    "negative": "cosine of negative pairs",
}


def config_of(row: str, seed: int, preset: str) -> Config:
    """The preset with one row's switches."""
    cfg = Config.preset(preset).replace(**ROWS[row], seed=seed)
    return cfg.released() if "released" in row else cfg


def finish(row: str, seed: int, preset: str, root: Path, images: int) -> dict[str, float | str | int]:
    """Train, evaluate and measure one run where that is not done yet; its numbers as one CSV row (mIoU in points)."""
    run = RunDir.create(config_of(row, seed, preset), root)
    if run.status()["state"] != "done":
        train(run)
    if not (run.path / "evaluation.csv").is_file():
        evaluate_run(run)
    if not (run.path / "smoothing.csv").is_file():
        smoothing_of_run(run, num_images=images)
    table = run.read_table("evaluation")
    means = table[table["class"] == "mIoU"].set_index("target")["iou"]
    scores = {SCORES[target]: 100 * means[target] for target in SCORES}
    about = {"row": row, "seed": seed, "seconds": run.status()["seconds"]}
    return about | scores | similarities(run.read_table("smoothing"))


VARIANTS = ("absolute, off-diagonal", "absolute, true label")  # of the pairwise, and of the pairs' cosines


def similarities(frame: pd.DataFrame) -> dict[str, float]:
    """Mean |cos| after the first and the last block (metric 1a), and of positive and negative pairs after the last."""
    frame = frame[(frame["site"] == "after block") & frame["variant"].isin(VARIANTS)]
    means = frame.groupby(["metric", "layer"])["value"].mean()
    layers = frame["layer"]
    name = {"first": ("pairwise cosine", layers.min()), "last": ("pairwise cosine", layers.max()),
            "positive": ("positive cosine", layers.max()), "negative": ("negative cosine", layers.max())}  # fmt: skip
    return {SIMILARITIES[key]: means[name[key]] for key in name}


def findings(frame: pd.DataFrame) -> list[str]:
    """The four findings, each with its figures and whether it holds. Rows are compared seed by seed (paired)."""
    column = {row: group.set_index("seed") for row, group in frame.groupby("row")}
    base, final, aux = column["baseline"], SCORES["cam"], SCORES["cam_aux"]
    first, last = SIMILARITIES["first"], SIMILARITIES["last"]
    rise = base[last].mean() - base[first].mean()
    gap = base[aux].mean() - base[final].mean()
    lines = [
        verdict(
            rise >= 0.15, f"(a) baseline: the last block's similarity is {rise:+.2f} above the first's (wanted 0.15)"
        ),
        verdict(gap >= 5, f"(b) baseline: the final CAM is {gap:.1f} points below the auxiliary CAM (wanted 5)"),
    ]
    for plain, ptc in (("baseline", "+ PTC"), ("baseline + seg + reg", "+ PTC + seg + reg")):
        fewer = (column[ptc][last] < column[plain][last]).sum()
        gain = column[ptc][final] - column[plain][final]
        error = sem(gain)
        holds = fewer == len(gain) and gain.mean() > 2 * error
        lines.append(
            verdict(
                holds,
                f"(c) {ptc} against {plain}: similarity of the last block lower in {fewer} of {len(gain)} "
                f"seeds; final CAM {gain.mean():+.1f} points, standard error of the paired difference {error:.1f}",
            )
        )
    for score in (final, SCORES["seg"]):
        full, rest = column["full ToCo"], {r: c for r, c in column.items() if not r.startswith("full")}
        second = max(rest, key=lambda r: rest[r][score].mean())
        gains = full[score] - rest[second][score]
        lead, error = gains.mean(), sem(gains)
        lines.append(
            verdict(
                lead > error,
                f"(d) full ToCo in {score}: {lead:+.1f} points against the best other row of the ladder ({second}), "
                f"standard error of the paired difference {error:.1f}",
            )
        )
    return lines


def verdict(holds: bool, text: str) -> str:
    """A Markdown list item that says whether a finding holds."""
    return f"- {'**holds**' if holds else '**does not hold**'}: {text}."


def sem(values: pd.Series) -> float:
    """Standard error of the mean."""
    return values.std(ddof=1) / np.sqrt(len(values))


def markdown(frame: pd.DataFrame, preset: str) -> str:
    """Mean and standard error per row, with the protocol above and the findings below."""
    cfg, columns = Config.preset(preset), [*SCORES.values(), *SIMILARITIES.values()]
    seeds = frame["seed"].nunique()
    made = environment()
    protocol = (
        f"Toy world, preset `{preset}` ({cfg.steps} steps of {cfg.batch_size}), {seeds} seeds, mean ± standard error; "
        f"{frame['seconds'].mean():.0f} s of training a run on one thread ({made['device']}, torch "
        f"{made['packages']['torch']}). mIoU in points over {cfg.val_images} validation scenes: CAM scales "
        f"{cfg.cam_scales} with flip, background threshold {cfg.background_threshold}, CAMs masked by the true image "
        "labels, no CRF. Similarity: metric 1a (mean absolute cosine, off-diagonal) of the raw residual stream after a "
        "block; pairs by the true mask, after the last block. "
        f"Weights: PTC {cfg.w_ptc}, CTC {cfg.w_ctc}, seg {cfg.w_seg}, reg {cfg.w_reg}; thresholds {cfg.low_threshold} "
        f"and {cfg.high_threshold}; {cfg.num_local_crops} local crops, positive above {cfg.crop_min_content:.0%} of "
        "content. The pseudo label of the segmentation loss comes from the auxiliary CAM, as in the first stage of the "
        "COCO preset."
    )
    lines = [
        *textwrap.wrap(protocol, 120),
        "",
        "| | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for row in (r for r in ROWS if r in set(frame["row"])):
        part = frame[frame["row"] == row]
        cells = [f"{part[c].mean():.1f} ± {sem(part[c]):.1f}" for c in SCORES.values()]
        cells += [f"{part[c].mean():.2f} ± {sem(part[c]):.3f}" for c in SIMILARITIES.values()]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *findings(frame), ""])


def picture(preset: str, root: Path, num_images: int = 4):
    """The same scenes with the final CAM of the baseline and of full ToCo, seed 0: a matplotlib figure."""
    compared = ("baseline", "full ToCo")
    runs = [RunDir(root / config_of(row, 0, preset).run_name()) for row in compared]
    plain, full = (gallery_rows(*load_run_model(run), num_images) for run in runs)
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


def main() -> None:
    """Make what is missing of the table, then write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="toy")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--root", type=Path, default=Path("results/toy_table"))
    parser.add_argument("--images", type=int, default=50, help="validation scenes for the similarities")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for toy_table.csv and toy_table.md")
    args = parser.parse_args()
    rows = []
    jobs = [(row, seed) for seed in args.seeds for row in args.rows]
    for row, seed in tqdm(jobs, unit="run", desc="toy table"):
        rows.append(finish(row, seed, args.preset, args.root, args.images))
        frame = pd.DataFrame(rows)
        with atomic_write(args.out / "toy_table.csv", "w") as file:
            frame.round(4).to_csv(file, index=False)
    if set(args.rows) == set(ROWS) and len(args.seeds) > 1:
        text = markdown(frame, args.preset)
        with atomic_write(args.out / "toy_table.md", "w") as file:
            file.write(text)
        with atomic_write(args.out / "toy_table.png") as file:
            picture(args.preset, args.root).savefig(file, format="png", dpi=60)
        print(text)


if __name__ == "__main__":
    main()
