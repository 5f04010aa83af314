"""How long one waits for the first thing: imports, the first batch, the first figure of a notebook, a report.

Each of the first three is a fresh Python process with one thread, several times, in turns:

- imports: torch and timm, then what `import toco_lab` adds, what `toco_lab.train` adds, what all public names do;
- the first batch of the toy preset, after its model;
- the code of notebook 00 up to the cell that saves the first figure, without Jupyter.

A notebook that imports all this is executed in a kernel of its own and in a forked one (`sweeps/warm_kernels.py`),
and a sweep of four smoke runs is made by workers of their own and by forked ones (`sweeps/executors.py`). Where ray is
installed, `startup/ray` makes sixteen, four at a time, by local workers and by those of a ray cluster on this machine.

A report is built from two smoke runs, trained on the spot, and opened in Chromium without a network until its last plot
is drawn; without a Chromium its size alone is known. Processor seconds beside the clock's; medians. The ratio is to
importing torch and timm in the same round, or to the kernel or the workers of their own.
"""

import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from tqdm import trange

from benchmarks.run import Case, markdown_table
from toco_lab.config import Config
from toco_lab.evaluation.evaluate import evaluate_run
from toco_lab.experiment import train
from toco_lab.reports.export import build_report
from toco_lab.runs.run_dir import RunDir
from toco_lab.smoothing.of_runs import smoothing_of_run
from toco_lab.sweeps import forked
from toco_lab.sweeps.grid import Grid
from toco_lab.sweeps.sweep import run_sweep
from toco_lab.sweeps.warm_kernels import WarmKernelManager

ROOT = Path(__file__).resolve().parents[1]
BASE = "torch and timm"
IMPORTS = {
    BASE: "import torch, timm",
    "import toco_lab": "import toco_lab",
    "what training imports": "toco_lab.train",
    "every public name": "[getattr(toco_lab, name) for name in dir(toco_lab)]",
}
OWN_KERNEL = "a notebook that imports all this, in a kernel of its own"
OWN_WORKERS = "a sweep of four smoke runs, each in a process of its own"
LOCAL_WORKERS, RAY_WORKERS = (f"a sweep of sixteen smoke runs by four {kind} workers" for kind in ("local", "ray"))
FIRST_BATCH = {
    "imports": "import torch, timm, toco_lab; toco_lab.train; from toco_lab.data import train_loader",
    "model": "cfg = toco_lab.Config.preset({preset!r}); model = toco_lab.initial_model(cfg)",
    "first batch": "next(iter(train_loader(cfg, model.mean, model.std)))",
}
# runs named pieces of code one after the other, and says what each took
CHILD = """
import json, sys, time
found, names = {}, {"__name__": "__main__"}
for name, code in json.loads(sys.argv[1]).items():
    processor, clock = time.process_time(), time.perf_counter()
    exec(code, names)
    found[name] = {"cpu": time.process_time() - processor, "wall": time.perf_counter() - clock}
print("\\n" + json.dumps(found))
"""


def stages(code: Mapping[str, str]) -> pd.DataFrame:
    """Seconds of pieces of code, run in turn in one fresh process: a row per piece, columns cpu and wall.

    Raises:
        RuntimeError: With the end of its messages, if the code fails.
    """
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(code)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the measured process failed:\n{done.stderr[-2000:]}")
    return pd.DataFrame.from_dict(json.loads(done.stdout.splitlines()[-1]), orient="index")


