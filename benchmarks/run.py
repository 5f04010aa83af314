"""The one runner: `python -m benchmarks [CASE[/SETTING] ...] [--repeats N]`.

    python -m benchmarks                                   # every case at modest settings, about an hour
    python -m benchmarks crf training_step/toy --repeats 9
    python -m benchmarks.summary                           # then the table of targets in docs/speed.md

A case is a file of this folder with a `CASE`: its settings, how one is measured, how its rows read. The runner adds
where the numbers come from and writes `results/<case>.csv` and `.md`; settings that are not asked for keep the rows
they have there.
"""

import argparse
import importlib
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # scipy's LAPACK, which pandas may load, has threads of its own

import pandas as pd

from toco_lab.files import atomic_write
from toco_lab.runs.environment import environment

RESULTS = Path(__file__).parent / "results"
CASES = (
    "training_step", "operations", "pieces", "inference", "crf", "metrics", "growth", "startup", "loader",
    "cam_explorer", "token_explorer", "packages", "many_runs", "small_machine", "gpu_step", "gpu_inference",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One benchmark.

    Attributes:
        about: What its numbers are, at the head of the Markdown.
        settings: Name -> what `measure` needs to know of it.
        measure: From (what `settings` holds, rounds) to rows.
        section: From the rows of one setting to the lines of its Markdown section.
        default: Settings that are measured where none is asked for; all by default.
        repeats: Rounds by default.
        missing: What it needs and this machine does not have; "" if nothing.
    """

    about: str
    settings: Mapping[str, Any]
    measure: Callable[[Any, int], pd.DataFrame]
    section: Callable[[pd.DataFrame], list[str]]
    default: Sequence[str] = ()
    repeats: int = 3
    missing: Callable[[], str] = lambda: ""


def case_of(name: str) -> Case:
    """A case by the name of its file."""
    return importlib.import_module(f"benchmarks.{name}").CASE


def run(name: str, settings: Sequence[str] = (), repeats: int | None = None, out: Path = RESULTS) -> str:
    """Measure a case, write its table and return its Markdown.

    Args:
        name: Among `CASES`.
        settings: Some of its settings; by default those of the case.
        repeats: Rounds that count, instead of those of the case.
        out: Folder of the CSV and the Markdown file.
    """
    import torch

    case, path = case_of(name), out / f"{name}.csv"
    repeats = case.repeats if repeats is None else repeats
    torch.set_num_threads(1)
    for setting in settings or case.default or case.settings:
        rows = case.measure(case.settings[setting], repeats).assign(repeats=repeats, **origin(name, setting, repeats))
        rows.insert(0, "setting", setting)
        table = merged(path, rows.round(5), list(case.settings))
        text = markdown(case, table)
        write(path, table, text)
    return text


def origin(name: str, setting: str, repeats: int) -> dict[str, str]:
    """Columns that say where numbers come from: machine, versions, commit, command."""
    made = environment("cpu")
    git, packages = made["git"], made["packages"]
    return {
        "machine": f"{made['device']}, {made['cpu_count']} cores",
        "versions": f"python {made['python']}, torch {packages['torch']}, timm {packages['timm']}",
        "commit": git["commit"][:9] if git else "unknown",
        "command": shlex.join(["python", "-m", "benchmarks", f"{name}/{setting}", "--repeats", str(repeats)]),
    }


def merged(path: Path, rows: pd.DataFrame, settings: list[str]) -> pd.DataFrame:
    """The table that is kept in a file with the rows just measured in the place of theirs, in the order of settings."""
    kept = pd.read_csv(path) if path.is_file() else rows[:0]
    parts = [rows, kept[~kept["setting"].isin(rows["setting"])]]
    both = pd.concat([part for part in parts if len(part)], ignore_index=True)
    return both.iloc[both["setting"].map(settings.index).argsort(kind="stable")]


def markdown(case: Case, table: pd.DataFrame) -> str:
    """The text beside a table: a section per setting, each with where its numbers come from."""
    lines = [case.about]
    for setting, rows in table.groupby("setting", sort=False):
        made = rows.iloc[0]
        lines += ["", f"## {setting}", "", *case.section(rows), ""]
        times = "1 round" if made["repeats"] == 1 else f"{made['repeats']} rounds"
        lines += [f"{times}; {made['machine']}; {made['versions']}; commit {made['commit']}.", ""]
        lines += [f"    {made['command']}"]
    return "\n".join([*lines, ""])


def markdown_table(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (heading, *rows)]
    return [lines[0], "|---" * len(heading) + "|", *lines[1:]]


def write(path: Path, table: pd.DataFrame, text: str) -> None:
    """Write a table as `path`, a CSV, and a text beside it as .md."""
    with atomic_write(path, "w") as file:
        table.to_csv(file, index=False, lineterminator="\n")
    with atomic_write(path.with_suffix(".md"), "w") as file:
        file.write(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for, print and write it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE[/SETTING]", help=f"all by default: {', '.join(CASES)}")
    parser.add_argument("--repeats", type=int, help="rounds that count, instead of those of the case")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSVs and the Markdown files")
    args = parser.parse_args(arguments)
    wanted: dict[str, list[str]] = {}
    for word in args.cases or CASES:
        name, _, setting = word.partition("/")
        if name not in CASES:
            parser.error(f"no case {name}; there are: {', '.join(CASES)}")
        if setting and setting not in (known := case_of(name).settings):
            parser.error(f"no setting {setting} of {name}; there are: {', '.join(known)}")
        wanted.setdefault(name, []).extend([setting] if setting else [])
    for name, settings in wanted.items():
        if missing := case_of(name).missing():
            if args.cases:
                sys.exit(f"{name}: {missing}; nothing was measured")
            print(f"{name}: {missing}; left out\n")
            continue
        print(run(name, settings, args.repeats, args.out))
