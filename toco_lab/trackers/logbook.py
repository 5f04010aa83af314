"""One run and the trackers it is told to, live (`tracking`) or from its files (`log_run`): nothing twice, no failure.

How far each tracker was told stands in tracker_<name>.json in the folder of the run. It is written before a row is
sent, so that a run that is killed and continued sends no row a second time.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from toco_lab.config import Config
from toco_lab.files import require
from toco_lab.runs.run_dir import RunDir
from toco_lab.trackers.lane import Lane
from toco_lab.trackers.said import (
    cam_picture,
    digest_of_results,
    final_picture,
    final_scalars,
    final_tables,
    row_scalars,
    smoothing_per_layer,
)
from toco_lab.trackers.tracker import TrackerName, check_trackers, new_tracker

PATIENCE = 60.0  # seconds that the end of a run waits for a tracker; a sixth of it if it was stopped
PICTURE = "cams"


class Logbook:
    """What a run tells its trackers. No method raises, and none waits but `close`.

    The run is opened at the trackers with the first thing told: a finished one, or one that another process is at, is
    not touched.
    """

    def __init__(self, run: RunDir, names: Sequence[TrackerName], say: Callable[[str], None]) -> None:
        """Nothing is told yet.

        Args:
            run: Its folder.
            names: As `check_trackers` returned them; without any, nothing is ever told.
            say: Called with what goes wrong, once for each tracker.
        """
        self._run, self._names, self._say = run, names, say
        self._posts: list[_Post] | None = None
        self._config = run.config() if names else None

    def row(self, row: Mapping[str, Any]) -> None:
        """Tell a row that metrics.csv has; `fit` calls it as `on_row`."""
        for post in self._opened():
            post.row(row)

    def pictures(self, step: int, rows: Mapping[str, Mapping[str, np.ndarray | None]]) -> None:
        """Tell the CAMs of a validation; `evaluate.validator` calls it as `show`."""
        if not self._config or not rows:
            return
        try:
            png = cam_picture(rows, self._config, title=f"{self._run.name}, step {step}")
        except Exception as error:  # a picture less, and no training lost
            self._say(f"there is no picture of the CAMs after step {step}: {error}")
            return
        for post in self._opened():
            post.picture(step, png)

    def finish(self) -> None:
        """Tell what the run's files say about its end: scores with their protocol, over-smoothing per layer, CAMs."""
        try:
            results = _Results(self._run) if self._names else None
        except (ValueError, OSError) as error:  # damaged
            self._say(f"the results are not logged: {error}")
            return
        for post in self._opened():
            if results and results.digest:
                post.finish(results)

    def close(self, *, done: bool) -> None:
        """Wait until everything is sent, or for `PATIENCE` seconds."""
        for post in self._posts or ():
            post.close(done=done)

    def _opened(self) -> "list[_Post]":
        """The trackers; opened at first, and told the rows of metrics.csv that they lack."""
        if self._posts is None and self._config:
            self._posts = []
            try:
                rows = self._run.metrics().to_dict("records")
            except (ValueError, OSError) as error:
                self._say(f"nothing of this run is logged: {error}")
                return []
            self._posts = [_Post(self._run, self._config, name, self._say) for name in self._names]
            for post in self._posts:
                for row in rows:
                    post.row(row)
        return self._posts or []


@contextlib.contextmanager
def tracking(run: RunDir, names: Sequence[TrackerName]) -> Iterator[Logbook]:
    """A logbook for a training, closed at its end, whatever that is."""
    book, done = Logbook(run, names, partial(_warn, run)), False
    try:
        yield book
        done = True
    finally:
        book.close(done=done)


def log_run(run: RunDir, log_to: str | Sequence[str]) -> None:
    """Send a run to trackers from its files. What they have already is not sent again.

    Args:
        run: A run in any state.
        log_to: Among `TRACKERS`.

    Raises:
        ValueError: For an unknown tracker, a missing package, a damaged file, or a tracker that does not take it.
    """
    require(run, RunDir, "run", ": open one with RunDir(folder)")
    faults: list[str] = []
    book = Logbook(run, check_trackers(log_to), faults.append)
    book.finish()
    book.close(done=run.status()["state"] == "done")
    if faults:
        raise ValueError(f"{run.path}: {'; '.join(faults)}")


class _Results:
    """What is told at the end, read once for all trackers."""

    def __init__(self, run: RunDir) -> None:
        self.digest, self.step = digest_of_results(run), int(run.status()["step"])
        self.scalars, self.curves = final_scalars(run), smoothing_per_layer(run)
        self.tables, self.picture = final_tables(run), final_picture(run)


class _Post:
    """One tracker of a run. What it does is done in its lane, which alone touches the tracker and the record."""

    def __init__(self, run: RunDir, cfg: Config, name: TrackerName, say: Callable[[str], None]) -> None:
        self._run, self._cfg, self._name = run, cfg, name
        self._record: dict[str, Any] = {}
        self._tracker = new_tracker(name)
        self._lane = Lane(name, say)
        self._lane.put(self._start)

    def row(self, row: Mapping[str, Any]) -> None:
        step, values = int(row["step"]), row_scalars(row)
        self._lane.put(lambda: self._once("step", step, lambda: self._tracker.scalars(step, values)))

    def picture(self, step: int, png: bytes) -> None:
        self._lane.put(lambda: self._once("picture", step, lambda: self._tracker.picture(step, PICTURE, png)))

    def finish(self, results: _Results) -> None:
        self._lane.put(lambda: self._finish(results))

    def close(self, *, done: bool) -> None:
        self._lane.put(lambda: self._tracker.close(done=done))
        self._lane.close(PATIENCE if done else PATIENCE / 6)

    def _start(self) -> None:
        record: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError, ValueError):  # of a damaged one: all is told anew
            record = self._run.read_json(f"tracker_{self._name}")
        found = self._tracker.start(self._run, self._cfg, record)
        self._keep((record if record.get("id") == found["id"] else {}) | found)
        print(f"{self._name}: {found['where']}", file=sys.stderr)

    def _once(self, kind: str, step: int, call: Callable[[], None]) -> None:
        """Make a call for a step, unless one of its kind was made for this step or a later one."""
        before = self._record
        if step <= before.get(kind, -1):
            return
        self._keep(before | {kind: step})
        try:
            call()
        except BaseException:
            self._keep(before)
            raise

    def _finish(self, results: _Results) -> None:
        if self._record.get("results") == results.digest:
            return
        if results.scalars:
            self._tracker.scalars(results.step, results.scalars)
        for name, points in results.curves.items():
            self._tracker.curve(name, points)
        for name, frame in results.tables.items():
            self._tracker.table(name, frame)
        if results.picture:
            self._tracker.picture(results.step, f"{PICTURE}_at_the_end", results.picture)
        self._keep(self._record | {"results": results.digest})

    def _keep(self, record: dict[str, Any]) -> None:
        self._record = record
        self._run.write_json(f"tracker_{self._name}", record)


def _warn(run: RunDir, message: str) -> None:
    """On the screen and in the run's log; where the disk refuses, on the screen alone."""
    print(f"warning: {message}. The run goes on, and its folder has everything", file=sys.stderr)
    with contextlib.suppress(OSError):
        run.log(f"warning: {message}")
