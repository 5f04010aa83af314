"""Fixtures that several test files share, and what keeps workers of pytest-xdist out of each other's way.

No test uses the network.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # beside other work, threads that spin cost more than they wait for

import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers.folders import SAMPLES, make_voc

from toco_lab.config import Config
from toco_lab.evaluation.evaluate import evaluate_run
from toco_lab.experiment import train
from toco_lab.runs.run_dir import RunDir
from toco_lab.smoothing.per_layer import smoothing_of_run

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
# small tensors: more than two threads only wait for each other, and so do the threads of several workers
torch.set_num_threads(max(1, min(2, (os.cpu_count() or 1) // WORKERS)))
if WORKERS > 1:  # notebooks and commands that a test starts share the cores as well
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # commands that a test starts are to hear Ctrl-C


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what workers may share out (`--dist loadgroup`), and begin with what takes longest.

    The tests of the demo stay together, so that it is made once. A file stays together, so that its module fixtures
    (a browser, JupyterLab, trained runs) are made once. Slow tests that share nothing go one by one.
    """
    if WORKERS == 1:
        return
    groups = [_group(item) for item in items]
    slow = {group for group, item in zip(groups, items, strict=True) if item.get_closest_marker("slow")}
    places = sorted(range(len(items)), key=lambda place: (groups[place] != "demo", groups[place] not in slow))
    for item, group in zip(items, groups, strict=True):
        if group != item.nodeid and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(group))
    items[:] = [items[place] for place in places]


def _group(item: pytest.Item) -> str:
    """The name of a group of tests, or the test's own name if it is to go alone."""
    if own := item.get_closest_marker("xdist_group"):
        return own.args[0]
    if "demo_folder" in getattr(item, "fixturenames", ()):
        return "demo"
    alone = item.get_closest_marker("slow") and not item.get_closest_marker("browser")
    return item.nodeid if alone else item.nodeid.partition("::")[0]


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed; torch's global one is seeded as well."""
    torch.manual_seed(0)
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """made_once(name, make): a folder filled by `make(folder)`, in whichever worker needed it first. Read only."""
    base = tmp_path_factory.getbasetemp()
    common = base.parent if WORKERS > 1 else base

    def folder_of(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = common / name, common / f"{name}.done"
        with FileLock(common / f"{name}.lock"):
            if not done.exists():
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def smoke_run(made_once: Callable) -> RunDir:
    """A trained and evaluated run of the smoke preset. Read only: a test that writes into it takes a copy."""

    def make(folder: Path) -> None:
        run = RunDir.create(Config.preset("smoke"), folder, name="smoke")
        train(run, progress=False)
        evaluate_run(run, progress=False)
        smoothing_of_run(run, 4, progress=False)

    return RunDir(made_once("runs", make) / "smoke")


@pytest.fixture(scope="session")
def demo_folder(made_once: Callable) -> Path:
    """What `python -m toco_lab demo` makes with the smoke preset: two runs, six executed notebooks, the report."""
    from toco_lab.commands.app import main

    def make(folder: Path) -> None:
        assert main(["demo", "--preset", "smoke", "--root", str(folder)]) == 0

    return made_once("results", make) / "demo"


@pytest.fixture
def voc(tmp_path: Path) -> Config:
    """The VOC folder of `folders.make_voc`, made anew for each test."""
    return make_voc(tmp_path)


@pytest.fixture
def voc_sample() -> Config:
    """The real VOC samples; for tests marked `needs_samples`."""
    return Config.preset("voc_vit_b").replace(data_root=str(SAMPLES / "voc_sample"), num_workers=0)
