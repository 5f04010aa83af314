"""What a training step costs, whole and by part, beside the same step written plainly and the bare encoder passes.

    python benchmarks/training_step.py                       # all settings; ViT-B takes most of the time
    python benchmarks/training_step.py toy deit_tiny --repeats 9

Fast is `toco_lab.train.train_step`; `textbook.py` beside this file has the other two, and says what plain means. One
process with one thread runs them in turn, fp32 on the CPU, and takes processor time, which a busy machine changes less
than the clock. Ratios are taken within a round, then their median. Memory is that of a fresh process each (Linux).
Writes benchmarks/results/training_step.csv and .md; settings that are not asked for keep the rows they have there.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import textbook
import torch
from torch import Tensor
from tqdm import tqdm

from toco_lab import cam, step
from toco_lab.config import Config
from toco_lab.data import Batch
from toco_lab.model import ToCo
from toco_lab.runs import atomic_write, environment
from toco_lab.toy import make_scene
from toco_lab.train import Learner, train_step
from toco_lab.transforms import TrainViews

HERE = Path(__file__).parent / "results"
VOC = Config.preset("voc_vit_b")
SETTINGS = {
    "toy": Config.preset("toy"),
    "deit_tiny": VOC.replace(backbone="deit_tiny_patch16_224", crop_size=224),
    "vit_b": VOC.replace(batch_size=2),
}
WHOLE, REST = "whole", "rest"
Places = dict[str, list[tuple[Any, str]]]  # part -> functions, as (owner, name)
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
        "PTC": [(cam, "token_labels"), (step, "affinity_mask"), (step, "ptc_terms")],
        "CTC": [(cam, "region_mask"), (step, "local_views"), (step, "class_token_contrast")],
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


@contextmanager
def timed(places: Places) -> Iterator[dict[str, float]]:
    """Processor seconds of each part, as they add up; a part within another one counts for the outer one alone."""
    seconds, inside = dict.fromkeys(places, 0.0), []

    def measured(part: str, call: Callable) -> Callable:
        def run(*arguments: Any, **options: Any) -> Any:
            if inside:
                return call(*arguments, **options)
            inside.append(part)
            began = time.process_time()
            try:
                return call(*arguments, **options)
            finally:
                seconds[part] += time.process_time() - began
                inside.clear()

        return run

    with ExitStack() as stack:
        for part, owners in places.items():
            for owner, name in owners:
                stack.enter_context(patch.object(owner, name, measured(part, getattr(owner, name))))
        yield seconds


def measure(cfg: Config, repeats: int, advance: Callable[[], Any] = lambda: None) -> pd.DataFrame:
    """One row per round, step and part; a round before the first one is not counted."""
    steps, rows = make_steps(cfg), []
    for number in range(-1, repeats):
        for name, run in steps.items():
            with timed(PARTS[name]) as seconds:
                began = time.process_time()
                run()
                whole = time.process_time() - began
            parts = {WHOLE: whole} | seconds | {REST: whole - sum(seconds.values())}
            rows += [{"round": number, "step": name, "part": part, "seconds": spent} for part, spent in parts.items()]
            advance()
    return pd.DataFrame(rows).query("round >= 0")


def peak_megabytes(cfg: Config, name: str) -> tuple[float, float]:
    """Largest resident memory of this process over two steps, and that without what the loaded model took before."""
    torch.set_num_threads(1)
    run = make_steps(cfg)[name]
    before = _resident("VmRSS")
    # getrusage would remember what building the model took, and what the parent process took
    Path("/proc/self/clear_refs").write_text("5")
    run()
    run()
    peak = _resident("VmHWM")
    return peak, peak - before


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(f"{field}:"))


def in_a_fresh_process(call: Callable, *arguments: Any) -> Any:
    """The result of a function of this file, called in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


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
        f"{' '.join(f'{scale:g}' for scale in cfg.cam_scales)}, second view {cfg.view2_size} px, "
        f"{cfg.num_local_crops} local views of {cfg.local_crop_size} px"
    )


