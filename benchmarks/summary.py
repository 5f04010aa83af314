"""The benchmarks in one Markdown table: a row per target with what was measured, made of the CSVs of the cases.

    python -m benchmarks.summary                        # writes the table between the markers of docs/speed.md

It reads benchmarks/results; what has not been measured is left out. Every number here comes from a file.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks.measure import growth_exponent
from benchmarks.operations import GPU_STACKS
from benchmarks.run import RESULTS, markdown_table
from benchmarks.startup import RAY_WORKERS
from toco_lab.files import atomic_write

PAGE = Path(__file__).resolve().parents[1] / "docs" / "speed.md"
BEGIN, END = "<!-- speed table -->", "<!-- end of the speed table -->"

MISSED = "**no**"

Limit = float | Mapping[str, float] | None  # one for all settings, or by setting
Values = Iterator[tuple[str, float]]  # which setting (empty where there is one), number


@dataclass(frozen=True)
class Target:
    """One thing to measure.

    Attributes:
        what: In words.
        case: Which benchmark measures it; its CSV has the same name.
        read: The numbers in that CSV.
        form: Format of a number.
        most: The largest number that will do, for all settings or by setting; None where there is no target.
        least: The smallest, likewise.
        bound: What the bare encoder passes alone would reach, by setting: no step can do better. Shown beside a miss.
    """

    what: str
    case: str
    read: Callable[[pd.DataFrame], Values]
    form: str
    most: Limit = None
    least: Limit = None
    bound: Callable[[pd.DataFrame], Values] | None = None

    def wanted(self, setting: str, value: float) -> tuple[str, str]:
        """What is wanted of a number, and whether it holds."""
        for word, limit, holds in (("most", self.most, operator.le), ("least", self.least, operator.ge)):
            limit = limit.get(setting) if isinstance(limit, Mapping) else limit
            if limit is not None:
                text = self.form.format(limit).removeprefix("x ")
                return f"at {word} {text}", "yes" if holds(value, limit) else MISSED
        return "-", "-"


def rows_of(column: str, **equal: object) -> Callable[[pd.DataFrame], Values]:
    """Reads a column where others have given values, by setting."""

    def read(table: pd.DataFrame) -> Values:
        for name, value in equal.items():
            table = table[table[name] == value]
        yield from zip(table["setting"], table[column], strict=True)

    return read


def value_of(column: str, **equal: object) -> Callable[[pd.DataFrame], Values]:
    """The same of a case whose settings need no naming."""
    return lambda table: (("", value) for _, value in rows_of(column, **equal)(table))


def exponents_of(axis: str, column: str = "seconds") -> Callable[[pd.DataFrame], Values]:
    """Reads how the seconds of the training step, or another column, grow over an axis, by setting."""

    def read(table: pd.DataFrame) -> Values:
        for setting, rows in table[table["axis"] == axis].groupby("setting", sort=False):
            values = rows["value"].astype(float)
            if len(rows) > 1:
                yield setting, growth_exponent(values**2 if axis == "size" else values, rows[column])

    return read


def last_of(axis: str) -> Callable[[pd.DataFrame], Values]:
    """Reads the ratio of the last point of an axis to the first, by setting."""

    def read(table: pd.DataFrame) -> Values:
        for setting, rows in table[table["axis"] == axis].groupby("setting", sort=False):
            first, last = rows["value"].iloc[0], rows["value"].iloc[-1]
            name = f"{last} to {first}" if axis == setting else f"{setting}, {last} to {first}"
            yield name, rows["to_first"].iloc[-1]

    return read


def whole_steps(step: str, column: str) -> Callable[[pd.DataFrame], Values]:
    """Reads a column about whole training steps of a kind."""
    return rows_of(column, step=step, part="whole")


def memory_of_steps(column: str, step: str = "fast") -> Callable[[pd.DataFrame], Values]:
    """Reads a column of memory of our step, or of the bare passes (`floor`), over that of the textbook's."""

    def read(table: pd.DataFrame) -> Values:
        whole = table[table["part"] == "whole"].pivot(index="setting", columns="step", values=column)
        ratios = whole[step] / whole["textbook"]
        yield from ((setting, ratios[setting]) for setting in table["setting"].unique())

    return read


