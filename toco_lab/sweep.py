"""Sweeps: a notebook, or plain training, over a grid of config fields and seeds, by several processes or by ray.

    grid = Grid.from_yaml("grids/smoke.yaml")        # or Grid(name="weights", preset="toy", axes={"w_ptc": [0, 0.2]})
    table = run_sweep(grid, workers=2)               # the same call continues what was interrupted

The run folder is the only memory of a sweep: same config and seed, same folder `results/sweeps/<name>/<run>`. Grids
that name one `folder` share the runs they have in common. Each run has a process of its own, so one that is killed
(memory, a lost machine) takes nothing else with it; it is started again and continues from its checkpoint. Modules that
train or need papermill or ray are imported where they are used.
"""

import contextlib
import dataclasses
import difflib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import pandas as pd

from toco_lab.ablation import run_scores, summarise, wide_table
from toco_lab.config import Config, config_differences
from toco_lab.runs import RunDir, atomic_write

ROOT = Path("results/sweeps")
RETRIES = 2  # times a run is started again after its process was killed
NOT_SWEPT = {"seed": "give `seeds`", "preset_name": "give `preset`"}  # fields of Config that no grid may change
_FAILURE, _OUTPUT = "failure.json", "output.txt"
_POLL_SECONDS, _REFRESH_SECONDS, _STOP_SECONDS = 0.2, 1.0, 10.0
_RECORDED = 3  # exit code of a worker that has written down its failure itself
_BOUND = "TOCO_LAB_BOUND_TO_PARENT"  # set for a worker whose standard input ends when the sweep does
_OUTPUT_LINES = 30
_WORKER = [sys.executable, "-m", "toco_lab.sweep"]  # and a task


