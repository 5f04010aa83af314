"""The notebooks keep the rules of the project (quick), and run on the smoke preset (slow)."""

from pathlib import Path

import nbformat
import pytest

from toco_lab.batch import execute_notebook, lint_notebook, read_record, strip_notebook

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
FILES = {  # what each notebook leaves in the folder of its run
    "00_start_here": {
        "figures/scene.png",
        "figures/cam_before_training.png",
        "figures/similarity_at_start.json",
        "figures/cam_after_first_steps.png",
    },
    "03_train": {"metrics.csv", "figures/training_curves.json", "figures/learning_rate.json"},
    "04_evaluate": {"evaluation.csv", "protocol.json", "figures/iou_per_class.json", "figures/cam_gallery.png"},
    "05_over_smoothing": {"similarity.csv", "figures/similarity_per_layer.json", "figures/pairs_per_layer.json"},
}


def test_there_are_notebooks() -> None:
    assert set(FILES) <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_rules(path: Path, tmp_path: Path) -> None:
    assert lint_notebook(path) == []
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    assert not strip_notebook(copy), "not stripped: `make strip`"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_on_smoke(path: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    output = execute_notebook(
        path, tmp_path / "out" / path.name, {"preset": "smoke", "run_dir": run_dir}, timeout=300, progress=False
    )
    assert read_record(output)["state"] == "done"
    cells = nbformat.read(output, as_version=4).cells
    shown = [kind for cell in cells for out in cell.get("outputs", []) for kind in out.get("data", {})]
    assert {"image/png", "application/vnd.plotly.v1+json"} & set(shown), "no figure in the executed notebook"
    for name in FILES.get(path.stem, ()):
        assert (run_dir / name).stat().st_size > 0, name


@pytest.mark.slow
def test_two_runs_side_by_side(smoke_run, tmp_path: Path) -> None:
    notebook = next(path for path in NOTEBOOKS if path.stem == "05_over_smoothing")
    parameters = {
        "preset": "smoke",
        "overrides": {"w_ptc": 0.0},
        "run_dir": tmp_path / "other",
        "num_images": 2,
        "compare_with": smoke_run.path,
    }
    execute_notebook(notebook, tmp_path / "out.ipynb", parameters, timeout=300, progress=False)
    figure = (tmp_path / "other" / "figures" / "similarity_per_layer.json").read_text()
    assert '"name":"smoke"' in figure and '"name":"other"' in figure
