"""How many operations a training step asks for, which a GPU launches as kernels: ours, the plain one, the floor.

Of the over-smoothing metrics of an image likewise, with as many layers at a time as a CPU or a GPU takes.

A step of a fast GPU is bound by these launches where images are few. They are counted, not timed, so any machine gives
the same numbers; sizes play no part, the number of blocks does. Views of tensors and memory that is only asked for are
left out, and the optimiser's fused step counts as one.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import metrics
from benchmarks.run import Case, markdown_table
from benchmarks.training_step import VOC, make_steps
from toco_lab.config import Config
from toco_lab.method import refine
from toco_lab.smoothing import stack

SETTINGS: dict[str, Config | metrics.Setting] = {
    "deit_tiny": VOC.replace(backbone="deit_tiny_patch16_224", crop_size=160, view2_size=160),
    "metrics": replace(metrics.SETTINGS["vit_b"], images=1),
}
STEPS = {
    "floor": "bare encoder passes",
    "fast": "ours",
    "auxiliary": "ours, labels of the auxiliary CAM",
    "textbook": "plain",
}
GPU_STACKS = "all metrics, layers as a GPU takes them"
STACKS = {"all metrics, layers as a CPU takes them": stack.STACK_NUMBERS, GPU_STACKS: stack.GPU_STACK_NUMBERS}
WITHOUT_KERNEL = frozenset(
    f"aten::{name}"
    for name in (
        "view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze",
        "detach", "alias", "split", "split_with_sizes", "unbind", "as_strided", "_reshape_alias", "unfold",
        "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided",
    )
)  # fmt: skip
CAST = "aten::_to_copy"


class Operations(TorchDispatchMode):
    """Counts operations by name inside the context, those of the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.counted[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def operations(run: Callable[[], Any]) -> Counter[str]:
    """The operations of the second of two runs: the first one makes what is made once."""
    run()
    with Operations() as found:
        run()
    return Counter({name: n for name, n in found.counted.items() if name not in WITHOUT_KERNEL})


def measure(setting: Config | metrics.Setting, repeats: int) -> pd.DataFrame:
    """Rows of `measure_steps` or `measure_metrics`; one round is enough."""
    return measure_steps(setting) if isinstance(setting, Config) else measure_metrics(setting)


def measure_metrics(setting: metrics.Setting) -> pd.DataFrame:
    """A row for a forward pass of an image and for all its over-smoothing metrics, by size of the stacks of layers."""
    calls = metrics.make_calls(*metrics.make_subject(setting))
    counts = {metrics.FORWARD: operations(calls[metrics.FORWARD])}
    for name, numbers in STACKS.items():
        with mock.patch.object(stack, "STACK_NUMBERS", numbers):
            counts[name] = operations(calls[metrics.WHOLE])
    floor = counts[metrics.FORWARD].total()
    rows = [
        {"precision": "fp32", "step": name, "operations": n.total(), "casts": n[CAST], "to_floor": n.total() / floor}
        for name, n in counts.items()
    ]
    return pd.DataFrame(rows).assign(sizes=setting.sizes)


def measure_steps(cfg: Config) -> pd.DataFrame:
    """A row per arithmetic and step, of ours with the neighbours of PAR as a GPU takes them."""
    rows = []
    for precision in ("fp32", "bf16"):
        now = cfg.replace(precision=precision)
        steps = make_steps(now) | {"auxiliary": make_steps(now.replace(aux_label_steps=now.steps))["fast"]}
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            floor = operations(steps["floor"])
        with mock.patch.object(refine, "in_stacks", lambda maps: True):
            counts = {name: floor if name == "floor" else operations(steps[name]) for name in STEPS}
        rows += [
            {"precision": precision, "step": name, "operations": n.total(), "casts": n[CAST],
             "to_floor": n.total() / counts["floor"].total()}
            for name, n in counts.items()
        ]  # fmt: skip
    return pd.DataFrame(rows).assign(sizes=f"{cfg.backbone}, {len(cfg.cam_scales)} CAM scales")


def section(rows: pd.DataFrame) -> list[str]:
    """One table."""
    cells = [
        [row.precision, STEPS.get(row.step, row.step), row.operations, row.casts, f"{row.to_floor:.2f}"]
        for row in rows.itertuples()
    ]
    return [rows["sizes"].iloc[0], "", *markdown_table(["", "step", "operations", "of them casts", "x floor"], cells)]


CASE = Case(
    about="Operations of one training step that a GPU would launch as kernels, counted on a CPU. *Labels of the\n"
    "auxiliary CAM*: before `aux_label_steps`, where passes for CAMs end at the auxiliary block. Then those of all\n"
    "over-smoothing metrics of an image, beside its forward pass.",
    settings=SETTINGS, measure=measure, section=section, repeats=1,
)  # fmt: skip
