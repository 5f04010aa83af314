"""How far a sweep is and how long it still takes: the estimate before it starts, and the bar while it runs."""

import contextlib
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from toco_lab.progress import draws_bars, is_quiet
from toco_lab.runs.run_dir import RunDir
from toco_lab.sweeps.grid import ROOT, Grid, PlannedRun
from toco_lab.sweeps.worker import recorded_error, state_on_disk

_REFRESH_SECONDS = 1.0
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f} of {total} runs, {elapsed} passed, {remaining} to go{postfix}"


def seconds_left(runs: Sequence[PlannedRun], root: Path | str = ROOT) -> dict[Path, float]:
    """Estimated seconds each unfinished run still takes, by folder.

    The estimate is the mean of finished runs of the same config (any seed), else of the same preset and number of
    steps; NaN if there is none. It reads the sweeps in `root`, and the runs in `results` and in the folders there.
    """
    found = {*Path(root).glob("*/*/config.json"), *Path("results").glob("*/config.json")}
    found |= set(Path("results").glob("*/*/config.json"))
    times: dict[Any, list[float]] = {}
    for path in {path.resolve() for path in found}:
        with contextlib.suppress(ValueError, TypeError, OSError):  # damaged or of another version: no help here
            made = RunDir(path.parent)
            cfg, status = made.config(), made.status()
            seconds = status.get("total_seconds", status.get("seconds", 0.0))
            if status["state"] == "done" and seconds > 0:
                for key in (cfg.digest(), (cfg.preset_name, cfg.steps)):
                    times.setdefault(key, []).append(seconds)
    left = {}
    for run in runs:
        cfg = run.config
        known = times.get(cfg.digest()) or times.get((cfg.preset_name, cfg.steps)) or [float("nan")]
        left[run.folder] = sum(known) / len(known) * (1 - _share_done(run))
    return left


def duration_text(seconds: pd.Series, slots: int) -> str:
    """`about 0:12:30` for runs that take so many seconds each, `slots` of them at a time."""
    if seconds.isna().all():
        return "how long is not known, no run like these has finished yet"
    total = seconds.fillna(seconds.mean()).sum() / max(1, min(slots, len(seconds)))
    return f"about {timedelta(seconds=round(total))}"


def _share_done(run: PlannedRun) -> float:
    """Share in [0, 1] of a run's steps that are in its metrics."""
    with contextlib.suppress(OSError, ValueError):  # there is no file yet, or it is written anew at this moment
        return int(RunDir(run.folder).metrics()["step"].max()) / run.config.steps
    return 0.0


class SweepBar:
    """A bar over the runs that a sweep makes, with the share of those that are not finished; a line for each that ends.

    The bar is drawn on a terminal and in a notebook, where it is plain text; a log gets the lines alone.
    """

    def __init__(self, grid: Grid, todo: Sequence[PlannedRun], *, slots: int, progress: bool) -> None:
        """`todo`: the runs that will be made, `slots` of them at a time; without `progress` nothing is shown."""
        self._grid, self._slots, self._progress = grid, slots, progress and not is_quiet()
        self._left = {run.folder: run for run in reversed(todo)}  # of equal runs, which share a folder, the first
        self._total, self._failed, self._drawn = len(self._left), 0, 0.0
        self._bar = tqdm(
            total=self._total,
            initial=self._done(),
            desc=grid.name,
            bar_format=_BAR,
            smoothing=0,  # what is to go follows from the mean speed: runs end seldom
            disable=not (self._progress and draws_bars()),
        )

    def end(self, folder: Path, unrecorded: str = "") -> None:
        """A run has ended, well or not; `unrecorded` is its error where its folder could not take it."""
        run = self._left.pop(folder)
        state = "failed" if unrecorded else state_on_disk(self._grid, run)
        self._failed += state == "failed"
        if self._progress:
            error = "".join(f": {line}" for line in (unrecorded or recorded_error(folder)).splitlines()[:1])
            with self._bar.external_write_mode():
                print(f"{state}: {run.row}, seed {run.seed} ({folder}){error}", flush=True)
        self._drawn = 0.0

    def refresh(self) -> None:
        """Draw the bar anew if its time has come."""
        if self._bar.disable or time.monotonic() - self._drawn < _REFRESH_SECONDS:
            return
        self._drawn = time.monotonic()
        running = min(self._slots, len(self._left))
        self._bar.set_postfix_str(f"{running} running, {self._failed} failed", refresh=False)
        self._bar.update(self._done() - self._bar.n)
        self._bar.refresh()

    def close(self) -> None:
        """Leave the bar as it is."""
        self.refresh()
        self._bar.close()

    def _done(self) -> float:
        """Runs that have ended, and the shares of the others."""
        return self._total - len(self._left) + sum(map(_share_done, self._left.values()))
