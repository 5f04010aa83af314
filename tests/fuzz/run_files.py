"""The files of a run, of which one is spoilt: reading a run and listing all of them."""

import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
from helpers.finished_runs import make_run

from toco_lab.config import Config
from toco_lab.runs.listing import list_runs
from toco_lab.runs.run_dir import RunDir
from toco_lab.runs.scores import rows_of_runs, run_scores

from .cases import Case, by_command
from .mutate import dumps, spoil, spoil_json


@functools.cache
def _finished() -> Path:
    return make_run(Path(tempfile.mkdtemp(prefix="toco_lab_fuzz_run_")), name="one").path


def _spoilt_run(rng: Random, folder: Path) -> tuple[Path, str, str]:
    """A run with one spoilt file: its folder, the name of the file, what was done."""
    run = folder / "runs/one"
    shutil.copytree(_finished(), run)
    name = rng.choice(
        ("config.json", "status.json", "env.json", "protocol.json", "evaluation.csv", "metrics.csv", "smoothing.csv")
    )
    path = run / name
    if name.endswith(".json") and rng.random() < 0.7:
        what, value = spoil_json(rng, json.loads(path.read_text()))
        path.write_bytes(dumps(value))
    else:
        what, data = spoil(rng, path.read_bytes())
        path.write_bytes(data)
    return run, name, f"{name}: {what}"


def run_file(rng: Random, folder: Path) -> Case:
    """What Python reads of a run."""
    path, name, what = _spoilt_run(rng, folder)

    def read() -> tuple[Any, ...]:
        run = RunDir(path)
        table = run.read_table("smoothing")
        return run.config(), run.status(), run.metrics(), run_scores(run), run.read_json("protocol"), table

    readers: dict[str, Callable[[], Any]] = {
        "all": read,
        "scores": lambda: rows_of_runs([RunDir(path)]),
        "continue": lambda: RunDir.create(Config.preset("toy"), path.parent, name="one").status(),
    }
    how = rng.choice(list(readers))

    def wrong(found: Any) -> str:
        if how == "continue":
            return "" if found["state"] in ("new", "running", "done", "failed") else f"{found}"
        return ""

    names = [name, *(["config", "field"] if name == "config.json" else [])]
    return Case(f"{what}, {how}", readers[how], names, wrong)


def runs_list(rng: Random, folder: Path) -> Case:
    """A listing is never stopped by one run: it says of the spoilt one what is wrong, and shows the sound one."""
    _, name, what = _spoilt_run(rng, folder)
    shutil.copytree(_finished(), folder / "runs/two")
    root = folder / "runs"
    if rng.random() < 0.3:
        command = by_command("runs", "list", "--root", str(root), *rng.choice(((), ("--csv", str(folder / "all.csv")))))
        return Case(f"{what}, command", command, [name], lambda found: "" if "two" in found else f"{found}", sound=True)

    def wrong(table: pd.DataFrame) -> str:
        rows = table.set_index("run")
        if rows.loc["two", "state"] != "done":
            return f"the sound run is {rows.loc['two', 'state']}"
        if len(rows) == 2 and rows.loc["one", "state"] == "unreadable":
            said = str(rows.loc["one", "error"])
            return "" if name in said else f"unreadable without the name of the file: {said}"
        return ""

    return Case(what, lambda: list_runs(root, everything=True), [name], wrong, sound=True)
