"""Benchmark of what one waits for first."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from helpers.benchmarks import tables

from benchmarks import run, startup

ROOT = Path(__file__).resolve().parents[2]


def test_first_cells_of_the_notebook(tmp_path):
    cells = startup.first_cells(ROOT / "notebooks/00_start_here.ipynb", tmp_path, preset="smoke")
    names: dict = {}
    exec(cells["cell 0"], names)
    assert names["run_dir"] == str(tmp_path) and names["preset"] == "smoke"
    *before, last = cells.values()
    assert "run.show(" in last and "run.show(" not in "".join(before)
    for source in cells.values():
        compile(source, "cell", "exec")  # no magic is left


def test_stages_share_a_process_and_its_errors_are_told():
    found = startup.stages({"make": "print('{'); value = [1]", "use": "value.append(2); assert len(value) == 2"})
    assert found.index.tolist() == ["make", "use"] and (found[["cpu", "wall"]] >= 0).all(axis=None)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        startup.stages({"fail": "1 / 0"})


def test_the_code_that_is_timed_works():
    names: dict = {}
    for code in (*startup.IMPORTS.values(), *startup.FIRST_BATCH.values()):
        exec(code.replace("{preset!r}", "'smoke'"), names)
    assert names["cfg"].preset_name == "smoke"


def test_startup(tmp_path, monkeypatch, capsys):
    counts = iter(range(100))

    def stages(code):
        seconds = {"torch and timm": 4.0, "import toco_lab": 1.0 + next(counts)}
        return pd.DataFrame({"cpu": [seconds.get(name, 2.0) for name in code], "wall": 3.0}, index=list(code))

    monkeypatch.setattr(startup, "stages", stages)
    executed = []
    monkeypatch.setattr(
        startup, "NotebookClient", lambda notebook, **options: SimpleNamespace(execute=lambda: executed.append(options))
    )
    swept = []
    monkeypatch.setattr(startup, "run_sweep", lambda grid, **options: swept.append(startup.forked.CAN_FORK))
    monkeypatch.setattr(startup.forked, "CAN_FORK", True)
    monkeypatch.setattr(startup, "smoke_runs", lambda folder: ["one", "two"])
    monkeypatch.setattr(startup, "build_report", lambda runs, path: path.write_bytes(b"x" * 2_500_000) and [path])
    monkeypatch.setattr(startup, "seconds_to_open", lambda report: None)  # no Chromium
    run.main(["startup", "--repeats", "3", "--out", str(tmp_path)])
    table, text = tables(tmp_path, "startup")
    table = table.set_index("what")
    # three calls a round: 0 is not counted, then 3, 6 and 9
    assert table.loc["import toco_lab", "cpu"] == 7 and table.loc["import toco_lab", "to_base"] == 7 / 4
    assert table.loc["imports, model and first batch", "cpu"] == 6
    assert table.loc[startup.OWN_KERNEL, "to_base"] == 1 and table.loc["the same in a forked kernel", "to_base"] > 0
    kinds = [options["kernel_manager_class"].__name__ for options in executed]
    assert kinds == ["AsyncKernelManager", "WarmKernelManager"] * 4
    assert swept == [False, True] * 4 and startup.forked.CAN_FORK
    assert table.loc[startup.OWN_WORKERS, "to_base"] == 1 and table.loc["the same by forked workers", "to_base"] > 0
    assert table.loc["opening a report", "megabytes"] == 2.5 and pd.isna(table.loc["opening a report", "wall"])
    assert "| opening a report | - | - | - | 2.50 |" in text and text in capsys.readouterr().out


def test_ray_beside_local_workers(monkeypatch):
    swept, ended = [], []
    start, stop = (lambda **options: swept.append(options["num_cpus"])), (lambda: ended.append(1))
    cluster = SimpleNamespace(init=start, shutdown=stop)
    monkeypatch.setitem(sys.modules, "ray", cluster)
    monkeypatch.setattr(startup, "run_sweep", lambda grid, root, progress, **how: swept.append((grid.seeds, how)))
    table = startup.measure_ray(1).set_index("what")
    sixteen = tuple(range(16))
    assert swept == [4, *[(sixteen, {"workers": 4}), (sixteen, {"executor": "ray"})] * 2] and ended == [1]
    assert table.loc[startup.LOCAL_WORKERS, "to_base"] == 1 and table.loc[startup.RAY_WORKERS, "to_base"] > 0


def test_report_of_given_runs(smoke_run):
    table = startup.measure_report(0, [smoke_run]).set_index("what")
    assert table.loc["building a report of 1 runs", "cpu"] > 0 and table.loc["opening a report", "megabytes"] > 1
