"""One thread, and a clock that is made up: times are never asserted, and where numbers matter no time passes."""

from collections.abc import Iterator

import pytest
import torch

from benchmarks import measure


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The scripts work with one thread, in this process too."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A processor clock that moves when it is told to."""
    now = [0.0]
    monkeypatch.setattr(measure.time, "process_time", lambda: now[0])
    return now
