"""What the remedies have beyond their grid: models that no step has trained, five more metrics, the learned scales.

Run by `python -m toco_lab study remedies`.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from toco_lab.config import Config
from toco_lab.figures import printed
from toco_lab.method.model import ToCo
from toco_lab.reports.ablation import summarise
from toco_lab.reports.studies import Study, machine_of, markdown_lines
from toco_lab.runs.listing import final_scores
from toco_lab.runs.run_dir import RunDir
from toco_lab.smoothing.of_runs import smoothing_of_model
from toco_lab.training.checkpoints import initial_model, load_run_model

IMAGES = 50  # validation scenes for the metrics
UNTRAINED = ("random weights", "pretrained, before training")
COLUMNS = {  # heading -> (metric, variant), after the last block
    "similarity": ("pairwise cosine", "absolute, off-diagonal"),
    "centred": ("pairwise cosine", "centred, absolute, off-diagonal"),
    "gap of pairs": ("cosine gap", "absolute, true label"),
    "HC / DC": ("high-frequency ratio", "||HC|| / ||DC||"),
    "effective rank": ("effective rank", "sigma, not centred"),
}


def write(study: Study, root: Path) -> str:
    """Table and summary of all runs of the grid, and of the models before any step."""
    runs = study.grid.runs(root)
    if not all((run.folder / "protocol.json").is_file() for run in runs):
        raise ValueError(f"the runs of {study.name} are not finished; `{study.command}` makes them")
    frame = pd.DataFrame([*untrained_rows(study), *trained_rows(study, root)])
    text = markdown(study, frame, machine_of(RunDir(runs[-1].folder)))
    study.keep(frame.round(4), text, picture(frame))
    return text


def untrained_rows(study: Study) -> Iterator[dict[str, float | str | int]]:
    """Models that no step has touched, over the seeds of the study."""
    for row in UNTRAINED:
        for seed in study.grid.seeds:
            cfg = Config.preset(study.grid.preset).replace(seed=seed)
            torch.manual_seed(seed)
            model = initial_model(cfg) if row.startswith("pretrained") else ToCo(cfg)
            yield {"row": row, "seed": seed} | numbers(model.eval(), cfg, row)


def trained_rows(study: Study, root: Path) -> Iterator[dict[str, float | str | int]]:
    """The runs of the grid: metrics, scores in points, and the largest scale that training found."""
    for made in study.grid.runs(root):
        run = RunDir(made.folder)
        model, cfg = load_run_model(run)
        learned = [value.abs().max().item() for name, value in model.encoder.named_parameters() if "_scale." in name]
        scores = final_scores(run)
        cams = {"final CAM": 100 * scores["cam_mIoU"], "auxiliary CAM": 100 * scores["cam_aux_mIoU"]}
        row = {"row": made.row, "seed": made.seed} | numbers(model, cfg, made.row) | cams
        yield row | {"largest scale": max(learned, default=None)}


def numbers(model: ToCo, cfg: Config, row: str) -> dict[str, float]:
    """Means over images: similarity after the first block, and every column after the last one."""
    metrics = tuple(dict.fromkeys(metric for metric, _ in COLUMNS.values()))
    frame = smoothing_of_model(model, cfg, IMAGES, name=row, weights=row, metrics=metrics, progress=False)
    blocks = frame[frame["site"] == "after block"]
    means = blocks.groupby(["metric", "variant", "layer"])["value"].mean()
    first, last = blocks["layer"].min(), blocks["layer"].max()
    found = {"similarity, first block": means[(*COLUMNS["similarity"], first)]}
    return found | {name: means[(*key, last)] for name, key in COLUMNS.items()}


def markdown(study: Study, frame: pd.DataFrame, machine: str) -> str:
    """Mean and standard deviation over seeds, with the protocol above."""
    cfg = study.grid.runs()[0].config
    protocol = (
        f"Toy world, preset `toy` ({cfg.steps} steps of {cfg.batch_size}), classification losses alone unless said; "
        f"{frame['seed'].nunique()} seeds, mean ± standard deviation over them; {IMAGES} validation scenes for the "
        f"metrics, all {cfg.val_images} for the CAMs (masked by true image labels, threshold "
        f"{cfg.background_threshold}, scales {cfg.cam_scales} with flip, no CRF). Metrics of patch tokens, raw, after "
        f"the last block unless said. `largest scale`: largest |omega|, |s| or |t| that training found, from 0. "
        f"{machine}."
    )
    columns = [name for name in frame if name not in ("row", "seed")]
    rows = [
        [row, *(cell(part[name].astype(float), 1 if "CAM" in name or "rank" in name else 2) for name in columns)]
        for row, part in frame.groupby("row", sort=False)
    ]
    table = markdown_lines(["", *columns], rows)
    return "\n".join([protocol, "", *table, "", "![every run a dot](figure.png)", "", f"    {study.command}", ""])


def cell(values: pd.Series, digits: int) -> str:
    """Mean and standard deviation, or a dash where nothing was measured."""
    return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}" if values.notna().any() else "-"


def picture(frame: pd.DataFrame) -> Figure:
    """Every run a dot: what the remedies do to the tokens, and what the CAMs have of it."""
    shown = ["similarity", "gap of pairs", "effective rank", "final CAM", "auxiliary CAM"]
    return printed.ablation_plot(frame, summarise(frame, scores=shown, reference="plain fine-tuning"))
