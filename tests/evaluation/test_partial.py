"""An evaluation that is killed goes on where it was."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.refusing import fill_disk

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


def interrupted(model, keep, monkeypatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(partial, "SECONDS", 0.0)
        seen(patch, killed_after=2)
        evaluate_model(model, CFG, keep=keep, gallery=4, checkpoint="a", progress=False)
    assert kept(keep).is_file()


def kept(keep: Path) -> Path:
    """The file of the one process."""
    return keep.with_name(f"{keep.name}_0.pt")


def test_it_goes_on_to_the_same_numbers(tmp_path, monkeypatch, model):
    whole = evaluate_model(model, CFG, gallery=4, checkpoint="a", progress=False)
    interrupted(model, tmp_path / "part", monkeypatch)
    images = seen(monkeypatch)
    continued = evaluate_model(model, CFG, keep=tmp_path / "part", gallery=4, checkpoint="a", progress=False)
    assert images == [4], "16 of 20 images, two groups of 8, were not seen again"
    pd.testing.assert_frame_equal(continued.table, whole.table, check_exact=True)
    pd.testing.assert_frame_equal(continued.curve, whole.curve, check_exact=True)
    assert continued.protocol == whole.protocol and list(continued.gallery) == list(whole.gallery)
    for name, row in whole.gallery.items():
        for title, picture in row.items():
            np.testing.assert_array_equal(continued.gallery[name][title], picture)


@pytest.mark.parametrize(
    "other",
    [{"checkpoint": "b"}, {"targets": ["cam"]}, {"cfg": CFG.replace(background_threshold=0.4)}, {"gallery": 2}],
    ids=lambda other: next(iter(other)),
)
def test_counts_of_anything_else_are_not_taken_up(tmp_path, monkeypatch, model, other):
    interrupted(model, tmp_path / "part", monkeypatch)
    images = seen(monkeypatch)
    options = {"cfg": CFG, "checkpoint": "a", "gallery": 4} | other
    evaluate_model(model, options.pop("cfg"), keep=tmp_path / "part", progress=False, **options)
    assert sum(images) == 20


@pytest.mark.parametrize("damage", ["half", "flipped bits"])
def test_a_damaged_file_is_as_good_as_none(tmp_path, monkeypatch, model, damage):
    keep = tmp_path / "part"
    interrupted(model, keep, monkeypatch)
    content = kept(keep).read_bytes()
    damaged = content[:1000] if damage == "half" else content.replace(b"\x01\x00", b"\x03\x00", 1)
    assert damaged != content
    kept(keep).write_bytes(damaged)
    images = seen(monkeypatch)
    evaluate_model(model, CFG, keep=keep, gallery=4, checkpoint="a", progress=False)
    assert sum(images) == 20


def test_a_short_evaluation_writes_nothing_on_the_way(tmp_path, monkeypatch, model):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        seen(patch, killed_after=2)
        evaluate_model(model, CFG, keep=tmp_path / "part", checkpoint="a", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_after_an_error_it_begins_anew(tmp_path, monkeypatch, model):
    """A mask that is mended may be one of many that were wrong."""

    def refuse(*args, **options):
        raise ValueError("mask of image 17")

    keep = tmp_path / "part"
    interrupted(model, keep, monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="mask of image 17"):
        patch.setattr(
            evaluate, "predict", lambda *args, **options: (_ for _ in ()).throw(ValueError("mask of image 17"))
        )
        evaluate_model(model, CFG, keep=keep, gallery=4, checkpoint="a", progress=False)
    assert not kept(keep).exists()


def test_a_full_disk_does_not_end_it(tmp_path, monkeypatch, model):
    monkeypatch.setattr(partial, "SECONDS", 0.0)
    fill_disk(monkeypatch, "part_0.pt")
    assert evaluate_model(model, CFG, keep=tmp_path / "part", checkpoint="a", progress=False).scores
    assert list(tmp_path.iterdir()) == []


def test_it_is_known_whose_counts_they_are(tmp_path, model):
    for options in ({}, {"checkpoint": "a", "observe": lambda group, predicted: None}):
        with pytest.raises(ValueError, match="keep needs a checkpoint"):
            evaluate_model(model, CFG, keep=tmp_path / "part", progress=False, **options)


def test_a_run_keeps_its_counts_until_its_scores_are_written(smoke_run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "BATCH", 1)
    monkeypatch.setattr(partial, "SECONDS", 0.0)
    run = RunDir(shutil.copytree(smoke_run.path, tmp_path / "run"))
    whole, total = evaluate_run(run, progress=False), run.config().val_images
    part, of_more_processes = run.path / ".evaluation_0.pt", run.path / ".evaluation_3.pt"
    assert total > 2 and not part.exists()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        seen(patch, killed_after=2)
        evaluate_run(run, progress=False)
    of_more_processes.write_bytes(b"")
    for left in (total - 2, 0):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            images = seen(patch)
            fill_disk(patch, "evaluation.csv")
            evaluate_run(run, progress=False)
        assert len(images) == left and part.is_file()
    images = seen(monkeypatch)
    continued = evaluate_run(run, progress=False)
    assert images == [] and not part.exists() and not of_more_processes.exists()
    pd.testing.assert_frame_equal(continued.table, whole.table, check_exact=True)
