"""What a training step costs on a GPU: plain and ours, fp32, TF32, bf16, compiled; memory, waiting, how busy it is.

Ours is `train_step`; plain is `textbook.py`; the floor is timm's encoder passes in bf16. All take turns; the clock's
seconds around each step with the device finished before and after, medians, ratios within a round. Memory is the peak
of torch's allocator. One step of ours runs with torch's check that raises where the host would wait for the device.
Busy is the share of the clock that kernels ran while `train_loader` fed the steps with JPEG files of VOC's size, from
the profiler. The largest batch is the last that fits, doubling from the setting's. Random weights.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import loader, textbook, training_step
from benchmarks.measure import clock_of, ratio, rounds
from benchmarks.run import Case, markdown_table
from benchmarks.training_step import describe, make_batch
from toco_lab.backbones.kinds import blocks_of
from toco_lab.config import Config
from toco_lab.data.loader import train_loader
from toco_lab.method.batch import TENSORS, Batch
from toco_lab.method.model import ToCo
from toco_lab.training.learner import Learner, train_step

PLAIN, FP32, TF32 = "textbook, fp32", "ours, fp32", "ours, TF32"
BF16, COMPILED, FLOOR = "ours, bf16", "ours, bf16, compiled", "floor, bf16"
KINDS = (PLAIN, FP32, TF32, BF16, COMPILED, FLOOR)
DRAWN = 8  # images that are drawn for a batch; a larger one repeats them
FED_STEPS = 10  # with the loader, after as many that do not count
VIT_B = training_step.SETTINGS["vit_b"].replace(batch_size=4)
SETTINGS = training_step.SETTINGS | {"vit_b": VIT_B, "vit_s": VIT_B.replace(backbone="vit_small_patch16_224")}


def make_step(case: str, cfg: Config, device: torch.device) -> Callable[[], Any]:
    """A step of a fresh model on one batch, at the end of training: every term is on."""
    torch.manual_seed(0)
    cfg = cfg.replace(precision="bf16" if "bf16" in case else "fp32")
    model = ToCo(cfg).to(device)
    made, last = make_batch(cfg.replace(batch_size=min(cfg.batch_size, DRAWN)), model), cfg.steps - 1
    batch = replace(repeated(made, cfg.batch_size), max_present=int(made.image_label.sum(1).max())).to(device)
    if case == PLAIN:
        optimizer = textbook.textbook_optimizer(model, cfg)
        return lambda: textbook.textbook_step(model, optimizer, batch, cfg, last)
    if case == FLOOR:
        side = cfg.local_crop_size
        local = batch.local_source[:, :, :side, :side].repeat(cfg.num_local_crops, 1, 1, 1)

        def floor() -> None:
            with torch.autocast(device.type, dtype=torch.bfloat16):
                textbook.floor(model, batch, cfg, local)

        return floor
    learner = Learner.of(model, cfg)
    if case == COMPILED:
        compile_blocks(model)

    def ours() -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if case == TF32 else "highest")
        train_step(learner, batch, cfg, last)
        torch.set_float32_matmul_precision(before)

    return ours


def repeated(batch: Batch, size: int) -> Batch:
    """A batch of so many images, those of a smaller one again and again."""
    rows = torch.arange(size) % len(batch.names)
    tensors = {name: tensor[rows] for name in TENSORS if (tensor := getattr(batch, name)) is not None}
    return replace(batch, names=[batch.names[row] for row in rows], **tensors)


def compile_blocks(model: ToCo) -> None:
    """What `compile_blocks` of the config does during training, for good."""
    for block in blocks_of(model.encoder):
        block.compile()


def measure(cfg: Config, repeats: int) -> pd.DataFrame:
    """The steps on this machine's GPU, where they wait, how busy it is, how many images fit."""
    device = torch.device("cuda")
    table = measure_steps(cfg, device, repeats).assign(device=torch.cuda.get_device_name(), sizes=describe(cfg))
    workers = min(16, os.cpu_count() or 1)
    busy = busy_share(cfg.replace(num_workers=workers), device)
    return table.assign(waits=waits(cfg, device), busy=busy, workers=workers, largest=largest_batch(cfg, device))


