"""The calls to one tracker, made by a thread of its own: a training never waits for a network and never fails by it."""

import queue
import threading
from collections.abc import Callable

Call = Callable[[], None]


class Lane:
    """Makes calls one after another. The first that fails is said, and those after it are left out.

    Attributes:
        open: Whether no call has failed yet.
    """

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        """Starts the thread.

        Args:
            name: Of the tracker.
            say: Called once, with what went wrong.
        """
        self.open = True
        self._name, self._say = name, say
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, call: Call) -> None:
        """Have a call made soon; returns at once."""
        if self.open:
            self._calls.put(call)

    def close(self, seconds: float) -> None:
        """Wait until all calls are made, at most so many seconds; what is not made by then is left out."""
        self._calls.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._give_up(f"it did not take everything within {seconds:g} seconds")

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self.open:
                try:
                    call()
                except BaseException as error:  # a package may try to leave the program (SystemExit)
                    self._give_up(f"{type(error).__name__}: {error}")

    def _give_up(self, reason: str) -> None:
        was_open, self.open = self.open, False
        if was_open:
            self._say(" ".join(f"{self._name} gets nothing more of this run: {reason}".split())[:600])
