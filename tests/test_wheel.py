"""The wheel, as somebody has it who has nothing else: made of the sdist, installed alone, used in an empty folder."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = "toco_lab notebooks data/toy results/studies docs".split()
PROJECT += "data/README.md pyproject.toml setup.py MANIFEST.in README.md LICENSE".split()
LARGEST = 5_000_000  # bytes of the wheel

pytestmark = pytest.mark.slow


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=540)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist and the wheel that was built from it, of a copy of this project without its caches."""
    if missing := [name for name in ("build", "pip", "setuptools") if importlib.util.find_spec(name) is None]:
        pytest.skip(f"no package {missing[0]}, which builds and installs a wheel without a network")
    project, out = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("dist")
    unwanted = shutil.ignore_patterns("__pycache__", "_build", "api", "generated", ".ipynb_checkpoints")
    for name in PROJECT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, project / name, ignore=unwanted)
        else:
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, project / name)
    made = run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)], project)
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def site(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel alone; its dependencies come from this environment."""
    target, (wheel,) = tmp_path_factory.mktemp("site"), built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    done = run([*pip, "--target", str(target), str(wheel)], target)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The empty folder in which everything below happens, one test after the other."""
    return tmp_path_factory.mktemp("empty")


def toco_lab(arguments: str, site: Path, folder: Path) -> subprocess.CompletedProcess:
    """`python -m toco_lab ...` of the installed wheel."""
    return run([sys.executable, "-m", "toco_lab", *arguments.split()], folder, PYTHONPATH=str(site))


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_wheel_holds_the_package_and_what_travels_with_it_once(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    assert wheel.stat().st_size < LARGEST
    with zipfile.ZipFile(wheel) as archive:
        inside = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    travels = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("data/toy/*"), *ROOT.glob("results/studies/*/*.*")]
    travels += [ROOT / "data/README.md", ROOT / "docs/smoke.yaml"]
    data = {f"toco_lab/_data/{path.relative_to(ROOT)}": path.read_bytes() for path in travels}
    assert len(data) > 70 and {name: inside[name] for name in inside if "/_data/" in name} == data
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "toco_lab").rglob("*") if path.is_file()}
    assert set(inside) - set(data) == {name for name in package if "__pycache__" not in name}
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {name.removeprefix("toco_lab/_data/") for name in data} <= names and "setup.py" in names
    assert not any(name.startswith("toco_lab/_data") for name in names)


def test_the_pages_of_the_commands(site: Path, empty: Path) -> None:
    where = run([sys.executable, "-c", "import toco_lab; print(toco_lab.__file__)"], empty, PYTHONPATH=str(site))
    assert Path(where.stdout.strip()).is_relative_to(site), "the tests below are about the wheel"
    assert "notebooks" in toco_lab("--help", site, empty).stdout
    studies = toco_lab("study", site, empty).stdout.splitlines()
    assert len(studies) == len(list(ROOT.glob("results/studies/*/grid.yaml"))) > 10
    assert any(re.match(r"toy_table +\d+ of \d+ runs ", line) for line in studies), "its table came along"
    planned = toco_lab("sweep docs/smoke.yaml --dry-run", site, empty)
    assert "4 runs, 0 done, 4 to do" in planned.stdout, planned.stderr
    absent = toco_lab("data check folder --data-root absent", site, empty)
    assert absent.returncode == 2 and "Traceback" not in absent.stderr
    assert not files_below(empty)


def test_a_run_a_notebook_and_a_report_from_an_empty_folder(site: Path, empty: Path) -> None:
    before = files_below(site)
    trained = toco_lab("train smoke --name first", site, empty)
    assert trained.returncode == 0, trained.stderr
    [made] = json.loads((empty / "results/first/env.json").read_text())
    assert made["git"] is None and made["packages"]["toco_lab"] == "0.1.0"
    noted = toco_lab(
        "run notebooks/02_losses_by_hand.ipynb --parameters preset=smoke run_dir=results/first", site, empty
    )
    assert noted.returncode == 0, noted.stderr
    assert (empty / "results/first/figures/ptc_descent.png").is_file()
    assert json.loads((empty / "results/first/notebooks/02_losses_by_hand.json").read_text())["state"] == "done"
    report = toco_lab("report results/first --out page/report.html", site, empty)
    assert report.returncode == 0, report.stderr
    page = (empty / "page" / "report.html").read_text()
    assert "toco_lab" in page and "0.1.0" in page and len(page) > 1_000_000
    assert {path.name for path in empty.iterdir()} == {"results", "page"}
    assert files_below(site) == before, "nothing is written into the installed package"


def test_copied_notebooks_find_their_project_and_what_travels(site: Path, empty: Path) -> None:
    copied = toco_lab("notebooks", site, empty)
    assert copied.returncode == 0, copied.stderr
    originals = {path.name: path.read_bytes() for path in ROOT.glob("notebooks/*.ipynb")}
    assert {path.name: path.read_bytes() for path in (empty / "notebooks").iterdir()} == originals
    assert "--ServerApp.ip=127.0.0.1 notebooks/00_start_here.ipynb" in copied.stdout
    code = "import toco_lab as tl; print(tl.enter_project()); tl.reports.open_study('loss_terms').table();"
    code += "tl.initial_model(tl.Config.preset('toy'))"  # with the toy weights
    inside = run([sys.executable, "-c", code], empty / "notebooks", PYTHONPATH=str(site))
    assert inside.returncode == 0 and Path(inside.stdout.strip()) == empty.resolve(), inside.stderr
