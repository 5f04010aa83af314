"""The live table of a sweep, on a terminal, in a notebook, and in a log; the estimate of what is left."""

import io
import os
import sys
from pathlib import Path

import pytest

from toco_lab.runs.run_dir import RunDir
from toco_lab.sweeps import progress
from toco_lab.sweeps.grid import Grid
from toco_lab.sweeps.worker import record_failure


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A sweep of six runs: one done before, one that runs, one that has just failed, three that wait."""
    made = Grid(
        name="test", preset="smoke", overrides={"steps": 2}, rows={"a": {}, "b": {"w_ptc": 0.0}}, seeds=[0, 7, 3]
    )
    runs = made.runs(tmp_path)
    old = RunDir.create(runs[0].config, runs[0].folder.parent)
    old.set_status("done", seconds=60.0)
    for name in ("protocol.json", "smoothing.csv"):
        (old.path / name).write_text("{}")
    waiting = RunDir.create(runs[3].config, runs[3].folder.parent)  # was begun by an earlier sweep
    os.utime(waiting.path / "config.json", (1, 1))
    (tmp_path / "test/grid.yaml").write_text("")

    def make() -> progress.Board:
        shown = progress.Board(made, runs, {run.folder for run in runs[1:]}, slots=2, progress=True)
        RunDir.create(runs[1].config, runs[1].folder.parent).append_metrics({"step": 1})
        record_failure(runs[2].folder, "ValueError: no\nmore", "Traceback ...")
        shown.end(runs[2].folder)
        return shown

    return make


def test_the_table_on_a_terminal_is_drawn_over_itself(board, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress.shutil, "get_terminal_size", lambda: os.terminal_size((80, 24)))
    shown = board()
    shown.refresh()
    shown.refresh()  # too early to draw again
    head, *rows = screen.getvalue().removeprefix("\x1b[J").splitlines()
    assert head.startswith("test: 1 done, 1 running, 3 waiting, 1 failed; 0:00:")
    assert head.endswith(", about 0:01:45 to go")  # three and a half runs of a minute, two at a time
    assert [row.split() for row in rows] == [
        ["seed", "0", "3", "7"],
        ["a", "done", "failed", "1/2"],
        ["b", "waiting", "waiting", "waiting"],
    ]
    shown._refreshed -= 1
    shown.refresh()
    assert screen.getvalue().count("\x1b[4F\x1b[J") == 1  # up by four lines


def test_a_low_terminal_shows_what_runs(board, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress.shutil, "get_terminal_size", lambda: os.terminal_size((30, 5)))
    board().refresh()
    lines = screen.getvalue().splitlines()
    assert len(lines) == 4 and max(map(len, lines[1:])) < 30 and lines[2].split()[0] == "a"


def test_the_table_in_a_notebook_is_updated(board, monkeypatch: pytest.MonkeyPatch) -> None:
    import IPython
    import IPython.display

    calls = []

    class Handle:
        def update(self, bundle, raw):
            calls.append(("update", bundle))

    def display(bundle, *, raw, display_id):
        calls.append(("display", bundle))
        return Handle()

    monkeypatch.setattr(IPython, "get_ipython", lambda: type("Shell", (), {"kernel": None})())
    monkeypatch.setattr(IPython.display, "display", display)
    shown = board()
    shown.refresh()
    shown._refreshed -= 1
    shown.refresh(last=True)
    assert [name for name, _ in calls] == ["display", "update"]
    assert "<td>1/2</td>" in calls[0][1]["text/html"] and "1 failed" in calls[0][1]["text/plain"]
    assert "to go" in calls[0][1]["text/plain"] and "to go" not in calls[1][1]["text/plain"]


def test_without_a_terminal_each_end_is_a_line(board, capsys: pytest.CaptureFixture) -> None:
    shown = board()
    shown.refresh()
    folder = next(run.folder for run in shown._runs if run.seed == 3)
    assert capsys.readouterr() == (f"failed: a, seed 3 ({folder}): ValueError: no\n", "")
