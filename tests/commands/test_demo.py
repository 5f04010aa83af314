"""The demo in miniature. A file of its own, so that pytest-xdist gives it to one worker and it is made once."""

import json
from pathlib import Path

import pytest
from helpers.notebooks import check_executed

from toco_lab.commands.app import main


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
