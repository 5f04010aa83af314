"""Backbones by a name of the Hugging Face Hub, or of a folder laid out like one, through timm's own loading."""

import pytest
import timm
import torch
from timm.models import _factory, _hub

from toco_lab.config import VIT_SIZES, Config
from toco_lab.method.model import ToCo
from toco_lab.training.checkpoints import initial_model

OWN_SIZES = dict.fromkeys(VIT_SIZES)


def test_a_folder_laid_out_like_the_hub(tmp_path):
    """What a hub id goes through after its download: config.json names the architecture, its sizes, the weights."""
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}
    saved = timm.create_model("vit_tiny_patch16_224", **sizes)
    _hub.save_for_hf(saved, tmp_path / "my.vit", model_args={k: v for k, v in sizes.items() if k != "num_classes"})
    cfg = Config.preset("smoke").replace(
        backbone=f"local-dir:{tmp_path / 'my.vit'}", pretrained=True, weights="", **OWN_SIZES
    )
    assert Config.from_json(cfg.to_json()) == cfg
    model = initial_model(cfg)
    assert model.patch_size == 8 and len(model.encoder.blocks) == 3
    for name in ("cls_token", "blocks.2.mlp.fc1.weight", "norm.bias", "patch_embed.proj.weight"):
        torch.testing.assert_close(model.encoder.state_dict()[name], saved.state_dict()[name])


def test_a_hub_without_a_network_is_one_sentence(monkeypatch):
    def refuse(*_, **__):
        raise FileNotFoundError("cannot find the requested files in the local cache. Please check your connection")

    monkeypatch.setattr(_factory, "load_model_config_from_hf", refuse)
    cfg = Config.preset("smoke").replace(backbone="hf-hub:timm/vit_tiny_patch16_224.augreg_in21k", **OWN_SIZES)
    with pytest.raises(ValueError, match=r"'hf-hub:timm/vit_tiny.*' cannot be fetched \(FileNotFoundError: .*HF_HOME"):
        ToCo(cfg)


def test_a_folder_that_is_not_there(tmp_path):
    cfg = Config.preset("smoke").replace(backbone=f"local-dir:{tmp_path / 'nothing'}", **OWN_SIZES)
    with pytest.raises(ValueError, match=r"nothing' cannot be (fetched|built)"):
        ToCo(cfg)
