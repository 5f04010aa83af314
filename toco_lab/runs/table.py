"""Questions about many runs: filter, compare, a metric against a parameter, and what lies in the folder of each.

Tables come from `runs.list_runs(..., everything=True)`. The command line and `run_browser` stand on these functions;
nothing here imports torch or a widget.
"""

import ast
import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from toco_lab.config import Config
from toco_lab.files import did_you_mean
from toco_lab.runs.listing import RUN_COLUMNS, SCORED_IMAGES, find_runs
from toco_lab.runs.run_dir import RunDir
from toco_lab.vocabulary import MEAN_SCORES
from toco_lab.words import counted, program

FIELDS = tuple(field.name for field in dataclasses.fields(Config))
WHERE_HELP = 'compare columns with numbers, "words" or lists by < <= == != >= > and in, joined by and, or, not'
_PAGES = {".png": "picture", ".json": "plotly figure", ".ipynb": "notebook", ".html": "report"}


# --- filter, sort, choose columns -------------------------------------------------------------------------------------


def filter_runs(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Rows for which a condition holds, like `w_ptc > 0 and cam_mIoU > 0.5` or `"demo" in run`; all for an empty one.

    The condition means what it means in Python, for one row at a time, with columns as names. Nothing else can be
    named, called or looked up in it. A missing value has no order; `cam_mIoU == None` finds it.

    Raises:
        ValueError: For an unknown column (the nearest one is named), words compared with numbers, or any other syntax.
    """
    if not where.strip():
        return table
    try:
        tree = ast.parse(where.strip(), "where", mode="eval")
        _check_condition(tree, table.columns)
        condition = compile(tree, "where", "eval")
    except (SyntaxError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", type(error).__name__)
        raise ValueError(f"where: {where!r} cannot be read ({reason}); {WHERE_HELP}") from error
    rows = [
        {name: _Missing() if is_missing(value) else value for name, value in row.items()}
        for row in table.to_dict("records")
    ]
    try:
        kept = [bool(eval(condition, {"__builtins__": {}}, row)) for row in rows]  # of checked syntax alone
    except TypeError as error:
        raise ValueError(f"where: {where!r} compares what has no order ({error}); words need quotes") from error
    return table[pd.Series(kept, index=table.index, dtype=bool)]


def _check_condition(tree: ast.Expression, columns: Iterable[str]) -> None:
    """Let comparisons of columns and constants pass; ValueError for anything else, so nobody's code is run.

    There are no calls, no attributes, no subscripts and no arithmetic.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name):
                check_column(columns, name)
            case ast.Constant(value=None | str() | int() | float()):
                pass
            case ast.UnaryOp(op=ast.Not()) | ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())):
                pass
            case ast.Compare(ops=ops) if not any(isinstance(op, ast.Is | ast.IsNot) for op in ops):
                pass
            case ast.Expression() | ast.BoolOp() | ast.List() | ast.Tuple():
                pass
            case ast.boolop() | ast.unaryop() | ast.cmpop() | ast.expr_context():
                pass  # parts of the nodes above
            case _:
                raise ValueError(f"where: `{ast.unparse(node)}` is not allowed; {WHERE_HELP}")


class _Missing:
    """An empty cell in a condition: equal to None and to other empty cells, without order, holding nothing."""

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, _Missing)

    def __bool__(self) -> bool:
        return False

    def _never(self, other: object) -> bool:
        return False

    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = _never


def check_column(columns: Iterable[str], name: str) -> str:
    """`name` if it is among the columns; else ValueError with the nearest ones."""
    known = list(columns)
    if name in known:
        return name
    remedy = f"; `{program()} runs --csv FILE` writes all {counted(len(known), 'column')} into a file"
    raise ValueError(f"there is no column {name!r}{did_you_mean(name, known, most=3) or remedy}")


