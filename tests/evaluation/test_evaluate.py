"""Evaluation of a model image by image, its protocol, and evaluation of a whole run."""

import shutil

import pandas as pd
import pytest
import torch

from toco_lab.config import Config
from toco_lab.data.loader import eval_samples
from toco_lab.evaluation import evaluate
from toco_lab.evaluation.boundary import boundary_counts, boundary_iou
from toco_lab.evaluation.evaluate import Evaluation, evaluate_model, evaluate_run
from toco_lab.evaluation.prediction import grouped_by_size, multi_scale_segmentation
from toco_lab.evaluation.scores import confusion_matrix, iou_scores
from toco_lab.method.cam import multi_scale_cam
from toco_lab.method.labels import confident_label
from toco_lab.method.model import ToCo
from toco_lab.method.present import PresentClasses
from toco_lab.runs.run_dir import RunDir
from toco_lab.vocabulary import TUNED

CFG = Config.preset("smoke")


def test_fusion_of_scales_and_flip():
    torch.manual_seed(0)
    model, image = ToCo(CFG).eval(), torch.randn(1, 3, 32, 40)
    with torch.no_grad():
        size = {"size": (32, 40), "mode": "bilinear", "align_corners": False}
        resize = torch.nn.functional.interpolate
        pairs = []
        for scale in (1.0, 1.5):
            x = resize(image, size=(int(32 * scale), int(40 * scale)), mode="bilinear", align_corners=False)
            pairs.append([resize(model(x).seg_logits, **size), resize(model(x.flip(3)).seg_logits, **size).flip(3)])
    voc = torch.maximum(pairs[0][0] + pairs[0][1], pairs[1][0] + pairs[1][1])
    coco = torch.maximum(*pairs[0]) + torch.maximum(*pairs[1])
    for fusion, expected in (("voc", voc), ("coco", coco)):
        fused = multi_scale_segmentation(model, image, (1.0, 1.5), fusion=fusion)
        torch.testing.assert_close(fused, expected, atol=1e-6, rtol=1e-5)
    single = multi_scale_segmentation(model, image, (1.0,), flip=False)
    torch.testing.assert_close(single, pairs[0][0], atol=1e-6, rtol=1e-5)


def test_groups_keep_order_and_never_mix_sizes():
    class Sample:
        def __init__(self, name, side):
            self.name, self.image = name, torch.zeros(3, side, side)

    samples = [Sample(i, side) for i, side in enumerate([4, 4, 4, 6, 4, 4])]
    groups = list(grouped_by_size(samples, 2))
    assert [[s.name for s in group] for group in groups] == [[0, 1], [2], [3], [4, 5]]


def test_evaluation_of_a_model_follows_the_protocol_image_by_image():
    """mIoU of the CAM recomputed slowly from single images, true labels masking it; batching must not matter."""
    torch.manual_seed(0)
    cfg = CFG.replace(val_images=5, eval_cam_size=64)
    model = ToCo(cfg).train()
    result = evaluate_model(model, cfg, progress=False, checkpoint="abc")
    assert model.training
    model.eval()
    total, edges = 0, 0
    for sample in eval_samples(cfg, model.mean, model.std):
        resized = torch.nn.functional.interpolate(
            sample.image[None], size=(64, 64), mode="bilinear", align_corners=False
        )
        cam = multi_scale_cam(model, resized, cfg.cam_scales).cam
        cam = torch.nn.functional.interpolate(cam, size=tuple(sample.mask.shape), mode="bilinear", align_corners=False)
        present = PresentClasses.of(sample.image_label[None])
        label = confident_label(present.gather(cam), present, low=0.5, high=0.5)[0]
        total = total + confusion_matrix(label, sample.mask, 7)
        edges = edges + boundary_counts(label[None], sample.mask[None], 7)
    assert result.scores["cam"] == pytest.approx(iou_scores(total).miou.item(), abs=2e-3)
    assert set(result.scores) == {"cam", "cam_aux", "cam_refined", "seg", "labels", *TUNED.values()}
    near_edges = result.summary.set_index("target")["boundary_iou"]
    expected = boundary_iou(edges)[total.sum(1) > 0].mean().item()
    assert near_edges["cam"] == pytest.approx(100 * expected, abs=0.3)
    assert near_edges.drop(["cam", "labels"]).notna().all() and result.protocol["cam"]["boundary_width"] == 0.02
    record = result.protocol["cam"]
    assert (record["split"], record["images"], record["image_size"]) == ("val", 5, "64 x 64")
    assert record["scales"] == list(cfg.cam_scales)
    assert record["true_labels_mask_cam"] and not record["crf"] and record["checkpoint"] == "abc"
    assert not result.protocol["seg"]["true_labels_mask_cam"]
    assert record["decoder"] is None and record["classes_in_mean"] == int((total.sum(1) > 0).sum())
    assert "classes_in_mean" not in result.protocol["labels"]
    assert len(result.table[result.table["target"] == "cam"]) == 7 + 1


