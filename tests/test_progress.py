"""Progress: a bar where it can be drawn anew, else plain lines at intervals."""

import io
import sys

import pytest
from tqdm import tqdm

from toco_lab import progress
from toco_lab.progress import Lines, progress_bar


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """A clock that is moved by hand."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_gets_a_bar_and_a_file_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", _Terminal())
    assert isinstance(drawn := progress_bar(range(3), "work"), tqdm) and not drawn.disable
    assert list(drawn) == [0, 1, 2] and "work: 100%" in sys.stderr.getvalue()
    assert progress_bar(range(3), shown=False).disable
    with progress.quiet():
        assert progress_bar(range(3)).disable and progress.is_quiet()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert isinstance(progress_bar(range(3)), Lines)


def test_lines_at_intervals_with_what_is_to_go(clock: list[float], capsys: pytest.CaptureFixture) -> None:
    work = Lines(range(6), "toy-1", 10, unit="step", initial=4)
    for number in work:
        clock[0] += 15.0
        work.set_postfix(loss=f"{number:.1f}")
    assert capsys.readouterr().err.splitlines() == [
        "toy-1: step 6 of 10, 0:00:30 passed, about 0:01:00 to go, loss 1.0",
        "toy-1: step 8 of 10, 0:01:00 passed, about 0:00:30 to go, loss 3.0",
        "toy-1: step 10 of 10, 0:01:30 passed, about 0:00:00 to go, loss 5.0",
    ]


def test_a_short_work_leaves_no_line_and_a_long_one_a_last(clock: list[float], capsys: pytest.CaptureFixture) -> None:
    with Lines((), "images", 4, unit="image", initial=0) as work:
        work.update(2)
        clock[0] += 19.0
        work.update()
    assert capsys.readouterr().err == ""
    with Lines((), "", None, unit="image", initial=0) as work:
        clock[0] += 20.0
        work.update(2)
        work.update(3)
    assert capsys.readouterr().err == "image 2, 0:00:20 passed\nimage 5, 0:00:20 passed\n"
