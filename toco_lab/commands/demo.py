"""The command `demo`: a baseline and ToCo on toy scenes, their notebooks, one report."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toco_lab.config import Config
from toco_lab.files import check_writable, project_root
from toco_lab.presets import BASELINE

if TYPE_CHECKING:
    from toco_lab.sweeps.notebooks import NotebookJob

NOTEBOOKS = project_root() / "notebooks"
DEMO_NOTEBOOKS = ("03_train", "04_evaluate", "05_over_smoothing")
RUNS = {"baseline": BASELINE, "toco": {}}
THREADS = "OMP_NUM_THREADS"
_REFRESH_SECONDS = 0.5


def demo(root: Path = Path("results"), preset: str = "toy") -> None:
    """Train a plain baseline and ToCo by their notebooks, both at a time, and write a report. What is finished is
    skipped.

    Args:
        root: The demo goes into the folder `demo` below.
        preset: `toy`, or `smoke` to see the machinery run in seconds.
    """
    folder, page = root / "demo", root / "demo" / "report.html"
    check_writable(page)
    todo = {name: _todo(folder / name, preset, overrides, folder / "baseline") for name, overrides in RUNS.items()}
    with _part_of_the_cores(len(RUNS)):
        if any(todo.values()):
            _execute(todo)
        if any(todo.values()) or not page.is_file():
            from toco_lab.reports.export import build_report
            from toco_lab.runs.run_dir import RunDir

            build_report([RunDir(folder / name) for name in RUNS], page)
    print(page)


def _todo(path: Path, preset: str, overrides: dict[str, Any], baseline: Path) -> "list[NotebookJob]":
    """The notebooks of a run that are not executed yet; all of them where the run is not finished."""
    from toco_lab.sweeps.notebooks import NotebookJob, is_done

    jobs = []
    for notebook in DEMO_NOTEBOOKS:
        # absolute paths: a notebook runs in a folder of its own
        parameters = {"preset": preset, "overrides": overrides, "run_dir": str(path.resolve())}
        if notebook == DEMO_NOTEBOOKS[-1] and path != baseline:
            parameters["compare_with"] = [str(baseline.resolve())]
        output = path / "notebooks" / f"{notebook}.ipynb"
        jobs.append(NotebookJob(NOTEBOOKS / f"{notebook}.ipynb", output, parameters))
    if not _is_finished(path, Config.preset(preset).replace(**overrides)):
        return jobs
    return [job for job in jobs if not is_done(job)]


def _is_finished(path: Path, cfg: Config) -> bool:
    """Whether the run at `path` was trained to the end with this config."""
    from toco_lab.runs.run_dir import RunDir

    if not (path / "config.json").is_file():
        return False
    run = RunDir(path)
    return run.status()["state"] == "done" and run.config().digest() == cfg.digest()


@contextlib.contextmanager
def _part_of_the_cores(parts: int) -> Iterator[None]:
    """Kernels that are started inside have a part of the cores each, or OMP_NUM_THREADS, if that is set."""
    from toco_lab.runs.environment import cores

    was_set = THREADS in os.environ
    os.environ.setdefault(THREADS, str(max(1, cores() // parts)))
    try:
        yield
    finally:
        if not was_set:
            del os.environ[THREADS]


def _execute(todo: "dict[str, list[NotebookJob]]") -> None:
    """Execute the notebooks of all runs, those of one run in turn; an error of one does not stop the other."""
    from toco_lab.progress import progress_bar

    chains: list[_Chain] = []
    for name, jobs in todo.items():
        chains.append(_Chain(name, jobs, chains))
        chains[-1].start()
    total = sum(map(len, todo.values()))
    with progress_bar(range(0), "demo", total, unit="notebook") as bar:
        at_work = True
        while at_work:
            time.sleep(_REFRESH_SECONDS)
            at_work = any(chain.is_alive() for chain in chains)
            bar.set_postfix(**{chain.name: chain.state() for chain in chains})
            bar.update(sum(chain.executed for chain in chains) - bar.n)
    for chain in chains:
        if chain.error:
            raise chain.error


class _Chain(threading.Thread):
    """The notebooks of one run in turn; the last one waits for the runs before, with which it compares.

    Attributes:
        executed: How many are.
        error: Why the next one was not.
    """

    def __init__(self, name: str, jobs: "Sequence[NotebookJob]", before: "Sequence[_Chain]") -> None:
        super().__init__(name=name, daemon=True)  # Ctrl-C does not wait for it, and kernels end with this process
        self._jobs, self._before = jobs, tuple(before)
        self.executed = 0
        self.error: Exception | None = None

    def run(self) -> None:
        from toco_lab.sweeps.notebooks import execute_notebook

        try:
            for job in self._jobs:
                if job is self._jobs[-1]:
                    for chain in self._before:
                        chain.join()
                execute_notebook(job.notebook, job.output, job.parameters, progress=False)
                self.executed += 1
        except Exception as error:
            self.error = error

    def state(self) -> str:
        """What it is at."""
        if self.error or self.executed == len(self._jobs):
            return "failed" if self.error else "done"
        job = self._jobs[self.executed]
        return f"{Path(job.notebook).stem}{_steps(Path(job.parameters['run_dir']))}"


def _steps(path: Path) -> str:
    """How far the training of a run is, where it is going on."""
    from toco_lab.runs.run_dir import RunDir

    with contextlib.suppress(OSError, ValueError):  # there is no file yet, or it is written anew at this moment
        run = RunDir(path)
        if run.state() == "running" and len(metrics := run.metrics()):
            return f" step {metrics['step'].max()} of {run.config().steps}"
    return ""