TARGETS = (
    Target(
        "training step, x the bare encoder passes", "training_step", whole_steps("fast", "to_floor"), "x {:.2f}",
        most={"vit_b": 1.1, "deit_tiny": 1.6, "toy": 2.5},
    ),
    Target(
        "the same step written plainly, x ours", "training_step", whole_steps("textbook", "to_fast"), "x {:.2f}",
        least={"vit_b": 2.2, "deit_tiny": 1.9}, bound=whole_steps("textbook", "to_floor"),
    ),
    Target(
        "memory of a step, x that of the plain one", "training_step", memory_of_steps("step_mb"), "x {:.2f}", most=0.6,
        bound=memory_of_steps("step_mb", "floor"),
    ),
    Target("the same with all that the process has before", "training_step", memory_of_steps("peak_mb"), "x {:.2f}"),
    Target("operations of a step in bf16, x the bare encoder passes", "operations",
           rows_of("to_floor", precision="bf16", step="fast"), "x {:.2f}"),
    Target("operations of all over-smoothing metrics of an image, in forward passes", "operations",
           value_of("to_floor", step=GPU_STACKS), "{:.1f}"),
    Target("training step over pixels, exponent", "growth", exponents_of("size"), "{:.2f}"),
    Target("memory of a step over pixels, exponent", "growth", exponents_of("size", "step_mb"), "{:.2f}"),
    Target("training step over the batch, exponent", "growth", exponents_of("batch"), "{:.2f}"),
    Target("training step, most classes, x fewest", "growth", last_of("classes"), "x {:.2f}"),
    Target("training step of a backbone, x the smallest", "growth", last_of("backbone"), "x {:.2f}"),
    Target(
        "multi-scale CAM, x the bare encoder passes", "inference", rows_of("to_floor", what="multi-scale CAM"),
        "x {:.2f}", 1.1,
    ),
    Target("the same, images a second", "inference", rows_of("images_per_second", what="multi-scale CAM"), "{:.2f}"),
    Target("evaluation, x the bare encoder passes", "inference", rows_of("to_floor", what="all targets"), "x {:.2f}"),
    Target("the same, images a second", "inference", rows_of("images_per_second", what="all targets"), "{:.2f}"),
    Target(
        "peak memory of an evaluation, x that of a quarter of the images", "inference",
        lambda table: iter([("", table["to_fewer"].max())]), "x {:.2f}", 1.05,
    ),
    Target(
        "bilateral lattice, 224 x 224: to build", "crf",
        value_of("lattice", kind="seconds", height=224, width=224, classes=21), "{:.3f} s",
    ),
    Target(
        "... to filter 21 channels once", "crf",
        value_of("one filtering", kind="seconds", height=224, width=224, classes=21), "{:.3f} s",
    ),
    Target(
        "dense CRF, 224 x 224, 21 classes, 10 iterations", "crf",
        value_of("dense CRF", kind="seconds", height=224, width=224, classes=21), "{:.2f} s",
    ),
    Target(
        "dense CRF, 375 x 500, 21 classes, 10 iterations", "crf",
        value_of("dense CRF", kind="seconds", height=375, width=500, classes=21), "{:.2f} s", 1.5,
    ),
    Target(
        "dense CRF over pixels, exponent (1: linear)", "crf", value_of("dense CRF", kind="exponent", over="pixels"),
        "{:.2f}", 1.1,
    ),
    Target(
        "all over-smoothing metrics, in forward passes", "metrics", rows_of("to_forward", metric="all metrics"),
        "{:.1f}", 3,
    ),
    *(
        Target(f"{what} by others, x ours", "packages", rows_of("to_ours", what=what), "x {:.2f}", least=1)
        for what in ("Grad-CAM", "attention rollout", "mean absolute cosine of every block", "mIoU")
    ),
    *(
        Target(f"{what}, in forward passes", "packages", rows_of("to_forward", what=what), "{:.2f}", most)
        for what, most in (("Grad-CAM", 1.1), ("attention rollout", 1.3), ("mean absolute cosine of every block", 1.3))
    ),
    Target(
        "`import toco_lab` beside torch and timm", "startup", value_of("cpu", what="import toco_lab"), "{:.3f} s", 0.2
    ),
    Target(
        "what training imports beside them", "startup", value_of("cpu", what="what training imports"), "{:.2f} s"
    ),
    Target("model and first batch, imports included", "startup", value_of("cpu", what="imports, model and first batch"),
           "{:.1f} s"),
    Target("notebook 00 to its first figure", "startup", value_of("cpu", what="notebook 00 to its first figure"),
           "{:.1f} s"),
    Target(
        "a notebook that imports this, in a forked kernel, x its own", "startup",
        value_of("to_base", what="the same in a forked kernel"), "x {:.2f}", 0.5,
    ),
    Target("a sweep of four smoke runs, by forked workers, x their own", "startup",
        value_of("to_base", what="the same by forked workers"), "x {:.2f}", 0.5,
    ),
    Target("a sweep of sixteen smoke runs by four ray workers, x four local ones", "startup",
        value_of("to_base", what=RAY_WORKERS), "x {:.2f}",
    ),
    *(
        Target(f"1,000 runs: {what}", "many_runs", value_of("cpu", what=what), "{:.1f} s", 10)
        for what in ("list of the runs", "table of the sweep", "report of 10 of them")
    ),
    Target("size of a report", "startup", value_of("megabytes", what="opening a report"), "{:.1f} MB"),
    Target("opening a report, by the clock", "startup", value_of("wall", what="opening a report"), "{:.1f} s"),
)  # fmt: skip


