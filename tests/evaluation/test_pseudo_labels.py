"""Pseudo labels: what is read back scores what evaluation says, thresholds, and models that have learnt nothing."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers.folders import SAMPLES, needs_samples, write_list
from helpers.labelled_runs import CAM_KINDS, SMALL, as_folder, make_run, read_png, voc_run
from PIL import Image

from toco_lab.backbones.weights import weights_hash
from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.data.classes import DataError, class_names
from toco_lab.data.loader import eval_samples
from toco_lab.data.readers import open_dataset
from toco_lab.evaluation import pseudo_labels
from toco_lab.evaluation.evaluate import evaluate_model
from toco_lab.evaluation.pseudo_labels import (
    KINDS,
    Thresholds,
    label_maps,
    native_cams,
    write_pseudo_labels,
)
from toco_lab.evaluation.scores import confusion_matrix, iou_scores
from toco_lab.experiment import open_run, train
from toco_lab.method.cam import Cams, multi_scale_cam
from toco_lab.method.crf import crf_label, dense_crf
from toco_lab.method.present import PresentClasses
from toco_lab.training.checkpoints import load_run_model


def score(cfg: Config, predictions, truths) -> float:
    """mIoU of label maps."""
    pairs = zip(predictions, truths, strict=True)
    matrix = sum(confusion_matrix(torch.as_tensor(label).long(), truth, cfg.num_classes + 1) for label, truth in pairs)
    return iou_scores(matrix, over=cfg.miou_over).miou.item()


# --- the hand-over ----------------------------------------------------------------------------------------------------


def test_what_a_second_stage_reads_scores_what_evaluation_says(toy_run, written):
    model, cfg = load_run_model(toy_run)
    truth = eval_samples(cfg, model.mean, model.std)
    wanted = evaluate_model(model, cfg, progress=False).scores
    for kind in ("seed", "refined", "aux"):
        reader = open_dataset(as_folder(written, kind), "val")
        assert reader.names == truth.reader.names and reader.classes == class_names(cfg)
        for index, sample in enumerate(truth):
            assert np.array_equal(reader.image(index), sample.raw)
            assert np.array_equal(reader.image_label(index), sample.image_label)  # the true one, not that of the labels
        predictions = [reader.mask(index) for index in range(len(reader))]
        assert score(cfg, predictions, [sample.mask for sample in truth]) == wanted[KINDS[kind]]
        assert written.miou[kind] == wanted[KINDS[kind]]


def test_labels_of_kind_seg_score_what_evaluation_says(toy_run, tmp_path):
    """They are the decoder's, and are masked by no image label; no threshold has a part in them."""
    kinds = ["seg", "seed"]
    written = write_pseudo_labels(toy_run, out=tmp_path / "both", split="val", kinds=kinds, progress=False)
    scores = evaluate_model(*load_run_model(toy_run), targets=["cam", "seg"], progress=False).scores
    assert written.miou == {"seg": scores["seg"], "seed": scores["cam"]} and 0 < scores["seg"] < 1
    record = json.loads((tmp_path / "both/seg/protocol.json").read_text())
    assert record["target"] == record["kind"] == "seg" and not record["true_labels_mask_cam"]
    assert record["low_threshold"] is record["high_threshold"] is None
    alone = write_pseudo_labels(toy_run, out=tmp_path / "alone", split="val", kinds=["seg"], progress=False)
    for path in (alone.out / "seg/SegmentationClass").iterdir():
        assert path.read_bytes() == (written.out / "seg/SegmentationClass" / path.name).read_bytes()


def test_a_run_without_a_decoder_has_no_labels_of_kind_seg(tmp_path):
    run = open_run(Config.preset("smoke").replace(method="tscam", steps=1, warmup_steps=0), tmp_path)
    train(run, progress=False)
    with pytest.raises(ValueError, match="method 'tscam' has no decoder, so that there are no labels of kind seg"):
        write_pseudo_labels(run, kinds=["seg"], progress=False)


