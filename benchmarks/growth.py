"""How time and memory of a training step grow with image size, batch, classes and backbone.

The step and the floor, the bare encoder passes it needs, are those of `training_step`. One number changes at a time,
from 224 pixels, 2 images and 20 classes; second view and local crops keep the sizes that VOC's preset gives them,
whatever the image's. The points of one axis take turns within a round, in one process with one thread, and ratios are
taken within a round. Memory is the peak of a fresh process each (Linux). Random weights, patches of 16 pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from benchmarks.measure import growth_exponent, in_a_fresh_process, ratio, rounds
from benchmarks.run import Case, markdown_table
from benchmarks.training_step import make_steps, peak_megabytes
from toco_lab.config import Config

BASE = Config.preset("voc_vit_b").replace(crop_size=224, batch_size=2)
BACKBONES = {
    "toy": {"backbone": "vit_tiny_patch16_224", "embed_dim": 64, "depth": 8, "num_heads": 2},
    "deit_tiny": {"backbone": "deit_tiny_patch16_224"},
    "deit_small": {"backbone": "deit_small_patch16_224"},
    "vit_b": {"backbone": "vit_base_patch16_224"},
    "vit_l": {"backbone": "vit_large_patch16_224"},
}
FIELDS = {"size": "crop_size", "batch": "batch_size", "classes": "num_classes"}
BACKBONE = "backbone"  # the axis over backbones, and its setting
Axes = Mapping[str, Mapping[Any, Config]]  # axis -> its points


def axes_of(name: str, sizes: Sequence[int]) -> Axes:
    """The three axes of one backbone."""
    base = BASE.replace(**BACKBONES[name])
    values = {"size": sizes, "batch": (1, 2, 4, 8, 16), "classes": (20, 80, 254)}  # a label map has room for 254
    return {axis: {value: base.replace(**{FIELDS[axis]: value}) for value in values[axis]} for axis in values}


SETTINGS: dict[str, Axes] = {
    "toy": axes_of("toy", (224, 448, 672, 1024)),
    **{name: axes_of(name, (224, 320, 448)) for name in ("deit_tiny", "deit_small", "vit_b")},
    BACKBONE: {BACKBONE: {name: BASE.replace(**fields) for name, fields in BACKBONES.items()}},
}


def measure(axes: Axes, repeats: int) -> pd.DataFrame:
    """The rows of `measure_axis` for each axis."""
    return pd.concat([measure_axis(points, repeats).assign(axis=axis) for axis, points in axes.items()])


def measure_axis(points: Mapping[Any, Config], repeats: int) -> pd.DataFrame:
    """A row per point of one axis.

    Returns:
        value; seconds and floor_seconds, medians; to_floor; to_first, the ratio to the first point; peak_mb and of it
        step_mb.
    """
    calls = {}
    for value, cfg in points.items():
        steps = make_steps(cfg)
        calls |= {f"{value} {name}": steps[name] for name in ("fast", "floor")}
    seconds, rows, first = rounds(calls, repeats), [], next(iter(points))
    del calls, steps
    for value, cfg in points.items():
        peak, more = in_a_fresh_process(peak_megabytes, cfg, "fast")
        fast, floor = f"{value} fast", f"{value} floor"
        rows.append(
            {
                "value": str(value),
                "seconds": seconds[fast].median(),
                "floor_seconds": seconds[floor].median(),
                "to_floor": ratio(seconds, fast, floor),
                "to_first": ratio(seconds, fast, f"{first} fast"),
                "peak_mb": peak,
                "step_mb": more,
            }
        )
    return pd.DataFrame(rows)


def exponents(rows: pd.DataFrame) -> dict[str, float]:
    """How seconds of step and floor and memory of the step grow over one axis; over sizes: with pixels."""
    values = rows["value"].astype(float)
    values = values**2 if rows["axis"].iloc[0] == "size" else values
    found = {"step": growth_exponent(values, rows["seconds"]), "floor": growth_exponent(values, rows["floor_seconds"])}
    if rows["step_mb"].gt(0).all():
        found["memory"] = growth_exponent(values, rows["step_mb"])
    return found


def section(rows: pd.DataFrame) -> list[str]:
    """A table per axis, with its exponents."""
    lines = []
    for axis, points in rows.groupby("axis", sort=False):
        cells = [
            [row.value, f"{row.seconds:.3f}", f"{row.to_first:.2f}", f"{row.to_floor:.2f}", _whole(row.peak_mb),
             _whole(row.step_mb)]
            for row in points.itertuples()
        ]  # fmt: skip
        table = markdown_table([axis, "seconds", "x the first", "x floor", "peak MB", "of it the step"], cells)
        lines += ["", *table] if lines else table
        if axis != BACKBONE and len(points) > 1:
            grown = ", ".join(f"{name} {exponent:.2f}" for name, exponent in exponents(points).items())
            lines += ["", f"Grows as a power of {'pixels' if axis == 'size' else axis} with the exponent: {grown}."]
    return lines


def _whole(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.0f}"


CASE = Case(
    about="Growth of a training step, and of the encoder passes it needs (floor). Processor seconds, one thread,\n"
    "fp32, medians; ratios are medians over rounds. Where nothing else is said: 224 px, batch 2, 20 classes.\n"
    "Memory is the peak of a process of its own.",
    settings=SETTINGS, measure=measure, section=section, default=("toy", BACKBONE), repeats=1,
)  # fmt: skip
