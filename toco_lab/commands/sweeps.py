"""Commands that run many: `run` executes notebooks, `sweep` a grid, `study` a question of results/studies."""

import ast
from pathlib import Path
from typing import Any, Literal

import tyro

from toco_lab.commands.parser import refuse_given
from toco_lab.fields import shown
from toco_lab.files import here_or_shipped
from toco_lab.trackers.tracker import TrackerName

_LONGEST = 10**8  # seconds, three years


def run(
    notebooks: tyro.conf.Positional[tuple[Path, ...]],
    parameters: tuple[str, ...] = (),
    output: Path | None = None,
    timeout: float = 3600,
) -> None:
    """Execute notebooks with other parameters. One that fails does not stop the others.

    Args:
        notebooks: For example notebooks/04_evaluate.ipynb; what is not here is taken from the package.
        parameters: Each as name=value; a value is a Python literal or else text, like preset=smoke
            'overrides={"w_ptc": 0.0}'.
        output: Folder of the executed notebooks; None takes the folder `notebooks` of run_dir.
        timeout: Seconds one cell may take.
    """
    from toco_lab.sweeps.notebooks import NotebookJob, run_notebooks

    values = _parse_parameters(parameters)
    if not 1 <= timeout <= _LONGEST:
        raise ValueError(f"timeout must lie in [1, {_LONGEST}] seconds, got {timeout:g}")
    output = output or Path(values.get("run_dir", "results/scratch"), "notebooks")
    jobs = [NotebookJob(here_or_shipped(path), output / path.name, values) for path in notebooks]
    records = run_notebooks(jobs, timeout=int(timeout))
    failed = []
    for record in records:
        print(f"{record['state']}: {output / record['notebook']} ({record['seconds']:.0f} s)")
        if error := record.get("error"):
            where = f", cell {error['cell']!r}: {error['name']}" if error["cell"] else ""
            failed.append(f"{record['notebook']}{where}: {error['message']}")
    if failed:
        raise ValueError("\n".join(failed))


def sweep(
    grid: tyro.conf.Positional[Path],
    root: Path = Path("results/sweeps"),
    workers: int = 1,
    executor: Literal["local", "ray"] = "local",
    gpus: float = 0.0,
    cpus: float = 1.0,
    address: str | None = None,
    retry_failed: bool = False,
    log_to: tuple[TrackerName, ...] = (),
    dry_run: bool = False,
) -> None:
    """Run a notebook, or train, over a grid of config fields and seeds. Killed, the same command continues it.

    Args:
        grid: YAML file, like docs/smoke.yaml; what is not here is taken from the package.
        root: Folder that holds the sweeps.
        workers: Runs at a time on this machine (local); its cores are shared between them.
        executor: Processes of this machine, or a ray cluster.
        gpus: GPUs per run; 0.5 lets two share one (ray).
        cpus: CPU cores per run (ray).
        address: Of the ray cluster: auto or host:port; None starts one on this machine.
        retry_failed: Also make runs that failed before.
        log_to: Trackers that are told every run, see docs/tracking.md; runs of a notebook when they are finished.
        dry_run: Say what would be done and how long it may take, and do nothing.
    """
    from toco_lab.reports.ablation import sweep_summary
    from toco_lab.sweeps.grid import Grid
    from toco_lab.sweeps.sweep import outlook, plan, run_sweep

    unread = ("gpus", "cpus", "address") if executor == "local" else ("workers",)
    refuse_given(unread, f"with executor {executor}")
    wanted = Grid.from_yaml(here_or_shipped(grid))
    if dry_run:
        planned = plan(wanted, root=root, data=executor == "local")
        print(planned.to_string(index=False, float_format="{:.0f}".format, na_rep="?"))
        print(outlook(planned, workers=workers, retry_failed=retry_failed))
        return
    table = run_sweep(
        wanted, root=root, workers=workers, executor=executor, gpus=gpus, cpus=cpus, address=address,
        retry_failed=retry_failed, log_to=log_to,
    )  # fmt: skip
    print(sweep_summary(table))
    print(f"every run: {root / wanted.name / 'sweep.csv'}")
    failed = table[table["state"] == "failed"].drop_duplicates("run")
    if len(failed):
        lines = [f"{path}: {error}" for path, error in zip(failed["run"], failed["error"], strict=True)]
        hint = "failure.json in its folder has the traceback, --retry-failed tries again"
        raise ValueError("\n".join([f"{len(failed)} failed; {hint}", *lines]))


def study(
    name: tyro.conf.Positional[str | None] = None,
    seeds: int | None = None,
    workers: int = 1,
    root: Path = Path("results/sweeps"),
    tables: bool = False,
    extend: bool = False,
) -> None:
    """Make or continue a study: its runs, then table.csv, table.md and figure.png in results/studies/NAME.

    Args:
        name: One of this project's studies, or of those in results/studies; without it they are listed with their state
            and their question.
        seeds: Number of seeds, instead of that of the grid.
        workers: Runs at a time.
        root: Folder that holds the runs.
        tables: Make no runs, only table and figure of those that are finished.
        extend: Lines of the kept table stand for their runs: only the runs that it lacks are made, and join it.
    """
    from toco_lab.reports import studies

    if name is None:
        refuse_given(("seeds", "workers", "root", "tables", "extend"), "without the name of a study: all are listed")
        for one in studies.all_studies():
            print(f"{one.name:18}  {one.state():14}  {one.question}")
        return
    if tables:
        refuse_given(("workers",), "with --tables: no run is made")
    wanted = studies.open_study(name, seeds=seeds, extend=extend)
    print(studies.write_study(wanted, root=root) if tables else studies.make_study(wanted, root=root, workers=workers))


def _parse_parameters(texts: tuple[str, ...]) -> dict[str, Any]:
    """Values by name; folders as absolute paths, because notebooks run in a folder of their own."""
    values: dict[str, Any] = {}
    for text in texts:
        name, value = _parse_parameter(text)
        if name in values:
            raise ValueError(f"parameter {name!r} is given twice: the first would have no effect. Leave one out")
        values[name] = value
    for name in ("run_dir", "compare_with"):
        folders = values.get(name, []) if name == "compare_with" else [values.get(name, "")]
        folders = folders if isinstance(folders, list) else [folders]
        if not all(isinstance(folder, str) and "\0" not in folder for folder in folders):
            raise ValueError(f"parameter {name!r} must name a folder, got {shown(values[name])}; put it in quotes")
        if name in values:
            absolute = [str(Path(folder).resolve()) for folder in folders]
            values[name] = absolute[0] if name == "run_dir" else absolute
    return values


def _parse_parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"a parameter is name=value, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return name, value
