"""AttnScale and FeatScale: nothing changes at the start, each formula against its loops, and what they are for."""

import copy

import pytest
import timm
import torch
from torch import nn

from toco_lab.backbones.activations import attention_maps, capture
from toco_lab.backbones.anti_smoothing import AttnScale, FeatScale, add_attn_scale, add_feat_scale
from toco_lab.config import Config
from toco_lab.method.model import ToCo

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}
NAMES = ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_small_patch14_reg4_dinov2"]
REMEDIES = {"attn_scale": add_attn_scale, "feat_scale": add_feat_scale}
IMAGE = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def tiny(name=NAMES[0]):
    """Random weights, those of the attention large: at timm's start it is uniform and adds next to nothing."""
    torch.manual_seed(0)
    model = timm.create_model(name, dynamic_img_size=True, **SIZES).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith((".gamma", "attn.qkv.weight", "attn.proj.weight")):
            parameter.data = torch.randn_like(parameter) / 2
    return model


def fill(model, value=None):
    """Give the parameters of the remedies values other than zero."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.rsplit(".", 1)[-1] in ("omega", "s", "t"):
            drawn = torch.rand(parameter.shape, generator=generator) + 0.5
            parameter.data.copy_(drawn if value is None else torch.full_like(parameter, value))
    return model


@pytest.mark.parametrize("remedy", REMEDIES)
@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_unchanged_at_the_start_and_not_afterwards(name, remedy):
    plain = tiny(name)
    changed = REMEDIES[remedy](copy.deepcopy(plain))
    with torch.no_grad():
        expected = plain(IMAGE)
        torch.testing.assert_close(changed(IMAGE), expected, rtol=1e-4, atol=1e-5)
        assert (fill(changed)(IMAGE) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("remedy", REMEDIES)
def test_a_checkpoint_of_the_plain_model_lacks_the_remedy_alone(remedy):
    plain = tiny()
    changed = REMEDIES[remedy](tiny())
    own = {"attn_scale": ["omega"], "feat_scale": ["s", "t"]}[remedy]
    expected = {f"blocks.{i}.attn.{remedy}.{name}" for i in range(3) for name in own}
    assert set(changed.state_dict()) - set(plain.state_dict()) == expected
    result = changed.load_state_dict(plain.state_dict(), strict=False)
    assert set(result.missing_keys) == expected and not result.unexpected_keys
    again = REMEDIES[remedy](tiny())
    again.load_state_dict(fill(changed).state_dict())
    torch.testing.assert_close(again(IMAGE), changed(IMAGE))


@pytest.mark.parametrize("remedy", REMEDIES)
def test_gradients_reach_every_parameter_of_a_training_step(remedy):
    model = REMEDIES[remedy](tiny()).train()
    model(IMAGE).square().sum().backward()
    reached = {name: p.grad for name, p in model.named_parameters() if remedy in name}
    assert len(reached) == 3 * (1 if remedy == "attn_scale" else 2)
    assert all(gradient is not None and gradient.abs().min() > 0 for gradient in reached.values())


@pytest.mark.parametrize("remedy", REMEDIES)
def test_a_copy_has_parameters_of_its_own(remedy):
    model = REMEDIES[remedy](tiny())
    before = model(IMAGE)
    other = fill(copy.deepcopy(model))
    torch.testing.assert_close(model(IMAGE), before)
    assert not torch.allclose(other(IMAGE), before)
    fill(other, value=0)
    torch.testing.assert_close(other(IMAGE), before)


def test_attn_scale_equals_the_loops():
    part = fill(AttnScale(2))
    attention = torch.rand(2, 2, 5, 5).softmax(-1)
    expected = torch.empty_like(attention)
    for b in range(2):
        for h in range(2):
            for i in range(5):
                for j in range(5):
                    high = attention[b, h, i, j] - 1 / 5
                    expected[b, h, i, j] = 1 / 5 + (1 + part.omega[h]) * high
    actual = part(attention)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(actual.sum(-1), torch.ones(2, 2, 5))


def test_feat_scale_equals_the_loops():
    part, tokens = fill(FeatScale(3)), torch.randn(2, 5, 3)
    expected = torch.empty_like(tokens)
    for b in range(2):
        for d in range(3):
            mean = sum(tokens[b, i, d] for i in range(5)) / 5
            for i in range(5):
                expected[b, i, d] = tokens[b, i, d] + part.s[d] * mean + part.t[d] * (tokens[b, i, d] - mean)
    torch.testing.assert_close(part(tokens), expected)


@torch.no_grad()
def test_the_map_that_is_seen_is_the_map_that_is_used():
    model = fill(add_attn_scale(tiny()))
    attn, tokens = model.blocks[1].attn, torch.randn(2, 7, 24)
    with attention_maps(model) as maps:
        output = attn(tokens)
    query, key, value = attn.qkv(tokens).view(2, 7, 3, 2, 12).permute(2, 0, 3, 1, 4)
    softmax = (query @ key.mT / 12**0.5).softmax(-1)
    scaled = 1 / 7 + (1 + attn.attn_scale.omega[:, None, None]) * (softmax - 1 / 7)
    torch.testing.assert_close(maps[0], scaled)
    torch.testing.assert_close(output, attn.proj((scaled @ value).transpose(1, 2).flatten(2)))
    assert not attn.fused_attn  # or the next pass would go round the scaling


@torch.no_grad()
def test_attn_scale_multiplies_what_differs_between_tokens():
    """High part of A_hat V = (1 + omega) times that of A V: the low-pass part gives every token the same."""
    attention, value = torch.randn(1, 2, 9, 9).softmax(-1), torch.randn(1, 2, 9, 4)
    parts = [(fill(AttnScale(2), omega)(attention) @ value) for omega in (0.0, 0.5, 2.0)]
    plain, half, two = (x - x.mean(2, keepdim=True) for x in parts)
    torch.testing.assert_close(half, 1.5 * plain)
    torch.testing.assert_close(two, 3 * plain)
    shares = [(x - x.mean(2, keepdim=True)).norm() / x.norm() for x in parts]
    assert shares[0] < shares[1] < shares[2]


@torch.no_grad()
@pytest.mark.parametrize("remedy", REMEDIES)
def test_high_frequencies_gain_in_the_model(remedy):
    model, share = REMEDIES[remedy](tiny()), []
    for value in (0.0, 0.5, 2.0):
        for name, parameter in model.named_parameters():
            if name.endswith(("omega", ".t")):
                parameter.fill_(value)
        tokens = capture(model, IMAGE, after_attention=True).after_attention[-1]
        share.append((tokens - tokens.mean(1, keepdim=True)).norm() / tokens.norm())
    assert share[0] < share[1] < share[2]


def test_both_remedies_on_a_toco_model():
    model = ToCo(Config.preset("smoke")).eval()
    image = torch.randn(1, 3, 32, 40)
    expected = model(image).logits
    assert add_feat_scale(add_attn_scale(model)) is model
    torch.testing.assert_close(model(image).logits, expected, rtol=1e-4, atol=1e-5)
    fill(model)
    assert not torch.allclose(model(image).logits, expected)


@pytest.mark.parametrize("remedy", REMEDIES)
def test_models_it_does_not_fit_are_refused_untouched(remedy):
    with pytest.raises(ValueError, match="no plain ViT"):
        REMEDIES[remedy](nn.Linear(2, 2))
    model = tiny()
    model.blocks[2].attn = nn.Identity()
    with pytest.raises(ValueError, match="timm's attention as `attn`, got Identity"):
        REMEDIES[remedy](model)
    assert not hasattr(model.blocks[0].attn, remedy)
    model = REMEDIES[remedy](tiny())
    with pytest.raises(ValueError, match=f"has {remedy} already"):
        REMEDIES[remedy](model)
