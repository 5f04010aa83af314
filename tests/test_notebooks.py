"""The notebooks keep the rules of the project (quick), and run on the smoke preset (slow)."""

from pathlib import Path

import nbformat
import pytest
from helpers.notebook_rules import lint_notebook

from toco_lab.sweeps.notebooks import execute_notebook, read_record
from toco_lab.sweeps.strip import strip_notebook

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
    "01_cam_explorer": {
        "figures/cam_and_attributions.png",
        "figures/pseudo_label_thresholds.png",
        "figures/regions_and_crops.png",
    },
    "02_losses_by_hand": {"figures/ptc_descent.png", "figures/ctc_wrong_flag.png"},
    "05_over_smoothing": {
        "smoothing.csv",
        "layer_cams.csv",
        "figures/similarity_per_layer.json",
        "figures/attention_or_mlp.json",
        "figures/pairs_per_layer.json",
        "figures/metrics_per_layer.json",
        "figures/cam_quality_per_layer.json",
        "figures/layer_similarity.json",
        "figures/token_similarity.png",
    },
    "06_ablation": {"live/grid.yaml", "live/sweep.csv"},
    "07_runs": {"figures/metric_by_parameter.png"},
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
@pytest.mark.parametrize("name", ["00_start_here", "01_cam_explorer", "02_losses_by_hand", "06_ablation", "07_runs"])
def test_notebooks_run_on_smoke_without_a_browser(tmp_path: Path, name: str) -> None:
    path = next(path for path in NOTEBOOKS if path.stem == name)
    output = execute_notebook(
        path, tmp_path / "out.ipynb", {"preset": "smoke", "run_dir": tmp_path / "run"}, timeout=300, progress=False
    )
    check_executed(output, tmp_path / "run", name)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["baseline", "toco"])
@pytest.mark.parametrize("name", ["03_train", "04_evaluate", "05_over_smoothing"])
def test_the_notebooks_of_the_demo_ran_on_smoke(demo_folder: Path, run: str, name: str) -> None:
    check_executed(demo_folder / run / "notebooks" / f"{name}.ipynb", demo_folder / run, name)


@pytest.mark.slow
def test_two_runs_side_by_side(demo_folder: Path) -> None:
    figure = (demo_folder / "toco" / "figures" / "similarity_per_layer.json").read_text()
    assert all(f'"name":"{name}"' in figure for name in ("before training", "baseline", "toco"))


def check_executed(output: Path, run_dir: Path, name: str) -> None:
    """An executed notebook has a record of success, shows a figure, and left its files in the folder of the run."""
    assert read_record(output)["state"] == "done"
    cells = nbformat.read(output, as_version=4).cells
    shown = [kind for cell in cells for out in cell.get("outputs", []) for kind in out.get("data", {})]
    assert {"image/png", "application/vnd.plotly.v1+json"} & set(shown), "no figure in the executed notebook"
    for file in FILES[name]:
        assert (run_dir / file).stat().st_size > 0, file
