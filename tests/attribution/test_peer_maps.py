"""TS-CAM coupling and GETAM of any model, against the models of `toco_lab.peers` and against loops."""

import pytest
import torch
from helpers.attributions import GRID, NAMES, picture, spread, tiny

from toco_lab.attribution.catalogue import ATTRIBUTIONS, methods_of
from toco_lab.attribution.classifier_maps import block_cam
from toco_lab.attribution.peer_maps import coupled_attention, getam
from toco_lab.backbones.activations import capture
from toco_lab.config import Config
from toco_lab.peers.build import build_model

CLASSES = torch.tensor([3, 1])
WITH_CLASS_TOKEN = [kind for kind in NAMES if kind != "mean"]


@pytest.mark.parametrize("kind", WITH_CLASS_TOKEN)
def test_coupling_is_attention_of_all_blocks_times_the_cam(kind):
    model, image = tiny(kind), picture()
    seen, cam = capture(model, image, attention=True), block_cam(model, image, CLASSES)
    for block in (None, 1):
        expected = torch.zeros_like(cam)
        for attention in seen.attention[:block]:
            for head in range(attention.shape[1]):
                row = attention[:, head, 0, seen.num_prefix :]
                expected += row.reshape(2, *GRID) * cam / attention.shape[1]
        actual = coupled_attention(model, image, CLASSES, block=block)
        torch.testing.assert_close(actual, expected)
        assert actual.max() > 0


@pytest.mark.parametrize("kind", ["class", "registers"])
def test_getam_of_a_classifier_that_reads_the_class_token_is_its_row(kind):
    model, image = tiny(kind), picture()
    blocks, prefix = len(model.blocks), model.num_prefix_tokens
    for block, first in ((None, blocks // 2), (2, 1)):
        actual = getam(model, image, CLASSES, block=block)
        for b, c in enumerate(CLASSES):
            expected = by_hand(model, image[b : b + 1], c)[first:].sum(0)[prefix:]
            torch.testing.assert_close(actual[b].flatten() / expected.max(), expected / expected.max())
        assert actual.shape == (2, *GRID) and actual.max() > 0


def by_hand(model, image, c):
    """The map of each block by loops over heads and tokens, row of the class token: (L, T)."""
    maps, hooks = [], []
    for block in model.blocks:
        block.attn.fused_attn = False
        hooks.append(block.attn.attn_drop.register_forward_hook(lambda _, __, output: maps.append(output)))
    logits = model(image.clone().requires_grad_())
    for hook, block in zip(hooks, model.blocks, strict=True):
        hook.remove()
        block.attn.fused_attn = True
    rows = []
    for attention, gradient in zip(maps, torch.autograd.grad(logits[0, c], maps), strict=True):
        heads = range(attention.shape[1])
        row = []
        for j in range(attention.shape[3]):
            a, g = attention[0, :, 0, j].detach(), gradient[0, :, 0, j]
            double = sum(max(0.0, (a[h] * g[h]).item()) for h in heads) * sum(max(0.0, g[h].item()) for h in heads)
            row.append(double / len(heads) ** 2)
        rows.append(row)
    return torch.tensor(rows)


def test_getam_of_its_own_model():
    """Its logits read tokens before the final norm, patches and class token: rows are averaged over both."""
    torch.manual_seed(0)
    model = spread(build_model(Config.preset("smoke").replace(method="getam", num_classes=5))).eval()
    read = getam(model, picture(), CLASSES)
    assert read.shape == (2, *GRID) and read.min() >= 0 and read.max() > 0


@pytest.mark.parametrize("name", ["GETAM", "TS-CAM coupling"])
def test_they_are_listed_where_a_model_can_give_them(name):
    for kind in WITH_CLASS_TOKEN:
        model = tiny(kind)
        assert name in methods_of(model)
        maps = ATTRIBUTIONS[name](model, image := picture(), CLASSES)
        assert maps.shape == (2, *image.shape[-2:]) and 0 <= maps.min() and 0.9 < maps.amax((1, 2)).min()
    assert "TS-CAM coupling" in methods_of(tiny("toco"))


def test_what_a_model_lacks_is_said():
    import timm

    pooled = timm.create_model("vit_base_patch16_gap_224", num_classes=5, depth=2, embed_dim=24, num_heads=2)
    assert "GETAM" in methods_of(pooled) and "TS-CAM coupling" not in methods_of(pooled)
    with pytest.raises(ValueError, match="attention of the class token, and this model has none"):
        coupled_attention(pooled, torch.randn(1, 3, 224, 224), 0)
    with pytest.raises(ValueError, match="no plain ViT"):
        getam(timm.create_model("resnet18", num_classes=5), picture(), 0)
