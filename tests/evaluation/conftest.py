"""Runs whose pseudo labels several test files read."""

import pytest
from helpers.labelled_runs import CAM_KINDS, SMALL, make_run

from toco_lab.config import Config
from toco_lab.evaluation.label_summary import PseudoLabels
from toco_lab.evaluation.pseudo_labels import write_pseudo_labels
from toco_lab.runs.run_dir import RunDir


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory) -> RunDir:
    """Random weights, three validation scenes. Shared: read only, but for its pseudo labels."""
    cfg = Config.preset("smoke").replace(val_images=3, train_images=4, crop_size=48, **SMALL)
    return make_run(cfg, tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def written(toy_run, tmp_path_factory) -> PseudoLabels:
    """All kinds from CAMs of the validation scenes, with images and scores. Shared: read only."""
    out = tmp_path_factory.mktemp("out")
    return write_pseudo_labels(
        toy_run, split="val", out=out, kinds=CAM_KINDS, scores=True, images="link", device="cpu", progress=False
    )
