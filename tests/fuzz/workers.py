"""Cases in a process of their own: one that hangs or takes the interpreter with it ends only that process."""

import multiprocessing
import os
import random
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from .cases import CRASHED, Maker, Outcome, judge

_FORK = multiprocessing.get_context("fork")  # what is imported once need not be imported again
_CASES_OF_A_PROCESS = 200
_PATIENCE = 3  # times as long, for a case that hangs

Named = tuple[str, int]  # kind and number of a case; with the seed of the campaign they make it


def run_cases(
    kinds: Mapping[str, Maker], cases: Iterable[Named], seed: int, *, timeout: float
) -> Iterator[tuple[Named, Outcome]]:
    """What becomes of each case. One that does not end is tried again with more time: other work may hold it up.

    Args:
        kinds: Of inputs.
        cases: Which.
        seed: Of the campaign.
        timeout: Seconds after which a case hangs.
    """
    worker = _Worker(kinds, seed)
    try:
        for named in cases:
            if worker.done >= _CASES_OF_A_PROCESS:
                worker = worker.replaced()
            outcome = worker.ask(named, timeout)
            if outcome is None:
                worker = worker.replaced()
                outcome = worker.ask(named, _PATIENCE * timeout)
            if outcome is None:
                outcome = Outcome(CRASHED, "a hang", f"it did not end within {_PATIENCE * timeout:g} s")
            if outcome.outcome == CRASHED:
                worker = worker.replaced()
            yield named, outcome
    finally:
        worker.stop()


class _Worker:
    def __init__(self, kinds: Mapping[str, Maker], seed: int) -> None:
        self.connection, theirs = _FORK.Pipe()
        with warnings.catch_warnings():  # of a fork beside threads: they wait, and nothing of theirs is used
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process = _FORK.Process(target=_serve, args=(kinds, seed, theirs), daemon=True)
            self.process.start()
        theirs.close()
        self.done, self.made_of = 0, (kinds, seed)

    def ask(self, named: Named, timeout: float) -> Outcome | None:
        """What becomes of a case; None if it does not end in time."""
        self.done += 1
        self.connection.send(named)
        if not self.connection.poll(timeout):
            return None
        try:
            return self.connection.recv()
        except EOFError:
            self.process.join()
            return Outcome(CRASHED, "the end", f"the process ended with code {self.process.exitcode}")

    def replaced(self) -> "_Worker":
        """A new process in place of this one."""
        self.stop()
        return _Worker(*self.made_of)

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(kinds: Mapping[str, Maker], seed: int, connection: Connection) -> None:
    warnings.simplefilter("ignore")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1), os.dup2(quiet, 2)  # decoders in C complain there
    while True:
        try:
            kind, number = connection.recv()
        except EOFError:
            return
        connection.send(outcome_of(kinds[kind], kind, number, seed))


def outcome_of(maker: Maker, kind: str, number: int, seed: int) -> Outcome:
    """Make a case in an empty folder, and judge it."""
    rng = random.Random(f"{seed}/{kind}/{number}")
    with tempfile.TemporaryDirectory(prefix="toco_lab_fuzz_") as folder:
        return judge(maker(rng, Path(folder)))