def sort_runs(table: pd.DataFrame, column: str, *, descending: bool = False) -> pd.DataFrame:
    """Sorted by a column; rows without a value come last, numbers before words."""
    values = table[check_column(table.columns, column)]

    def place(value: Any) -> tuple:
        number = isinstance(value, int | float)
        return (0, value, "") if number else (1, 0, str(value))

    known = sorted((label for label in table.index if not is_missing(values[label])), key=lambda i: place(values[i]))
    known = known[::-1] if descending else known
    return table.loc[known + [label for label in table.index if is_missing(values[label])]]


def overview(table: pd.DataFrame) -> pd.DataFrame:
    """The columns one looks at first: state, config fields that differ between these rows, scores, errors if any."""
    differing = [name for name in differing_fields(table) if name != "seed"]
    scores = [name for name in table if name.endswith(MEAN_SCORES)]
    scores += [SCORED_IMAGES] * (SCORED_IMAGES in table and bool(scores))
    errors = ["error"] if (table["error"] != "").any() else []
    return table[[*RUN_COLUMNS, *differing, *scores, *errors]]


def differing_fields(table: pd.DataFrame) -> list[str]:
    """Config fields with more than one value in the table."""
    fields = [name for name in FIELDS if name in table and name != "preset_name"]
    return [name for name in fields if table.loc[table["state"] != "unreadable", name].map(repr).nunique() > 1]


def metric_columns(table: pd.DataFrame) -> list[str]:
    """Columns of measured numbers: scores first, then the last row of training, then seconds and step."""
    measured = [name for name in table if name not in (*FIELDS, *RUN_COLUMNS, SCORED_IMAGES, "error")]
    measured.sort(key=lambda name: not name.endswith(MEAN_SCORES))  # stable
    return [name for name in (*measured, "seconds", "step") if table[name].notna().any()]


def is_missing(value: Any) -> bool:
    """Whether a cell is empty."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def cell_text(value: Any) -> str:
    """A cell for readers: four digits, whole numbers whole, nothing where nothing is."""
    if is_missing(value):
        return ""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    return str(value)


# --- compare, relate --------------------------------------------------------------------------------------------------


def compare_runs(table: pd.DataFrame, runs: Sequence[str]) -> pd.DataFrame:
    """Runs side by side: a column per run; rows are the config fields that differ, then what was measured.

    Raises:
        ValueError: For a run the table does not have.
    """
    for run in runs:
        if run not in set(table["run"]):
            raise ValueError(f"there is no run {run!r}; there are: {', '.join(table['run'])}")
    rows = table.set_index("run", drop=False).loc[list(runs)]
    counts = [SCORED_IMAGES] * (SCORED_IMAGES in rows)
    measured = [name for name in ("state", *counts, *metric_columns(rows), "error") if rows[name].map(cell_text).any()]
    return rows[[*differing_fields(rows), *measured]].astype(object).T.rename_axis(index=None, columns=None)


@dataclass(frozen=True)
class Relation:
    """A metric against a parameter.

    Attributes:
        points: A row per run, in the order of x: run, x, y, group; x holds words if the parameter is not numeric.
        means: A row per group and x, in this order: x, group, mean, std (of the sample; NaN for a single run), runs.
        left_out: Runs without a value of the metric or the parameter.
        images: Over how many images the metric is, a word for each number that occurs; empty where that is not known.
    """

    points: pd.DataFrame
    means: pd.DataFrame
    left_out: int
    images: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What the figure is made of, in words."""
        left_out = f", {counted(self.left_out, 'run')} left out without a value" if self.left_out else ""
        if not self.images:
            return counted(len(self.points), "run") + left_out
        over = f", over {counted(' or '.join(self.images), 'image')}"
        unlike = ": not all runs over the same number" * (len(self.images) > 1)
        return counted(len(self.points), "run") + left_out + over + unlike


