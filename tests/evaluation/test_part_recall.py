"""Recall by part, against maps that are known: whole animals, heads alone, the wrong kind."""

import numpy as np
import pytest
import torch

from toco_lab.config import Config
from toco_lab.data.readers import open_dataset
from toco_lab.data.toy_parts import HEAD
from toco_lab.evaluation import part_recall as module
from toco_lab.evaluation.part_recall import recall_by_part
from toco_lab.method.model import ToCo

SIZES = {name: Config.preset("smoke").to_frame()["value"][name] for name in ("embed_dim", "depth", "num_heads")}
CFG = Config.preset("toy_parts").replace(val_images=11, toy_objects=1, pretrained=False, weights="", **SIZES)


def recalls(monkeypatch, predicted) -> dict[str, float]:
    """Of label maps (11, H, W) in place of a model's, part by part."""
    shown = iter(predicted)

    def predict(model, cfg, image, label, targets):
        winners = torch.from_numpy(np.stack([next(shown) for _ in image])).long()
        return {"cam_winners": winners, "cam_scores": (winners > 0).float()}

    monkeypatch.setattr(module, "predict", predict)
    table = recall_by_part(ToCo(CFG).eval(), CFG, targets=["cam"])
    assert set(table["target"]) == {"cam"} and set(table["threshold"]) == {0.5}
    return dict(zip(table["part"], table["recall"], strict=True))


def test_recall_is_counted_part_by_part(monkeypatch):
    """Over more images than one batch holds, so that parts and maps must keep step."""
    reader = open_dataset(CFG, "val")
    masks = [reader.mask(i) for i in range(11)]
    heads = [np.where(reader.part(i) == HEAD, masks[i], 0) for i in range(11)]
    assert recalls(monkeypatch, masks) == {"background": 1, "head": 1, "body": 1}
    assert recalls(monkeypatch, heads) == {"background": 1, "head": 1, "body": 0}
    assert recalls(monkeypatch, [mask % 6 + (mask > 0) for mask in masks]) == {"background": 1, "head": 0, "body": 0}
    everywhere = [np.full_like(mask, mask.max()) for mask in masks]
    assert recalls(monkeypatch, everywhere) == {"background": 0, "head": 1, "body": 1}


def test_one_pass_serves_all_thresholds_and_none_is_an_error(monkeypatch):
    passes, real = [], module.predict
    monkeypatch.setattr(module, "predict", lambda *arguments: passes.append(1) or real(*arguments))
    model, cfg, thresholds = ToCo(CFG).eval(), CFG.replace(val_images=3), (0.2, 0.5, 0.8)
    table = recall_by_part(model, cfg, targets=("cam",), thresholds=thresholds)
    assert len(passes) == 1
    for one in thresholds:
        alone = recall_by_part(model, cfg.replace(background_threshold=one), targets=("cam",))
        assert table[table["threshold"] == one]["recall"].tolist() == alone["recall"].tolist()
    with pytest.raises(ValueError, match="at least one background threshold"):
        recall_by_part(model, cfg, thresholds=())


def test_a_lower_threshold_finds_no_less_of_any_part():
    torch.manual_seed(0)
    table = recall_by_part(ToCo(CFG).eval(), CFG.replace(val_images=3), thresholds=(0.3, 0.7))
    wide = table[table["part"] != "background"].pivot(index=["target", "part"], columns="threshold", values="recall")
    assert (wide[0.3] >= wide[0.7]).all() and (wide.loc["cam", 0.3] > wide.loc["cam", 0.7]).all()
    assert (wide.loc["seg", 0.3] == wide.loc["seg", 0.7]).all()


def test_scenes_without_parts_are_refused():
    with pytest.raises(ValueError, match="needs dataset 'toy' with toy_world 'parts'"):
        recall_by_part(ToCo(CFG).eval(), CFG.replace(toy_world="shapes", toy_objects=0))
