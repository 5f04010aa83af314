"""What the cases measure with: processor time in alternating rounds, parts of a call, peak memory, growth.

Processor time of one thread changes less on a busy machine than the clock does, and the ratio of two things that are
measured in turn less than either of them: ratios are taken within a round, then their median.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from tqdm import trange

Places = Mapping[str, Sequence[tuple[Any, str]]]  # part -> functions, as (owner, name)

CPU = torch.device("cpu")

# --- time -------------------------------------------------------------------------------------------------------------


def processor_seconds() -> float:
    """Time that this process has spent on processors."""
    return time.process_time()


def clock_of(device: torch.device) -> Callable[[], float]:
    """What tells time for work on a device: processor time, or on a GPU the clock after all it was asked to do."""

    def after_the_gpu() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return after_the_gpu if device.type == "cuda" else processor_seconds


def rounds(
    calls: Mapping[Any, Callable[[], Any]], repeats: int, clock: Callable[[], float] = processor_seconds
) -> pd.DataFrame:
    """Seconds of calls that take turns: a row per round, a column per call; one more round is not counted."""
    rows = []
    for _ in trange(repeats + 1, unit="round", leave=False):
        row = {}
        for name, call in calls.items():
            began = clock()
            call()
            row[name] = clock() - began
        rows.append(row)
    return pd.DataFrame(rows[1:])


def ratio(seconds: pd.DataFrame, name: Any, base: Any) -> float:
    """Median over the rounds of one call's time over another's."""
    return float((seconds[name] / seconds[base]).median())


def growth_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """k of values ~ sizes ** k: the slope of the least-squares line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


@contextmanager
def timed(places: Places) -> Iterator[dict[str, float]]:
    """Processor seconds of each part, as they add up; a part within another one counts for the outer one alone."""
    seconds, inside = dict.fromkeys(places, 0.0), []

    def measured(part: str, call: Callable) -> Callable:
        def run(*arguments: Any, **options: Any) -> Any:
            if inside:
                return call(*arguments, **options)
            inside.append(part)
            began = time.process_time()
            try:
                return call(*arguments, **options)
            finally:
                seconds[part] += time.process_time() - began
                inside.clear()

        return run

    with ExitStack() as stack:
        for part, owners in places.items():
            for owner, name in owners:
                stack.enter_context(patch.object(owner, name, measured(part, getattr(owner, name))))
        yield seconds


# --- memory -----------------------------------------------------------------------------------------------------------


def peak_megabytes_of(call: Callable[[], Any]) -> tuple[float, float]:
    """Largest resident memory of this process during a call, and that without what it had before; NaN but on Linux."""
    if not (clear := Path("/proc/self/clear_refs")).exists():
        return float("nan"), float("nan")
    before = _resident("VmRSS")
    clear.write_text("5")  # getrusage would remember what came before the call, and what the parent process took
    call()
    peak = _resident("VmHWM")
    return peak, peak - before


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(f"{field}:"))


def in_a_fresh_process(call: Callable, *arguments: Any) -> Any:
    """The result of a function of a benchmark, called in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()
