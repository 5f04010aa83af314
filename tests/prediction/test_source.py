"""Weights from a run, a file of ours or the authors', or the best run of a sweep."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from toco_lab.backbones.weights import CheckpointError, weights_hash
from toco_lab.config import Config
from toco_lab.method.model import ToCo
from toco_lab.prediction import source
from toco_lab.prediction.source import best_run, load
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.released import export_released


def test_a_run_its_folder_and_its_checkpoint_are_the_same_weights(smoke_run, tmp_path):
    checkpoint = smoke_run.checkpoints()[-1]
    shutil.copy(checkpoint, tmp_path / "renamed.pt")
    found = [load(one, device="cpu") for one in (smoke_run, str(smoke_run.path), checkpoint, tmp_path / "renamed.pt")]
    assert {one.checkpoint for one in found} == {weights_hash(checkpoint)} and {one.step for one in found} == {4}
    assert [one.name for one in found] == ["smoke", "smoke", "step_00000004", "renamed"]
    wanted = found[0].model.state_dict()
    for one in found:
        assert one.cfg == smoke_run.config() and not one.model.training
        assert all(torch.equal(value, wanted[name]) for name, value in one.model.state_dict().items())


def test_a_released_file_predicts_without_a_run(tmp_path, monkeypatch):
    cfg = Config.preset("smoke")
    model = ToCo(cfg)
    state = {f"module.{name}": value for name, value in export_released(model).items()}
    torch.save(state, tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError, match="has 6 classes: say which preset"):
        load(tmp_path / "theirs.pth")
    found = load(tmp_path / "theirs.pth", preset="smoke", device="cpu")
    assert found.cfg == cfg.released() and found.checkpoint == weights_hash(tmp_path / "theirs.pth")
    assert torch.equal(found.model.decoder.conv2.weight, model.decoder.conv2.weight)
    assert found.recipe().mask == "seg"
    monkeypatch.setitem(source.PRESETS_OF_CLASSES, 6, "smoke")
    assert load(tmp_path / "theirs.pth", device="cpu").cfg == cfg.released()
    del state["module.classifier.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match="neither a checkpoint of a run nor one that the authors released"):
        load(tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match="lacks 1 parameter of the model"):
        load(tmp_path / "part.pth", preset="smoke")


def test_options_without_effect_are_refused(smoke_run):
    with pytest.raises(ValueError, match=r"preset \(smoke\) has no effect: .* is one run"):
        load(smoke_run.path, preset="smoke")
    with pytest.raises(ValueError, match=r"by \(seg_mIoU\) has no effect: .* is one file"):
        load(smoke_run.checkpoints()[-1], by="seg_mIoU")
    with pytest.raises(FileNotFoundError, match="no run, checkpoint or sweep no/such"):
        load("no/such")


# --- the best of several ----------------------------------------------------------------------------------------------


def scored(smoke_run: RunDir, folder: Path, name: str, *, weights: bool = True, **scores: float) -> RunDir:
    """A copy of the smoke run with other scores."""
    shutil.copytree(smoke_run.path, folder / name)
    run = RunDir(folder / name)
    rows = [(target, "mIoU", score) for target, score in scores.items()]
    run.write_table("evaluation", pd.DataFrame(rows, columns=["target", "class", "iou"]))
    if not weights:
        shutil.rmtree(run.path / "checkpoints")
    return run


def test_the_best_run_of_a_folder_is_taken_and_said(smoke_run, tmp_path):
    for name, cam, seg in (("low", 0.25, 0.75), ("high", 0.5, 0.5), ("equal", 0.5, 0.25)):
        scored(smoke_run, tmp_path, f"deep/{name}", cam=cam, seg=seg)
    scored(smoke_run, tmp_path, "gone", weights=False, cam=0.99)
    run, chosen = best_run(tmp_path)
    assert run.name == "equal" and chosen == f"best of 3 runs in {tmp_path} by cam_mIoU (50.0 over 4 images)"
    assert load(tmp_path, by="seg_mIoU", device="cpu").name == "low"
    with pytest.raises(ValueError, match=r"4 runs in .* the score 'seg_mIuO', did you mean 'seg_mIoU'"):
        best_run(tmp_path, "seg_mIuO")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"is no run .* and holds none"):
        best_run(tmp_path / "empty")


def test_a_sweep_that_shares_its_runs_has_those_of_its_table(smoke_run, tmp_path):
    for name, cam in (("mine", 0.25), ("of_another", 0.75)):
        scored(smoke_run, tmp_path / "shared", name, cam=cam)
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "grid.yaml").write_text("{}")
    with pytest.raises(ValueError, match="is not finished and lists no runs yet"):
        best_run(sweep)
    pd.DataFrame({"run": ["mine", "never_made"]}).to_csv(sweep / "sweep.csv", index=False)
    (sweep / "grid.yaml").write_text(json.dumps({"name": "sweep", "folder": "shared"}))
    run, chosen = best_run(sweep)
    assert run.path == tmp_path / "shared" / "mine" and "best of 1 run in" in chosen
