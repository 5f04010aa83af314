"""The command `demo`: a baseline and ToCo on toy scenes, their notebooks, one report."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from toco_lab.config import Config
from toco_lab.files import project_root
from toco_lab.presets import BASELINE

if TYPE_CHECKING:
    from toco_lab.runs.run_dir import RunDir

NOTEBOOKS = project_root() / "notebooks"
DEMO_NOTEBOOKS = ("03_train", "04_evaluate", "05_over_smoothing")


def demo(root: Path = Path("results"), preset: str = "toy") -> None:
    """Train a plain baseline and ToCo, execute their notebooks, write a report. What is finished is skipped.

    Args:
        root: The demo goes into the folder `demo` below.
        preset: `toy`, or `smoke` to see the machinery run in seconds.
    """
    folder, page, made, worked = root / "demo", root / "demo" / "report.html", [], False
    for name, overrides in (("baseline", BASELINE), ("toco", {})):
        cfg = Config.preset(preset).replace(**overrides)
        run = _finished(folder / name, cfg)
        if run is None:
            from toco_lab.experiment import open_run, train

            run, worked = open_run(cfg, folder, name=name), True
            train(run)
        made.append(run)
        for notebook in DEMO_NOTEBOOKS:
            # absolute paths: a notebook runs in a folder of its own
            parameters = {"preset": preset, "overrides": overrides, "run_dir": str(run.path.resolve())}
            if notebook == "05_over_smoothing" and name != "baseline":
                parameters["compare_with"] = [str(made[0].path.resolve())]
            worked |= _executed(
                NOTEBOOKS / f"{notebook}.ipynb", run.path / "notebooks" / f"{notebook}.ipynb", parameters
            )
    if worked or not page.is_file():
        from toco_lab.reports.export import build_report

        build_report(made, page)
    print(page)


def _finished(path: Path, cfg: Config) -> "RunDir | None":
    """The run at `path` if it was trained to the end with this config."""
    from toco_lab.runs.run_dir import RunDir

    if not (path / "config.json").is_file():
        return None
    run = RunDir(path)
    return run if run.status()["state"] == "done" and run.config().digest() == cfg.digest() else None


def _executed(notebook: Path, output: Path, parameters: dict[str, Any]) -> bool:
    """Execute a notebook, unless it was executed to the end with these parameters before; returns whether it ran."""
    from toco_lab.sweeps.notebooks import NotebookJob, execute_notebook, is_done

    if is_done(NotebookJob(notebook, output, parameters)):
        return False
    print(f"{output.parents[1].name}: {notebook.stem}", flush=True)
    execute_notebook(notebook, output, parameters)
    return True
