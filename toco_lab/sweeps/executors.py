"""Where the runs of a sweep are made: processes of this machine, or a ray cluster. One interface, `Executor`.

A run that is killed with its process or its machine is started again and continues from its checkpoint.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol

from toco_lab.files import append_text, in_words
from toco_lab.runs.environment import cores
from toco_lab.sweeps import forked, worker
from toco_lab.sweeps.forked import ForkedProcess
from toco_lab.words import counted

RETRIES = 2  # times a run is started again after its process was killed
_OUTPUT = "output.txt"
_OUTPUT_LINES = 30
_STOP_SECONDS = 10.0
_WORKER = [sys.executable, "-m", "toco_lab.sweeps.worker"]  # the task comes after it


@dataclass(frozen=True)
class LostRun:
    """A run that ended without a worker that could record why: the error, and the end of what it printed."""

    error: str
    trace: str = ""


class Executor(Protocol):
    """What a sweep needs of a place to run in.

    Attributes:
        slots: Runs it does at a time.
    """

    slots: int

    def submit(self, folder: Path, task: str) -> None:
        """Take a run, to be started as soon as there is a place; `task` is `Task.to_json` of the worker."""

    def ended(self) -> dict[Path, LostRun | None]:
        """Folders of the runs that ended since the last call; None for those whose end, good or bad, is on record."""

    def close(self) -> None:
        """Stop what still runs."""


@dataclass(frozen=True)
class _Attempt:
    """A task and how often it was started again."""

    folder: Path
    task: str
    retries: int = 0


class LocalExecutor:
    """Up to `workers` processes on this machine, which share its cores (or have OMP_NUM_THREADS each, if that is set).

    A worker stops when this process ends, in whatever way. On Linux they are forked from one process that has imported
    torch (`forked`): a run starts at once.
    """

    def __init__(self, workers: int = 1) -> None:
        """Raises ValueError for less than one worker."""
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.slots = workers
        self._environment = {"OMP_NUM_THREADS": str(max(1, cores() // workers)), **os.environ}
        self._waiting: deque[_Attempt] = deque()
        self._running: dict[_Attempt, subprocess.Popen[bytes] | ForkedProcess] = {}

    def submit(self, folder: Path, task: str) -> None:
        """See `Executor`."""
        self._waiting.append(_Attempt(folder, task))

    def ended(self) -> dict[Path, LostRun | None]:
        """See `Executor`. A worker that a signal killed is started again, at most `RETRIES` times."""
        over: dict[Path, LostRun | None] = {}
        for attempt, process in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            _close_input(process)
            del self._running[attempt]
            if code < 0 and attempt.retries < RETRIES:
                self._start_again(attempt, f"killed by {signal.Signals(-code).name}")
            else:
                over[attempt.folder] = _lost_run(attempt, code)
        while self._waiting and len(self._running) < self.slots:
            attempt = self._waiting.popleft()
            try:
                self._start(attempt)
            except OSError as error:
                if isinstance(error, forked.ServerError) and attempt.retries < RETRIES:
                    self._start_again(attempt, str(error))
                else:
                    over[attempt.folder] = LostRun(in_words(str(error)))
        return over

    def _start_again(self, attempt: _Attempt, why: str) -> None:
        """Put a killed task in front of those that wait, and say so in what its workers print."""
        again = replace(attempt, retries=attempt.retries + 1)
        self._waiting.appendleft(again)
        with contextlib.suppress(OSError):  # a full disk: the worker will say so
            append_text(attempt.folder / _OUTPUT, f"--- {why}; started again ({again.retries} of {RETRIES})\n")

    def _start(self, attempt: _Attempt) -> None:
        attempt.folder.mkdir(parents=True, exist_ok=True)
        output = attempt.folder / _OUTPUT
        with output.open("a", encoding="utf-8") as file:  # a folder that may not be written is refused here
            self._running[attempt] = self._process(attempt.task, output.resolve(), file)

    def _process(self, task: str, output: Path, file: IO[str]) -> subprocess.Popen[bytes] | ForkedProcess:
        if forked.CAN_FORK:
            return ForkedProcess("worker", [task], env=self._environment, cwd=Path.cwd(), output=output)
        return subprocess.Popen(
            [*_WORKER, task],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**self._environment, worker.BOUND: "1"},
            start_new_session=True,  # Ctrl-C is for the sweep alone, which stops its workers in order
        )

    def close(self) -> None:
        """See `Executor`: interrupt every worker, and kill what has not stopped after some seconds."""
        for process in self._running.values():
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + _STOP_SECONDS
        for process in self._running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.wait()
            _close_input(process)
        self._running.clear()


def _close_input(process: subprocess.Popen[bytes] | ForkedProcess) -> None:
    if process.stdin:
        process.stdin.close()


def _lost_run(attempt: _Attempt, code: int) -> LostRun | None:
    """What the exit code of a worker says that it has not recorded itself."""
    if code in (0, worker.RECORDED):
        return None
    if code < 0:
        times = f"killed by {signal.Signals(-code).name} {counted(attempt.retries + 1, 'time')}"
        return LostRun(f"the worker was {times} (SIGKILL often means no memory)")
    lines = []
    with contextlib.suppress(OSError):
        lines = (attempt.folder / _OUTPUT).read_text(encoding="utf-8", errors="replace").splitlines()
    last = f": {in_words(lines[-1])}" if lines else ""
    return LostRun(f"the worker ended with exit code {code}{last}", "\n".join(lines[-_OUTPUT_LINES:]))


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

    def submit(self, folder: Path, task: str) -> None:
        """See `Executor`."""
        self._running[self._remote.remote(task, str(Path.cwd()))] = folder

    def ended(self) -> dict[Path, LostRun | None]:
        """See `Executor`."""
        over: dict[Path, LostRun | None] = {}
        ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        for reference in ready:
            folder = self._running.pop(reference)
            over[folder] = None
            try:
                self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                lines = str(error).strip().splitlines()
                over[folder] = LostRun(f"{type(error).__name__}: {lines[0]}", "\n".join(lines[-_OUTPUT_LINES:]))
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


def _work_on_ray(task: str, folder: str) -> bool:
    """`worker.work` on ray: in the folder the sweep was started in, with a command line that repeats the run."""
    os.chdir(folder)
    sys.argv = [worker.__file__, task]
    return worker.work(task)
