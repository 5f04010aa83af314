"""What a training step costs, whole and by part, beside the same step written plainly and the bare encoder passes.

Fast is `train_step` of `toco_lab.training.learner`; `textbook.py` beside this file has the other two, and says what
plain means. One process with one thread runs them in turn, fp32 on the CPU, and takes processor time, which a busy
machine changes less than the clock. Ratios are taken within a round, then their median. Memory is that of a fresh
process each (Linux).
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import trange

from benchmarks import textbook
from benchmarks.measure import Places, in_a_fresh_process, peak_megabytes_of, timed
from benchmarks.run import Case, markdown_table
from toco_lab.config import Config
from toco_lab.data.toy import make_scene
from toco_lab.data.views import TrainViews
from toco_lab.method import step
from toco_lab.method.batch import Batch
from toco_lab.method.model import ToCo
from toco_lab.training.learner import Learner, train_step

VOC = Config.preset("voc_vit_b")
SETTINGS = {
    "toy": Config.preset("toy"),
    "deit_tiny": VOC.replace(backbone="deit_tiny_patch16_224", crop_size=224),
    "vit_b": VOC.replace(batch_size=2),
}
WHOLE, REST = "whole", "rest"
SHARED: Places = {
    "forward": [(ToCo, "forward")],
    "backward": [(Tensor, "backward")],
    "optimiser": [(torch.optim.AdamW, "step"), (ToCo, "update_teacher")],
}
PARTS: dict[str, Places] = {
    "fast": SHARED
    | {
        "multi-scale CAM": [(step, "multi_scale_cam")],
        "refinement": [(step, "pseudo_label")],
        "energy": [(step, "reg_loss")],
        "PTC": [(step, "token_labels"), (step, "affinity_mask"), (step, "ptc_terms")],
        "CTC": [(step, "region_mask"), (step, "local_views"), (step, "class_token_contrast")],
    },
    "textbook": SHARED
    | {
        "multi-scale CAM": [(textbook, "multi_scale_cam")],
        "refinement": [(textbook, "pseudo_label")],
        "energy": [(textbook, "reg_loss")],
        "PTC": [(textbook, name) for name in ("token_labels", "ptc_terms")],
        "CTC": [
            (textbook, name)
            for name in ("region_masks", "local_views", "teacher_projections", "student_projections", "ctc_loss")
        ],
    },
    "floor": {"backward": SHARED["backward"]},
}
ORDER = [
    WHOLE, "multi-scale CAM", "forward", "refinement", "energy", "PTC", "CTC", "backward", "optimiser", REST,
]  # fmt: skip


# --- what is measured -------------------------------------------------------------------------------------------------


def make_batch(cfg: Config, model: ToCo) -> Batch:
    """Toy scenes of the crop's size through the real augmentation; their six classes pass for the first of any set."""
    views, rows = TrainViews(cfg, model.mean, model.std), []
    for index in range(cfg.batch_size):
        scene = make_scene(0, index, size=cfg.crop_size)
        label = torch.zeros(cfg.num_classes)
        label[np.unique(scene.mask)[1:].astype(int) - 1] = 1
        made = views(scene.image, index)
        rows.append((made.image, made.view2, made.local_source, label, made.valid_box))
    return Batch([f"scene {index}" for index in range(cfg.batch_size)], *map(torch.stack, zip(*rows, strict=True)))


