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
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from toco_lab.config import Config, config_differences
from toco_lab.files import atomic_write
from toco_lab.runs.run_dir import RunDir
from toco_lab.sweeps.grid import Grid, SweepRun

RECORDED = 3  # exit code of a worker that has written down its failure itself
BOUND = "TOCO_LAB_BOUND_TO_PARENT"  # set for a worker whose standard input ends when the sweep does
_FAILURE = "failure.json"


def state_of(grid: Grid, run: SweepRun) -> Literal["new", "begun", "done", "failed"]:
    """State of a run on disk. `begun`: a sweep was stopped, or is at it; it continues from the last checkpoint."""
    if (run.folder / _FAILURE).is_file():
        return "failed"
    if not (run.folder / "config.json").is_file():
        return "new"
    if grid.notebook:
        from toco_lab.sweeps.notebooks import is_done

        return "done" if is_done(notebook_job(task_of(grid, run))) else "begun"
    measured = all((run.folder / name).is_file() for name in ("protocol.json", "smoothing.csv"))
    return "done" if measured and RunDir(run.folder).status()["state"] == "done" else "begun"


def task_of(grid: Grid, run: SweepRun) -> dict[str, Any]:
    """A run as plain values: what `python -m toco_lab.sweeps.worker` takes, as JSON, to make this run again."""
    differing = config_differences({"preset": Config.preset(grid.preset), "run": run.config})
    return {
        "folder": str(run.folder.resolve()),  # a notebook runs in a folder of its own
        "preset": grid.preset,
        "overrides": {name: values["run"] for name, values in differing.items()},
        "notebook": str(Path(grid.notebook).resolve()) if grid.notebook else None,
        "parameters": dict(grid.parameters),
    }


def notebook_job(task: Mapping[str, Any]):
    """The `batch.NotebookJob` of a task that has a notebook."""
    from toco_lab.sweeps.notebooks import NotebookJob

    notebook = Path(task["notebook"])
    parameters = {"preset": task["preset"], "overrides": task["overrides"], "run_dir": task["folder"]}
    return NotebookJob(notebook, Path(task["folder"], "notebooks", notebook.name), parameters | task["parameters"])


def work(text: str) -> bool:
    """Make, or continue, the run of a task (JSON of `task_of`). Returns False if it failed, which is then on record."""
    from toco_lab.experiment import make, open_run

    task = json.loads(text)
    folder = Path(task["folder"])
    (folder / _FAILURE).unlink(missing_ok=True)
    cfg = Config.preset(task["preset"]).replace(**task["overrides"])
    run = open_run(cfg, folder.parent, name=folder.name)
    began, spent = time.perf_counter(), run.status().get("total_seconds", 0.0)
    run.set_status("running")
    try:
        if task["notebook"]:
            from toco_lab.sweeps.notebooks import execute_notebook

            job = notebook_job(task)
            execute_notebook(job.notebook, job.output, job.parameters, progress=False)
        else:
            make(run, progress=False)
    except Exception as error:
        record_failure(folder, f"{type(error).__name__}: {error}", traceback.format_exc())
        return False
    run.set_status("done", total_seconds=round(spent + time.perf_counter() - began, 2))
    return True


def record_failure(folder: Path, error: str, trace: str) -> None:
    """Write a failure and its traceback into a run's folder."""
    with atomic_write(folder / _FAILURE, "w") as file:
        json.dump({"error": error, "traceback": trace}, file, indent=1)
    with contextlib.suppress(FileNotFoundError, ValueError):  # it may have failed before there was a run
        RunDir(folder).set_status("failed", error=error.splitlines()[0])


def error_of(folder: Path) -> str:
    """The recorded error of a failed run, else nothing."""
    path = folder / _FAILURE
    return json.loads(path.read_text(encoding="utf-8"))["error"] if path.is_file() else ""


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
