"""Forked workers: as one that was started anew, but for the time that imports take."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from toco_lab.sweeps import forked
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
    """Same numbers to the bit; the file of what a worker prints, its threads and its record are its own."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    table = run_sweep(smoke(), root=tmp_path / "forked", progress=False)
    monkeypatch.setattr(forked, "CAN_FORK", False)
    run_sweep(smoke(), root=tmp_path / "anew", progress=False)
    assert table["state"].tolist() == ["done"]
    one, other = (tmp_path / root / "test" / table["run"][0] for root in ("forked", "anew"))
    for name in ("metrics.csv", "evaluation.csv", "smoothing.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())


def test_threads_are_those_of_the_environment(tmp_path: Path) -> None:
    """A library reads them when it is imported: workers of another number have another server."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    one, same = forked._server_for(env), forked._server_for(env | {"OTHER": "1"})
    assert one is same and one is not forked._server_for(env | {"OMP_NUM_THREADS": "3"})


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
    while not (run.folder / "config.json").is_file():  # it works
        time.sleep(0.02)
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


def test_an_interrupted_question_ends_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between question and answer: what it starts then would be nobody's."""
    server = forked._Server(os.environ)

    class Interrupted:
        def readline(self) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr(server._process, "stdout", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        server.ask(poll=1)
    assert server._process.wait(20) == -signal.SIGKILL and not server.is_alive()


def test_it_is_this_package_that_is_forked(tmp_path: Path) -> None:
    """A copy that is not the installed one makes its own runs."""
    copy = shutil.copytree(ROOT / "toco_lab", tmp_path / "copy/toco_lab", ignore=shutil.ignore_patterns("*.pyc"))
    server = str(copy / "sweeps/fork_server.py")
    code = f"import runpy; runpy.run_path({server!r})['_use_this_package'](); import toco_lab; print(toco_lab.__file__)"
    printed = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert Path(printed.strip()) == copy / "__init__.py"