def test_the_crf_gets_a_softmax_over_background_and_present_classes(toy_run, written):
    model, cfg = load_run_model(toy_run)
    for sample in eval_samples(cfg, model.mean, model.std):
        how = {"mode": "bilinear", "align_corners": False}
        resized = torch.nn.functional.interpolate(sample.image[None], (64, 64), **how)
        cam = multi_scale_cam(model, resized, cfg.cam_scales).cam
        cam = torch.nn.functional.interpolate(cam, (48, 48), **how)
        numbers = [0, *(np.flatnonzero(sample.image_label) + 1)]
        weights = torch.stack([torch.full((48, 48), 0.5).exp(), *(cam[0, number - 1].exp() for number in numbers[1:])])
        image = torch.from_numpy(sample.raw).permute(2, 0, 1)
        winner = dense_crf(image, (weights / weights.sum(0))[None]).argmax(1)[0]
        there = read_png(written.out / f"crf/SegmentationClass/{sample.name}.png")
        assert (np.array(numbers)[winner] == there).mean() > 0.999  # batches round differently
        assert set(np.unique(there)) <= set(numbers)


def test_the_protocol_says_everything(toy_run, written):
    records = {kind: json.loads((written.out / kind / "protocol.json").read_text()) for kind in CAM_KINDS}
    for kind, record in records.items():
        assert (record["kind"], record["target"]) == (kind, KINDS[kind])
        assert record["checkpoint"] == weights_hash(toy_run.checkpoints()[-1])
        assert (record["split"], record["images"], record["seed"]) == ("val", 3, 0)
        assert (record["image_size"], record["scales"], record["flip"]) == ("64 x 64", [1.0, 0.5], True)
        assert record["true_labels_mask_cam"] and record["image_labels"] == "masks"
        assert (record["low_threshold"], record["high_threshold"]) == (0.5, 0.5)
        assert record["par"] == ({"dilations": [1, 2], "iterations": 2, "scale": 0.5} if kind == "refined" else False)
        assert bool(record["crf"]) == (kind == "crf")
    crf = records["crf"]["crf"]
    assert (crf["iterations"], crf["bilateral_sigma_xy"], crf["bilateral_sigma_rgb"], crf["bilateral_weight"]) == (
        10, 121, 5, 4,
    )  # fmt: skip


def test_scores_are_those_the_seed_was_made_of(toy_run, written):
    model, cfg = load_run_model(toy_run)
    for sample in eval_samples(cfg, model.mean, model.std):
        for kind in ("seed", "aux"):
            with np.load(written.out / f"{kind}/scores/{sample.name}.npz") as file:
                classes, scores = file["classes"], file["scores"]
            assert classes.tolist() == (np.flatnonzero(sample.image_label) + 1).tolist()
            assert scores.dtype == np.float16 and scores.shape == (len(classes), 48, 48)
            expected = np.where(scores.max(0) <= 0.5, 0, classes[scores.argmax(0)])
            near = np.abs(scores.max(0) - 0.5) < 1e-3  # rounded to half precision
            tied = np.sort(scores, 0)[-2] == scores.max(0) if len(scores) > 1 else False
            label = read_png(written.out / f"{kind}/SegmentationClass/{sample.name}.png")
            assert np.array_equal(np.where(near | tied, 0, expected), np.where(near | tied, 0, label))
            assert near.mean() < 0.1
    assert not (written.out / "refined/scores").exists()


def test_the_summary_counts_pixels(toy_run, written):
    cfg = toy_run.config()
    for kind in CAM_KINDS:
        labels = np.stack([read_png(path) for path in (written.out / kind / "SegmentationClass").iterdir()])
        shares = written.shares[kind]
        assert shares.index.tolist() == ["background", *class_names(cfg), "ignored"]
        assert shares.tolist() == pytest.approx([(labels == number).mean() for number in [*range(7), 255]])
    assert (written.num_images, written.num_masks) == (3, 3)
    assert f"{100 * written.miou['seed']:.1f}" in str(written)
    assert len(written.shown) == 3 and list(written.shown[0][1]) == ["image", "truth", *CAM_KINDS]


def test_the_training_split_is_the_default_and_whole(toy_run):
    """`val_images` limits evaluation, `train_images` the training list: it is four scenes, not three."""
    done = write_pseudo_labels(toy_run, kinds=["seed"], device="cpu", progress=False)
    assert done.out == toy_run.path / "pseudo_labels" / "train" and done.num_images == 4
    assert {path.name for path in (done.out / "seed").iterdir()} == {
        "SegmentationClass", "ImageSets", "labels.csv", "classes.txt", "protocol.json",
    }  # fmt: skip


# --- thresholds -------------------------------------------------------------------------------------------------------


def make_cams() -> tuple[Cams, torch.Tensor]:
    """Two images of 12 x 16 pixels, three classes; the first shows class 1 and 3, the second none."""
    generator = torch.Generator().manual_seed(3)
    cam = torch.rand(2, 3, 12, 16, generator=generator)
    present = PresentClasses.of(torch.tensor([[1, 0, 1], [0, 0, 0]]))
    cam = present.gather(cam)
    return Cams(cam, cam.flip(-1), present), 255 * torch.rand(2, 3, 12, 16, generator=generator)


