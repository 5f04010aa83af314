"""How time and memory of a training step grow with image size, batch, classes and backbone.

    python benchmarks/growth.py                                        # toy-size ViT, DeiT-tiny, DeiT-small
    python benchmarks/growth.py toy --sizes 224 448 672 --no-memory
    python benchmarks/growth.py vit_b --repeats 1

The step and the floor, the bare encoder passes it needs, are those of `training_step.py`. One number changes at a time,
from 224 pixels, 2 images and 20 classes; second view and local crops keep the sizes that VOC's preset gives them,
whatever the image's. The points of one axis take turns within a round, in one process with one thread, and ratios are
taken within a round. Memory is the peak of a fresh process each (Linux). Random weights, patches of 16 pixels. Writes
benchmarks/results/growth.csv and .md; backbones that are not asked for keep the rows they have there.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from measure import (
    growth_exponent,
    in_a_fresh_process,
    markdown_table,
    merged,
    origin,
    origin_lines,
    parser_of,
    ratio,
    rounds,
    write,
)
from tqdm import tqdm
from training_step import make_steps, peak_megabytes

from toco_lab.config import Config

BASE = Config.preset("voc_vit_b").replace(crop_size=224, batch_size=2)
BACKBONES = {
    "toy": {"backbone": "vit_tiny_patch16_224", "embed_dim": 64, "depth": 8, "num_heads": 2},
    "deit_tiny": {"backbone": "deit_tiny_patch16_224"},
    "deit_small": {"backbone": "deit_small_patch16_224"},
    "vit_b": {"backbone": "vit_base_patch16_224"},
}
DEFAULT = ("toy", "deit_tiny")
FIELDS = {"size": "crop_size", "batch": "batch_size", "classes": "num_classes"}
BACKBONE = "backbone"  # the axis over backbones, and their place in the table
COMPARED = ("toy", "deit_tiny", "deit_small")


def axis_of(base: Config, axis: str, values: Sequence[int]) -> dict[int, Config]:
    """The points of an axis."""
    return {value: base.replace(**{FIELDS[axis]: value}) for value in values}


def measure(
    points: Mapping[Any, Config], repeats: int, *, memory: bool = True, advance: Callable[[], Any] = lambda: None
) -> pd.DataFrame:
    """A row per point of one axis.

    Returns:
        value; seconds and floor_seconds, medians; to_floor; to_first, the ratio to the first point; peak_mb and of it
        step_mb, NaN without `memory`.
    """
    calls = {}
    for value, cfg in points.items():
        steps = make_steps(cfg)
        calls |= {(value, name): steps[name] for name in ("fast", "floor")}
    seconds, rows, first = rounds(calls, repeats, advance), [], next(iter(points))
    del calls
    seconds.columns = pd.Index(list(seconds.columns), tupleize_cols=False)
    for value, cfg in points.items():
        peak, more = in_a_fresh_process(peak_megabytes, cfg, "fast") if memory else (float("nan"),) * 2
        fast, floor = (value, "fast"), (value, "floor")
        rows.append(
            {
                "value": str(value),
                "seconds": seconds[fast].median(),
                "floor_seconds": seconds[floor].median(),
                "to_floor": ratio(seconds, fast, floor),
                "to_first": ratio(seconds, fast, (first, "fast")),
                "peak_mb": peak,
                "step_mb": more,
            }
        )
        advance()
    return pd.DataFrame(rows)


def exponents(rows: pd.DataFrame) -> dict[str, float]:
    """How seconds of step and floor and memory of the step grow over one axis; over sizes: with pixels."""
    values = rows["value"].astype(float)
    values = values**2 if rows["axis"].iloc[0] == "size" else values
    found = {"step": growth_exponent(values, rows["seconds"]), "floor": growth_exponent(values, rows["floor_seconds"])}
    if rows["step_mb"].gt(0).all():
        found["memory"] = growth_exponent(values, rows["step_mb"])
    return found


def markdown(table: pd.DataFrame) -> str:
    """A section per backbone and axis."""
    lines = [
        "Growth of a training step, and of the encoder passes it needs (floor). Processor seconds, one thread, fp32,",
        "medians; ratios are medians over rounds. Where nothing else is said: 224 px, batch 2, 20 classes. Memory is",
        "the peak of a process of its own.",
    ]
    for (group, axis), rows in table.groupby(["group", "axis"], sort=False):
        about = rows.iloc[0]
        lines += ["", f"## {'backbones' if axis == BACKBONE else f'{group}: {axis}'}", ""]
        cells = [
            [f"{row.value}", f"{row.seconds:.3f}", f"{row.to_first:.2f}", f"{row.to_floor:.2f}", _whole(row.peak_mb),
             _whole(row.step_mb)]
            for row in rows.itertuples()
        ]  # fmt: skip
        lines += markdown_table([axis, "seconds", "x the first", "x floor", "peak MB", "of it the step"], cells)
        if axis != BACKBONE and len(rows) > 1:
            grown = ", ".join(f"{name} {exponent:.2f}" for name, exponent in exponents(rows).items())
            lines += ["", f"Grows as a power of {'pixels' if axis == 'size' else axis} with the exponent: {grown}."]
        lines += origin_lines(about)
    return "\n".join([*lines, ""])


def _whole(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.0f}"


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure, print and write."""
    parser = parser_of(__doc__, repeats=3)
    everything = [*BACKBONES, BACKBONE]
    parser.add_argument(
        "groups", nargs="*", metavar="BACKBONE",
        help=f"{', '.join(BACKBONES)}, or {BACKBONE}: some side by side; by default {' '.join([*DEFAULT, BACKBONE])}",
    )  # fmt: skip
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 320, 448], help="pixels (224 320 448)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4], help="images (1 2 4)")
    parser.add_argument("--classes", type=int, nargs="+", default=[20, 80], help="classes (20 80)")
    parser.add_argument("--compared", nargs="+", choices=list(BACKBONES), default=list(COMPARED))
    parser.add_argument("--no-memory", action="store_true", help="time only")
    args = parser.parse_args(arguments)
    if unknown := set(args.groups) - set(everything):
        parser.error(f"no backbone {', '.join(sorted(unknown))}; there are: {', '.join(everything)}")
    torch.set_num_threads(1)
    axes = {"size": args.sizes, "batch": args.batches, "classes": args.classes}
    jobs: list[tuple[str, str, Mapping[Any, Config]]] = []
    for group in args.groups or (*DEFAULT, BACKBONE):
        if group == BACKBONE:
            jobs.append((group, BACKBONE, {name: BASE.replace(**BACKBONES[name]) for name in args.compared}))
        else:
            base = BASE.replace(**BACKBONES[group])
            jobs += [(group, axis, axis_of(base, axis, values)) for axis, values in axes.items()]
    about, tables, path = origin(__file__, arguments), [], args.out / "growth.csv"
    with tqdm(total=sum(len(points) * (2 * args.repeats + 3) for *_, points in jobs), unit="call") as bar:
        for group, axis, points in jobs:
            bar.set_description(f"{group} {axis}")
            table = measure(points, args.repeats, memory=not args.no_memory, advance=bar.update)
            tables.append(table.assign(group=group, axis=axis))
    table = merged(path, pd.concat(tables).assign(repeats=args.repeats, **about).round(4), "group", everything)
    text = markdown(table)
    write(path, table, text)
    print(text)


if __name__ == "__main__":
    main()
