"""Sweeps: a notebook, or plain training, over a grid of config fields and seeds, by several processes or by ray.

    table = run_sweep(Grid.from_yaml("docs/smoke.yaml"), workers=2)   # the same call continues what was interrupted

The run folder is the only memory of a sweep: same config and seed, same folder `results/sweeps/<name>/<run>`. Grids
that name one `folder` share the runs they have in common. Each run has a process of its own, so one that is killed
(memory, a lost machine) takes nothing else with it; it is started again and continues from its checkpoint.
"""

import contextlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
from filelock import FileLock, Timeout

from toco_lab.files import atomic_write, in_words, require
from toco_lab.runs.locks import SWEEP_LOCK
from toco_lab.runs.run_dir import RunDir
from toco_lab.runs.scores import run_scores
from toco_lab.sweeps.executors import Executor, LocalExecutor, RayExecutor
from toco_lab.sweeps.grid import ROOT, Grid, PlannedRun
from toco_lab.sweeps.progress import SweepBar, duration_text, seconds_left
from toco_lab.sweeps.worker import Task, record_failure, recorded_error, state_on_disk
from toco_lab.trackers.tracker import TrackerName, check_trackers
from toco_lab.words import counted

_POLL_SECONDS = 0.2


def run_sweep(
    grid: Grid,
    *,
    root: Path | str = ROOT,
    workers: int = 1,
    executor: Literal["local", "ray"] = "local",
    gpus: float = 0.0,
    cpus: float = 1.0,
    address: str | None = None,
    retry_failed: bool = False,
    log_to: str | Sequence[str] = (),
    leave_out: Collection[str] = (),
    progress: bool = True,
) -> pd.DataFrame:
    """Make every run of a grid that is not finished; interrupted and called again it continues.

    A run that fails is recorded, the others go on. Its folder then holds failure.json with the traceback.

    Args:
        grid: What to run.
        root: Folder that holds the sweeps.
        workers: Runs at a time, on this machine (executor `local`).
        executor: Processes of this machine, or a `ray` cluster.
        gpus: GPUs per run, `cpus`: cores per run, `address`: see `RayExecutor` (executor `ray`).
        retry_failed: Also make runs that failed before.
        log_to: Trackers that are told every run (`trackers.TRACKERS`); runs of a notebook when they are finished.
        leave_out: Names of runs that are not made.
        progress: Show a bar, and a line for each run that ends.

    Returns:
        `sweep_table`, which is also written to sweep.csv in the folder of the sweep.

    Raises:
        ValueError: Before anything starts: for parameters the notebook does not have, a data set that is not there, an
            executor that cannot be had, or if another process is running this sweep.
    """
    require(grid, Grid, "grid", ": read one with Grid.from_yaml(file)")
    runs, folder = grid.runs(root), Path(root) / grid.name
    if executor not in ("local", "ray"):
        raise ValueError(f"executor must be local or ray, got {executor!r}")
    if executor == "local" and (gpus or address):
        raise ValueError("gpus and address are options of executor ray; local workers share the devices they find")
    if (executor == "local" and cpus != 1) or (executor == "ray" and workers != 1):
        unread = f"cpus={cpus:g}" if executor == "local" else f"workers={workers}"
        raise ValueError(f"{unread} has no effect with executor {executor}: workers are local, cpus are of ray")
    trackers = check_trackers(log_to)
    check_grid(grid, runs, data=executor == "local")  # another machine may have other data
    with _only_sweep_in(runs[0].folder.parent):
        wanted = {"new", "begun"} | ({"failed"} if retry_failed else set())
        asked = [run for run in runs if run.folder.name not in leave_out]
        todo = [run for run in asked if state_on_disk(grid, run) in wanted]
        with atomic_write(folder / "grid.yaml", "w") as file:
            file.write(grid.to_text())
        unrecorded: dict[Path, str] = {}
        try:
            if todo:
                pool: Executor
                if executor == "local":
                    pool = LocalExecutor(workers)
                else:
                    pool = RayExecutor(gpus=gpus, cpus=cpus, address=address)
                with contextlib.closing(pool):
                    _make_all(grid, todo, pool, unrecorded, trackers, progress=progress)
        finally:
            table = sweep_table(root, grid, unrecorded=unrecorded)
            with atomic_write(folder / "sweep.csv", "w") as file:
                table.to_csv(file, index=False, lineterminator="\n")
    return table


def _make_all(
    grid: Grid,
    todo: Sequence[PlannedRun],
    pool: Executor,
    unrecorded: dict[Path, str],
    trackers: Sequence[TrackerName],
    *,
    progress: bool,
) -> None:
    """Give every run to the executor and wait for all of them.

    Errors that cannot be written into the folder of their run are put into `unrecorded`; the others go on.
    """
    left = {run.folder: Task.of(grid, run, log_to=trackers) for run in todo}
    for folder, task in left.items():
        pool.submit(folder, task.to_json())
    with contextlib.closing(SweepBar(grid, todo, slots=pool.slots, progress=progress)) as bar:
        while left:
            for folder, lost in pool.ended().items():
                del left[folder]
                if lost:
                    try:
                        record_failure(folder, lost.error, lost.trace)
                    except OSError:
                        unrecorded[folder] = lost.error
                bar.end(folder, unrecorded.get(folder, ""))
            bar.refresh()
            time.sleep(_POLL_SECONDS if left else 0)


