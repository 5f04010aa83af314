"""Remedies against over-smoothing side by side on the toy world: nothing, AttnScale, FeatScale, patch token contrast.

    python benchmarks/remedies.py            # three seeds, about ten minutes on one core; killed, it continues

Writes results/remedies.csv (a row per run) and results/remedies.md (means).
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from toco_lab.config import Config
from toco_lab.evaluation.evaluate import evaluate_run
from toco_lab.experiment import train
from toco_lab.files import atomic_write
from toco_lab.method.model import ToCo
from toco_lab.runs.environment import environment
from toco_lab.runs.listing import final_scores
from toco_lab.runs.run_dir import RunDir
from toco_lab.smoothing.per_layer import smoothing_of_model, smoothing_of_run
from toco_lab.training.checkpoints import initial_model, load_run_model

HERE = Path(__file__).parent / "results"
PLAIN = {"w_ptc": 0.0, "w_ctc": 0.0, "w_seg": 0.0, "w_reg": 0.0}  # the two classification losses alone
TRAINED = {
    "plain fine-tuning": PLAIN,
    "+ AttnScale": PLAIN | {"anti_smoothing": "attn_scale"},
    "+ FeatScale": PLAIN | {"anti_smoothing": "feat_scale"},
    "+ PTC": PLAIN | {"w_ptc": Config.preset("toy").w_ptc},
}
UNTRAINED = ("random weights", "pretrained, before training")
COLUMNS = {  # heading -> (metric, variant), after the last block
    "similarity": ("pairwise cosine", "absolute, off-diagonal"),
    "centred": ("pairwise cosine", "centred, absolute, off-diagonal"),
    "gap of pairs": ("cosine gap", "absolute, true label"),
    "HC / DC": ("high-frequency ratio", "||HC|| / ||DC||"),
    "effective rank": ("effective rank", "sigma, not centred"),
}
METRICS = tuple(dict.fromkeys(metric for metric, _ in COLUMNS.values()))


def numbers(frame: pd.DataFrame) -> dict[str, float]:
    """Means over images: similarity after the first block, and every column after the last one."""
    blocks = frame[frame["site"] == "after block"]
    means = blocks.groupby(["metric", "variant", "layer"])["value"].mean()
    first, last = blocks["layer"].min(), blocks["layer"].max()
    found = {"similarity, first block": means[(*COLUMNS["similarity"], first)]}
    return found | {name: means[(*key, last)] for name, key in COLUMNS.items()}


def trained_row(row: str, seed: int, root: Path, images: int) -> dict[str, float | str | int]:
    """Train and measure one run where that is not done yet."""
    run = RunDir.create(Config.preset("toy").replace(**TRAINED[row], seed=seed), root)
    if run.status()["state"] != "done":
        train(run, progress=False)
    if not (run.path / "evaluation.csv").is_file():
        evaluate_run(run, targets=("cam", "cam_aux"), progress=False)
    frame = smoothing_of_run(run, images, metrics=METRICS, progress=False)
    parameters = load_run_model(run)[0].encoder.named_parameters()
    learned = [value.abs().max().item() for name, value in parameters if "_scale." in name]
    scores = final_scores(run)
    cams = {"final CAM": 100 * scores["cam_mIoU"], "auxiliary CAM": 100 * scores["cam_aux_mIoU"]}
    return {"row": row, "seed": seed} | numbers(frame) | cams | {"largest scale": max(learned, default=None)}


def untrained_row(row: str, seed: int, images: int) -> dict[str, float | str | int]:
    """Measure a model no step has touched."""
    cfg = Config.preset("toy").replace(seed=seed)
    torch.manual_seed(seed)
    model = initial_model(cfg) if row.startswith("pretrained") else ToCo(cfg)
    frame = smoothing_of_model(model.eval(), cfg, images, name=row, weights=row, metrics=METRICS, progress=False)
    return {"row": row, "seed": seed} | numbers(frame)


def markdown(frame: pd.DataFrame, images: int) -> str:
    """Mean and standard deviation over seeds, with the protocol above."""
    made, cfg = environment(), Config.preset("toy")
    lines = [
        f"Toy world, preset `toy` ({cfg.steps} steps of {cfg.batch_size}), classification losses alone unless said; "
        f"{frame['seed'].nunique()} seeds, mean ± standard deviation over them; {images} validation scenes for the "
        f"metrics, all {cfg.val_images} for the CAMs (masked by true image labels, threshold "
        f"{cfg.background_threshold}, scales {cfg.cam_scales} with flip, no CRF). Metrics of patch tokens, raw, after "
        f"the last block unless said. `largest scale`: largest |omega|, |s| or |t| that training found, from 0. "
        f"{made['device']}, torch {made['packages']['torch']}.",
        "",
    ]
    columns = [name for name in frame if name not in ("row", "seed")]
    lines += ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for row, part in frame.groupby("row", sort=False):
        cells = []
        for name in columns:
            digits = 1 if "CAM" in name or "rank" in name else 2
            values = part[name].astype(float)
            known = values.notna().any()
            cells.append(f"{values.mean():.{digits}f} ± {values.std():.{digits}f}" if known else "-")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Make what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--root", type=Path, default=Path("results/remedies"))
    parser.add_argument("--images", type=int, default=50)
    args = parser.parse_args()
    rows = [untrained_row(row, seed, args.images) for row in UNTRAINED for seed in args.seeds]
    for row, seed in tqdm([(row, seed) for row in TRAINED for seed in args.seeds], unit="run", desc="remedies"):
        rows.append(trained_row(row, seed, args.root, args.images))
    frame = pd.DataFrame(rows)
    with atomic_write(HERE / "remedies.csv", "w") as file:
        frame.round(4).to_csv(file, index=False)
    text = markdown(frame, args.images)
    with atomic_write(HERE / "remedies.md", "w") as file:
        file.write(text)
    print(text)


if __name__ == "__main__":
    main()
