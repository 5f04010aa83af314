"""Workers: what ends them, what is tried again, who stops when."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toco_lab.sweeps import executors, forked, worker
from toco_lab.sweeps.executors import LocalExecutor, LostRun

ROOT = Path(__file__).resolve().parents[2]


def workers(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Workers that run this code, not a sweep's run, in a Python of their own."""
    monkeypatch.setattr(forked, "CAN_FORK", False)
    monkeypatch.setattr(executors, "_WORKER", [sys.executable, "-c", f"import os, sys, time, signal\n{code}\n"])


def all_ended(pool: LocalExecutor, count: int) -> dict[Path, LostRun | None]:
    over, deadline = {}, time.monotonic() + 60
    while len(over) < count and time.monotonic() < deadline:
        over |= pool.ended()
        time.sleep(0.02)
    return over


def test_what_ends_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
print("started", flush=True)
what = sys.argv[1]
if what == "kill": os.kill(os.getpid(), signal.SIGKILL)
if what == "once" and not os.path.exists("mark"):
    open("mark", "w").close(); os.kill(os.getpid(), signal.SIGSEGV)
sys.exit({"known": 3}.get(what, 0) if what != "crash" else "no such module")"""
    workers(monkeypatch, code)
    monkeypatch.chdir(tmp_path)
    pool = LocalExecutor(2)
    for what in ("kill", "once", "known", "crash", "fine"):
        pool.submit(tmp_path / what, what)
    over = {folder.name: lost for folder, lost in all_ended(pool, 5).items()}
    assert over["fine"] is over["known"] is over["once"] is None
    assert over["kill"].error.startswith("the worker was killed by SIGKILL 3 times")
    assert over["crash"] == LostRun("the worker ended with exit code 1: no such module", "started\nno such module")
    assert (tmp_path / "kill/output.txt").read_text().count("started\n") == 3
    assert "killed by SIGSEGV; started again (1 of 2)" in (tmp_path / "once/output.txt").read_text()


def test_workers_share_the_cores_and_no_more_than_asked_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers(monkeypatch, "print(os.environ['OMP_NUM_THREADS']); sys.stdin.read()")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    pool = LocalExecutor(3)
    for number in range(5):
        pool.submit(tmp_path / str(number), "")
    assert pool.ended() == {} and len(pool._running) == 3
    for process in list(pool._running.values()):
        process.stdin.close()
    all_ended(pool, 3)
    assert len(pool._running) == 2 and (tmp_path / "0/output.txt").read_text() == "2\n"
    pool.close()
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert LocalExecutor(3)._environment["OMP_NUM_THREADS"] == "5"


def test_close_interrupts_and_kills_who_does_not_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
if sys.argv[1] == "deaf": signal.signal(signal.SIGINT, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)"""
    workers(monkeypatch, code)
    monkeypatch.setattr(executors, "_STOP_SECONDS", 1.0)
    pool = LocalExecutor(2)
    for what in ("deaf", "hears"):
        pool.submit(tmp_path / what, what)
    pool.ended()
    started = list(pool._running.values())
    deadline = time.monotonic() + 30
    while not all((tmp_path / what / "output.txt").read_text() for what in ("deaf", "hears")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pool.close()
    assert [worker.returncode for worker in started] == [-signal.SIGKILL, -signal.SIGINT]


def test_a_worker_ends_with_its_parent() -> None:
    code = "import time\nfrom toco_lab.sweeps import worker\nworker.work = lambda task: time.sleep(60)\nworker.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "{}"], stdin=subprocess.PIPE, env=os.environ | {worker.BOUND: "1"}, cwd=ROOT
    )
    process.stdin.close()  # as when the sweep was killed
    assert process.wait(50) == 1


def test_runs_that_fit_on_a_machine() -> None:
    node = {"CPU": 8.0, "GPU": 2.0}
    assert executors._fits(node, 1, 1) == 2 and executors._fits(node, 0.5, 1) == 4
    assert (
        executors._fits(node, 0, 3) == 2
        and executors._fits(node, 3, 1) == 0
        and executors._fits({"CPU": 8.0}, 1, 1) == 0
    )