def summary(folder: Path) -> list[tuple[str, str, str, str, str]]:
    """What, target, measured, whether it holds, case: for every number of every target whose CSV is there."""
    rows = []
    for target in TARGETS:
        path = folder / f"{target.case}.csv"
        if not path.is_file():
            continue
        table = pd.read_csv(path)
        bounds = dict(target.bound(table)) if target.bound else {}
        for setting, value in target.read(table):
            if pd.isna(value):
                continue
            wanted, holds = target.wanted(setting, value)
            if holds == MISSED and setting in bounds:
                holds += f", the bare passes {target.form.format(bounds[setting])}"
            what = f"{target.what}, {setting}" if setting else target.what
            rows.append((what, wanted, target.form.format(value), holds, target.case))
    return rows


def markdown(folder: Path) -> str:
    """The table and the machines it was measured on.

    Raises:
        FileNotFoundError: If there is nothing to sum up.
    """
    rows = summary(folder)
    if not rows:
        raise FileNotFoundError(f"no results in {folder}: run `make bench` first")
    tables = [pd.read_csv(folder / f"{case}.csv") for case in dict.fromkeys(row[-1] for row in rows)]
    made, commands = (
        list(dict.fromkeys(value for table in tables for value in read(table)))
        for read in (lambda table: table["machine"] + "; " + table["versions"], lambda table: table["command"])
    )
    lines = markdown_table(["what", "target", "measured", "holds", "`benchmarks/`"], rows)
    return "\n".join(
        [*lines, "", f"One thread, processor seconds; {'; also '.join(made)}. Made by", "",
         *(f"    {command}" for command in commands), ""]
    )  # fmt: skip


def write(page: Path = PAGE, folder: Path = RESULTS) -> str:
    """Put the table between the markers of a page, and return it.

    Raises:
        ValueError: If the page does not have the two markers.
    """
    text, table = page.read_text(encoding="utf-8"), markdown(folder)
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no place for the table: it needs the lines {BEGIN} and {END}")
    with atomic_write(page, "w") as file:
        file.write(f"{before}{BEGIN}\n\n{table}\n{END}{after}")
    return table


if __name__ == "__main__":
    print(write())
