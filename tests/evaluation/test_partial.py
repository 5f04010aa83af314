"""An evaluation that is killed goes on where it was."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from toco_lab.config import Config
from toco_lab.evaluation import evaluate, partial
from toco_lab.evaluation.evaluate import evaluate_model, evaluate_run
from toco_lab.method.model import ToCo
from toco_lab.runs.run_dir import RunDir

CFG = Config.preset("smoke").replace(val_images=20, threshold_images=3)


class Killed(BaseException):
    """Not an error that anyone would catch."""


@pytest.fixture
def model() -> ToCo:
    torch.manual_seed(0)
    return ToCo(CFG)


def seen(monkeypatch, *, killed_after: int | None = None) -> list[int]:
    """Counts the images that are predicted; a kill comes instead of the group after so many groups."""
    counted: list[int] = []
    original = evaluate.predict

    def predict(model, cfg, image, *args, **options):
        if len(counted) == killed_after:
            raise Killed
        counted.append(len(image))
        return original(model, cfg, image, *args, **options)

    monkeypatch.setattr(evaluate, "predict", predict)
    return counted


def interrupted(model, folder, monkeypatch, cfg=CFG, **options) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(partial, "SECONDS", 0.0)
        seen(patch, killed_after=2)
        evaluate_model(model, cfg, keep=folder, gallery=4, progress=False, **options)
    assert (folder / ".evaluation_0.pt").is_file()


def test_it_goes_on_to_the_same_numbers(tmp_path, monkeypatch, model):
    whole = evaluate_model(model, CFG, gallery=4, checkpoint="a", progress=False)
    interrupted(model, tmp_path, monkeypatch, checkpoint="a")
    images = seen(monkeypatch)
    continued = evaluate_model(model, CFG, keep=tmp_path, gallery=4, checkpoint="a", progress=False)
    assert images == [4], "16 of 20 images, two groups of 8, were not seen again"
    pd.testing.assert_frame_equal(continued.table, whole.table, check_exact=True)
    pd.testing.assert_frame_equal(continued.curve, whole.curve, check_exact=True)
    assert continued.protocol == whole.protocol and list(continued.gallery) == list(whole.gallery)
    for name, row in whole.gallery.items():
        for title, picture in row.items():
            np.testing.assert_array_equal(continued.gallery[name][title], picture)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "other",
    [{"checkpoint": "b"}, {"targets": ["cam"]}, {"cfg": CFG.replace(background_threshold=0.4)}, {"gallery": 2}],
    ids=lambda other: next(iter(other)),
)
def test_counts_of_anything_else_are_not_taken_up(tmp_path, monkeypatch, model, other):
    interrupted(model, tmp_path, monkeypatch, checkpoint="a")
    images = seen(monkeypatch)
    options = {"cfg": CFG, "checkpoint": "a", "gallery": 4} | other
    evaluate_model(model, options.pop("cfg"), keep=tmp_path, progress=False, **options)
    assert sum(images) == 20


def test_half_a_file_is_as_good_as_none(tmp_path, monkeypatch, model):
    interrupted(model, tmp_path, monkeypatch)
    kept = tmp_path / ".evaluation_0.pt"
    kept.write_bytes(kept.read_bytes()[:1000])
    images = seen(monkeypatch)
    evaluate_model(model, CFG, keep=tmp_path, gallery=4, progress=False)
    assert sum(images) == 20 and not kept.exists()


def test_a_short_evaluation_writes_nothing_on_the_way(tmp_path, monkeypatch, model):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        seen(patch, killed_after=2)
        evaluate_model(model, CFG, keep=tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_run_keeps_its_counts_in_its_folder(smoke_run, tmp_path, monkeypatch):
    run = RunDir(shutil.copytree(smoke_run.path, tmp_path / "run"))
    before = run.read_table("evaluation")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(partial, "SECONDS", 0.0)
        patch.setattr(evaluate, "BATCH", 1)
        seen(patch, killed_after=2)
        evaluate_run(run, progress=False)
    assert (run.path / ".evaluation_0.pt").is_file()
    monkeypatch.setattr(evaluate, "BATCH", 1)
    images = seen(monkeypatch)
    table = evaluate_run(run, progress=False).table
    assert len(images) == run.config().val_images - 2 and not (run.path / ".evaluation_0.pt").exists()
    pd.testing.assert_frame_equal(table, before, atol=0.01)