def markdown(table: pd.DataFrame) -> str:
    """A section per setting: the whole steps, then the parts."""
    lines = [
        "Training step: ours, the same mathematics written plainly (`benchmarks/textbook.py`), and the floor, the",
        "encoder passes that no step can do without. Processor seconds, one thread, fp32, medians; ratios are medians",
        "over rounds. Memory is the peak of a process of its own, the floor's without optimiser.",
    ]
    for setting, rows in table.groupby("setting", sort=False):
        about = rows.iloc[0]
        lines += ["", f"## {setting}", "", f"{about['sizes']}. {about['repeats']} rounds.", ""]
        lines += ["| | seconds | least to most | x fast | x floor | peak MB | of it the step |", "|---|" + "---|" * 6]
        for row in rows[rows["part"] == WHOLE].itertuples():
            spread = f"{row.least:.3f} to {row.most:.3f}"
            lines.append(
                f"| {row.step} | {row.seconds:.3f} | {spread} | {row.to_fast:.2f} | {row.to_floor:.2f} | "
                f"{row.peak_mb:.0f} | {row.step_mb:.0f} |"
            )
        lines += ["", "| part | fast | share | textbook | x fast |", "|---|" + "---|" * 4]
        fast, plain = (rows[rows["step"] == name].set_index("part") for name in ("fast", "textbook"))
        for part in ORDER:
            ratio = plain["to_fast"][part]
            lines.append(
                f"| {part} | {fast['seconds'][part]:.4f} | {fast['seconds'][part] / fast['seconds'][WHOLE]:.1%} | "
                f"{plain['seconds'][part]:.4f} | {'-' if pd.isna(ratio) else f'{ratio:.2f}'} |"
            )
        lines += ["", f"{about['machine']}; {about['versions']}; commit {about['commit']}.", ""]
        lines += [f"    {about['command']}"]
    return "\n".join([*lines, ""])


def merged(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The rows that are kept in a file with those of the settings just measured in the place of theirs."""
    kept = pd.read_csv(path) if path.is_file() else table[:0]
    parts = [table, kept[~kept["setting"].isin(table["setting"])]]
    both = pd.concat([part for part in parts if len(part)], ignore_index=True)
    places = both["setting"].map(list(SETTINGS).index)
    return both.iloc[places.argsort(kind="stable")]


def measured_rows(setting: str, repeats: int, advance: Callable[[], Any]) -> pd.DataFrame:
    """Time and memory of one setting, with what they were made on."""
    cfg, made = SETTINGS[setting], environment("cpu")
    table = summarise(measure(cfg, repeats, advance))
    for name in PARTS:
        peaks = in_a_fresh_process(peak_megabytes, cfg, name)
        table.loc[(table["step"] == name) & (table["part"] == WHOLE), ["peak_mb", "step_mb"]] = peaks
        advance()
    table.insert(0, "setting", setting)
    git, packages = made["git"], made["packages"]
    return table.assign(
        repeats=repeats,
        sizes=describe(cfg),
        machine=f"{made['device']}, {made['cpu_count']} cores",
        versions=f"python {made['python']}, torch {packages['torch']}, timm {packages['timm']}",
        commit=git["commit"][:9] if git else "unknown",
        command=f"python benchmarks/training_step.py {setting} --repeats {repeats}",
    )


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("settings", nargs="*", metavar="SETTING", help=f"all by default: {', '.join(SETTINGS)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args(arguments)
    if unknown := set(args.settings) - set(SETTINGS):
        parser.error(f"no setting {', '.join(sorted(unknown))}; there are: {', '.join(SETTINGS)}")
    torch.set_num_threads(1)
    settings, path = args.settings or list(SETTINGS), args.out / "training_step.csv"
    with tqdm(total=len(settings) * len(PARTS) * (args.repeats + 2), unit="run") as bar:
        for setting in settings:
            bar.set_description(setting)
            table = merged(path, measured_rows(setting, args.repeats, bar.update).round(4))
            with atomic_write(path, "w") as file:
                table.to_csv(file, index=False, lineterminator="\n")
            text = markdown(table)
            with atomic_write(path.with_suffix(".md"), "w") as file:
                file.write(text)
    print(text)


if __name__ == "__main__":
    main()
