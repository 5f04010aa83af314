"""The shape of the project: who imports whom, what training needs, which names are public."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "toco_lab"
PATH = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # of this environment
NOTEBOOK_WORLD = "jupyter jupyterlab nbformat plotly ipywidgets anywidget papermill tyro IPython".split()


def lint(folder: Path) -> subprocess.CompletedProcess:
    command = ["lint-imports", "--no-cache"]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=PATH, timeout=120)


def test_rooms_import_only_the_rooms_below_them() -> None:
    """The contracts stand in pyproject.toml; a folder that is in none of them fails as well."""
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


def test_the_contracts_are_looked_at(tmp_path: Path) -> None:
    """An import that points upwards, and a folder nobody knows, are both found."""
    copied = tmp_path / "toco_lab"
    shutil.copytree(PACKAGE, copied, ignore=shutil.ignore_patterns("__pycache__", "static"))
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (copied / "training" / "upwards.py").write_text("from toco_lab.explorers import panels\n")
    (copied / "utils").mkdir()
    (copied / "utils" / "__init__.py").write_text("")
    done = lint(tmp_path)
    assert done.returncode != 0
    assert "utils" in done.stdout and "toco_lab.training.upwards -> toco_lab.explorers.panels" in done.stdout


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
toco_lab.train(run, progress=False)
scores = toco_lab.evaluate_run(run, progress=False).scores
toco_lab.smoothing_of_run(run, 1, progress=False)
cams = {"cam", "cam_aux", "cam_refined"}
assert set(scores) == {*cams, *(f"{cam}_tuned" for cam in cams), "seg", "labels"}, scores
assert not HIDDEN & set(sys.modules)
"""


def test_training_needs_no_notebook_library(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_NOTEBOOKS, str(tmp_path), *NOTEBOOK_WORLD]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_package_itself_imports_nothing_heavy() -> None:
    code = "import sys, toco_lab; assert not {'torch', 'pandas', 'numpy'} & set(sys.modules); toco_lab.Config"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_every_public_name_is_there() -> None:
    """Of the package and of each room: the stub an editor reads names nothing that cannot be had."""
    import toco_lab as tl

    rooms = [getattr(tl, path.parent.name) for path in PACKAGE.glob("*/__init__.pyi")]
    assert len(rooms) >= 10
    for namespace in (tl, *rooms):
        assert all(hasattr(namespace, name) for name in namespace.__all__), namespace
    with pytest.raises(AttributeError, match="fitt"):
        tl.fitt  # noqa: B018


def test_the_public_surface_is_the_one_on_record() -> None:
    """A name that comes or goes is a decision: change tests/api_surface.json with it, and the CHANGELOG."""
    import toco_lab as tl

    rooms = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.pyi"))
    found = {"toco_lab": sorted(tl.__all__)} | {room: sorted(getattr(tl, room).__all__) for room in rooms}
    assert found == json.loads((ROOT / "tests" / "api_surface.json").read_text())


def test_notebooks_import_this_package_as_tl_alone() -> None:
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        ours = {line.strip() for line in code.splitlines() if re.match(r"\s*(from|import)\s+toco_lab", line)}
        assert ours == {"import toco_lab as tl"}, path.name


def test_the_method_writes_no_number_into_an_entry_of_a_tensor() -> None:
    """`tensor[0] = 1` makes the host wait for a GPU; torch's meta device, on which a step is tested, does not tell."""
    paths = sorted((PACKAGE / "method").glob("*.py"))
    written = [
        f"{path.name}:{node.lineno}"
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        if any(isinstance(target, ast.Subscript) for target in node.targets)
    ]
    assert len(paths) > 10 and not written


def test_one_list_of_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line.strip(" -\n") for line in (ROOT / "environment.yml").read_text().splitlines()]
    listed = lines[lines.index("dependencies:") + 1 :]
    assert listed == [f"python{project['requires-python']}", "pip", "pip:", "e ."], "pyproject.toml is the only list"
