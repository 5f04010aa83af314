"""Dice, AUC and area on empty images, against `evaluate`, `predict` and counts by hand."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc

from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.data.classes import class_names
from toco_lab.data.readers import open_dataset
from toco_lab.evaluation import domain_scores
from toco_lab.evaluation.box_scores import ALL
from toco_lab.evaluation.domain_scores import CAM_OWN, MaskCounts, domain_of_run, measure_domain
from toco_lab.evaluation.evaluate import evaluate_model
from toco_lab.evaluation.otsu import measure_otsu
from toco_lab.evaluation.prediction import native_cams, strongest_class
from toco_lab.method.cam import multi_scale_cam
from toco_lab.method.model import ToCo
from toco_lab.method.present import PresentClasses
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.loop import fit

SIZES = {name: Config.preset("smoke").to_frame()["value"][name] for name in ("embed_dim", "depth", "num_heads")}
CFG = Config.preset("toy_tissue").replace(
    pretrained=False, weights="", val_images=10, train_images=12, threshold_images=6, **SIZES
)
LAND = Config.preset("toy_land").replace(pretrained=False, weights="", val_images=10, train_images=12, **SIZES)


def surest(cfg: Config) -> ToCo:
    """A model with random weights that finds a class in about half of the images."""
    torch.manual_seed(0)
    model = ToCo(cfg).eval()
    reader = open_dataset(cfg, "val")
    images = torch.stack([torch.from_numpy(reader.image(i)).permute(2, 0, 1).float() for i in range(10)])
    with torch.no_grad():
        logits = model((images / 255 - 0.45) / 0.22, segment=False).logits
        model.classifier.weight.mul_(20)
        if hasattr(model.classifier, "bias") and model.classifier.bias is not None:
            model.classifier.bias.sub_(20 * logits.median())
    return model


def test_cams_are_those_of_the_config_that_scores_them():
    model, pixels = surest(CFG), torch.randn(1, 3, 96, 96)
    found = {
        relu: native_cams(model, CFG.replace(cam_relu=relu), pixels, torch.ones(1, 1)).cam for relu in (True, False)
    }
    present = PresentClasses.of(torch.ones(1, 1))
    for relu, maps in found.items():
        wanted = multi_scale_cam(model, pixels, CFG.cam_scales, present=present, relu=relu).cam
        torch.testing.assert_close(maps, wanted, atol=1e-5, rtol=0)
    assert not torch.allclose(found[True], found[False], atol=1e-3)


def test_counts_by_hand():
    counts = MaskCounts(2)
    prediction = torch.tensor([[[1, 1], [0, 2]], [[0, 1], [2, 2]], [[0, 0], [0, 1]]])
    truth = torch.tensor([[[1, 0], [0, 255]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]])
    counts.add(prediction, truth, torch.tensor([[1, 0], [0, 0], [0, 0]]))
    table = pd.DataFrame(counts.rows("seg", ("cat", "dog")), columns=list(domain_scores.COLUMNS)).set_index("class")
    # cat: hit 1, made up 1 + 1 + 1, missed 0; dog: made up 2, and nowhere in the truth
    assert table["iou"].tolist() == pytest.approx([1 / 4, 0, 1 / 4]) and table["dice"]["cat"] == pytest.approx(2 / 5)
    # of two empty images: cat 1/4 and 1/4, dog 2/4 and 0
    assert table["empty_area"].tolist() == pytest.approx([1 / 4, 1 / 4, 1 / 2])
    told = pd.DataFrame(counts.rows("cam", ("cat", "dog")), columns=list(domain_scores.COLUMNS))
    assert told["empty_area"].isna().all() and told["dice"].tolist() == table["dice"].tolist()


@pytest.mark.parametrize("cfg", [CFG, LAND])
def test_scores_are_those_of_evaluate_and_of_maps_masked_by_own_labels(cfg):
    model = surest(cfg)
    found = measure_domain(model, cfg, threshold="configured", progress=False)
    table = found.table.set_index(["target", "class"])
    other = evaluate_model(model, cfg.replace(threshold_images=0), targets=["cam", "seg"], progress=False).table
    for target, name, iou in other[other["class"].isin(class_names(cfg))][["target", "class", "iou"]].to_numpy():
        assert table.loc[(target, name), "iou"] == pytest.approx(iou, nan_ok=True)
        assert table.loc[(target, name), "dice"] == pytest.approx(2 * iou / (1 + iou), nan_ok=True)
    matrix, area, logits, labels = np.zeros((2, cfg.num_classes + 1)), [], [], []
    reader = open_dataset(cfg, "val")
    samples = [(torch.from_numpy(reader.image(i)), torch.from_numpy(reader.mask(i))) for i in range(10)]
    mean, std = torch.tensor(model.mean), torch.tensor(model.std)
    for image, truth in samples:
        pixels = ((image / 255 - mean) / std).permute(2, 0, 1)[None].float()
        cams = native_cams(model, cfg, pixels, lambda seen: (seen > 0).float())
        score, winner = strongest_class(cams.cam, cams.present)
        label = torch.where(score > 0.5, winner, 0)[0]
        hits = [(label == k)[truth == k].sum() for k in range(cfg.num_classes + 1)]
        both = [((label == k) | (truth == k)).sum() for k in range(cfg.num_classes + 1)]
        matrix += np.array([hits, both])
        area += [(label > 0).float().mean().item()] if not truth.any() else []
        logits.append(cams.logits[0])
        labels.append([int((truth == k).any()) for k in range(1, cfg.num_classes + 1)])
    own = table.loc[CAM_OWN]
    assert own["iou"][:-1].tolist() == pytest.approx((matrix[0] / matrix[1])[1:].tolist(), abs=2e-3, nan_ok=True)
    assert area and own.loc[ALL, "empty_area"] == pytest.approx(np.mean(area), abs=1e-3)
    assert own["empty_area"][:-1].sum() == pytest.approx(own.loc[ALL, "empty_area"])
    logits, labels = torch.stack(logits), torch.tensor(labels)
    known = [k for k in range(cfg.num_classes) if 0 < labels[:, k].sum() < 10]
    auc = [binary_auroc((logits[:, k] / 100).sigmoid(), labels[:, k]).item() for k in known]
    assert table.loc["labels", "label_auc"].iloc[known].tolist() == pytest.approx(auc, abs=1e-6)
    assert table.loc[("labels", ALL), "label_auc"] == pytest.approx(np.mean(auc), abs=1e-6)


def test_a_run_keeps_its_scores_with_their_protocol(tmp_path):
    cfg = CFG.replace(
        steps=3, batch_size=2, warmup_steps=1, seg_start_step=1, aux_label_steps=2, decoder_width=16, head_hidden=32,
        head_bottleneck=16, head_out=32, num_local_crops=2, par_iterations=2, token_snapshots=0, val_images=6,
    )  # fmt: skip
    run = RunDir.create(cfg, tmp_path)
    fit(cfg, run)
    found = domain_of_run(run, progress=False)
    assert {"domain.csv", "domain.json"} <= {path.name for path in run.path.iterdir()}
    assert run.read_table("domain").shape == found.table.shape and run.read_json("domain") == found.protocol
    record = found.protocol
    assert record["targets"] == ["cam", "cam_own", "seg"] and record["images"] == 6
    assert record["threshold_from"] == "best mIoU of 6 training images" and 0 < record["empty_images"] < 6
    said = str(found)
    assert f"{record['empty_images']} without a class" in said and "cam_own" in said
    assert found.means.loc["labels", "label_auc"] == pytest.approx(found.table.iloc[-2]["label_auc"])


def test_a_method_without_a_decoder_has_no_segmentation_and_one_without_cams_no_cam():
    cfg = LAND.replace(w_seg=0.0, w_reg=0.0, val_images=4)
    assert set(measure_domain(surest(cfg), cfg, threshold="configured", progress=False).means.index) == {
        "cam", "cam_own", "labels"}  # fmt: skip
    with pytest.raises(ValueError, match="threshold must be one of tuned, configured, got 'best'"):
        measure_domain(surest(cfg), cfg, threshold="best")


def test_the_command_says_what_otsu_reaches_beside_the_run(smoke_run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(smoke_run.path, folder)
    assert main(["domain", str(folder), "--threshold", "configured", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    dice = 100 * measure_otsu(smoke_run.config()).set_index(["target", "class"]).loc[("cam", ALL), "dice"]
    assert f"Dice {dice:.1f} (true image labels), area on empty images -" in said and dice > 1
    assert "4 images of toy val, 0 without a class" in said
    assert RunDir(folder).read_json("domain")["background_threshold"] == 0.5
    assert main(["domain", str(folder), "--split", "valid"]) == 2
