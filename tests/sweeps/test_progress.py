"""The bar of a sweep: on a terminal, in a notebook, and in a log."""

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from toco_lab.runs.run_dir import RunDir
from toco_lab.sweeps import progress
from toco_lab.sweeps.grid import Grid, PlannedRun
from toco_lab.sweeps.progress import SweepBar
from toco_lab.sweeps.worker import record_failure

ROWS = {"a": {}, "b": {"w_ptc": 0.0}, "as a": {"log_every": 2}}


@pytest.fixture
def grid() -> Grid:
    return Grid(name="test", preset="smoke", overrides={"steps": 2}, rows=ROWS, seeds=[0, 7])


@pytest.fixture
def todo(grid: Grid, tmp_path: Path) -> list[PlannedRun]:
    """Four runs, two of them asked for by two rows; one was begun by an earlier sweep and is half done."""
    runs = grid.runs(tmp_path)
    begun = next(run for run in runs if (run.row, run.seed) == ("b", 7))
    RunDir.create(begun.config, begun.folder.parent).append_metrics({"step": 1})
    return runs


def fail(run: PlannedRun) -> Path:
    record_failure(run.folder, "ValueError: no\nmore", "Traceback ...")
    return run.folder


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True

    def states(self) -> list[str]:
        """What stood on the line of the bar, one after the other."""
        return [text for text in map(str.strip, re.split(r"[\r\n]", self.getvalue())) if text]


def test_the_bar_moves_with_the_steps_of_runs_and_counts_their_ends(
    grid: Grid, todo: list[PlannedRun], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    monkeypatch.setattr(progress, "_REFRESH_SECONDS", 0.0)
    bar = SweepBar(grid, todo, slots=2, progress=True)
    RunDir.create(todo[0].config, todo[0].folder.parent).append_metrics({"step": 2})
    bar.refresh()
    assert re.match(
        r"test:  38%\|.*\| 1.5 of 4 runs, 00:0\d passed, \S+ to go, 2 running, 0 failed$", screen.states()[-1]
    )
    for run in todo[:3]:
        bar.end(fail(run))
    bar.refresh()
    assert re.search(r" 88%.* 3.5 of 4 runs, .*, 1 running, 3 failed$", screen.states()[-1])
    bar.end(fail(todo[3]))
    bar.close()
    assert re.search(r"100%.* 4.0 of 4 runs, .* 00:00 to go, 0 running, 4 failed$", screen.states()[-1])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4
    assert printed[1] == f"failed: a, seed 7 ({todo[1].folder}): ValueError: no"  # not `as a`, though it is that too


def test_the_bar_is_not_drawn_at_every_look(
    grid: Grid, todo: list[PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    bar = SweepBar(grid, todo, slots=2, progress=True)
    bar.refresh()
    drawn = len(screen.states())
    bar.refresh()
    assert len(screen.states()) == drawn


@pytest.mark.parametrize("notebook", [False, True])
def test_a_log_gets_lines_and_a_notebook_a_bar_as_well(
    grid: Grid,
    todo: list[PlannedRun],
    notebook: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    shell = SimpleNamespace(kernel=object()) if notebook else None
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    bar = SweepBar(grid, todo, slots=2, progress=True)
    bar.end(fail(todo[0]))
    bar.close()
    shown = capsys.readouterr()
    assert shown.out == f"failed: a, seed 0 ({todo[0].folder}): ValueError: no\n"
    assert ("1.5 of 4 runs" in shown.err) == notebook and (not shown.err) != notebook


def test_without_progress_nothing_is_shown(
    grid: Grid, todo: list[PlannedRun], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    bar = SweepBar(grid, todo, slots=2, progress=False)
    bar.end(fail(todo[0]))
    bar.refresh()
    bar.close()
    assert screen.getvalue() == capsys.readouterr().out == ""