def check_grid(grid: Grid, runs: Sequence[PlannedRun], *, data: bool = True) -> None:
    """Check what building the Configs did not: the notebook's parameters, or, for training, the data sets.

    Raises:
        ValueError: For what would stop every run at its start.
    """
    if grid.notebook:
        from toco_lab.sweeps.parameters import check_parameters

        for job in filter(None, (Task.of(grid, run).notebook_job() for run in runs)):
            check_parameters(job.notebook, job.parameters)
    elif data:
        from toco_lab.backbones.weights import find_weights
        from toco_lab.data.readers import open_dataset

        names = ("dataset", "data_root", "label_source", "train_split", "val_split", "train_images", "val_images")
        configs = {tuple(getattr(run.config, name) for name in names): run.config for run in runs}
        for weights in {run.config.weights for run in runs if run.config.pretrained and run.config.weights}:
            find_weights(weights)
        for cfg in configs.values():
            for split in {cfg.train_split, cfg.val_split}:
                open_dataset(cfg, split)


@contextlib.contextmanager
def _only_sweep_in(folder: Path) -> Iterator[None]:
    """Hold the lock of the sweeps in a folder, which ends with this process: two at one run would mix their rows.

    Raises:
        ValueError: If another sweep holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / SWEEP_LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"another process is running the sweep in {folder}; wait for it, or stop it") from error
    try:
        yield
    finally:
        lock.release()


def sweep_table(root: Path | str, grid: Grid, *, unrecorded: Mapping[Path, str] | None = None) -> pd.DataFrame:
    """What a sweep has given so far.

    Args:
        root: Folder that holds the sweeps.
        grid: What was to be run.
        unrecorded: Errors of runs whose folder the system does not let be written, by folder.

    Returns:
        One row per run of the grid: row, the row it is compared with (`reference`, empty for none), seed, the fields of
        the axes, state (see `state_on_disk`), seconds, scores in [0, 1] and cosines as in `runs.run_scores`, run (its
        folder), and the error of a failed one, or which of its files is damaged.
    """
    rows, references = [], grid.references()
    for run in grid.runs(root):
        row = {"row": run.row, "reference": references.get(run.row, ""), "seed": run.seed}
        row |= {name: getattr(run.config, name) for name in grid.axes}
        row |= {"state": state_on_disk(grid, run), "seconds": float("nan")}
        error = recorded_error(run.folder)
        if failed := (unrecorded or {}).get(run.folder):
            row["state"], error = "failed", failed
        try:
            if (run.folder / "config.json").is_file():
                status = (made := RunDir(run.folder)).status()
                row["seconds"] = status.get("total_seconds", status.get("seconds"))
                row |= run_scores(made)
                if made.is_evaluated:
                    made.read_json("protocol")  # whether it can be read
        except (ValueError, OSError) as problem:  # a damaged run hides none of the others
            error = error or in_words(str(problem))
        rows.append(row | {"run": run.folder.name, "error": error})
    frame = pd.DataFrame(rows)
    return frame[[name for name in frame if name not in ("run", "error")] + ["run", "error"]]


def plan(grid: Grid, *, root: Path | str = ROOT, data: bool = True) -> pd.DataFrame:
    """What `run_sweep` would do: row, seed, state, estimated seconds that are left (NaN: unknown), run. Writes nothing.

    Args:
        grid: What would be run.
        root: Folder that holds the sweeps.
        data: Check that the data sets are there.

    Raises:
        ValueError: As `run_sweep` would.
    """
    runs = grid.runs(root)
    check_grid(grid, runs, data=data)
    left = seconds_left(runs, root)
    rows = []
    for run in runs:
        state = state_on_disk(grid, run)
        seconds = 0.0 if state == "done" else left[run.folder]
        rows.append({"row": run.row, "seed": run.seed, "state": state, "seconds": seconds, "run": run.folder.name})
    return pd.DataFrame(rows)


def outlook(frame: pd.DataFrame, *, workers: int = 1, retry_failed: bool = False) -> str:
    """A `plan` in one sentence: how many runs, in which state, and for how long."""
    runs = frame.drop_duplicates("run")
    failed = int((runs["state"] == "failed").sum())
    todo = runs[runs["state"].isin(["new", "begun", *(["failed"] if retry_failed else [])])]
    parts = [counted(len(frame), "run")]
    if len(runs) < len(frame):
        parts.append(f"{len(frame) - len(runs)} of them equal to another and shared")
    parts.append(f"{int((runs['state'] == 'done').sum())} done")
    if failed:
        parts.append(f"{failed} failed before ({'tried again' if retry_failed else 'left alone'})")
    if not len(todo):
        return f"{', '.join(parts)}, nothing to do"
    at_a_time = counted(workers, "worker")
    return f"{', '.join(parts)}, {len(todo)} to do with {at_a_time}: {duration_text(todo['seconds'], workers)}"
