"""Tiny ViTs whose attention matters, and images for them: what the tests of attributions share."""

import timm
import torch

from toco_lab.config import Config
from toco_lab.method.model import ToCo

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}
NAMES = {"class": "vit_tiny_patch16_224", "distilled": "deit_tiny_distilled_patch16_224"}
NAMES |= {"registers": "vit_small_patch14_reg4_dinov2", "toco": "", "mean": "vit_tiny_patch16_224"}
GRID = (3, 4)


def spread(module):
    """Attention weights that matter: at timm's start attention is uniform and adds next to nothing."""
    for name, parameter in module.named_parameters():
        if name.endswith((".gamma", "attn.qkv.weight", "attn.proj.weight", "classifier.weight")):
            parameter.data = torch.randn_like(parameter) / 2
    return module


def tiny(kind="class"):
    torch.manual_seed(0)
    if kind == "toco":
        model = ToCo(Config.preset("smoke").replace(num_classes=5))
    else:
        pool = {"global_pool": "avg"} if kind == "mean" else {}
        model = timm.create_model(NAMES[kind], dynamic_img_size=True, **pool, **SIZES)
    return spread(model).eval()


def picture(batch=2, height=GRID[0] * 8, width=GRID[1] * 8):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))