def first_cells(notebook: Path, run_dir: Path, **parameters: Any) -> dict[str, str]:
    """Code of a notebook up to the cell that saves the first figure, without magics.

    Args:
        notebook: Its first code cell holds the parameters.
        run_dir: Value of its parameter of this name.
        **parameters: Further parameters.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    last = next(number for number, source in enumerate(code) if "run.show(" in source)
    code = ["\n".join(line for line in source.splitlines() if not line.startswith("%")) for source in code[: last + 1]]
    given = {"run_dir": str(run_dir)} | parameters
    code[0] += "".join(f"\n{name} = {value!r}" for name, value in given.items())
    return {f"cell {number}": source for number, source in enumerate(code)}


def measure_processes(repeats: int, *, preset: str = "toy") -> pd.DataFrame:
    """A row per thing one waits for: medians of cpu, wall and to_base, cpu over that of importing torch and timm."""
    rows = []
    for number in trange(repeats + 1, unit="round", leave=False):  # the first round fills the disk cache
        imports = stages(IMPORTS)
        batch = stages({name: code.format(preset=preset) for name, code in FIRST_BATCH.items()})
        with tempfile.TemporaryDirectory() as folder:
            cells = first_cells(ROOT / "notebooks/00_start_here.ipynb", Path(folder) / "scratch", preset=preset)
            figure = stages(cells).sum()
        found = {name: imports.loc[name] for name in IMPORTS}
        found |= {name: batch.loc[name] for name in ("model", "first batch")}
        found |= {"imports, model and first batch": batch.sum(), "notebook 00 to its first figure": figure}
        base = imports.loc[BASE, "cpu"]
        rows += [
            {"round": number, "what": name, "cpu": spent["cpu"], "wall": spent["wall"], "to_base": spent["cpu"] / base}
            for name, spent in found.items()
        ]
    table = pd.DataFrame(rows).query("round > 0").drop(columns="round")
    return table.groupby("what", sort=False).median().reset_index()


def measure_kernels(repeats: int) -> pd.DataFrame:
    """A notebook that imports what training imports, in a kernel of its own and in a forked one, in turns: medians.

    `to_base` is the clock's time over that of a kernel of its own.
    """
    notebook = new_notebook(cells=[new_code_cell("; ".join(IMPORTS.values()))])

    def execute(manager: type[AsyncKernelManager]) -> None:
        NotebookClient(copy.deepcopy(notebook), kernel_manager_class=manager, kernel_name="python3").execute()

    return _beside_the_first(
        repeats,
        {
            OWN_KERNEL: lambda: execute(AsyncKernelManager),
            "the same in a forked kernel": lambda: execute(WarmKernelManager),
        },
    )


def measure_workers(repeats: int) -> pd.DataFrame:
    """Four smoke runs of two steps, one after the other, in processes of their own and in forked ones."""
    grid = smoke_grid(4)

    def sweep(fork: bool) -> None:
        possible, forked.CAN_FORK = forked.CAN_FORK, fork
        try:
            with tempfile.TemporaryDirectory() as folder:
                run_sweep(grid, root=folder, progress=False)
        finally:
            forked.CAN_FORK = possible

    return _beside_the_first(
        repeats, {OWN_WORKERS: lambda: sweep(False), "the same by forked workers": lambda: sweep(forked.CAN_FORK)}
    )


def measure_ray(repeats: int) -> pd.DataFrame:
    """Sixteen smoke runs of two steps, four at a time: by local workers and on a ray cluster of this machine.

    Raises:
        ImportError: If ray is missing; pip install 'toco_lab[ray]' brings it.
    """
    import ray

    grid = smoke_grid(16)

    def sweep(**options: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run_sweep(grid, root=folder, progress=False, **options)

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        return _beside_the_first(
            repeats, {LOCAL_WORKERS: lambda: sweep(workers=4), RAY_WORKERS: lambda: sweep(executor="ray")}
        )
    finally:
        ray.shutdown()


def smoke_grid(runs: int) -> Grid:
    """So many smoke runs of two steps, which differ in their seed."""
    overrides = {"steps": 2, "val_images": 1, "token_snapshots": 0, "probe_images": 1}
    return Grid(name="startup", preset="smoke", overrides=overrides, seeds=range(runs))


def _beside_the_first(repeats: int, ways: Mapping[str, Callable[[], None]]) -> pd.DataFrame:
    """The clock's seconds of each way, in turns, medians; `to_base` over the first way in the same round."""
    rows = []
    for number in trange(repeats + 1, unit="round", leave=False):  # the first round starts the server
        for what, way in ways.items():
            clock = time.perf_counter()
            way()
            rows.append({"round": number, "what": what, "wall": time.perf_counter() - clock})
    table = pd.DataFrame(rows).query("round > 0").pivot(index="round", columns="what", values="wall")
    ratios = table.div(table[next(iter(ways))], axis=0)
    return pd.DataFrame([{"what": way, "wall": table[way].median(), "to_base": ratios[way].median()} for way in ways])


def smoke_runs(root: Path) -> list[RunDir]:
    """Two finished runs of the smoke preset, with and without token contrast."""
    runs = []
    for name, overrides in (("baseline", {"w_ptc": 0.0, "w_ctc": 0.0}), ("toco", {})):
        cfg = Config.preset("smoke").replace(**overrides)
        run = RunDir.create(cfg, root, name=name)
        train(run, progress=False)
        evaluate_run(run, progress=False)
        smoothing_of_run(run, progress=False)
        runs.append(run)
    return runs


def measure_report(repeats: int, runs: Iterable[RunDir] = ()) -> pd.DataFrame:
    """Rows about a report of some runs, by default two smoke runs: building it, and opening it; megabytes."""
    with tempfile.TemporaryDirectory() as folder:
        shown = list(runs) or smoke_runs(Path(folder))
        processor, clock = time.process_time(), time.perf_counter()
        (report,) = build_report(shown, Path(folder) / "report.html")
        spent = {"cpu": time.process_time() - processor, "wall": time.perf_counter() - clock}
        opened = pd.Series([seconds_to_open(report) for _ in range(repeats)], dtype=float)
        return pd.DataFrame(
            [
                {"what": f"building a report of {len(shown)} runs"} | spent,
                {"what": "opening a report", "wall": opened.median(), "megabytes": report.stat().st_size / 1e6},
            ]
        )


def seconds_to_open(report: Path) -> float | None:
    """The clock's seconds from a new tab to the last plot drawn, in a Chromium of its own; None without one."""
    sys.path.append(str(ROOT / "tests"))
    try:
        import pytest
        from helpers.browser import offline_page, running_browser
    except ImportError:
        return None
    try:
        with running_browser() as browser:
            clock = time.perf_counter()
            with offline_page(browser, report) as page:
                page.wait_for_function(
                    "() => [...document.querySelectorAll('.plotly-graph-div')].every((one) => one.querySelector('svg'))"
                )
                return time.perf_counter() - clock
    except pytest.skip.Exception:  # no Chromium here
        return None


def section(rows: pd.DataFrame) -> list[str]:
    """One table; what was not measured is a dash."""

    def cell(row: Mapping[str, float], name: str, form: str) -> str:
        return "-" if pd.isna(row.get(name)) else f"{row[name]:{form}}"

    columns = {"cpu": ".3f", "wall": ".2f", "to_base": ".3f", "megabytes": ".2f"}
    cells = [[row["what"], *(cell(row, *one) for one in columns.items())] for row in rows.to_dict("records")]
    return markdown_table(["", "processor", "clock", "x torch and timm", "megabytes"], cells)


CASE = Case(
    about="Waiting for the first thing: fresh processes, one thread, medians over rounds, in seconds.",
    settings={
        "processes": measure_processes,
        "kernels": measure_kernels,
        "workers": measure_workers,
        "report": measure_report,
        "ray": measure_ray,
    },
    default=("processes", "kernels", "workers", "report"),
    measure=lambda function, repeats: function(repeats),
    section=section,
)