# --- the grid ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SweepRun:
    """One run of a grid: the name of its row, its seed, its Config, its folder (rows with equal configs share one)."""

    row: str
    seed: int
    config: Config
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rows (an ablation) times axes (a product) times seeds. Every Config is built, and so checked, with the grid.

    Attributes:
        name: Name of the sweep and of its folder.
        preset: Preset every run starts from.
        about: What is asked, for readers.
        folder: Folder of the runs, if not `name`: grids with the same one share their runs.
        reference: Row the others are compared with, or row -> its own reference; None takes the first row.
        overrides: Config fields of every run; rows and axes win over them.
        rows: Named overrides, in the order of the table.
        axes: Field -> values; all combinations are run, for each row.
        seeds: Some seeds, or their number n for 0 to n - 1.
        notebook: Notebook to execute, from the current folder; None trains, evaluates and measures over-smoothing.
        parameters: The notebook's own parameters; preset, overrides and run_dir are given by the grid.

    Raises:
        ValueError: For anything that makes no run; row and field are named.
    """

    name: str
    preset: str
    about: str = ""
    folder: str = ""
    reference: str | Mapping[str, str] | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    seeds: Sequence[int] | int = 1
    notebook: str | Path | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Bring the fields into one form and build every run."""
        for word in (self.name, self.folder or self.name):
            if not isinstance(word, str) or not re.fullmatch(r"\w[\w.-]*", word):
                raise ValueError(f"the name of a grid names a folder: letters, digits, _ . and -, got {word!r}")
        self._set("rows", {row: fields or {} for row, fields in self._named("rows", self.rows).items()})
        self._set("axes", {axis: self._values(axis, given) for axis, given in self._named("axes", self.axes).items()})
        seeds = range(self.seeds) if type(self.seeds) is int else self.seeds
        self._require(
            isinstance(seeds, Sequence) and len(seeds) > 0 and all(type(seed) is int for seed in seeds),
            f"seeds must be a number of seeds, at least 1, or a list of whole numbers, got {self.seeds!r}",
        )
        self._require(len(set(seeds)) == len(seeds), f"a seed is given twice: {list(seeds)}")
        self._set("seeds", tuple(seeds))
        places = {"overrides": self.overrides, "axes": self.axes} | {f"row {row!r}": f for row, f in self.rows.items()}
        for place, fields in places.items():
            for name in self._named(place, fields):
                self._require(name not in NOT_SWEPT, f"{place} may not set {name}; {NOT_SWEPT.get(name)}")
                clash = place.startswith("row ") and name in self.axes
                self._require(not clash, f"{name} is set by {place} and by an axis")
        given = set(self._named("parameters", self.parameters))
        self._require(bool(self.notebook) or not given, "parameters need a notebook")
        reserved = sorted(given & {"preset", "overrides", "run_dir"})
        self._require(not reserved, f"the grid itself gives the notebook its {', '.join(reserved)}")
        rows = list(dict.fromkeys(run.row for run in self.runs()))
        self._set("reference", rows[0] if self.reference is None else self.reference)
        pairs = self.reference.items() if isinstance(self.reference, Mapping) else [(self.reference, self.reference)]
        for name in itertools.chain(*pairs):
            self._require(name in rows, f"reference: {name!r} is no row; there are: {', '.join(rows)}")

    @classmethod
    def from_yaml(cls, path: Path | str) -> Self:
        """Read a grid from a YAML file with the attributes as keys; see `grids/`.

        Raises:
            ValueError: For a file that is no YAML, an unknown, missing or repeated key, or what makes no run.
        """
        import yaml

        try:
            given = yaml.load(Path(path).read_text(encoding="utf-8"), _yaml_loader())
        except yaml.YAMLError as error:
            raise ValueError(f"{path} can not be read: {error}") from error
        if not isinstance(given, dict):
            raise ValueError(f"{path} must hold `key: value` lines, got {type(given).__name__}")
        known = {one.name: one for one in dataclasses.fields(cls)}
        for key in given:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
                raise ValueError(f"{path}: unknown key {key!r}; {hint}")
        missing = {"name", "preset"} - set(given)
        if missing:
            raise ValueError(f"{path}: no {' and no '.join(sorted(missing))}")
        try:
            # a key without a value is the same as no key
            return cls(**{key: value for key, value in given.items() if value is not None})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def runs(self, root: Path | str = ROOT) -> list[SweepRun]:
        """Every run: by row, then by the axes (the last one fastest), then by seed."""
        made = []
        for (row, fields), values in itertools.product(
            (self.rows or {"": {}}).items(), itertools.product(*self.axes.values())
        ):
            point = dict(zip(self.axes, values, strict=True))
            name = ", ".join([*([row] if row else []), *(f"{key}={value}" for key, value in point.items())])
            for seed in self.seeds:
                try:
                    changes = {**self.overrides, **fields, **point, "seed": seed}
                    cfg = Config.preset(self.preset).replace(**changes)
                except ValueError as error:
                    where = f", {name}" if name else ""
                    raise ValueError(f"grid {self.name!r}{where}: {error}") from error
                folder = Path(root) / (self.folder or self.name) / cfg.run_name()
                made.append(SweepRun(name or self.preset, seed, cfg, folder))
        return made

    def references(self) -> dict[str, str]:
        """Row -> the row it is compared with, for the rows that have one."""
        if isinstance(self.reference, Mapping):
            return dict(self.reference)
        return {run.row: self.reference for run in self.runs() if run.row != self.reference}

    def to_text(self) -> str:
        """The grid as text that `from_yaml` reads (JSON is YAML)."""
        plain = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        return json.dumps(
            plain, indent=1, default=lambda value: value.tolist() if hasattr(value, "tolist") else str(value)
        )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _require(self, holds: bool, message: str) -> None:
        if not holds:
            raise ValueError(f"grid {self.name!r}: {message}")

    def _named(self, place: str, given: Any) -> Mapping[str, Any]:
        named = isinstance(given, Mapping) and all(isinstance(key, str) and key for key in given)
        self._require(named, f"{place} must be names with their values, got {given!r} (quote words like no and on)")
        return given

    def _values(self, axis: str, given: Any) -> list[Any]:
        values = given.tolist() if hasattr(given, "tolist") else given  # np.linspace(0, 1, 5)
        listed = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
        self._require(listed, f"axis {axis!r} must be a list of values, got {given!r}")
        self._require(len(set(map(repr, values))) == len(values), f"axis {axis!r} has a value twice: {values}")
        return list(values)


