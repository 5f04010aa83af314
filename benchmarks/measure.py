"""What the benchmarks share: processor time in alternating rounds, peak memory, growth, and the written table.

Processor time of one thread changes less on a busy machine than the clock does, and the ratio of two things that are
measured in turn less than either of them: ratios are taken within a round, then their median.
"""

import argparse
import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # scipy's LAPACK, loaded below, has threads of its own

from toco_lab.files import atomic_write
from toco_lab.runs.environment import environment

RESULTS = Path(__file__).parent / "results"
Places = Mapping[str, Sequence[tuple[Any, str]]]  # part -> functions, as (owner, name)

# --- time -------------------------------------------------------------------------------------------------------------


def rounds(
    calls: Mapping[str, Callable[[], Any]], repeats: int, advance: Callable[[], Any] = lambda: None
) -> pd.DataFrame:
    """Processor seconds of calls that take turns: a row per round, a column per call; one more round is not counted.

    Args:
        calls: What to measure, by name.
        repeats: Rounds that count.
        advance: Called after each call, `repeats + 1` times as many as there are calls.
    """
    rows = []
    for _ in range(repeats + 1):
        row = {}
        for name, call in calls.items():
            began = time.process_time()
            call()
            row[name] = time.process_time() - began
            advance()
        rows.append(row)
    return pd.DataFrame(rows[1:])


def ratio(seconds: pd.DataFrame, name: str, base: str) -> float:
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
    """Largest resident memory of this process during a call, and that without what it had before (Linux)."""
    before = _resident("VmRSS")
    # getrusage would remember what came before the call, and what the parent process took
    Path("/proc/self/clear_refs").write_text("5")
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


# --- the table --------------------------------------------------------------------------------------------------------


def parser_of(document: str, *, repeats: int) -> argparse.ArgumentParser:
    """A command line with what all benchmarks take.

    Args:
        document: The script's docstring; its first line is the help.
        repeats: Rounds by default.
    """
    parser = argparse.ArgumentParser(description=document.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=repeats, help=f"rounds that count ({repeats})")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV and the Markdown table")
    return parser


def origin(script: str, arguments: Iterable[str] | None) -> dict[str, str]:
    """Columns that say where numbers come from: machine, versions, commit, command."""
    made = environment("cpu")
    git, packages = made["git"], made["packages"]
    given = [*map(str, sys.argv[1:] if arguments is None else arguments)]
    if "--out" in given:  # where it was written is not how it was measured
        del given[(place := given.index("--out")) : place + 2]
    return {
        "machine": f"{made['device']}, {made['cpu_count']} cores",
        "versions": f"python {made['python']}, torch {packages['torch']}, timm {packages['timm']}",
        "commit": git["commit"][:9] if git else "unknown",
        "command": shlex.join(["python", f"benchmarks/{Path(script).name}", *given]),
    }


def origin_lines(about: Mapping[str, str]) -> list[str]:
    """The end of a Markdown section: what `origin` says."""
    return ["", f"{about['machine']}; {about['versions']}; commit {about['commit']}.", "", f"    {about['command']}"]


def markdown_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heading, *rows)]
    return [lines[0], "|---" * len(heading) + "|", *lines[1:]]


def merged(path: Path, table: pd.DataFrame, column: str, order: Iterable[str]) -> pd.DataFrame:
    """The rows that are kept in a file with those just measured in the place of theirs.

    Args:
        path: The CSV, which need not be there.
        table: New rows.
        column: Old rows with a value of theirs go.
        order: All values of the column, in the order of the result.
    """
    kept = pd.read_csv(path) if path.is_file() else table[:0]
    parts = [table, kept[~kept[column].isin(table[column])]]
    both = pd.concat([part for part in parts if len(part)], ignore_index=True)
    places = both[column].map(list(order).index)
    return both.iloc[places.argsort(kind="stable")]


def write(path: Path, table: pd.DataFrame, text: str) -> None:
    """Write a table as `path`, a CSV, and a text beside it as .md."""
    with atomic_write(path, "w") as file:
        table.to_csv(file, index=False, lineterminator="\n")
    with atomic_write(path.with_suffix(".md"), "w") as file:
        file.write(text)
