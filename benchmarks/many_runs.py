"""What a sweep of a thousand finished runs costs those who look at it: planning, listing, its table, a report of ten.

The folders are copies of one finished run that is written from formulas, each with the config of its own. One thread,
processor seconds.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.run import Case, markdown_table
from toco_lab.reports.ablation import summarise
from toco_lab.reports.export import build_report
from toco_lab.runs.listing import list_runs
from toco_lab.runs.run_dir import RunDir
from toco_lab.sweeps.grid import Grid
from toco_lab.sweeps.sweep import sweep_table

ROWS, REPORTED = 10, 10


def make_runs(root: Path, count: int) -> Grid:
    """A grid whose runs, `count` of them, lie finished in a folder."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
    from helpers.finished_runs import make_run

    rows = {f"PTC {number}": {"w_ptc": number / ROWS} for number in range(ROWS)}
    grid = Grid(name="many", preset="toy", about="", rows=rows, reference="PTC 0", seeds=count // ROWS)
    template = make_run(root, name="template").path
    for run in grid.runs(root):
        shutil.copytree(template, run.folder)
        (run.folder / "config.json").write_text(run.config.to_json(), encoding="utf-8")
    shutil.rmtree(template)
    return grid


def measure(count: int, repeats: int) -> pd.DataFrame:
    """A row per thing one asks for: median of its processor seconds."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        grid = make_runs(root, count)
        table = sweep_table(root, grid)
        reported = [RunDir(run.folder) for run in grid.runs(root)[:REPORTED]]
        calls: dict[str, Callable[[], Any]] = {
            "the configs of the grid": lambda: grid.runs(root),
            "list of the runs": lambda: list_runs(root),
            "table of the sweep": lambda: sweep_table(root, grid),
            "means, intervals and differences of it": lambda: summarise(table, reference="PTC 0"),
            f"report of {len(reported)} of them": lambda: build_report(reported, root / "report.html"),
        }
        return pd.DataFrame(
            [{"what": what, "cpu": seconds(call, repeats), "runs": count} for what, call in calls.items()]
        )


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median processor seconds of a call; a first one is not counted."""
    spent = []
    for _ in range(repeats + 1):
        began = time.process_time()
        call()
        spent.append(time.process_time() - began)
    return pd.Series(spent[1:]).median()


def section(rows: pd.DataFrame) -> list[str]:
    """One table."""
    cells = [[row.what, f"{row.cpu:.2f}"] for row in rows.itertuples()]
    return markdown_table([f"{rows['runs'].iloc[0]} finished runs", "processor seconds"], cells)


CASE = Case(
    about="Looking at a large sweep: processor seconds, one thread, medians.",
    settings={"thousand": 1000}, measure=measure, section=section,
)  # fmt: skip
