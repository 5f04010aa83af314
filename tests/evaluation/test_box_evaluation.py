"""Boxes of a model on a split, end to end: against a loop, with the protocol, by the command, on what data there is."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.folders import SAMPLES, needs_samples
from helpers.labelled_runs import SMALL, make_run, voc_run
from scipy import ndimage

from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.data.instances import OUTLINES, PIECES, SCENES
from toco_lab.data.loader import eval_samples
from toco_lab.data.toy import make_scene
from toco_lab.evaluation.box_evaluation import WHOLE_IMAGE, boxes_of_run, measure_boxes
from toco_lab.evaluation.box_scores import ALL
from toco_lab.evaluation.prediction import native_cams
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model

SCORES = ["corloc", "box_ap25", "box_ap50", "mask_ap25", "mask_ap50"]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


def of_all(found) -> pd.DataFrame:
    return found.table[found.table["class"] == ALL].set_index("rule")


def extent(mask) -> tuple[int, int, int, int]:
    rows, columns = mask.nonzero()
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def iou(one, other) -> float:
    width, height = (max(0, min(one[2 + k], other[2 + k]) - max(one[k], other[k])) for k in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def test_corloc_and_max_box_acc_are_those_of_a_loop(toy_run):
    """Rule `components` at the config's threshold and at every other one, written out."""
    model, cfg = load_run_model(toy_run)
    cfg = cfg.replace(background_threshold=0.45)
    found = of_all(measure_boxes(model, cfg, threshold="configured", progress=False)).loc["components"]
    shares = {}
    for threshold in sorted({number / 20 for number in range(1, 17)} | {0.45}):
        hits = []
        for index, sample in enumerate(eval_samples(cfg, model.mean, model.std)):
            cams = native_cams(model, cfg, sample.image[None], sample.image_label[None])
            maps, scene = cams.present.scatter(cams.cam)[0].numpy(), make_scene(1, index, size=48)
            for k in sample.image_label.nonzero().flatten().tolist():
                where = (maps.argmax(0) == k) & (maps[k] > np.float32(threshold))
                pieces, count = ndimage.label(where, np.ones((3, 3)))
                parts = [pieces == n for n in range(1, count + 1) if (pieces == n).sum() >= 0.005 * 48 * 48]
                best = max(parts, key=lambda part: maps[k][part].mean(), default=None)
                truth = [extent(scene.instances == n) for n in np.unique(scene.instances[scene.mask == k + 1])]
                hits.append(best is not None and max(iou(extent(best), one) for one in truth) >= 0.5)
        shares[threshold] = sum(hits) / len(hits)
    assert found["pairs"] == len(hits) and found["corloc"] == pytest.approx(shares[0.45])
    assert found["max_box_acc"] == pytest.approx(max(shares.values()))
    assert shares[found["max_box_threshold"]] == max(shares.values())


def test_a_map_that_is_the_truth_scores_1_and_the_whole_image_what_it_covers(toy_run, monkeypatch):
    """The model is told the objects: everything but splitting is right, and the trivial baseline is what it is."""
    model, cfg = load_run_model(toy_run)
    cfg = cfg.replace(threshold_images=0)
    told = {}
    for index, sample in enumerate(eval_samples(cfg, model.mean, model.std)):
        told[sample.image.sum().item()] = make_scene(1, index, size=48).mask

    def true_maps(model, cfg, image, label):
        cams = native_cams(model, cfg, image, label)
        masks = torch.from_numpy(np.stack([told[one.sum().item()] for one in image])).long()
        dense = torch.stack([masks == number for number in range(1, label.shape[1] + 1)], 1).float()
        return type(cams)(cams.present.gather(dense), cams.cam_aux, cams.present, cams.logits)

    monkeypatch.setattr("toco_lab.evaluation.box_evaluation.native_cams", true_maps)
    found = of_all(measure_boxes(model, cfg, rules=("components", "largest"), progress=False))
    assert found.loc["components", SCORES].tolist() == pytest.approx([1] * 5)
    assert found.loc["largest", SCORES].tolist() == pytest.approx([1] * 5)
    shares = [iou((0, 0, 48, 48), extent(mask == number)) for mask in told.values() for number in np.unique(mask)[1:]]
    assert found.loc[WHOLE_IMAGE, "corloc"] == pytest.approx(np.mean([share >= 0.5 for share in shares]))
    assert found.loc[WHOLE_IMAGE, "pairs"] == len(shares) and math.isnan(found.loc[WHOLE_IMAGE, "max_box_acc"])


