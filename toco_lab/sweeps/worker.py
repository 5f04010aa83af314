"""One run of a sweep, made in a process of its own: `python -m toco_lab.sweeps.worker TASK`.

The run folder is the only memory: what is finished is not made again, a failure is written down with its traceback.
Modules that train or need papermill are imported where they are used.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from toco_lab.config import Config, config_differences
from toco_lab.files import atomic_write, here_or_shipped, in_words
from toco_lab.runs.run_dir import RunDir
from toco_lab.runs.scores import run_scores
from toco_lab.runs.small_files import SHAPES, read_json_file
from toco_lab.sweeps.grid import Grid, PlannedRun

if TYPE_CHECKING:
    from toco_lab.sweeps.notebooks import NotebookJob

RECORDED = 3  # exit code of a worker that has written down its failure itself
BOUND = "TOCO_LAB_BOUND_TO_PARENT"  # set for a worker whose standard input ends when the sweep does
_FAILURE = "failure.json"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker needs to make one run, as plain values: they travel to it as JSON.

    Attributes:
        folder: Folder of the run; absolute, because a notebook runs in a folder of its own.
        preset: The preset it starts from.
        overrides: Config fields that differ from the preset.
        notebook: The notebook to execute; None trains, evaluates and measures over-smoothing.
        parameters: The notebook's own parameters.
        log_to: Trackers that are told the run.
    """

    folder: str
    preset: str
    overrides: Mapping[str, Any]
    notebook: str | None
    parameters: Mapping[str, Any]
    log_to: Sequence[str] = ()

    @classmethod
    def of(cls, grid: Grid, run: PlannedRun, *, log_to: Sequence[str] = ()) -> Self:
        """The task that makes a run of a grid."""
        differing = config_differences({"preset": Config.preset(grid.preset), "run": run.config})
        return cls(
            folder=str(run.folder.resolve()),
            preset=grid.preset,
            overrides={name: values["run"] for name, values in differing.items()},
            notebook=str(here_or_shipped(grid.notebook).resolve()) if grid.notebook else None,
            parameters=dict(grid.parameters),
            log_to=tuple(log_to),
        )

    def to_json(self) -> str:
        """The task as one line."""
        return json.dumps(asdict(self))

    def notebook_job(self) -> "NotebookJob | None":
        """The execution of its notebook, if it has one."""
        if self.notebook is None:
            return None
        from toco_lab.sweeps.notebooks import NotebookJob

        parameters = {"preset": self.preset, "overrides": self.overrides, "run_dir": self.folder, **self.parameters}
        return NotebookJob(self.notebook, Path(self.folder, "notebooks", Path(self.notebook).name), parameters)


def state_on_disk(grid: Grid, run: PlannedRun) -> Literal["new", "begun", "done", "failed"]:
    """State of a run of a grid. One that is `begun` continues from its last checkpoint, or a sweep is at it now.

    One whose folder may not be read counts as failed.
    """
    try:
        return _state_on_disk(grid, run)
    except OSError:
        return "failed"


def _state_on_disk(grid: Grid, run: PlannedRun) -> Literal["new", "begun", "done", "failed"]:
    if (run.folder / _FAILURE).is_file():
        return "failed"
    if not (run.folder / "config.json").is_file():
        return "new"
    if grid.notebook and (job := Task.of(grid, run).notebook_job()):
        from toco_lab.sweeps.notebooks import is_done

        return "done" if is_done(job) else "begun"
    made = RunDir(run.folder)
    try:
        finished = made.is_evaluated and made.is_measured and made.state() == "done"
        if finished:
            made.read_json("protocol"), run_scores(made)
    except (ValueError, OSError):  # damaged: whoever continues the run writes it anew
        finished = False
    return "done" if finished else "begun"


def work(text: str) -> bool:
    """Make, or continue, the run of a task (`Task.to_json`). Returns False if it failed, which is then on record."""
    from toco_lab.experiment import make, open_run

    task = Task(**json.loads(text))
    folder = Path(task.folder)
    began = time.perf_counter()
    try:
        (folder / _FAILURE).unlink(missing_ok=True)
        cfg = Config.preset(task.preset).replace(**task.overrides)
        run = open_run(cfg, folder.parent, name=folder.name)
        spent = run.status().get("total_seconds", 0.0)
        run.set_status("running")
        if job := task.notebook_job():
            from toco_lab.sweeps.notebooks import execute_notebook

            execute_notebook(job.notebook, job.output, job.parameters, progress=False)
            _log_finished(run, task.log_to)
        else:
            make(run, log_to=task.log_to, progress=False)
        run.set_status("done", total_seconds=round(spent + time.perf_counter() - began, 2))
    except Exception as error:
        record_failure(folder, f"{type(error).__name__}: {in_words(str(error))}", traceback.format_exc())
        return False
    return True


def _log_finished(run: RunDir, log_to: Sequence[str]) -> None:
    """Tell trackers a run that a notebook made; what they refuse is written into its log."""
    from toco_lab.trackers.logbook import log_run

    try:
        log_run(run, log_to)
    except ValueError as error:
        run.log(f"warning: not logged: {error}")


def record_failure(folder: Path, error: str, trace: str) -> None:
    """Write a failure and its traceback into a run's folder; OSError if the system refuses that too."""
    with atomic_write(folder / _FAILURE, "w") as file:
        json.dump({"error": error, "traceback": trace}, file, indent=1)
    with contextlib.suppress(FileNotFoundError, ValueError):  # it may have failed before there was a run
        RunDir(folder).set_status("failed", error=error.splitlines()[0])


def recorded_error(folder: Path) -> str:
    """The error of a failed run as `record_failure` wrote it, else nothing; of a damaged record, that it is damaged."""
    path = folder / _FAILURE
    try:
        return str(read_json_file(path, SHAPES["failure"])["error"]) if path.is_file() else ""
    except (ValueError, OSError) as error:
        return in_words(str(error))


def main() -> int:
    """`python -m toco_lab.sweeps.worker TASK`: make one run of a sweep; the exit code says whether it failed."""
    # begun in the background of a shell, a sweep ignores Ctrl-C, and so would its workers when it stops them
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.pop(BOUND, None):
        threading.Thread(target=_end_with_parent, daemon=True).start()
    return 0 if work(sys.argv[1]) else RECORDED


def _end_with_parent() -> None:
    """The sweep holds the other end of standard input: it closes when the sweep is gone, even by kill -9."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