def test_crf_joins_on_request():
    cfg = CFG.replace(eval_crf=True, val_images=1)
    result = evaluate_model(ToCo(cfg), cfg, targets=("seg", "seg_crf"), progress=False)
    assert set(result.scores) == {"seg", "seg_crf"} and result.protocol["seg_crf"]["crf"]
    with pytest.raises(ValueError, match="unknown target saeg"):
        evaluate_model(ToCo(cfg), cfg, targets=("saeg",), progress=False)


def test_a_second_evaluation_keeps_the_other_scores(smoke_run, tmp_path):
    shutil.copytree(smoke_run.path, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    before = Evaluation(run.read_table("evaluation"), run.read_json("protocol")).scores
    after = evaluate_run(run, targets=("seg_crf",), progress=False).scores
    assert after == pytest.approx(before | {"seg_crf": after["seg_crf"]})
    evaluate_run(run, targets=("seg",), split="train", progress=False)
    assert Evaluation(run.read_table("evaluation"), run.read_json("protocol")).scores == pytest.approx(after)
    assert run.read_json("protocol_train")["seg"]["split"] == "train"


@pytest.mark.parametrize(
    ("iou", "f1", "record", "told"),
    [
        (0.02, 0.9, {}, True),
        (0.30, 0.9, {}, False),  # a map that shows its classes
        (0.02, 0.2, {}, False),  # labels that are not learnt are another trouble
        (0.02, 0.9, {"cam_relu": False}, False),
    ],
)
def test_an_empty_cam_is_told(iou, f1, record, told):
    rows = [("cam", "background", 0.9), ("cam", "cell", 0.0), ("cam", "mIoU", 0.5), ("cam_tuned", "background", 0.9),
            ("cam_tuned", "cell", iou), ("cam_tuned", "mIoU", 0.5), ("labels", "F1", f1)]  # fmt: skip
    result = Evaluation(pd.DataFrame(rows, columns=["target", "class", "iou"]), {"cam": record})
    assert ("--no-cam-relu" in result.empty_cam_note) == told and bool(result.empty_cam_note) == told


def test_scores_without_a_cam_have_no_word_about_it():
    rows = pd.DataFrame([("seg", "cell", 0.0), ("labels", "F1", 0.9)], columns=["target", "class", "iou"])
    assert not Evaluation(rows, {"seg": {}, "labels": {}}).empty_cam_note


def test_a_perfect_prediction_scores_one(monkeypatch):
    samples = iter(list(eval_samples(CFG, (0.5,) * 3, (0.5,) * 3)))

    def oracle(model, cfg, image, image_label, targets, *, tuned):
        return {"seg": torch.stack([next(samples).mask for _ in image])}

    monkeypatch.setattr(evaluate, "predict", oracle)
    assert evaluate_model(ToCo(CFG), CFG, targets=("seg",), progress=False).scores["seg"] == 1.0
