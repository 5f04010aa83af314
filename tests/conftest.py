"""Fixtures that several test files share. No test uses the network."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # beside other work, threads that spin cost more than they wait for

import numpy as np
import pytest
import torch
from helpers.folders import SAMPLES, make_voc

from toco_lab.config import Config
from toco_lab.evaluation.evaluate import evaluate_run
from toco_lab.experiment import train
from toco_lab.runs.run_dir import RunDir
from toco_lab.smoothing.per_layer import smoothing_of_run

torch.set_num_threads(min(2, os.cpu_count() or 1))  # small tensors: more threads only wait for each other


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed; torch's global one is seeded as well."""
    torch.manual_seed(0)
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A trained and evaluated run of the smoke preset. Shared: read only."""
    cfg = Config.preset("smoke")
    run = RunDir.create(cfg, tmp_path_factory.mktemp("runs"), name="smoke")
    train(run, progress=False)
    evaluate_run(run, progress=False)
    smoothing_of_run(run, 4, progress=False)
    return run


@pytest.fixture
def voc(tmp_path: Path) -> Config:
    """The VOC folder of `folders.make_voc`, made anew for each test."""
    return make_voc(tmp_path)


@pytest.fixture
def voc_sample() -> Config:
    """The real VOC samples; for tests marked `needs_samples`."""
    return Config.preset("voc_vit_b").replace(data_root=str(SAMPLES / "voc_sample"), num_workers=0)


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `python -m toco_lab demo` makes with the smoke preset: two runs, six executed notebooks, the report."""
    from toco_lab.commands.app import main

    root = tmp_path_factory.mktemp("results")
    assert main(["demo", "--preset", "smoke", "--root", str(root)]) == 0
    return root / "demo"
