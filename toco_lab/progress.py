"""How far a long work is: a bar on a terminal and in a notebook, plain lines at intervals in a file or pipe."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Generic, TypeVar

from tqdm import tqdm

LINE_SECONDS = 20.0  # between two plain lines; a work that ends sooner leaves none
Item = TypeVar("Item")
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, no progress is shown."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def is_quiet() -> bool:
    """Whether progress is left out."""
    return _quiet.get()


def draws_bars() -> bool:
    """Whether the standard error is drawn on again and again: a terminal, or a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return sys.stderr.isatty() or hasattr(shell, "kernel")


def progress_bar(
    items: Iterable[Item],
    about: str = "",
    total: int | None = None,
    *,
    unit: str = "image",
    initial: int = 0,
    shown: bool = True,
) -> "tqdm[Item] | Lines[Item]":
    """The progress of a work: iterate over it, or call `update`. Close it, or enter it with `with`.

    Args:
        items: What is gone through, by iteration or, with `update`, in groups.
        about: What is done, in a few words.
        total: How many there are; None asks `items`.
        unit: What is counted, in the singular.
        initial: How many were done before.
        shown: False shows nothing.
    """
    shown = shown and not is_quiet()
    if total is None and isinstance(items, Sized):
        total = len(items)
    if shown and not draws_bars():
        return Lines(items, about, total, unit=unit, initial=initial)
    return tqdm(items, about, total, unit=unit, initial=initial, disable=not shown)


class Lines(Generic[Item]):
    """What `tqdm` does of which this package makes use, as lines that a file can hold, on standard error."""

    def __init__(self, items: Iterable[Item], about: str, total: int | None, *, unit: str, initial: int) -> None:
        """See `progress_bar`."""
        self._items, self._about, self._total, self._unit = items, about, total, unit
        self.n = self._first = initial
        self._began = self._last = time.monotonic()
        self._beside, self._said = "", initial  # how many the last line named

    def __iter__(self) -> Iterator[Item]:
        for item in self._items:
            yield item
            self.update()
        self.close()

    def __enter__(self) -> "Lines[Item]":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, done: int = 1) -> None:
        """Count more, and write a line if it is time."""
        self.n += done
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._write()

    def set_postfix(self, **values: Any) -> None:
        """Numbers that stand at the end of the next line."""
        self._beside = "".join(f", {name} {value}" for name, value in values.items())

    def close(self) -> None:
        """A last line, where others came before and something was done since."""
        if self._said not in (self._first, self.n):
            self._write()

    def _write(self) -> None:
        passed = time.monotonic() - self._began
        made = self.n - self._first
        of = f" of {self._total}" if self._total else ""
        left = f", about {_clock(passed / made * (self._total - self.n))} to go" if self._total and made else ""
        about = f"{self._about}: " if self._about else ""
        line = f"{about}{self._unit} {self.n}{of}, {_clock(passed)} passed{left}{self._beside}"
        print(line, file=sys.stderr, flush=True)
        self._last, self._said = time.monotonic(), self.n


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
