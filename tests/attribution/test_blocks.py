"""Attributions of each block, and of models without a classifier, against passes written by hand and loops."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
import timm
import torch
from helpers.attributions import GRID, SIZES, picture, spread, tiny

from toco_lab.attribution.attention import (
    attention_rollout,
    class_token_attention,
    fuse_heads,
    gradient_attention,
    rollout,
)
from toco_lab.attribution.catalogue import ATTRIBUTIONS, methods_of
from toco_lab.attribution.classifier_maps import block_cam
from toco_lab.attribution.directions import token_similarity
from toco_lab.attribution.gradients import direction_grad_cam, grad_cam
from toco_lab.backbones.activations import capture
from toco_lab.backbones.anti_smoothing import add_attn_scale
from toco_lab.method.model import ToCo

BLOCKS = (1, 2, 3)


@dataclass
class Pass:
    """A pass by hand, every part of it in one graph: what enters each block behind norm1, attention, and streams."""

    normed: list = field(default_factory=list)
    attention: list = field(default_factory=list)
    after_block: list = field(default_factory=list)
    final: torch.Tensor | None = None
    logits: torch.Tensor | None = None


def by_hand(model, image) -> Pass:
    encoder, seen = getattr(model, "encoder", model), Pass()
    x = encoder.norm_pre(encoder._pos_embed(encoder.patch_embed(image.clone().requires_grad_())))
    for block in encoder.blocks:
        y = block.norm1(x)
        batch, tokens, width = y.shape
        q, k, v = block.attn.qkv(y).view(batch, tokens, 3, 2, width // 2).unbind(2)
        weights = torch.einsum("bihd,bjhd->bhij", q, k).div((width // 2) ** 0.5).softmax(3)
        x = x + block.ls1(block.attn.proj(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
        seen.normed.append(y), seen.attention.append(weights), seen.after_block.append(x)
    seen.final = encoder.norm(x)
    if isinstance(model, ToCo):
        pooled = seen.final[:, encoder.num_prefix_tokens :].max(1).values
        seen.logits = pooled @ model.classifier.weight.flatten(1).T
    elif model.num_classes:
        seen.logits = model.head(seen.final[:, 0])
    return seen


def close(actual, expected):
    np.testing.assert_allclose(actual.detach().flatten(), np.ravel(expected), rtol=2e-3, atol=1e-6)


def weighted(tokens, gradient):
    """Equations 1 and 2 of Grad-CAM by loops, for patch tokens (N, D) and their gradient."""
    count, width = tokens.shape
    alpha = [sum(gradient[i, d].item() for i in range(count)) / count for d in range(width)]
    return [max(0.0, sum(alpha[d] * tokens[i, d].item() for d in range(width))) for i in range(count)]


# --- a block each -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "block"), [*(("class", block) for block in BLOCKS), ("toco", 1), ("toco", 4)])
def test_grad_cam_of_a_block(kind, block):
    model, image = tiny(kind), picture(batch=1)
    seen = by_hand(model, image)
    (gradient,) = torch.autograd.grad(seen.logits[0, 3], seen.normed[block - 1])
    actual = grad_cam(model, image, 3, block=block)
    close(actual, weighted(seen.normed[block - 1][0, 1:], gradient[0, 1:]))
    if block == len(seen.normed):
        assert torch.equal(actual, grad_cam(model, image, 3))


@pytest.mark.parametrize("block", BLOCKS)
def test_gradient_attention_from_a_block_on(block):
    model, image = tiny(), picture(batch=1)
    seen = by_hand(model, image)
    relevance = torch.eye(13)
    for attention, gradient in list(
        zip(seen.attention, torch.autograd.grad(seen.logits[0, 3], seen.attention), strict=True)
    )[block - 1 :]:
        relevance = relevance + (attention * gradient).clamp(min=0).mean(1)[0] @ relevance
    actual = gradient_attention(model, image, 3, block=block)
    close(actual, relevance[0, 1:].detach())
    if block == 1:
        assert torch.equal(actual, gradient_attention(model, image, 3))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("heads", ["mean", "max", "min"])
def test_attention_of_the_class_token(block, heads):
    model, image = tiny("registers"), picture()
    fuse = {"mean": np.mean, "max": np.max, "min": np.min}[heads]
    weights = by_hand(model, image).attention[block - 1].detach().numpy()
    expected = [[fuse([weights[b, h, 0, j] for h in range(2)]) for j in range(5, 17)] for b in range(2)]
    assert capture(model, image).num_prefix == 5
    close(class_token_attention(model, image, block=block, heads=heads), expected)


@pytest.mark.parametrize("block", BLOCKS)
def test_rollout_up_to_a_block(block):
    model, image = tiny(), picture()
    weights = [one.detach() for one in by_hand(model, image).attention]
    expected = attention_rollout(weights[:block], num_prefix=1, grid=GRID, heads="max", discard=0.5)
    close(rollout(model, image, block=block, heads="max", discard=0.5), expected)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("kind", ["class", "distilled", "mean", "toco"])
def test_the_classifier_applied_to_a_block(kind, block):
    model, image = tiny(kind), picture()
    encoder = getattr(model, "encoder", model)
    first, seen = encoder.num_prefix_tokens, capture(model, image)
    tokens = encoder.norm(seen.after_block[block - 1])[:, first:]
    if kind == "toco":
        scores = model.classifier(tokens.mT.unflatten(2, GRID)).flatten(2).mT
    elif kind == "distilled":
        scores = (tokens @ model.head.weight.T + tokens @ model.head_dist.weight.T) / 2
    else:
        scores = encoder.fc_norm(tokens) @ model.head.weight.T
    expected = [scores[b, :, c].clamp(min=0).detach().numpy() for b, c in enumerate((3, 1))]
    close(block_cam(model, image, torch.tensor([3, 1]), block=block), expected)


def test_the_classifier_applied_to_the_last_block_of_toco_is_its_cam():
    model, image = tiny("toco"), picture()
    for c in range(5):
        torch.testing.assert_close(block_cam(model, image, c), model(image).cam[:, c].relu(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_every_method_takes_a_block_and_refuses_one_that_is_not_there(name):
    model, image = tiny("toco"), picture()
    blocks = len(model.encoder.blocks)
    maps = [ATTRIBUTIONS[name](model, image, 1, block=block) for block in range(1, blocks + 1)]
    assert all(one.shape == (2, 24, 32) for one in maps)
    assert not torch.allclose(maps[0], maps[-1], atol=0.05)
    for wrong in (0, blocks + 1, -1, 1.0, True):
        with pytest.raises(ValueError, match=f"block {wrong} is not one of the {blocks} blocks"):
            ATTRIBUTIONS[name](model, image, 1, block=wrong)


def test_a_layer_and_a_block_exclude_each_other():
    model = tiny()
    with pytest.raises(ValueError, match="a layer or a block, not both"):
        grad_cam(model, picture(), 1, layer=model.norm, block=1)


# --- rollout: heads and discarded entries -----------------------------------------------------------------------------


@pytest.mark.parametrize("heads", ["mean", "max", "min"])
@pytest.mark.parametrize("discard", [0.0, 0.3, 0.9])
def test_rollout_with_fusion_and_discarded_entries_equals_the_loops(heads, discard):
    generator = torch.Generator().manual_seed(3)
    attentions = [(3 * torch.randn(2, 3, 7, 7, generator=generator)).softmax(-1) for _ in range(2)]
    actual = attention_rollout(attentions, num_prefix=1, grid=(2, 3), heads=heads, discard=discard)
    fuse = {"mean": lambda x: sum(x) / len(x), "max": max, "min": min}[heads]
    for b in range(2):
        row = [1.0] + [0.0] * 6
        for attention in reversed(attentions):
            fused = [[fuse([attention[b, h, i, j].item() for h in range(3)]) for j in range(7)] for i in range(7)]
            smallest = sorted((fused[i][j], i, j) for i in range(7) for j in range(7))[: int(discard * 49)]
            for _, i, j in smallest:
                fused[i][j] = 0.0
            below = [0.0] * 7
            for i in range(7):
                weights = [fused[i][j] + (i == j) for j in range(7)]
                for j in range(7):
                    below[j] += row[i] * weights[j] / sum(weights)
            row = below
        assert sum(row) == pytest.approx(1)  # it is a flow, whatever was discarded
        np.testing.assert_allclose(actual[b].flatten(), row[1:], rtol=1e-4, atol=1e-8)


def test_options_of_rollout_that_mean_nothing_are_refused():
    attentions = [torch.full((1, 2, 7, 7), 1 / 7)]
    make = partial(attention_rollout, attentions, num_prefix=1, grid=(2, 3))
    for wrong in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="discard must be a share"):
            make(discard=wrong)
    with pytest.raises(ValueError, match="heads must be one of mean, max, min, got 'sum'"):
        make(heads="sum")
    negative = torch.tensor([[1.5, -0.5], [0.0, 1.0]]).expand(1, 2, 2, 2)
    assert fuse_heads(negative).min() == -0.5
    with pytest.raises(ValueError, match="AttnScale is: take 'mean'"):
        fuse_heads(negative, "max")


def test_rollout_of_attn_scale_with_the_mean_stays_finite():
    model = add_attn_scale(tiny("toco"))
    for block in model.encoder.blocks:
        block.attn.attn_scale.omega.data.fill_(2.0)
    assert rollout(model, picture(), discard=0.9).isfinite().all()


# --- without a classifier ---------------------------------------------------------------------------------------------


def headless(name="vit_tiny_patch16_224", **sizes):
    torch.manual_seed(0)
    sizes = SIZES | {"num_classes": 0} | sizes
    return spread(timm.create_model(name, dynamic_img_size=True, **sizes)).eval()


@pytest.mark.parametrize("block", [None, *BLOCKS])
@pytest.mark.parametrize("towards", ["class token", (2, 1)])
def test_similarity_to_a_token_equals_the_loops(block, towards):
    model, image = headless(), picture()
    seen = by_hand(model, image)
    tokens = (seen.final if block is None else seen.after_block[block - 1]).detach().numpy()
    place = 0 if towards == "class token" else 1 + 2 * GRID[1] + 1
    expected = [
        [
            sum(a * c for a, c in zip(tokens[b, i], tokens[b, place], strict=True))
            / (np.linalg.norm(tokens[b, i]) * np.linalg.norm(tokens[b, place]))
            for i in range(1, 13)
        ]
        for b in range(2)
    ]
    actual = token_similarity(model, image, towards=towards, block=block)
    close(actual, expected)
    if towards != "class token":
        torch.testing.assert_close(actual[:, 2, 1], torch.ones(2))


@pytest.mark.parametrize("block", [None, *BLOCKS])
@pytest.mark.parametrize("towards", ["class token", (2, 1)])
def test_grad_cam_of_a_direction_equals_the_equations(block, towards):
    model, image = headless(), picture(batch=1)
    seen = by_hand(model, image)
    place = 0 if towards == "class token" else 1 + 2 * GRID[1] + 1
    token = seen.after_block[-1][0, place]
    direction = token.detach() / token.detach().norm()
    read = seen.normed[(block or 3) - 1]
    (gradient,) = torch.autograd.grad(direction @ token, read)
    expected = weighted(read[0, 1:], gradient[0, 1:])
    assert max(expected) > 0
    close(direction_grad_cam(model, image, towards=towards, block=block), expected)


def test_the_cosine_at_its_own_direction_would_have_no_gradient():
    """Why `direction_grad_cam` takes the dot product."""
    x = torch.randn(8, requires_grad=True)
    torch.nn.functional.cosine_similarity(x, x.detach(), dim=0).backward()
    torch.testing.assert_close(x.grad, torch.zeros(8), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["gap", "stages"])
def test_without_a_class_token_the_mean_of_the_patches_stands_for_it(kind):
    if kind == "gap":
        model = headless(class_token=False, global_pool="avg")
        image = picture()
    else:
        torch.manual_seed(0)
        model = timm.create_model("resnet18", num_classes=0).eval()
        image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    seen = capture(model, image)
    patches = seen.patches(seen.final)
    expected = torch.nn.functional.cosine_similarity(patches, patches.mean(1, keepdim=True), dim=2)
    close(token_similarity(model, image), expected)
    assert direction_grad_cam(model, image).any()
    assert "class token attention" not in methods_of(model)


def test_a_direction_that_is_not_there_is_refused():
    model, image = headless(), picture()
    for wrong in ((3, 0), (0, 4), (-1, 0), (0,), "patch", 3, (0.0, 1.0)):
        for function in (token_similarity, direction_grad_cam):
            with pytest.raises(ValueError, match=r"row and column of a patch in the grid of 3 x 4"):
                function(model, image, towards=wrong)


def test_methods_of_a_model_are_those_that_work():
    def works(model, name):
        try:
            ATTRIBUTIONS[name](model, torch.randn(1, 3, 64, 64), 0)
        except ValueError:
            return False
        return True

    torch.manual_seed(0)
    models = [tiny("toco"), tiny("mean"), headless(), headless(class_token=False, global_pool="avg")]
    models.append(timm.create_model("resnet18", num_classes=5).eval())
    for model in models:
        assert methods_of(model) == [name for name in ATTRIBUTIONS if works(model, name)]
    assert methods_of(models[2]) == [name for name, one in ATTRIBUTIONS.items() if not one.knows_class]
