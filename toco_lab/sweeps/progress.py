"""How far a sweep is and how long it still takes: the estimate, and the live table."""

import contextlib
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from toco_lab.runs.run_dir import RunDir
from toco_lab.sweeps.grid import ROOT, Grid, SweepRun
from toco_lab.sweeps.worker import error_of, state_of

_REFRESH_SECONDS = 1.0


def seconds_left(runs: Sequence[SweepRun], root: Path | str = ROOT) -> dict[Path, float]:
    """Estimated seconds each unfinished run still takes, by folder.

    The mean of finished runs of the same config (any seed), else of the same preset and number of steps; NaN if there
    is none. Looked at are the sweeps in `root`, and what lies in `results` itself and in its folders.
    """
    found = {*Path(root).glob("*/*/config.json"), *Path("results").glob("*/config.json")}
    found |= set(Path("results").glob("*/*/config.json"))
    times: dict[Any, list[float]] = {}
    for path in {path.resolve() for path in found}:
        run = RunDir(path.parent)
        with contextlib.suppress(ValueError):  # of another version: no help here
            cfg, status = run.config(), run.status()
            seconds = status.get("total_seconds", status.get("seconds", 0.0))
            if status["state"] == "done" and seconds > 0:
                for key in (cfg.digest(), (cfg.preset_name, cfg.steps)):
                    times.setdefault(key, []).append(seconds)
    left = {}
    for run in runs:
        cfg = run.config
        known = times.get(cfg.digest()) or times.get((cfg.preset_name, cfg.steps)) or [float("nan")]
        left[run.folder] = sum(known) / len(known) * (1 - _step(run) / cfg.steps)
    return left


def duration_text(seconds: pd.Series, slots: int) -> str:
    """`about 0:12:30`, of runs of which `slots` run at a time."""
    if seconds.isna().all():
        return "how long is not known, no run like these has finished yet"
    total = seconds.fillna(seconds.mean()).sum() / max(1, min(slots, len(seconds)))
    return f"about {timedelta(seconds=round(total))}"


def _step(run: SweepRun) -> int:
    """Last step in the run's metrics."""
    with contextlib.suppress(OSError, ValueError):  # it may be written anew at this moment
        return int(RunDir(run.folder).metrics()["step"].max())
    return 0


class Board:
    """The live table, rows by seeds: in a notebook, on a terminal, or else a line for each run that ends."""

    def __init__(self, grid: Grid, runs: Sequence[SweepRun], todo: set[Path], *, slots: int, progress: bool) -> None:
        """`todo`: folders of the runs that will be made; `slots` of them at a time."""
        self._grid, self._runs, self._todo, self._slots = grid, runs, set(todo), slots
        self._by_folder = {run.folder: run for run in reversed(runs)}  # the first of those that share a folder
        self._states = {folder: state_of(grid, run) for folder, run in self._by_folder.items()}
        self._root = runs[0].folder.parents[1]
        # by the clock of the disk, which may be another machine's
        self._disk_began = (self._root / grid.name / "grid.yaml").stat().st_mtime
        self._began, self._refreshed = time.monotonic(), -_REFRESH_SECONDS
        self._lines, self._handle = 0, None
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        place = "notebook" if hasattr(shell, "kernel") else "terminal" if sys.stderr.isatty() else "lines"
        self._place = place if progress else "nowhere"
        self._left = seconds_left(runs, self._root)

    def end(self, folder: Path) -> None:
        """A run has ended, well or not."""
        run = self._by_folder[folder]
        self._states[folder] = state_of(self._grid, run)
        self._todo.discard(folder)
        self._refreshed = -_REFRESH_SECONDS
        if self._place in ("notebook", "terminal"):
            self._left = seconds_left(self._runs, self._root)
        if self._place == "lines":
            error = "".join(f": {line}" for line in error_of(folder).splitlines()[:1])
            print(f"{self._states[folder]}: {run.row}, seed {run.seed} ({folder}){error}", flush=True)

    def refresh(self, *, last: bool = False) -> None:
        """Draw the table anew if its time has come."""
        if self._place not in ("notebook", "terminal") or time.monotonic() - self._refreshed < _REFRESH_SECONDS:
            return
        self._refreshed = time.monotonic()
        cells = {folder: self._cell(run) for folder, run in self._by_folder.items()}
        table = pd.DataFrame.from_records([(run.row, run.seed, cells[run.folder]) for run in self._runs])
        table = table.pivot(index=0, columns=1, values=2).loc[[*dict.fromkeys(run.row for run in self._runs)]]
        table = table.rename_axis(index=None, columns="seed")
        counts = Counter("running" if "/" in cell else cell for cell in cells.values())
        there = [f"{counts[state]} {state}" for state in ("done", "running", "waiting", "failed") if counts[state]]
        passed = timedelta(seconds=round(time.monotonic() - self._began))
        head = f"{self._grid.name}: {', '.join(there)}; {passed}"
        if not last:
            left = pd.Series([self._left[folder] for folder in self._todo])
            head += f", {duration_text(left, self._slots)} to go" if left.notna().any() else ""
        if self._place == "notebook":
            self._show_in_notebook(head, table)
        else:
            self._draw(head, table)

    def _cell(self, run: SweepRun) -> str:
        """`done`, `failed`, `waiting`, or `step/steps` of a run that was started since the sweep began."""
        if run.folder not in self._todo or not (run.folder / "config.json").is_file():
            return {"new": "waiting", "begun": "waiting"}.get(state := self._states[run.folder], state)
        started = (run.folder / "config.json").stat().st_mtime >= self._disk_began  # each start writes it
        return f"{_step(run)}/{run.config.steps}" if started else "waiting"

    def _show_in_notebook(self, head: str, table: pd.DataFrame) -> None:
        from IPython.display import display

        bundle = {"text/plain": f"{head}\n{table.to_string()}", "text/html": f"<p>{head}</p>{table.to_html()}"}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)

    def _draw(self, head: str, table: pd.DataFrame) -> None:
        """Over what was drawn before. Where the terminal is too low, rows that run come first."""
        size = shutil.get_terminal_size()
        if len(table) > size.lines - 4:
            active = table.apply(lambda row: row.str.contains("/").any(), axis=1)
            table = pd.concat([table[active], table[~active]])
        lines = [line[: size.columns - 1] for line in (head, *table.to_string().splitlines())][: size.lines - 1]
        up = f"\x1b[{self._lines}F" if self._lines else ""
        print(up + "\x1b[J" + "\n".join(lines), file=sys.stderr, flush=True)
        self._lines = len(lines)