def _yaml_loader() -> type:
    """PyYAML's safe loader, strict: `1e-4` is a number (to YAML 1.1 it is text), and no key may come twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for key, (mark, _) in zip(keys, node.value, strict=True):
                if keys.count(key) > 1:
                    raise yaml.constructor.ConstructorError(None, None, f"{key!r} comes twice", mark.start_mark)
            return super().construct_mapping(node, deep)

    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return Loader


# --- one run, in a process of its own ---------------------------------------------------------------------------------


def state_of(grid: Grid, run: SweepRun) -> Literal["new", "begun", "done", "failed"]:
    """State of a run on disk. `begun`: a sweep was stopped, or is at it; it continues from the last checkpoint."""
    if (run.folder / _FAILURE).is_file():
        return "failed"
    if not (run.folder / "config.json").is_file():
        return "new"
    if grid.notebook:
        from toco_lab.batch import is_done

        return "done" if is_done(_notebook_job(_task(grid, run))) else "begun"
    measured = all((run.folder / name).is_file() for name in ("protocol.json", "smoothing.csv"))
    return "done" if measured and RunDir(run.folder).status()["state"] == "done" else "begun"


def _task(grid: Grid, run: SweepRun) -> dict[str, Any]:
    """A run as plain values: what `python -m toco_lab.sweep` takes, as JSON, to make this run again."""
    differing = config_differences({"preset": Config.preset(grid.preset), "run": run.config})
    return {
        "folder": str(run.folder.resolve()),  # a notebook runs in a folder of its own
        "preset": grid.preset,
        "overrides": {name: values["run"] for name, values in differing.items()},
        "notebook": str(Path(grid.notebook).resolve()) if grid.notebook else None,
        "parameters": dict(grid.parameters),
    }


def _notebook_job(task: Mapping[str, Any]):
    from toco_lab.batch import NotebookJob

    notebook = Path(task["notebook"])
    parameters = {"preset": task["preset"], "overrides": task["overrides"], "run_dir": task["folder"]}
    return NotebookJob(notebook, Path(task["folder"], "notebooks", notebook.name), parameters | task["parameters"])


def _work(text: str) -> bool:
    """Make, or continue, the run of a task (JSON of `_task`). Returns False if it failed, which is then on record."""
    task = json.loads(text)
    folder = Path(task["folder"])
    (folder / _FAILURE).unlink(missing_ok=True)
    cfg = Config.preset(task["preset"]).replace(**task["overrides"])
    run = RunDir.create(cfg, folder.parent, name=folder.name)
    began, spent = time.perf_counter(), run.status().get("total_seconds", 0.0)
    run.set_status("running")
    try:
        if task["notebook"]:
            from toco_lab.batch import execute_notebook

            job = _notebook_job(task)
            execute_notebook(job.notebook, job.output, job.parameters, progress=False)
        else:
            _train(cfg, run)
    except Exception as error:
        _record_failure(folder, f"{type(error).__name__}: {error}", traceback.format_exc())
        return False
    run.set_status("done", total_seconds=round(spent + time.perf_counter() - began, 2))
    return True


def _train(cfg: Config, run: RunDir) -> None:
    """What the command `train` does, without what an earlier attempt has finished."""
    from toco_lab.evaluate import evaluate_run, validator
    from toco_lab.smoothing import smoothing_of_run
    from toco_lab.train import fit, resolve_device

    device = str(resolve_device(cfg.device))
    fit(cfg, run, validate=validator(cfg), progress=False)
    if not (run.path / "protocol.json").is_file():  # written after evaluation.csv
        evaluate_run(run, device=device, progress=False)
    if not (run.path / "smoothing.csv").is_file():
        smoothing_of_run(run, device=device, progress=False)


def _record_failure(folder: Path, error: str, trace: str) -> None:
    with atomic_write(folder / _FAILURE, "w") as file:
        json.dump({"error": error, "traceback": trace}, file, indent=1)
    with contextlib.suppress(FileNotFoundError, ValueError):  # it may have failed before there was a run
        RunDir(folder).set_status("failed", error=error.splitlines()[0])


def _error_of(folder: Path) -> str:
    """The recorded error of a failed run, else nothing."""
    path = folder / _FAILURE
    return json.loads(path.read_text(encoding="utf-8"))["error"] if path.is_file() else ""


# --- executors --------------------------------------------------------------------------------------------------------


class Executor(Protocol):
    """What a sweep needs of a place to run in.

    Attributes:
        slots: Runs it does at a time.
    """

    slots: int

    def submit(self, folder: Path, text: str) -> None:
        """Take a run, to be started as soon as there is a place."""

    def ended(self) -> dict[Path, tuple[str, str]]:
        """Runs that ended since the last call, with the error and its trace if no worker could record them."""

    def close(self) -> None:
        """Stop what still runs."""


class LocalExecutor:
    """Up to `workers` processes on this machine, which share its cores (or have OMP_NUM_THREADS each, if that is set).

    A worker stops when this process ends, in whatever way.
    """

    def __init__(self, workers: int = 1) -> None:
        """Raises ValueError for less than one worker."""
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.slots = workers
        self._environment = {"OMP_NUM_THREADS": str(max(1, cores // workers)), **os.environ, _BOUND: "1"}
        self._waiting: deque[tuple[Path, str, int]] = deque()
        self._running: dict[Path, tuple[subprocess.Popen, str, int]] = {}

    def submit(self, folder: Path, text: str) -> None:
        """See `Executor`."""
        self._waiting.append((folder, text, 0))

    def ended(self) -> dict[Path, tuple[str, str]]:
        """See `Executor`. A worker that a signal killed is started again, at most `RETRIES` times."""
        over = {}
        for folder, (worker, text, retries) in list(self._running.items()):
            code = worker.poll()
            if code is None:
                continue
            worker.stdin.close()
            del self._running[folder]
            killed = f"killed by {signal.Signals(-code).name}" if code < 0 else ""
            if killed and retries < RETRIES:
                self._waiting.appendleft((folder, text, retries + 1))
                with (folder / _OUTPUT).open("a", encoding="utf-8") as file:
                    file.write(f"--- {killed}; started again ({retries + 1} of {RETRIES})\n")
            elif killed:
                over[folder] = (f"the worker was {killed} {retries + 1} times (SIGKILL often means no memory)", "")
            elif code in (0, _RECORDED):
                over[folder] = ("", "")
            else:
                lines = (folder / _OUTPUT).read_text(encoding="utf-8", errors="replace").splitlines()
                over[folder] = (f"the worker ended with exit code {code}", "\n".join(lines[-_OUTPUT_LINES:]))
        while self._waiting and len(self._running) < self.slots:
            self._start(*self._waiting.popleft())
        return over

    def _start(self, folder: Path, text: str, retries: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / _OUTPUT).open("a", encoding="utf-8") as output:
            worker = subprocess.Popen(
                [*_WORKER, text],
                stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=self._environment,
                start_new_session=True,  # Ctrl-C is for the sweep alone, which stops its workers in order
            )  # fmt: skip
        self._running[folder] = (worker, text, retries)

    def close(self) -> None:
        """See `Executor`: interrupt every worker, and kill what has not stopped after some seconds."""
        workers = [worker for worker, _, _ in self._running.values()]
        for worker in workers:
            worker.send_signal(signal.SIGINT)
        deadline = time.monotonic() + _STOP_SECONDS
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(max(0.0, deadline - time.monotonic()))
            worker.kill()
            worker.wait()
            worker.stdin.close()
        self._running.clear()


class RayExecutor:
    """A ray cluster: each run is a task, which ray starts again elsewhere if its worker or its machine is lost.

    All machines must see the folder of the sweep, the data and this package under the same paths.
    """

    def __init__(self, *, gpus: float = 0.0, cpus: float = 1.0, address: str | None = None) -> None:
        """Join a cluster, or start one on this machine.

        Args:
            gpus: GPUs per run; a part of one lets runs share it.
            cpus: CPU cores per run.
            address: `auto`, or host:port of the head node; None joins the cluster RAY_ADDRESS names, or starts one.

        Raises:
            ValueError: If ray is missing, there is no cluster at `address`, or none of its machines can hold one run.
        """
        try:
            import ray
        except ImportError as error:
            raise ValueError("the ray executor needs ray; install it with: pip install 'toco_lab[ray]'") from error
        self._ray, self._owner = ray, not ray.is_initialized()
        self._running: dict[Any, Path] = {}
        if self._owner:
            try:
                if address and ":" in address:  # ray itself would try for minutes
                    host, _, port = address.rpartition(":")
                    socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=10).close()
                ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            except (OSError, ValueError) as error:
                raise ValueError(f"no ray cluster at {address!r}: {error}") from error
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.slots = sum(_fits(node, gpus, cpus) for node in nodes)
        if self.slots < 1:
            self.close()
            has = "; ".join(f"cpus {node.get('CPU', 0):g}, gpus {node.get('GPU', 0):g}" for node in nodes)
            raise ValueError(f"no machine can hold a run of cpus {cpus:g} and gpus {gpus:g}; they have {has}")
        # a worker that ends after its run leaves no memory on the GPU
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": RETRIES, "max_calls": 1}
        self._remote = ray.remote(**options)(_work_on_ray)

    def submit(self, folder: Path, text: str) -> None:
        """See `Executor`."""
        self._running[self._remote.remote(text, str(Path.cwd()))] = folder

    def ended(self) -> dict[Path, tuple[str, str]]:
        """See `Executor`."""
        over = {}
        ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        for reference in ready:
            folder, error = self._running.pop(reference), ("", "")
            try:
                self._ray.get(reference)
            except self._ray.exceptions.RayError as lost:
                lines = str(lost).strip().splitlines()
                error = (f"{type(lost).__name__}: {lines[0]}", "\n".join(lines[-_OUTPUT_LINES:]))
            over[folder] = error
        return over

    def close(self) -> None:
        """See `Executor`."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running = {}
        if self._owner:
            self._ray.shutdown()


