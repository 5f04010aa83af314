"""How much true object positive and negative crops show, by hand and in metrics.csv."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import toco_lab as tl
from toco_lab.config import Config
from toco_lab.evaluation.crop_objects import CropObjects
from toco_lab.method.crops import local_crops
from toco_lab.vocabulary import COLUMNS_ADDED_LATER, TITLES

CFG = Config.preset("smoke").replace(local_crop_size=8, num_local_crops=6, crop_min_content=0.3)


def scene():
    """Score and mask, (40, 48): the CAM is unsure in a square, the true object is its lower half and more."""
    score, mask = torch.zeros(40, 48), torch.zeros(40, 48, dtype=torch.int64)
    score[10:26, 10:26] = 0.5
    mask[18:40, 10:26], mask[20:24, 12:14] = 2, 255
    return score, mask


def test_shares_are_those_of_the_crops_pixel_by_pixel():
    score, mask = scene()
    objects = CropObjects(CFG)
    objects.add([SimpleNamespace(mask=mask, name="a")] * 2, {"cam_aux_scores": torch.stack([score, score])})
    region = (score > 0.25).long().expand(2, -1, -1)
    crops = local_crops(region, CFG, generator=torch.Generator().manual_seed(0))
    expected = {1: [], 0: []}
    for image in range(2):
        for top, left, kind in zip(
            *(values[image].tolist() for values in (crops.top, crops.left, crops.kind)), strict=True
        ):
            pixels = [v for row in mask[top : top + 8, left : left + 8].tolist() for v in row if v != 255]
            expected[kind].append(sum(v > 0 for v in pixels) / len(pixels))
    assert len(expected[1]) == len(expected[0]) == 6 and 0 < np.mean(expected[1]) < 1
    shares = objects.shares()
    assert list(shares.values()) == pytest.approx([np.mean(expected[1]), np.mean(expected[0])])


def test_without_crops_of_a_kind_there_is_no_share():
    objects = CropObjects(CFG)
    assert all(math.isnan(value) for value in objects.shares().values())
    small = torch.zeros(1, 8, 20)
    objects.add([SimpleNamespace(mask=small[0].long(), name="a")], {"cam_aux_scores": small})  # not larger than a crop
    assert all(math.isnan(value) for value in objects.shares().values())
    score, _ = scene()
    objects.add(
        [SimpleNamespace(mask=torch.zeros(40, 48, dtype=torch.int64), name="a")], {"cam_aux_scores": 0 * score[None]}
    )
    assert list(objects.shares().values()) == [pytest.approx(math.nan, nan_ok=True), 0]


def test_a_run_logs_how_its_crops_part_and_what_they_show(tmp_path):
    cfg = Config.preset("smoke").replace(crop_max_negative=0.5, val_every=2, steps=2, num_local_crops=6)
    run = tl.experiment.open_run(cfg, tmp_path)
    tl.train(run, progress=False)
    frame = run.metrics()
    assert set(COLUMNS_ADDED_LATER) <= set(frame) and set(COLUMNS_ADDED_LATER) <= set(TITLES)
    shares = frame[["ctc_positive_share", "ctc_negative_share", "ctc_ignored_share"]]
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert (shares["ctc_positive_share"] > 0).all()
    assert frame["ctc_positive_cosine"].between(-1, 1).all()
    assert frame["val_ctc_positive_object"].isna().tolist() == [True, False]
    assert 0 <= frame["val_ctc_positive_object"].iloc[-1] <= 1
    off = tl.experiment.open_run(cfg.replace(w_ctc=0.0), tmp_path)
    tl.train(off, progress=False)
    assert off.metrics()[list(COLUMNS_ADDED_LATER)].isna().all(axis=None)
    figure = tl.figures.training_curves(frame)
    assert TITLES["ctc_positive_cosine"] in figure.to_json()
