"""CAM quality per layer: heads that learn, the protocol of CAMs, and a plain way to the same number."""

import shutil
from dataclasses import replace
from itertools import islice

import pytest
import torch
import torch.nn.functional as F

from toco_lab.data.loader import eval_samples
from toco_lab.evaluation import cam_per_layer
from toco_lab.evaluation.cam_per_layer import _pooled, layer_cam_quality, layer_cams_of_run
from toco_lab.evaluation.scores import confusion_matrix, iou_scores
from toco_lab.method.labels import confident_label
from toco_lab.method.present import PresentClasses
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import initial_model, load_run_model
from toco_lab.training.probe import fit_heads


@pytest.mark.parametrize("relu", [True, False])
def test_scores_equal_the_plain_way(smoke_run, relu):
    """One scale, no threshold but the config's: the same mIoU from tokens read with forward_intermediates."""
    model, cfg = load_run_model(smoke_run)
    cfg = cfg.replace(cam_scales=(1.0,), cam_relu=relu)
    frame = layer_cam_quality(model, cfg, num_train=6, num_images=3, progress=False)
    assert list(zip(frame["site"], frame["layer"], strict=True))[::6] == [
        ("after block", 1), ("after block", 2), ("after block", 3), ("after block", 4), ("final norm", 4),
    ]  # fmt: skip
    assert set(frame["images"]) == {3} and set(frame["trained_on"]) == {6}
    assert frame.groupby(["site", "layer"])["best"].any().all() and frame["own"].sum() == 5

    train = list(islice(eval_samples(cfg.replace(val_images=0), model.mean, model.std, "train"), 6))
    pooled = torch.stack([_pooled(model, cfg, sample) for sample in train], dim=1)
    heads = fit_heads(pooled, torch.stack([sample.image_label for sample in train]))
    matrix = 0
    for index in range(3):
        sample = eval_samples(cfg, model.mean, model.std)[index]
        maps = []
        for image in (sample.image[None], sample.image[None].flip(-1)):
            with torch.no_grad():
                tokens = model.encoder.forward_intermediates(image, norm=False, intermediates_only=True)[1]
            cam = torch.einsum("cd,bdhw->bchw", heads[1], tokens)
            maps.append(F.interpolate(cam, (96, 96), mode="bilinear", align_corners=False))
        cam = torch.maximum(maps[0], maps[1].flip(-1))
        cam = cam.relu() if relu else cam
        cam = cam - cam.amin((2, 3), keepdim=True)
        present = PresentClasses.of(sample.image_label[None])
        cam = present.gather(cam / (cam.amax((2, 3), keepdim=True) + 1e-5))
        label = confident_label(cam, present, low=cfg.background_threshold, high=cfg.background_threshold)
        matrix = matrix + confusion_matrix(label[0], sample.mask, 7)
    own = frame[(frame["layer"] == 2) & frame["own"]]["miou"].item()
    assert own == pytest.approx(iou_scores(matrix).miou.item(), abs=1e-4)


def test_an_image_of_background_alone_counts_as_such(smoke_run, monkeypatch):
    model, cfg = load_run_model(smoke_run)
    sample = eval_samples(cfg, model.mean, model.std)[0]
    empty = replace(sample, mask=torch.zeros_like(sample.mask), image_label=torch.zeros(6))
    real = cam_per_layer.eval_samples
    monkeypatch.setattr(cam_per_layer, "eval_samples", lambda *a: real(*a) if len(a) > 3 else [empty])
    frame = layer_cam_quality(model, cfg, num_train=3, num_images=1, progress=False)
    assert (frame["miou"] == 1).all()


def test_the_model_is_left_alone(smoke_run):
    model = initial_model(smoke_run.config()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layer_cam_quality(model, smoke_run.config(), num_train=3, num_images=1, progress=False)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_measurement_over_fewer_images_changes_no_file(smoke_run, tmp_path):
    run = RunDir(shutil.copytree(smoke_run.path, tmp_path / "run"))
    path = run.path / "layer_cams.csv"
    path.unlink(missing_ok=True)
    how = {"device": "cpu", "progress": False}
    frame = layer_cams_of_run(run, num_train=3, num_images=2, write=False, **how)
    assert not path.exists() and set(frame["model"]) == {"run"} and frame["weights"].str.startswith("step_").all()
    layer_cams_of_run(run, num_train=3, num_images=2, **how)
    kept = path.read_bytes()
    few = layer_cams_of_run(run, num_train=3, num_images=1, **how)
    assert set(few["images"]) == {1} and path.read_bytes() == kept  # it is returned, and the file stays
    layer_cams_of_run(run, num_train=2, num_images=2, **how)
    assert path.read_bytes() == kept  # heads trained on fewer images
    run.write_table("layer_cams", run.read_table("layer_cams").drop(columns="weights"))  # of an older version
    old = path.read_bytes()
    layer_cams_of_run(run, num_train=3, num_images=1, **how)
    assert path.read_bytes() == old
    layer_cams_of_run(run, num_train=3, num_images=2, **how)
    assert path.read_bytes() == kept
    run.write_table("layer_cams", frame.assign(weights="step_00000001 (0123456789ab)", images=99))
    layer_cams_of_run(run, num_train=3, num_images=1, **how)  # of other weights: nothing to keep
    assert set(run.read_table("layer_cams")["images"]) == {1}
    path.write_bytes(b"\x00")
    layer_cams_of_run(run, num_train=3, num_images=1, **how)  # damaged: written anew
    assert set(run.read_table("layer_cams")["images"]) == {1}
