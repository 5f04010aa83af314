"""Reading never rewrites: smoothing.csv of a run keeps what was measured over most images."""

import shutil

import pandas as pd
import pytest

from toco_lab.runs.run_dir import RunDir
from toco_lab.runs.scores import run_scores
from toco_lab.smoothing.of_runs import merged, num_images_of, smoothing_of_run
from toco_lab.smoothing.per_layer import RANK_ME


@pytest.fixture
def run(smoke_run, tmp_path):
    """A copy of the smoke run, whose cosines were measured over four images."""
    return RunDir(shutil.copytree(smoke_run.path, tmp_path / "run"))


def test_measuring_for_a_comparison_leaves_the_folder_alone(run):
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    frame = smoothing_of_run(run, 2, metrics=None, progress=False, write=False)
    assert max(num_images_of(frame).values()) == 2
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_fewer_images_add_metrics_and_change_no_number(run):
    before, scores = run.read_table("smoothing", text=("image",)), run_scores(run)
    measured = smoothing_of_run(run, 2, metrics=None, progress=False)
    assert max(num_images_of(measured).values()) == 2
    after = run.read_table("smoothing", text=("image",))
    keys = ["site", "metric", "variant"]
    assert not after[keys].isna().any(axis=None)
    cosines = after.merge(before[keys].drop_duplicates())[list(before)]
    pd.testing.assert_frame_equal(cosines, before, check_exact=True)
    assert run_scores(run) == scores
    kept, counts = num_images_of(before), num_images_of(after)
    assert {key: counts[key] for key in kept} == kept and max(kept.values()) == 4
    others = counts.keys() - kept.keys()
    assert max(counts[key] for key in others) == 2 == counts["after block", *RANK_ME]
    smoothing_of_run(run, 3, metrics=None, progress=False)  # more than the others had, fewer than the cosines
    counts = num_images_of(run.read_table("smoothing"))
    assert {key: counts[key] for key in kept} == kept
    assert max(counts[key] for key in others) == 3 == counts["after block", *RANK_ME]


def test_more_images_and_other_weights_replace(run):
    few = smoothing_of_run(run, 2, progress=False, write=False)
    more = smoothing_of_run(run, 3, progress=False, write=False)
    pd.testing.assert_frame_equal(merged(few, more), more)
    pd.testing.assert_frame_equal(merged(more, few), more)
    pd.testing.assert_frame_equal(merged(more.assign(weights="others"), few), few)
    pd.testing.assert_frame_equal(merged(more.drop(columns="tokens"), few), few)