def relate(table: pd.DataFrame, metric: str, parameter: str, *, colour: str | None = None) -> Relation:
    """A numeric column against any column; runs with equal parameter (and colour) are repeats, averaged over.

    Args:
        table: Of `list_runs`.
        metric: Column of numbers.
        parameter: Numbers stay numbers; everything else becomes words.
        colour: Column that splits the runs into groups.

    Raises:
        ValueError: For an unknown column, or a metric that is not numeric.
    """
    for name in filter(None, (metric, parameter, colour)):
        check_column(table.columns, name)
    if not _is_numeric(table[metric].dropna()):
        numbers = ", ".join(metric_columns(table))
        raise ValueError(f"the metric must be a column of numbers, {metric!r} is not; there are: {numbers}")
    needed = list(dict.fromkeys(filter(None, (metric, parameter, colour))))
    rows = table.dropna(subset=needed)
    rows = sort_runs(rows, parameter)
    numeric = _is_numeric(rows[parameter])
    points = pd.DataFrame(
        {
            "run": rows["run"],
            "x": rows[parameter].astype(float) if numeric else rows[parameter].map(cell_text),
            "y": rows[metric].astype(float),
            "group": rows[colour].map(cell_text) if colour else "",
        }
    )
    by_group = points.loc[sort_runs(rows, colour).index] if colour else points
    grouped = by_group.groupby(["group", "x"], sort=False)["y"]
    means = grouped.agg(mean="mean", std="std", runs="count").reset_index()
    counted = metric.endswith(MEAN_SCORES) and SCORED_IMAGES in rows
    images = tuple(dict.fromkeys(rows[SCORED_IMAGES].map(cell_text).replace("", "unknown"))) if counted else ()
    return Relation(points.reset_index(drop=True), means, len(table) - len(points), images)


def _is_numeric(values: pd.Series) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.tolist())


# --- what lies in a run -----------------------------------------------------------------------------------------------


def find_run(root: Path | str, name: Path | str) -> RunDir:
    """A run by its path, or by its name below `root`.

    Raises:
        ValueError: If it is neither; the nearest run is named.
    """
    for path in (Path(root) / name, Path(name)):
        if (path / "config.json").is_file():
            return RunDir(path)
    there = [path.relative_to(root).as_posix() for path in find_runs(root)]
    same_name = [run for run in there if run.endswith(f"/{name}")]
    hint = did_you_mean(str(same_name[0] if same_name else name), there)
    hint = hint or f"; `runs list` shows the {counted(len(there), 'run')} below {root}"
    raise ValueError(f"{name} is no run folder: it has no config.json{hint}")


@dataclass(frozen=True)
class StoredFile:
    """A file of a run: its kind (picture, plotly figure, notebook, report, checkpoint) and its size in bytes."""

    path: Path
    kind: str
    size: int


def run_files(run: RunDir) -> list[StoredFile]:
    """Executed notebooks, figures, reports in or beside the folder, and checkpoints."""
    reports = sorted(page for folder in (run.path, run.path.parent) for page in folder.glob("[!.]*.html"))
    shown = [(path, _PAGES[path.suffix]) for path in (*run.notebooks(), *run.figures(), *reports)]
    shown += [(path, "checkpoint") for path in run.checkpoints()]
    return [StoredFile(path, kind, path.stat().st_size) for path, kind in shown]


def size_text(size: float) -> str:
    """Bytes for readers: 12 kB, 3.4 MB."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            break
        size, unit = size / 1000, {"bytes": "kB", "kB": "MB", "MB": "GB"}[unit]
    return f"{size:.0f} {unit}" if size >= 10 or unit == "bytes" else f"{size:.1f} {unit}"


def deletion_notice(run: RunDir) -> str:
    """What would go with a run, in one line."""
    try:
        state = f"{run.state()}, step {run.status().get('step', 0)}"
    except (ValueError, KeyError, TypeError, AttributeError):
        state = "unreadable"
    return f"{run.path}: {state}, {size_text(run.size())}, {counted(len(run.checkpoints()), 'checkpoint')}"
