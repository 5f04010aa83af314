"""The toy's pretraining: the file it leaves fits a config of the same size, whatever the size."""

import json
import runpy
import sys

import pytest
from safetensors import safe_open

from toco_lab.config import Config
from toco_lab.data.toy_backbone import Recipe, pretrain
from toco_lab.training.checkpoints import initial_model


@pytest.mark.parametrize("size", [{"depth": 3, "embed_dim": 32, "num_heads": 1}, {"depth": 4, "embed_dim": 24}])
def test_weights_of_any_size_start_a_run(tmp_path, size):
    path = tmp_path / "made" / "vit.safetensors"
    accuracy = pretrain(path, Recipe(steps=2, batch_size=4, **size))
    assert 0 <= accuracy <= 1
    with safe_open(path, "pt") as file:
        recipe = json.loads(file.metadata()["recipe"])
        weight = file.get_tensor("blocks.1.attn.qkv.weight")
    assert recipe["steps"] == 2 and recipe["depth"] == size["depth"] and weight.shape[1] == size["embed_dim"]
    cfg = Config.preset("toy").replace(weights=str(path), num_heads=size.get("num_heads", 2), **{
        key: value for key, value in size.items() if key != "num_heads"
    })  # fmt: skip
    model = initial_model(cfg)
    assert (model.encoder.blocks[1].attn.qkv.weight == weight).all()


def test_a_width_that_is_no_number_of_heads_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["pretrain", "--embed-dim", "40", "--out", str(tmp_path / "a")])
    with pytest.raises(SystemExit), pytest.warns(RuntimeWarning):
        runpy.run_module("toco_lab.data.toy_backbone", run_name="__main__")
    assert "--embed-dim must be a multiple of 32" in capsys.readouterr().err and not list(tmp_path.iterdir())
