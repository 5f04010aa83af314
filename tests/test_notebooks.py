"""The notebooks keep the rules of the project (quick), and run on the smoke preset (slow)."""

from pathlib import Path

import pytest
from helpers.notebook_rules import lint_notebook
from helpers.notebooks import FILES, check_executed

from toco_lab.sweeps.notebooks import execute_notebook
from toco_lab.sweeps.strip import strip_notebook

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
OF_THE_DEMO = ("03_train", "04_evaluate", "05_over_smoothing", "08_report")  # its test runs them


def test_there_are_notebooks() -> None:
    assert set(FILES) <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_rules(path: Path, tmp_path: Path) -> None:
    assert lint_notebook(path) == []
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    assert not strip_notebook(copy), "not stripped: `make strip`"


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path.stem not in OF_THE_DEMO], ids=lambda path: path.stem
)
def test_notebooks_run_on_smoke_without_a_browser(tmp_path: Path, path: Path) -> None:
    output = execute_notebook(
        path, tmp_path / "out.ipynb", {"preset": "smoke", "run_dir": tmp_path / "run"}, timeout=300, progress=False
    )
    check_executed(output, tmp_path / "run", path.stem)