def make_steps(cfg: Config) -> dict[str, Callable[[], Any]]:
    """The three on one model with random weights and one batch, at the end of training: every term is on."""
    torch.manual_seed(0)
    model = ToCo(cfg)
    batch, last = make_batch(cfg, model), cfg.steps - 1
    learner, optimizer = Learner.of(model, cfg), textbook.textbook_optimizer(model, cfg)
    side = cfg.local_crop_size
    local = batch.local_source[:, :, :side, :side].repeat(cfg.num_local_crops, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    return {
        "fast": lambda: train_step(learner, batch, cfg, last),
        "textbook": lambda: textbook.textbook_step(model, optimizer, batch, cfg, last, generator=generator),
        "floor": lambda: textbook.floor(model, batch, cfg, local),
    }


def measure(cfg: Config, repeats: int) -> pd.DataFrame:
    """A row per step and part, time and memory."""
    table = summarise(measure_rounds(cfg, repeats))
    for name in PARTS:
        peaks = in_a_fresh_process(peak_megabytes, cfg, name)
        table.loc[(table["step"] == name) & (table["part"] == WHOLE), ["peak_mb", "step_mb"]] = peaks
    return table.assign(sizes=describe(cfg))


def measure_rounds(cfg: Config, repeats: int) -> pd.DataFrame:
    """One row per round, step and part; a round before the first one is not counted."""
    steps, rows = make_steps(cfg), []
    for number in trange(-1, repeats, unit="round", leave=False):
        for name, run in steps.items():
            with timed(PARTS[name]) as seconds:
                began = time.process_time()
                run()
                whole = time.process_time() - began
            parts = {WHOLE: whole} | seconds | {REST: whole - sum(seconds.values())}
            rows += [{"round": number, "step": name, "part": part, "seconds": spent} for part, spent in parts.items()]
    return pd.DataFrame(rows).query("round >= 0")


def peak_megabytes(cfg: Config, name: str) -> tuple[float, float]:
    """Largest resident memory of this process over two steps, and that without what the loaded model took before."""
    torch.set_num_threads(1)
    run = make_steps(cfg)[name]

    def two_steps() -> None:
        run()
        run()

    return peak_megabytes_of(two_steps)


# --- tables -----------------------------------------------------------------------------------------------------------


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Median, smallest and largest seconds of each step and part, and its ratios to the fast one and the floor's."""
    rows = []
    wide = frame.pivot(index="round", columns=["step", "part"], values="seconds")
    for name, part in wide.columns:
        spent = wide[name, part]
        row = {"step": name, "part": part, "seconds": spent.median(), "least": spent.min(), "most": spent.max()}
        for other in ("fast", "floor"):
            known = (other, part) in wide and part != REST and (wide[other, part] > 0).all()
            row[f"to_{other}"] = statistics.median(spent / wide[other, part]) if known else None
        rows.append(row)
    return pd.DataFrame(rows)


def describe(cfg: Config) -> str:
    """Sizes that the cost depends on."""
    return (
        f"{cfg.backbone.partition('.')[0]}{f' with {cfg.depth} blocks of {cfg.embed_dim}' if cfg.depth else ''}, "
        f"{cfg.crop_size} px, batch {cfg.batch_size}, {cfg.num_classes} classes, CAM scales "
        f"{' '.join(f'{scale:g}' for scale in cfg.cam_scales)}, second view {cfg.view2_side} px, "
        f"{cfg.num_local_crops} local views of {cfg.local_crop_size} px"
    )


def section(rows: pd.DataFrame) -> list[str]:
    """The whole steps, then the parts."""
    whole = [
        [row.step, f"{row.seconds:.3f}", f"{row.least:.3f} to {row.most:.3f}", f"{row.to_fast:.2f}",
         f"{row.to_floor:.2f}", f"{row.peak_mb:.0f}", f"{row.step_mb:.0f}"]
        for row in rows[rows["part"] == WHOLE].itertuples()
    ]  # fmt: skip
    fast, plain = (rows[rows["step"] == name].set_index("part") for name in ("fast", "textbook"))
    parts = [
        [part, f"{fast['seconds'][part]:.4f}", f"{fast['seconds'][part] / fast['seconds'][WHOLE]:.1%}",
         f"{plain['seconds'][part]:.4f}", "-" if pd.isna(plain["to_fast"][part]) else f"{plain['to_fast'][part]:.2f}"]
        for part in ORDER
    ]  # fmt: skip
    heading = ["", "seconds", "least to most", "x fast", "x floor", "peak MB", "of it the step"]
    return [
        f"{rows['sizes'].iloc[0]}.", "", *markdown_table(heading, whole), "",
        *markdown_table(["part", "fast", "share", "textbook", "x fast"], parts),
    ]  # fmt: skip


CASE = Case(
    about="Training step: ours, the same mathematics written plainly (`benchmarks/textbook.py`), and the floor, the\n"
    "encoder passes that no step can do without. Processor seconds, one thread, fp32, medians; ratios are medians\n"
    "over rounds. Memory is the peak of a process of its own, the floor's without optimiser.",
    settings=SETTINGS, measure=measure, section=section, default=("toy", "deit_tiny"), repeats=5,
)  # fmt: skip
