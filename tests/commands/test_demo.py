"""The demo in miniature. A file of its own, so that pytest-xdist gives it to one worker and it is made once."""

import json
import os
import threading
from pathlib import Path

import pytest
from helpers.notebooks import check_executed

from toco_lab.commands.app import main
from toco_lab.commands.demo import demo
from toco_lab.config import Config
from toco_lab.reports import export
from toco_lab.runs import environment
from toco_lab.runs.run_dir import RunDir
from toco_lab.sweeps import notebooks


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `python -m toco_lab demo` makes with the smoke preset: two runs, six executed notebooks, the report."""
    root = tmp_path_factory.mktemp("results")
    assert main(["demo", "--preset", "smoke", "--root", str(root)]) == 0
    return root / "demo"


@pytest.mark.slow
@pytest.mark.parametrize("run", ["baseline", "toco"])
@pytest.mark.parametrize("name", ["03_train", "04_evaluate", "05_over_smoothing"])
def test_the_notebooks_of_the_demo_ran_on_smoke(demo_folder: Path, run: str, name: str) -> None:
    check_executed(demo_folder / run / "notebooks" / f"{name}.ipynb", demo_folder / run, name)


@pytest.mark.slow
def test_two_runs_side_by_side(demo_folder: Path) -> None:
    figure = (demo_folder / "toco" / "figures" / "similarity_per_layer.json").read_text()
    assert all(f'"name":"{name}"' in figure for name in ("before training", "baseline", "toco"))


@pytest.mark.slow
def test_demo_skips_what_is_finished(demo_folder: Path, capsys: pytest.CaptureFixture) -> None:
    records = sorted(demo_folder.glob("*/notebooks/*.json"))
    assert len(records) == 6 and all(json.loads(path.read_text())["state"] == "done" for path in records)
    before = {path: path.stat().st_mtime_ns for path in demo_folder.glob("*/*/*")}
    assert main(["demo", "--preset", "smoke", "--root", str(demo_folder.parent)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(demo_folder / "report.html")
    assert {path: path.stat().st_mtime_ns for path in demo_folder.glob("*/*/*")} == before


def test_both_runs_go_on_at_a_time_and_the_comparison_waits(tmp_path, monkeypatch):
    began, may_end = [], threading.Event()

    def executed(notebook, output, parameters, progress):
        folder, stem = Path(parameters["run_dir"]), Path(notebook).stem
        name = folder.name
        if stem == "03_train":
            RunDir.create(Config.preset("smoke"), folder.parent, name=name)
        began.append((name, stem))
        assert os.environ["OMP_NUM_THREADS"] == "3"
        if (name, stem) == ("baseline", "03_train"):
            assert may_end.wait(60)
        if (name, stem) == ("toco", "04_evaluate"):
            may_end.set()  # here already, though the baseline is at its first

    monkeypatch.setattr(notebooks, "execute_notebook", executed)
    monkeypatch.setattr(export, "build_report", lambda runs, page: began.append(("report", page.name)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(environment, "cores", lambda: 6)
    demo(tmp_path, "smoke")
    assert "OMP_NUM_THREADS" not in os.environ
    places = {what: place for place, what in enumerate(began)}
    assert places["toco", "04_evaluate"] < places["baseline", "04_evaluate"]
    assert (
        places["baseline", "05_over_smoothing"] < places["toco", "05_over_smoothing"] < places["report", "report.html"]
    )


def test_an_error_of_one_run_does_not_stop_the_other(tmp_path, monkeypatch):
    began = []

    def executed(notebook, output, parameters, progress):
        began.append((Path(parameters["run_dir"]).name, Path(notebook).stem))
        if began[-1] == ("baseline", "04_evaluate"):
            raise notebooks.NotebookError("no space left")

    monkeypatch.setattr(notebooks, "execute_notebook", executed)
    with pytest.raises(notebooks.NotebookError, match="no space left"):
        demo(tmp_path, "smoke")
    assert ("toco", "05_over_smoothing") in began and ("baseline", "05_over_smoothing") not in began
