"""What a training step costs on a GPU: plain and ours, fp32 and bf16, compiled; memory, waiting, how busy the GPU is.

Ours is `train_step`; plain is `textbook.py`; the floor is timm's encoder passes in bf16. All take turns; the clock's
seconds around each step with the device finished before and after, medians, ratios within a round. Memory is the peak
of torch's allocator. One step of ours runs with torch's check that raises where the host would wait for the device.
Busy is the share of the clock that kernels ran while `train_loader` fed the steps, from the profiler. Random weights.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import textbook, training_step
from benchmarks.measure import ratio
from benchmarks.run import Case, markdown_table
from benchmarks.training_step import describe, make_batch
from toco_lab.backbones.kinds import blocks_of
from toco_lab.config import Config
from toco_lab.data.loader import train_loader
from toco_lab.method.model import ToCo
from toco_lab.training.learner import Learner, train_step

PLAIN, FP32, BF16, COMPILED, FLOOR = "textbook, fp32", "ours, fp32", "ours, bf16", "ours, bf16, compiled", "floor, bf16"
KINDS = (PLAIN, FP32, BF16, COMPILED, FLOOR)
FED_STEPS = 10  # with the loader, after as many that do not count
SETTINGS = training_step.SETTINGS | {"vit_b": training_step.SETTINGS["vit_b"].replace(batch_size=4)}


def make_step(case: str, cfg: Config, device: torch.device) -> Callable[[], Any]:
    """A step of a fresh model on one batch, at the end of training: every term is on."""
    torch.manual_seed(0)
    cfg = cfg.replace(precision="bf16" if "bf16" in case else "fp32")
    model = ToCo(cfg).to(device)
    batch, last = make_batch(cfg, model), cfg.steps - 1
    most = int(batch.image_label.sum(1).max())
    batch = type(batch)(**{**vars(batch), "max_present": most}).to(device)
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
    return lambda: train_step(learner, batch, cfg, last)


def compile_blocks(model: ToCo) -> None:
    """What `compile_blocks` of the config does during training, for good."""
    for block in blocks_of(model.encoder):
        block.compile()


@contextmanager
def seconds_of(device: torch.device, into: list[float]) -> Iterator[None]:
    """The clock's seconds of what is done inside, on the device too."""
    finish = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    finish()
    began = time.perf_counter()
    yield
    finish()
    into.append(time.perf_counter() - began)


def measure(cfg: Config, repeats: int) -> pd.DataFrame:
    """The steps on this machine's GPU, where they wait, and how busy it is."""
    device = torch.device("cuda")
    table = measure_steps(cfg, device, repeats).assign(device=torch.cuda.get_device_name(), sizes=describe(cfg))
    return table.assign(waits=waits(cfg, device), busy=busy_share(cfg, device))


def measure_steps(cfg: Config, device: torch.device, repeats: int) -> pd.DataFrame:
    """A row per case: seconds, images a second, ratio to the plain step and to the floor, peak memory."""
    spent: dict[str, list[float]] = {case: [] for case in KINDS}
    peaks, steps = {}, {}
    for case in KINDS:
        steps[case] = make_step(case, cfg, device)
        steps[case]()  # compiles, chooses kernels, makes the optimiser's state
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            steps[case]()
            peaks[case] = (torch.cuda.max_memory_allocated(device) - before) / 1e6
    for _ in range(repeats):
        for case, step in steps.items():
            with seconds_of(device, spent[case]):
                step()
    frame = pd.DataFrame(spent)
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
    cfg = cfg.replace(precision="bf16", dataset="toy", num_classes=6)  # toy scenes of this size need no data set
    model = ToCo(cfg).to(device)
    learner, last, spent = Learner.of(model, cfg), cfg.steps - 1, []
    batches = iter(train_loader(cfg, model.mean, model.std))
    for _ in range(FED_STEPS):
        train_step(learner, next(batches).to(device), cfg, last)
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as seen, seconds_of(device, spent):
        for _ in range(FED_STEPS):
            train_step(learner, next(batches).to(device), cfg, last)
    kernels = sum(event.self_device_time_total for event in seen.key_averages()) / 1e6
    return kernels / spent[0]


def section(rows: pd.DataFrame) -> list[str]:
    """The kinds of steps, then waiting and busy share."""
    about = rows.iloc[0]
    cells = [
        [row.case, f"{row.seconds:.4f}", f"{row.images_per_second:.1f}", f"{row.plain_to:.2f}", f"{row.to_floor:.2f}",
         f"{row.step_mb:.0f}"]
        for row in rows.itertuples()
    ]  # fmt: skip
    heading = ["", "seconds", "images a second", "times as fast as plain", "x floor", "step MB"]
    return [
        f"{about['device']}; {about['sizes']}.", "", *markdown_table(heading, cells), "",
        f"Where the host waits in a step: {about['waits']}. GPU busy with the loader: {about['busy']:.0%}.",
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