def _fits(node: Mapping[str, float], gpus: float, cpus: float) -> int:
    """Runs that a machine with these resources holds at a time."""
    wanted = {"GPU": gpus, "CPU": cpus}
    return min(int(node.get(name, 0) / amount) for name, amount in wanted.items() if amount)


def _work_on_ray(text: str, folder: str) -> bool:
    """`_work` in ray's worker: in the folder the sweep was started in, with a command line that repeats the run."""
    os.chdir(folder)
    sys.argv = [__file__, text]
    return _work(text)


# --- the sweep --------------------------------------------------------------------------------------------------------


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
        progress: Show a table that is kept up to date.

    Returns:
        `sweep_table`, which is also written to sweep.csv in the folder of the sweep.

    Raises:
        ValueError: Before anything starts: for parameters the notebook does not have, a data set that is not there, an
            executor that can not be had, or if another process is running this sweep.
    """
    runs, folder = grid.runs(root), Path(root) / grid.name
    if executor not in ("local", "ray"):
        raise ValueError(f"executor must be local or ray, got {executor!r}")
    if executor == "local" and (gpus or address):
        raise ValueError("gpus and address are options of executor ray; local workers share the devices they find")
    check_grid(grid, runs, data=executor == "local")  # another machine may have other data
    with _locked(runs[0].folder.parent):
        wanted = {"new", "begun"} | ({"failed"} if retry_failed else set())
        unique = {run.folder: run for run in runs}
        tasks = {path: _task(grid, run) for path, run in unique.items() if state_of(grid, run) in wanted}
        with atomic_write(folder / "grid.yaml", "w") as file:
            file.write(grid.to_text())
        try:
            if tasks:
                ray = {"gpus": gpus, "cpus": cpus, "address": address}
                pool = LocalExecutor(workers) if executor == "local" else RayExecutor(**ray)
                with contextlib.closing(pool):
                    _run_tasks(pool, tasks, _Board(grid, runs, set(tasks), slots=pool.slots, progress=progress))
        finally:
            table = sweep_table(root, grid)
            with atomic_write(folder / "sweep.csv", "w") as file:
                table.to_csv(file, index=False, lineterminator="\n")
    return table


def _run_tasks(pool: Executor, tasks: Mapping[Path, dict[str, Any]], board: "_Board") -> None:
    """Give every task to the executor and wait for all of them."""
    for folder, task in tasks.items():
        pool.submit(folder, json.dumps(task))
    left = set(tasks)
    while left:
        for folder, (error, trace) in pool.ended().items():
            left.discard(folder)
            if error:
                _record_failure(folder, error, trace)
            board.end(folder)
        board.refresh(last=not left)
        time.sleep(_POLL_SECONDS if left else 0)


def check_grid(grid: Grid, runs: Sequence[SweepRun], *, data: bool = True) -> None:
    """Check what building the Configs did not: the notebook's parameters, or, for training, the data sets.

    Raises:
        ValueError: For what would stop every run at its start.
    """
    if grid.notebook:
        from toco_lab.batch import check_parameters

        for run in runs:
            job = _notebook_job(_task(grid, run))
            check_parameters(job.notebook, job.parameters)
    elif data:
        from toco_lab.checkpoints import find_weights
        from toco_lab.readers import open_dataset

        names = ("dataset", "data_root", "label_source", "train_split", "val_split", "train_images", "val_images")
        configs = {tuple(getattr(run.config, name) for name in names): run.config for run in runs}
        for weights in {run.config.weights for run in runs if run.config.pretrained and run.config.weights}:
            find_weights(weights)
        for cfg in configs.values():
            for split in {cfg.train_split, cfg.val_split}:
                open_dataset(cfg, split)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the sweep's lock, which ends with this process: two sweeps at one run would mix their rows."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"another process is running the sweep in {folder}; wait for it, or stop it") from error
        yield


# --- tables -----------------------------------------------------------------------------------------------------------


def sweep_table(root: Path | str, grid: Grid) -> pd.DataFrame:
    """What a sweep has given so far.

    Returns:
        One row per run of the grid: row, the row it is compared with (`reference`, empty for none), seed, the fields of
        the axes, state (see `state_of`), seconds, scores in [0, 1] and cosines as in `ablation.run_scores`, run (its
        folder), and the error of a failed one.
    """
    rows, references = [], grid.references()
    for run in grid.runs(root):
        row = {"row": run.row, "reference": references.get(run.row, ""), "seed": run.seed}
        row |= {name: getattr(run.config, name) for name in grid.axes}
        row |= {"state": state_of(grid, run), "seconds": float("nan")}
        if (run.folder / "config.json").is_file():
            made = RunDir(run.folder)
            status = made.status()
            row["seconds"] = status.get("total_seconds", status.get("seconds"))
            row |= run_scores(made)
        rows.append(row | {"run": run.folder.name, "error": _error_of(run.folder)})
    frame = pd.DataFrame(rows)
    return frame[[name for name in frame if name not in ("run", "error")] + ["run", "error"]]


def sweep_summary(table: pd.DataFrame) -> str:
    """A `sweep_table` as text: rows over seeds with their paired differences, or the states while there is no score."""
    try:
        return wide_table(summarise(table)).to_string()
    except ValueError:
        return table[["row", "seed", "state"]].to_string(index=False)


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
        state = state_of(grid, run)
        seconds = 0.0 if state == "done" else left[run.folder]
        rows.append({"row": run.row, "seed": run.seed, "state": state, "seconds": seconds, "run": run.folder.name})
    return pd.DataFrame(rows)


def outlook(frame: pd.DataFrame, *, workers: int = 1, retry_failed: bool = False) -> str:
    """A `plan` in one sentence: how many runs, in which state, and for how long."""
    runs = frame.drop_duplicates("run")
    failed = int((runs["state"] == "failed").sum())
    todo = runs[runs["state"].isin(["new", "begun", *(["failed"] if retry_failed else [])])]
    parts = [f"{len(frame)} runs"]
    if len(runs) < len(frame):
        parts.append(f"{len(frame) - len(runs)} of them equal to another and shared")
    parts.append(f"{int((runs['state'] == 'done').sum())} done")
    if failed:
        parts.append(f"{failed} failed before ({'tried again' if retry_failed else 'left alone'})")
    if not len(todo):
        return f"{', '.join(parts)}, nothing to do"
    at_a_time = f"{workers} worker{'s' if workers > 1 else ''}"
    return f"{', '.join(parts)}, {len(todo)} to do with {at_a_time}: {_duration_of(todo['seconds'], workers)}"


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


def _duration_of(seconds: pd.Series, slots: int) -> str:
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


class _Board:
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
            error = "".join(f": {line}" for line in _error_of(folder).splitlines()[:1])
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
            head += f", {_duration_of(left, self._slots)} to go" if left.notna().any() else ""
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


def main() -> int:
    """`python -m toco_lab.sweep TASK`: make one run of a sweep; the exit code says whether it failed."""
    if os.environ.pop(_BOUND, None):
        threading.Thread(target=_end_with_parent, daemon=True).start()
    return 0 if _work(sys.argv[1]) else _RECORDED


def _end_with_parent() -> None:
    """The sweep holds the other end of standard input: it closes when the sweep is gone, even by kill -9."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