def test_a_segmentation_has_boxes_without_a_threshold(toy_run):
    model, cfg = load_run_model(toy_run)
    found = measure_boxes(model, cfg, rules=("components", "peaks"), source="seg", progress=False)
    assert found.table["rule"].unique().tolist() == ["components", "peaks", WHOLE_IMAGE]
    assert found.protocol["background_threshold"] is None and not found.protocol["true_labels_mask_cam"]
    assert of_all(found)["max_box_acc"].isna().all()
    with pytest.raises(ValueError, match="method 'tscam' trains no decoder"):
        measure_boxes(model, cfg.replace(method="tscam"), source="seg")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rules": ("peak",)}, "unknown rule 'peak', did you mean 'peaks'"), ({"rules": ()}, "at least one rule"),
        ({"source": "cma"}, "source must be one of cam, seg, got 'cma'"),
        ({"threshold": 0.5}, "threshold must be one of tuned, configured, got 0.5"),
    ],
)  # fmt: skip
def test_what_is_asked_wrongly_is_refused(toy_run, wrong, message):
    with pytest.raises(ValueError, match=message):
        measure_boxes(*load_run_model(toy_run), **wrong)


def test_masks_alone_have_component_boxes_and_the_protocol_says_so(tmp_path):
    run = voc_run(tmp_path, threshold_images=2)
    found = boxes_of_run(run, split="train", device="cpu", progress=False)
    assert found.protocol["objects_from"] == PIECES and "component boxes" in str(found)
    assert found.protocol["threshold_from"].startswith("the config, because all training images of 'train'")
    assert of_all(found).loc["components", "pairs"] == 4


def test_the_command_on_smoke(smoke_run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(smoke_run.path, folder)
    assert main(["boxes", str(folder), "--rule", "components", "peaks", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    table, record = RunDir(folder).read_table("boxes"), json.loads((folder / "boxes.json").read_text())
    assert table["rule"].unique().tolist() == ["components", "peaks", WHOLE_IMAGE]
    assert {*SCORES, "max_box_acc", "pairs"} <= set(table) and f"4 images of toy val; objects: {SCENES}" in said
    assert [line.split()[0] for line in said.splitlines()[3:6]] == ["components", "peaks", "whole"]
    asked = {"what": "boxes and instance masks", "source": "cam", "rules": ["components", "peaks"], "split": "val",
             "images": 4, "scales": [1.0, 0.5], "flip": True, "seed": 0, "objects_from": SCENES,
             "threshold_from": "best mIoU of 16 training images"}  # fmt: skip
    assert record.items() >= asked.items() and len(record["checkpoint"]) == 12
    evaluated = RunDir(folder).read_json("protocol")["cam_tuned"]
    assert (record["background_threshold"], record["checkpoint"]) == (
        evaluated["background_threshold"], evaluated["checkpoint"],
    )  # fmt: skip
    before = (folder / "boxes.csv").read_bytes()
    assert main(["boxes", str(folder), "--split", "valid"]) == 2 and (folder / "boxes.csv").read_bytes() == before
    assert main(["boxes", str(folder), "--split", "train", "--source", "seg", "--device", "cpu"]) == 0
    assert (folder / "boxes_train.json").is_file() and (folder / "boxes.csv").read_bytes() == before


@pytest.mark.data
@needs_samples
def test_the_sample_of_coco(tmp_path):
    root = SAMPLES / "coco_sample"
    if not root.is_dir():
        pytest.skip(f"no sample of COCO at {root}")
    cfg = Config.preset("coco_vit_b").replace(data_root=str(root), val_images=4, threshold_images=0, **SMALL)
    found = boxes_of_run(make_run(cfg, tmp_path), rules=("components", "peaks"), device="cpu", progress=False)
    assert found.protocol["objects_from"] == OUTLINES
    table = of_all(found)
    assert (table["objects"] > table["pairs"]).all() and table[SCORES].notna().all().all()
