"""Attributions against slow oracles written from the equations, on class-token models and on ToCo."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.attributions import GRID, NAMES, picture, tiny
from torch import nn

from toco_lab.attribution.attention import attention_rollout, gradient_attention
from toco_lab.attribution.catalogue import ATTRIBUTIONS
from toco_lab.attribution.gradients import grad_cam
from toco_lab.backbones.activations import capture
from toco_lab.backbones.anti_smoothing import add_attn_scale
from toco_lab.method.cam import min_max
from toco_lab.method.model import ToCo


def slow_forward(model, image, *, layer=None):
    """A pass by hand with everything to differentiate by: logits, maps, final tokens, what norm `layer` gives."""
    encoder = getattr(model, "encoder", model)
    x, maps, normed = encoder.norm_pre(encoder._pos_embed(encoder.patch_embed(image))), [], None
    for number, block in enumerate(encoder.blocks):
        y, attn = block.norm1(x), block.attn
        if number == layer:
            normed = y = y.detach().requires_grad_()
        batch, tokens, width = y.shape
        q, k, v = attn.qkv(y).view(batch, tokens, 3, 2, width // 2).unbind(2)
        map_ = torch.einsum("bihd,bjhd->bhij", q, k).div((width // 2) ** 0.5).softmax(3)
        maps.append(map_)
        mixed = attn.proj(torch.einsum("bhij,bjhd->bihd", map_, v).flatten(2))
        x = x + block.ls1(mixed)
        x = x + block.ls2(block.mlp(block.norm2(x)))
    x = encoder.norm(x)
    if isinstance(model, ToCo):
        pooled = x[:, encoder.num_prefix_tokens :].max(1).values
        return pooled @ model.classifier.weight.flatten(1).T, maps, x, normed
    if hasattr(model, "head_dist"):
        return (model.head(x[:, 0]) + model.head_dist(x[:, 1])) / 2, maps, x, normed
    pooled = x[:, encoder.num_prefix_tokens :].mean(1) if encoder.global_pool == "avg" else x[:, 0]
    return model.head(encoder.fc_norm(pooled)), maps, x, normed


# --- attention rollout --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_prefix", [1, 3])
def test_rollout_equals_the_loops(num_prefix):
    tokens = num_prefix + 6
    attentions = [(3 * torch.randn(2, 2, tokens, tokens)).softmax(-1) for _ in range(3)]
    actual = attention_rollout(attentions, num_prefix=num_prefix, grid=(2, 3))
    assert actual.shape == (2, 2, 3)
    for b in range(2):
        row = [1.0] + [0.0] * (tokens - 1)  # from the class token down through the layers
        for attention in reversed(attentions):
            below = [0.0] * tokens
            for i in range(tokens):
                weights = [attention[b, :, i, j].mean().item() + (i == j) for j in range(tokens)]
                for j in range(tokens):
                    below[j] += row[i] * weights[j] / sum(weights)
            row = below
        assert sum(row) == pytest.approx(1)
        np.testing.assert_allclose(actual[b].flatten(), row[num_prefix:], rtol=1e-4)


def test_rollout_of_attention_that_looks_nowhere_else_or_everywhere():
    nothing = attention_rollout([torch.eye(7).expand(1, 2, 7, 7)] * 3, num_prefix=1, grid=(2, 3))
    assert not nothing.any()
    uniform = attention_rollout([torch.full((1, 2, 7, 7), 1 / 7)] * 2, num_prefix=1, grid=(2, 3))
    # each layer is (U + I) / 2, U = 1 1^T / 7 a projection: the square is (3 U + I) / 4
    torch.testing.assert_close(uniform, torch.full((1, 2, 3), 3 / 28))


def test_rollout_wants_the_grid_of_its_tokens():
    with pytest.raises(ValueError, match="between 7 tokens is not that of 2 and 2 x 3"):
        attention_rollout([torch.eye(7).expand(1, 1, 7, 7)], num_prefix=2, grid=(2, 3))


# --- Grad-CAM -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NAMES)
def test_grad_cam_equals_the_equations(kind):
    model, image, classes = tiny(kind), picture(), (3, 1)
    encoder = getattr(model, "encoder", model)
    layer = len(encoder.blocks) - 1
    actual = grad_cam(model, image, torch.tensor(classes))
    assert actual.shape == (2, *GRID) and actual.max() > 0
    for b, c in enumerate(classes):
        logits, _, _, tokens = slow_forward(model, image[b : b + 1], layer=layer)
        (gradient,) = torch.autograd.grad(logits[0, c], tokens)
        first = encoder.num_prefix_tokens
        alpha = [gradient[0, first:, d].mean() for d in range(24)]
        expected = torch.stack([sum(a * x for a, x in zip(alpha, row, strict=True)) for row in tokens[0, first:]])
        torch.testing.assert_close(actual[b].flatten(), expected.relu().detach(), rtol=1e-3, atol=1e-6)


def test_grad_cam_behind_the_final_norm_of_toco_is_its_cam():
    model, image = tiny("toco"), picture()
    for c in range(5):
        actual = grad_cam(model, image, c, layer=model.encoder.norm)
        expected = model(image).cam[:, c].relu() / (GRID[0] * GRID[1])
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["class", "registers"])
def test_grad_cam_equals_the_package(kind):
    package = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model, image = tiny(kind), picture()

    def to_maps(tokens):
        return tokens[:, model.num_prefix_tokens :].transpose(1, 2).unflatten(2, GRID)

    theirs = package.GradCAM(other := copy.deepcopy(model), [other.blocks[-1].norm1], reshape_transform=to_maps)
    expected = theirs(image, [targets.ClassifierOutputTarget(c) for c in (3, 1)])
    actual = ATTRIBUTIONS["Grad-CAM"](model, image, torch.tensor([3, 1]))
    assert expected.max() > 0.5
    np.testing.assert_allclose(actual, expected, atol=1e-3)


# --- gradient x attention -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NAMES)
def test_gradient_attention_equals_the_equations(kind):
    model, image, classes = tiny(kind), picture(), (3, 1)
    first = getattr(model, "encoder", model).num_prefix_tokens
    actual = gradient_attention(model, image, torch.tensor(classes))
    assert actual.shape == (2, *GRID) and actual.max() > 0
    for b, c in enumerate(classes):
        logits, maps, final, _ = slow_forward(model, image[b : b + 1])
        final_gradient, *gradients = torch.autograd.grad(logits[0, c], [final, *maps])
        relevance = np.eye(size := final.shape[1])
        for attention, gradient in zip((x.detach() for x in maps), gradients, strict=True):
            step = np.zeros((size, size))
            for h in range(2):
                for i in range(size):
                    for j in range(size):
                        step[i, j] += max(0.0, float(attention[0, h, i, j] * gradient[0, h, i, j])) / 2
            relevance = relevance + step @ relevance
        reads = (final_gradient * final).detach()[0].clamp(min=0).sum(1).numpy()
        rows = [reads[i] / reads.sum() * (relevance[i] - np.eye(size)[i]) for i in range(size)]
        np.testing.assert_allclose(actual[b].flatten(), sum(rows)[first:], rtol=1e-3, atol=1e-7)
        if kind in ("class", "registers"):  # the rule of the paper
            np.testing.assert_allclose(actual[b].flatten(), relevance[0, first:], rtol=1e-3, atol=1e-7)


def test_toco_reads_the_patches_that_hold_a_maximum_with_positive_evidence():
    """One channel with positive weight: relevance is that of the one patch where the channel has its maximum."""
    model, image = tiny("toco"), picture(batch=1)
    model.classifier.weight.data.zero_()
    model.classifier.weight.data[2, 7] = 1.0
    logits, maps, final, _ = slow_forward(model, image)
    place = 1 + final[0, 1:, 7].argmax()
    assert final[0, place, 7] > 0
    relevance = torch.eye(final.shape[1])
    for attention, gradient in zip(maps, torch.autograd.grad(logits[0, 2], maps), strict=True):
        relevance = relevance + (attention * gradient).clamp(min=0).mean(1)[0] @ relevance
    expected = relevance[place].detach()
    expected[place] -= 1
    actual = gradient_attention(model, image, 2)
    torch.testing.assert_close(actual.flatten(), expected[1:], rtol=1e-3, atol=1e-7)


# --- all of them --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["class", "toco"])
@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_maps_have_the_size_of_the_image_and_the_scale_of_a_cam(name, kind):
    model, image = tiny(kind), picture(height=27, width=35)  # 3 x 4 patches and a rest
    maps = ATTRIBUTIONS[name](model, image, 1)
    assert maps.shape == (2, 27, 35) and not maps.requires_grad
    assert (maps.amin((1, 2)) == 0).all()
    tops = maps.amax((1, 2))  # Grad-CAM is zero where every patch speaks against the class
    assert ((tops > 0.999) | (tops == 0)).all() and (maps <= 1).all() and tops.any()


def test_the_raw_maps_lie_behind_the_scaled_ones():
    model, image = tiny("toco"), picture(height=GRID[0], width=GRID[1]).repeat_interleave(8, 2).repeat_interleave(8, 3)
    seen = capture(model, image, attention=True)
    raw = {
        "attention rollout": attention_rollout(seen.attention, num_prefix=1, grid=GRID),
        "Grad-CAM": grad_cam(model, image, 1),
        "gradient x attention": gradient_attention(model, image, 1),
    }
    for name, maps in raw.items():
        large = F.interpolate(maps[:, None], (24, 32), mode="bilinear", align_corners=False)[:, 0]
        expected = min_max(large / maps.amax((1, 2), keepdim=True).clamp(min=1e-30))
        torch.testing.assert_close(ATTRIBUTIONS[name](model, image, 1), expected)


@pytest.mark.parametrize("name", ["Grad-CAM", "gradient x attention"])
def test_each_image_has_its_own_class(name):
    model, image = tiny("toco"), picture()
    both = ATTRIBUTIONS[name](model, image, torch.tensor([4, 0]))
    alone = [ATTRIBUTIONS[name](model, image[i : i + 1], c) for i, c in enumerate((4, 0))]
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(both, ATTRIBUTIONS[name](model, image, 1), atol=0.01)


@pytest.mark.parametrize("kind", ["class", "toco"])
@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_the_model_is_left_as_it_was_also_under_no_grad(name, kind):
    model, image = tiny(kind), picture()
    expected = ATTRIBUTIONS[name](model, image, 1)
    model.train()
    encoder = getattr(model, "encoder", model)
    encoder.blocks[1].eval().requires_grad_(False)

    def state():
        attentions = [block.attn for block in encoder.blocks]
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        return (
            [m.training for m in model.modules()],
            [(p.requires_grad, p.grad) for p in model.parameters()],
            [attn.fused_attn for attn in attentions],
            hooks,
        )

    before = state()
    with torch.no_grad():
        torch.testing.assert_close(ATTRIBUTIONS[name](model, image, 1), expected)
        assert not torch.is_grad_enabled()
    model.requires_grad_(False)
    torch.testing.assert_close(ATTRIBUTIONS[name](model, image, 1), expected)
    for parameter, (required, _) in zip(model.parameters(), before[1], strict=True):
        parameter.requires_grad_(required)
    assert state() == before and not image.requires_grad


@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_a_model_with_attn_scale(name):
    model, image = add_attn_scale(tiny("toco")), picture()
    expected = ATTRIBUTIONS[name](model, image, 1)
    for block in model.encoder.blocks:
        block.attn.attn_scale.omega.data.fill_(1.0)
    changed = ATTRIBUTIONS[name](model, image, 1)
    assert changed.isfinite().all() and not torch.allclose(changed, expected, atol=0.01)


@pytest.mark.parametrize("function", [grad_cam, gradient_attention])
def test_what_can_not_be_explained_is_refused(function):
    for wrong in (5, -1, torch.tensor([0, 5])):
        with pytest.raises(ValueError, match="not one of the model's 5 classes"):
            function(tiny("toco"), picture(), wrong)
    model = tiny()
    model.reset_classifier(0)
    with pytest.raises(ValueError, match="no classifier"):
        function(model, picture(), 0)
    with pytest.raises(ValueError, match="no plain ViT"):
        function(nn.Flatten(), picture(), 0)


def test_grad_cam_that_is_zero_everywhere_is_said():
    model, image = tiny("toco"), picture()
    model.classifier.weight.data[2] = 0
    with pytest.warns(UserWarning, match=r"zero everywhere for image 0 \(class 2\), 1 \(class 2\)"):
        assert not grad_cam(model, image, 2).any()


@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_an_image_of_no_floats_or_with_nan_is_refused(name):
    with pytest.raises(ValueError, match=r"image is of torch.uint8, not normalised"):
        ATTRIBUTIONS[name](tiny(), picture().byte(), 1)
    with pytest.raises(ValueError, match="image holds 1 numbers that are NaN"):
        ATTRIBUTIONS[name](tiny(), picture().index_put((torch.tensor(0),) * 4, torch.tensor(torch.nan)), 1)
