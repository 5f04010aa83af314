"""Snapshots of tokens during training: when, what, and that they change nothing."""

import numpy as np
import pytest
import torch

from toco_lab.backbones.activations import capture
from toco_lab.config import Config
from toco_lab.experiment import train
from toco_lab.runs.run_dir import RunDir
from toco_lab.tokens.snapshots import maps_of_run, probe_samples, token_maps
from toco_lab.tokens.token_maps import load_run_maps
from toco_lab.training.checkpoints import load_run_model
from toco_lab.training.loop import snapshot_steps


def test_steps_are_evenly_spaced_from_before_training_to_the_end():
    cfg = Config.preset("toy")
    steps = sorted(snapshot_steps(cfg))
    assert len(steps) == cfg.token_snapshots == 21 and steps[0] == 0 and steps[-1] == cfg.steps
    assert set(np.diff(steps)) == {8}
    assert snapshot_steps(cfg.replace(token_snapshots=0)) == set()
    assert snapshot_steps(cfg.replace(token_snapshots=2)) == {0, cfg.steps}
    with pytest.raises(ValueError, match="token_snapshots must be 0 or at least 2"):
        cfg.replace(token_snapshots=1)
    assert Config().token_snapshots == 0  # off unless asked for


def test_a_run_keeps_its_probe_images_at_each_step(smoke_run):
    cfg = smoke_run.config()
    assert [[path.stem for path in image] for image in smoke_run.token_maps()] == [
        ["step_00000000", "step_00000002", "step_00000004"]
    ] * cfg.probe_images
    maps = load_run_maps(smoke_run)[1]
    assert maps.model == smoke_run.name and maps.steps == (0, 2, 4) and maps.grid == (12, 12)
    assert maps.layers == ("block 1", "block 2", "block 3", "block 4", "final norm")
    assert maps.tokens.error <= 0.02
    assert sum(path.stat().st_size for path in (smoke_run.path / "tokens").rglob("*.npz")) < 500_000


def test_the_last_snapshot_is_of_the_last_checkpoint(smoke_run):
    model, cfg = load_run_model(smoke_run)
    sample = probe_samples(cfg, model)[1]
    maps = load_run_maps(smoke_run)[1]
    seen = capture(model, sample.image[None])
    for layer, tokens in enumerate([*seen.after_block, seen.final]):
        unit = torch.nn.functional.normalize(seen.patches(tokens)[0], dim=1)
        exact = unit @ unit[77]
        np.testing.assert_allclose(maps.tokens.similarity(2, layer, 77), exact, atol=0.02)
    np.testing.assert_array_equal(maps.image, sample.raw)


def test_snapshots_change_no_number(tmp_path, smoke_run):
    cfg = smoke_run.config().replace(token_snapshots=0)
    plain = RunDir.create(cfg, tmp_path)
    train(plain, progress=False)
    assert plain.token_maps() == []
    assert cfg.digest() == smoke_run.config().digest()
    assert plain.metrics()["total_loss"].tolist() == smoke_run.metrics()["total_loss"].tolist()
    assert load_run_maps(plain) == []
    late, kept = maps_of_run(plain)[0], load_run_maps(smoke_run)[0]  # after the fact, from the checkpoint
    assert late.steps == (4,)
    np.testing.assert_array_equal(late.tokens.values, kept.tokens.values[-len(late.tokens.values) :])


def test_images_are_seen_at_the_size_of_the_evaluation(smoke_run):
    model, cfg = load_run_model(smoke_run)
    samples = probe_samples(cfg, model)[:1]
    (maps,) = token_maps(model, cfg.replace(eval_cam_size=64), samples, name="m", weights="w")
    assert maps.grid == (8, 8) and maps.image.shape == (64, 64, 3)
