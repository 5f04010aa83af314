"""Forked workers: as one that was started anew, but for the time that imports take."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from toco_lab.runs.run_dir import RunDir
from toco_lab.sweeps import executors, fork_server, forked
from toco_lab.sweeps.executors import LocalExecutor, LostRun
from toco_lab.sweeps.forked import ForkedProcess
from toco_lab.sweeps.grid import Grid
from toco_lab.sweeps.sweep import run_sweep
from toco_lab.sweeps.worker import BOUND, Task

pytestmark = pytest.mark.skipif(not forked.CAN_FORK, reason="processes are forked on Linux alone")
ROOT = Path(__file__).resolve().parents[2]


def smoke(**changes) -> Grid:
    overrides = {"steps": 2, "val_images": 1, "token_snapshots": 0, "probe_images": 1}
    return Grid(name="test", preset="smoke", overrides=overrides, **changes)


def ended(pool: LocalExecutor) -> dict[Path, LostRun | None]:
    deadline = time.monotonic() + 200
    while not (over := pool.ended()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return over


def test_runs_are_those_of_workers_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same numbers to the bit, same record, but for times and numbers of processes."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    table = run_sweep(smoke(), root=tmp_path / "forked", progress=False)
    monkeypatch.setattr(forked, "CAN_FORK", False)
    run_sweep(smoke(), root=tmp_path / "anew", progress=False)
    assert table["state"].tolist() == ["done"]
    one, other = (tmp_path / root / "test" / table["run"][0] for root in ("forked", "anew"))
    for name in ("metrics.csv", "evaluation.csv", "smoothing.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
    records = [RunDir(folder).read_json("env")[0] for folder in (one, other)]
    assert {name for name in records[0] if records[0][name] != records[1][name]} <= {"process", "start", "command"}
    assert [len(record["command"]) for record in records] == [2, 2]


def test_threads_are_those_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library reads them when it is imported: children of another number have another server."""
    monkeypatch.setattr(forked, "_servers", {})
    kernels = {}
    for number in ("1", "2"):
        env = {**os.environ, "OMP_NUM_THREADS": number}
        (tmp_path / number).mkdir()
        argv = ["--IPKernelApp.exec_lines=import torch; open('threads', 'w').write(str(torch.get_num_threads()))"]
        kernels[number] = ForkedProcess("kernel", argv, env=env, cwd=tmp_path / number)
        assert forked._server_for(env | {"OTHER": "1"}) is kernels[number]._server
    assert kernels["1"]._server is not kernels["2"]._server
    for number, kernel in kernels.items():
        said = tmp_path / number / "threads"
        until(lambda said=said: said.is_file() and said.read_text() != "")
        kernel.kill()
        assert int(said.read_text()) == min(int(number), os.cpu_count())  # torch starts no more than there are cores


def test_a_changed_package_is_imported_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child is of the code that is there when it starts, as its record says."""
    server = forked._server_for(os.environ)
    assert forked._server_for(os.environ) is server and server.is_usable()
    monkeypatch.setattr(forked, "_newest_source", lambda: server._source + 1)
    assert not server.is_usable()


def until(happened: Callable[[], bool], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.02)


def test_no_room_for_another_process_stops_none_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    replies = io.StringIO()
    fork_server.serve(io.StringIO('{"id": 1, "start": {}}\n{"id": 2, "start": {}}\n'), replies)
    first, second = map(json.loads, replies.getvalue().splitlines())
    assert first == {"id": 1, "error": "[Errno 11] Resource temporarily unavailable"} and second["id"] == 2


def test_a_server_that_dies_before_a_run_starts_is_no_failure_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(*args: object, **options: object) -> None:
        raise forked.ServerError("the process that starts others ended with exit code -9")

    pool = LocalExecutor()
    pool.submit(tmp_path / "run", "no task")
    with monkeypatch.context() as patch:
        patch.setattr(executors, "ForkedProcess", died)
        (lost,) = ended(pool).values()
    assert lost == LostRun("the process that starts others ended with exit code -9")
    printed = (tmp_path / "run/output.txt").read_text().splitlines()
    assert [line.rpartition("; ")[2] for line in printed] == ["started again (1 of 2)", "started again (2 of 2)"]


def test_a_worker_that_fails_at_once_says_why(tmp_path: Path) -> None:
    pool = LocalExecutor()
    pool.submit(tmp_path / "run", "no task")
    (lost,) = ended(pool).values()
    assert lost and lost.error.startswith("the worker ended with exit code 1: json.decoder.JSONDecodeError: Expecting")
    assert "worker.py" in lost.trace and lost.trace == "\n".join((tmp_path / "run/output.txt").read_text().splitlines())


def test_a_server_that_is_killed_takes_its_workers_with_it_and_they_are_started_again(tmp_path: Path) -> None:
    (run,) = smoke().runs(tmp_path)
    pool = LocalExecutor()
    pool.submit(run.folder, Task.of(smoke(), run).to_json())
    assert pool.ended() == {}
    (process,) = pool._running.values()
    server = process._server._process
    until((run.folder / "config.json").is_file)  # it works
    server.kill()
    psutil.wait_procs([psutil.Process(process.pid)] if psutil.pid_exists(process.pid) else [], timeout=20)
    assert not psutil.pid_exists(process.pid) or psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
    assert ended(pool) == {run.folder: None}
    assert "killed by SIGKILL; started again (1 of 2)" in (run.folder / "output.txt").read_text()


def test_signals_and_waiting(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != BOUND}
    waits = ForkedProcess("kernel", [f"--IPKernelApp.connection_file={tmp_path}/k.json"], env=env, cwd=tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        waits.wait(0.2)
    assert waits.poll() is None
    waits.kill()
    assert waits.wait(20) == waits.poll() == -signal.SIGKILL
    waits.terminate()  # it has ended: nobody gets the signal


class MadeUp:
    """A server process that answers what it is told to, and is interrupted where that is an error."""

    def __init__(self, *replies: str | type[BaseException]) -> None:
        self.stdin, self.stdout, self.replies, self.ended = io.StringIO(), self, list(replies), None

    def readline(self) -> str:
        reply = self.replies.pop(0)
        if isinstance(reply, str):
            return reply
        raise reply

    def poll(self) -> int | None:
        return self.ended

    wait = poll

    def kill(self) -> None:
        self.ended = -signal.SIGKILL


def test_interrupted_between_question_and_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C: what is started then would be nobody's, and a lost answer is no other's."""
    process = MadeUp(KeyboardInterrupt, '{"id": 1, "code": 5}\n', '{"id": 2, "code": 6}\n', KeyboardInterrupt, "")
    monkeypatch.setattr(forked.subprocess, "Popen", lambda *args, **options: process)
    server = forked._Server({})
    with pytest.raises(KeyboardInterrupt):
        server.ask(poll=1)
    assert server.is_usable() and server.ask(poll=1)["code"] == 6
    with pytest.raises(KeyboardInterrupt):
        server.ask(start={})
    assert not server.is_usable()
    with pytest.raises(forked.ServerError, match="exit code -9"):
        server.ask(poll=1)


def test_it_is_this_package_that_is_forked(tmp_path: Path) -> None:
    """A copy that is not the installed one makes its own runs."""
    copy = shutil.copytree(ROOT / "toco_lab", tmp_path / "copy/toco_lab", ignore=shutil.ignore_patterns("*.pyc"))
    server = str(copy / "sweeps/fork_server.py")
    code = f"import runpy; runpy.run_path({server!r})['_use_this_package'](); import toco_lab; print(toco_lab.__file__)"
    printed = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert Path(printed.strip()) == copy / "__init__.py"
