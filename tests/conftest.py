"""Fixtures that several test files share, and what keeps workers of pytest-xdist out of each other's way.

No test uses the network.
"""

import os
import signal
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not os.environ.get("TOCO_TEST_GPU"):  # `make gpu` sets it; the other tests compare to the bit, as only a CPU can
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
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
from toco_lab.smoothing.of_runs import smoothing_of_run

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
# small tensors: more than two threads only wait for each other, and so do the threads of several workers
torch.set_num_threads(max(1, min(2, (os.cpu_count() or 1) // WORKERS)))
if WORKERS > 1:  # notebooks and commands that a test starts share the cores as well
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # commands that a test starts are to hear Ctrl-C


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no worker waits for another one at the end.

    Each file goes to one worker (`--dist loadfile`): its module fixtures (a browser, JupyterLab, the demo) are made
    once.
    """
    if WORKERS > 1:
        files = [item.nodeid.partition("::")[0] for item in items]
        slow = Counter(file for file, item in zip(files, items, strict=True) if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.nodeid.partition("::")[0]])


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed; torch's global one is seeded as well."""
    torch.manual_seed(0)
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A trained and evaluated run of the smoke preset, one for all workers. A test that writes into it takes a copy."""
    folder = tmp_path_factory.getbasetemp()
    if WORKERS > 1:
        folder = folder.parent  # the one of this session
    done = folder / "smoke_run.done"
    with FileLock(folder / "smoke_run.lock"):
        if not done.exists():
            run = RunDir.create(Config.preset("smoke"), folder / "smoke_run", name="smoke")
            train(run, progress=False)
            evaluate_run(run, progress=False)
            smoothing_of_run(run, 4, progress=False)
            done.touch()
    return RunDir(folder / "smoke_run" / "smoke")


@pytest.fixture
def voc(tmp_path: Path) -> Config:
    """The VOC folder of `folders.make_voc`, made anew for each test."""
    return make_voc(tmp_path)


@pytest.fixture
def voc_sample() -> Config:
    """The real VOC samples; for tests marked `needs_samples`."""
    return Config.preset("voc_vit_b").replace(data_root=str(SAMPLES / "voc_sample"), num_workers=0)