def test_255_lies_between_the_thresholds():
    cams, pixels = make_cams()
    found = label_maps(cams, pixels, Thresholds(0.25, 0.75), kinds=CAM_KINDS, dilations=(1, 2), num_iter=3)
    assert tuple(found) == CAM_KINDS
    for kind, cam in (("seed", cams.dense().cam), ("aux", cams.dense().cam_aux)):
        for y in range(12):
            for x in range(16):
                best = max((cam[0, c, y, x].item(), c + 1) for c in range(3))
                expected = best[1] if best[0] > 0.75 else 255 if best[0] > 0.25 else 0
                assert found[kind][0, y, x] == expected
    for kind in ("refined", "crf"):
        strict, loose = (
            label_maps(cams, pixels, Thresholds(t, t), kinds=[kind], dilations=(1, 2), num_iter=3)[kind]
            for t in (0.75, 0.25)
        )
        assert not (strict == 255).any() and not (loose == 255).any()
        assert torch.equal(found[kind], torch.where((strict == 0) & (loose != 0), 255, strict))
        assert (found[kind][0] == 255).any()
    assert all((label[1] == 0).all() for label in found.values())  # no class, no score


def test_an_absent_class_never_wins_in_the_crf():
    """Class 2 is absent but has the highest score: only the image labels keep it out."""
    cams, pixels = make_cams()
    dense = cams.dense()
    dense.cam[0, 1] = 1
    label = crf_label(pixels, dense.cam, dense.present, low=0.1, high=0.1)
    assert set(label[0].unique().tolist()) <= {0, 1, 3}
    assert torch.equal(label, crf_label(pixels, cams.cam, cams.present, low=0.1, high=0.1))


@pytest.mark.parametrize(("low", "high"), [(0.7, 0.3), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 0.5)])
def test_thresholds_out_of_order_are_refused(low, high):
    with pytest.raises(ValueError, match="0 <= low <= high <= 1"):
        Thresholds(low, high)


def test_the_score_of_labels_with_255_counts_decided_pixels(toy_run, tmp_path):
    model, cfg = load_run_model(toy_run)
    done = write_pseudo_labels(
        toy_run, split="val", out=tmp_path, kinds=["seed"], thresholds=Thresholds(0.25, 0.7), progress=False
    )
    truth = np.stack([sample.mask for sample in eval_samples(cfg, model.mean, model.std)])
    names = eval_samples(cfg, model.mean, model.std).reader.names
    label = np.stack([read_png(tmp_path / f"seed/SegmentationClass/{name}.png") for name in names])
    decided, ious = label != 255, []
    for number in np.unique(truth):
        hits = (decided & (label == number) & (truth == number)).sum()
        either = (decided & ((label == number) | (truth == number))).sum()
        ious.append(hits / either if either else 0)
    assert done.miou["seed"] == pytest.approx(np.mean(ious))
    assert done.shares.loc["ignored", "seed"] == pytest.approx((~decided).mean()) and (~decided).any()
    assert "not ignored" in str(done)


# --- guards -----------------------------------------------------------------------------------------------------------


def test_a_model_in_training_mode_is_refused(toy_run):
    model, cfg = load_run_model(toy_run)
    sample = eval_samples(cfg, model.mean, model.std)[0]
    arguments = (cfg, sample.image[None], sample.image_label[None])
    native_cams(model, *arguments)
    model.encoder.blocks[1].train()
    with pytest.raises(ValueError, match=r"training mode \(encoder.blocks.1\)"):
        native_cams(model, *arguments)
    with pytest.raises(ValueError, match=r"training mode \(all of it\)"):
        native_cams(model.train(), *arguments)


def test_constant_cams_are_refused_and_leave_nothing(tmp_path):
    cfg = Config.preset("smoke").replace(val_images=3, crop_size=64, **SMALL)
    run = make_run(cfg, tmp_path, flat=True)
    with pytest.raises(ValueError, match=r"every seed and crf label of the first 3 images .*toy_val_000001.* \(0\)"):
        write_pseudo_labels(run, split="val", out=tmp_path / "out", kinds=["seed", "crf"], progress=False)
    assert not (tmp_path / "out").exists()


