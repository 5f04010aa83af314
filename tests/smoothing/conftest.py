"""A small ViT."""

import pytest
import timm
import torch


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
    return timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **sizes)