def measure_steps(cfg: Config, device: torch.device, repeats: int) -> pd.DataFrame:
    """A row per case: seconds, images a second, ratio to the plain step and to the floor, peak memory."""
    peaks, steps = {}, {}
    for case in KINDS:
        steps[case] = make_step(case, cfg, device)
        steps[case]()  # compiles, chooses kernels, makes the optimiser's state
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            steps[case]()
            peaks[case] = (torch.cuda.max_memory_allocated(device) - before) / 1e6
    frame = rounds(steps, repeats, clock_of(device))
    return pd.DataFrame(
        [
            {"case": case, "seconds": frame[case].median(), "images_per_second": cfg.batch_size / frame[case].median(),
             "plain_to": ratio(frame, PLAIN, case), "to_floor": ratio(frame, case, FLOOR),
             "step_mb": peaks.get(case, float("nan"))}
            for case in KINDS
        ]
    )  # fmt: skip


def waits(cfg: Config, device: torch.device) -> str:
    """What torch says of the first place in a step where the host waits for the device; "none" without one."""
    step = make_step(BF16, cfg, device)
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def busy_share(cfg: Config, device: torch.device) -> float:
    """Share of the clock in which a kernel ran, over steps fed by the loader as in `fit`."""
    torch.manual_seed(0)
    clock = clock_of(device)
    with tempfile.TemporaryDirectory() as folder:
        loader.make_data(Path(folder), 12 * cfg.batch_size)
        cfg = cfg.replace(precision="bf16", dataset="voc", data_root=folder, train_split="train_aug", num_classes=20)
        model = ToCo(cfg).to(device)
        learner, last = Learner.of(model, cfg), cfg.steps - 1
        batches = iter(train_loader(cfg, model.mean, model.std))

        def fed() -> None:
            for _ in range(FED_STEPS):
                train_step(learner, next(batches).to(device), cfg, last)

        fed()
        activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
        with profile(activities=[activity]) as seen:
            began = clock()  # the profiler has started
            fed()
            spent = clock() - began
    kernels = sum(event.self_device_time_total for event in seen.key_averages()) / 1e6
    return kernels / spent


def largest_batch(cfg: Config, device: torch.device) -> int:
    """Images of the last bf16 step that fits into the device's memory, their number doubled from that of `cfg`."""
    fits = 0
    while True:
        try:
            make_step(BF16, cfg, device)()
        except torch.cuda.OutOfMemoryError:
            return fits
        finally:
            torch.cuda.empty_cache()
        fits, cfg = cfg.batch_size, cfg.replace(batch_size=2 * cfg.batch_size)


def section(rows: pd.DataFrame) -> list[str]:
    """The kinds of steps, then waiting and busy share."""
    about = rows.iloc[0]
    cells = [
        [row.case, f"{row.seconds:.4f}", f"{row.images_per_second:.1f}", f"{row.plain_to:.2f}", f"{row.to_floor:.2f}",
         f"{row.step_mb:.0f}"]
        for row in rows.itertuples()
    ]  # fmt: skip
    heading = ["", "seconds", "images a second", "times as fast as plain", "x floor", "step MB"]
    busy = "not measured" if pd.isna(about["busy"]) else f"{about['busy']:.0%}"
    return [
        f"{about['device']}; {about['sizes']}.", "", *markdown_table(heading, cells), "",
        f"Where the host waits in a step: {about['waits']}. GPU busy with {about['workers']} loader processes: {busy}. "
        f"Largest batch that fits, doubling: {about['largest']}.",
    ]  # fmt: skip


CASE = Case(
    about="Training step on a GPU. The clock's seconds, medians; ratios are medians over rounds.",
    settings=SETTINGS,
    measure=measure,
    section=section,
    default=("vit_b",),
    repeats=10,
    missing=lambda: "" if torch.cuda.is_available() else "no CUDA device here (training_step measures on the CPU)",
)