def test_one_dead_kind_is_named_and_given_up_early(toy_run, tmp_path, monkeypatch):
    real, seen = pseudo_labels.label_maps, []

    def without_crf(cams, *arguments, **options):
        seen.append(len(cams.cam))
        found = real(cams, *arguments, **options)
        return found | {"crf": torch.full_like(found["crf"], 2)}

    monkeypatch.setattr(pseudo_labels, "label_maps", without_crf)
    monkeypatch.setattr(pseudo_labels, "PATIENCE", 2)
    monkeypatch.setattr(pseudo_labels, "BATCH", 1)
    with pytest.raises(ValueError, match=r"every crf label of the first 2 images .* \(2\)"):
        write_pseudo_labels(toy_run, split="val", out=tmp_path / "out", progress=False)
    assert seen == [1, 1] and not (tmp_path / "out").exists()


def test_some_constant_labels_are_named(toy_run, tmp_path, monkeypatch):
    real = pseudo_labels.label_maps

    def first_is_constant(*arguments, **options):
        found = real(*arguments, **options)
        found["seed"][0] = 0
        return found

    monkeypatch.setattr(pseudo_labels, "label_maps", first_is_constant)
    done = write_pseudo_labels(toy_run, split="val", out=tmp_path, kinds=["seed"], progress=False)
    assert "toy_val_000000" in done.constant["seed"]
    assert "one value throughout: seed of" in str(done)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["sed"]}, "unknown kind sed; there are seed"),
        ({"kinds": []}, "no kind"),
        ({"kinds": ["crf"], "scores": True}, "scores belong to seed and aux"),
        ({"images": "move"}, "'link' or 'copy', got 'move'"),
    ],
)
def test_wishes_that_can_not_be_met(options, message, toy_run, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_pseudo_labels(toy_run, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_images_without_a_label_are_named_before_anything_is_made(tmp_path):
    run = voc_run(tmp_path)
    root = tmp_path / "VOC2012"
    Image.new("RGB", (30, 20)).save(root / "JPEGImages/four.jpg")
    Image.new("RGB", (30, 20)).save(root / "JPEGImages/five.jpg")
    write_list(root, ["four", "five"], "test")
    with pytest.raises(DataError, match=r"2 of 2 images of 'test'.*the first is four.*label file"):
        write_pseudo_labels(run, split="test", out=tmp_path / "out", progress=False)


# --- photographs ------------------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.slow
@needs_samples
def test_real_photographs_score_the_same_when_read_back(tmp_path):
    cfg = Config.preset("voc_vit_b").replace(
        data_root=str(SAMPLES / "voc_sample"), crop_size=128, val_images=3, **(SMALL | {"eval_cam_size": 128})
    )
    run = make_run(cfg, tmp_path)
    done = write_pseudo_labels(
        run, split="val", out=tmp_path / "out", kinds=["seed", "refined"], images="link", progress=False
    )
    model, cfg = load_run_model(run)
    wanted = evaluate_model(model, cfg, targets=("cam", "cam_refined"), progress=False).scores
    samples = eval_samples(cfg, model.mean, model.std)
    assert len({sample.raw.shape for sample in samples}) > 1
    for kind in ("seed", "refined"):
        reader = open_dataset(as_folder(done, kind), "val")
        predictions = [reader.mask(index) for index in range(len(reader))]
        assert score(cfg, predictions, [sample.mask for sample in samples]) == wanted[KINDS[kind]]


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command(toy_run, tmp_path, capsys):
    shutil.copytree(toy_run.path, tmp_path / "run")
    arguments = ["pseudo-labels", str(tmp_path / "run"), "--split", "val", "--kinds", "seed", "aux", "--uncertain"]
    assert main([*arguments, "--device", "cpu"]) == 0
    out = tmp_path / "run/pseudo_labels/val"
    printed = capsys.readouterr().out
    assert "3 images of val" in printed and "lattice star" in printed and str(out / "contact_sheet.png") in printed
    assert (out / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((out / "aux/protocol.json").read_text())
    assert (record["low_threshold"], record["high_threshold"]) == (0.25, 0.7)
    assert main([*arguments[:-1], "--thresholds", "0.4"]) == 2
    assert "low_threshold (0.25 there, 0.4 wanted)" in capsys.readouterr().err
    assert main([*arguments, "--thresholds", "0.4"]) == 2
    assert "--uncertain without --thresholds" in capsys.readouterr().err
    assert main(["pseudo_labels", str(tmp_path / "nowhere")]) == 2
    assert "no config.json" in capsys.readouterr().err
