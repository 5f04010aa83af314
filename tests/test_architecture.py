"""The shape of the project: who imports whom, what training needs, and that documents name commands that exist."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "toco_lab"
ORDER = [
    "config", "distributed", "runs", "run_table", "gallery", "toy", "pretrain", "transforms",
    "labels", "layouts", "coco", "folder", "readers", "check", "prepare", "data",
    "encoders", "activations", "remedies", "model", "checkpoints", "spectra", "token_view", "token_metrics",
    "token_maps", "snapshots", "cam", "attribution", "lattice", "refine", "losses", "step", "train", "cost",
    "evaluate", "pseudo_labels", "smoothing", "layer_cams", "session", "figures", "curves", "panels",
    "keys", "token_explorer", "cam_explorer", "run_browser",
    "batch", "ablation", "grid", "worker", "executors", "progress", "sweep",
    "tables", "findings", "report_parts", "report_tables", "report_sections", "report", "appendix", "__main__",
]  # fmt: skip
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
NOTEBOOK_WORLD = "jupyter jupyterlab nbformat plotly ipywidgets anywidget papermill tyro IPython".split()


def imported(name: str, *, top_level: bool = False) -> set[str]:
    """Dotted names a module imports, without running it; `top_level` leaves out imports inside functions."""
    tree, found = ast.parse((PACKAGE / f"{name}.py").read_text()), set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} uses a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def internal(name: str) -> set[str]:
    """Modules of this package that a module imports."""
    return {full.split(".")[1] for full in imported(name) if full.startswith("toco_lab.")} & set(ORDER)


@pytest.mark.parametrize("name", MODULES)
def test_imports_only_point_upstream(name: str) -> None:
    assert name in ORDER, "a new module needs a place in the order"
    downstream = {other for other in internal(name) if ORDER.index(other) >= ORDER.index(name)}
    assert not downstream, f"{name} imports {downstream}, which come later"


def test_heavy_libraries_have_one_importer() -> None:
    for library, owners in {
        "papermill": {"batch"},
        "nbformat": {"batch"},
        "tyro": {"__main__"},
        "matplotlib": {"figures", "panels"},
        "ipywidgets": {"cam_explorer", "run_browser"},
        "anywidget": {"token_explorer", "keys"},
    }.items():
        users = {name for name in MODULES if any(full.split(".")[0] == library for full in imported(name))}
        assert users <= owners, library


def test_plotly_is_imported_where_it_is_used_only() -> None:
    for name in MODULES:
        assert not any(full.startswith("plotly") for full in imported(name, top_level=True)), name


@pytest.mark.parametrize("name", ["figures", "curves"])
def test_figures_know_neither_torch_nor_this_package(name: str) -> None:
    assert not {full for full in imported(name) if full.split(".")[0] in ("torch", "toco_lab")}


WITHOUT_NOTEBOOKS = """
import sys
HIDDEN = set(sys.argv[2:])

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"{name} is hidden", name=name)

sys.meta_path.insert(0, Blocker())
import toco_lab
from toco_lab.config import Config
cfg = Config.preset("smoke").replace(steps=1, warmup_steps=0, seg_start_step=0, val_images=1)
run = toco_lab.RunDir.create(cfg, sys.argv[1])
toco_lab.fit(cfg, run, progress=False)
scores = toco_lab.evaluate_run(run, progress=False).scores
toco_lab.smoothing_of_run(run, 1, progress=False)
assert set(scores) == {"cam", "cam_aux", "cam_refined", "seg", "labels"}, scores
assert not HIDDEN & set(sys.modules)
"""


def test_training_needs_no_notebook_library(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_NOTEBOOKS, str(tmp_path), *NOTEBOOK_WORLD]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_package_itself_imports_nothing_heavy() -> None:
    code = "import sys, toco_lab; assert not {'torch', 'pandas', 'numpy'} & set(sys.modules); toco_lab.Config"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_public_names_exist() -> None:
    import toco_lab

    for name in toco_lab._HOMES:
        assert getattr(toco_lab, name).__module__.startswith("toco_lab.")
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        toco_lab.fitt  # noqa: B018


def test_one_list_of_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line.strip(" -\n") for line in (ROOT / "environment.yml").read_text().splitlines()]
    listed = lines[lines.index("dependencies:") + 1 :]
    assert listed == [f"python{project['requires-python']}", "pip", "pip:", "e ."], "pyproject.toml is the only list"


def test_documents_name_commands_that_exist() -> None:
    from toco_lab.commands.app import COMMANDS

    targets = set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text()))
    assert {"demo", "test", "check", "lab", "notebooks", "strip", "table", "clean"} <= targets
    documents = [*ROOT.glob("*.md"), *(ROOT / "data").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    for path in documents:
        text = path.read_text()
        assert set(re.findall(r"(?m)(?:^|`)make (\w+)", text)) <= targets, path
        assert set(re.findall(r"python -m toco_lab (\w+)", text)) <= set(COMMANDS), path
