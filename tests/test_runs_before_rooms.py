"""A run folder written before the package had rooms (helpers/run_before_rooms) opens, is listed, continued, reported.

It is a tiny run of the smoke preset, stopped after three of four steps with a checkpoint at the second; its metrics to
the end, as that version wrote them, lie beside it.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import toco_lab as tl

HELPERS = Path(__file__).parent / "helpers"


@pytest.fixture
def run(tmp_path: Path) -> "tl.RunDir":
    """A copy of the folder."""
    return tl.RunDir(shutil.copytree(HELPERS / "run_before_rooms", tmp_path / "run"))


def test_it_opens_and_is_listed(run) -> None:
    for file in run.path.glob("*.*"):
        os.utime(file, (0, 0))  # written long ago, by nobody who is at it now
    (row,) = tl.list_runs(run.path.parent).to_dict("records")
    assert (row["run"], row["state"], row["step"]) == ("run", "stopped", 2)
    assert run.config().digest() == tl.Config.from_json((run.path / "config.json").read_text()).digest()
    scores = run.read_table("evaluation").set_index(["target", "class"])["iou"]
    assert row["cam_mIoU"] == pytest.approx(scores["cam", "mIoU"])
    model, _ = tl.load_run_model(run)
    assert not model.training


def test_its_scores_are_measured_again_to_the_same_numbers(run) -> None:
    before, smoothing = run.read_table("evaluation"), run.read_table("smoothing")
    tl.evaluate_run(run, progress=False)
    after = run.read_table("evaluation")
    known = after[after["target"].isin(before["target"])].reset_index(drop=True)  # without those at a tuned threshold
    assert set(after) - set(before) == {"boundary_iou"}  # not measured then
    pd.testing.assert_frame_equal(known[before.columns], before, rtol=1e-4)
    again = tl.smoothing_of_run(run, 2, progress=False)
    assert again["site"].tolist() == smoothing["site"].tolist()
    np.testing.assert_allclose(again["value"], smoothing["value"], rtol=1e-4, atol=1e-5)


def test_it_continues_to_the_metrics_it_would_have_had(run) -> None:
    tl.train(run, progress=False)
    assert run.status()["state"] == "done"
    expected = pd.read_csv(HELPERS / "run_before_rooms_metrics.csv")
    pd.testing.assert_frame_equal(run.metrics(), expected, rtol=1e-4)
    assert len(run.token_maps()[0]) == 3


def test_it_is_reported(run) -> None:
    (page,) = tl.build_report([run], run.path.parent / "report.html")
    text, scores = page.read_text(), run.read_table("evaluation").set_index(["target", "class"])["iou"]
    assert f"{100 * scores['cam_aux', 'mIoU']:.1f}" in text and "toco-token-explorer" in text
