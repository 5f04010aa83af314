"""Tokens and attention of timm ViTs: against the forward pass written out, and nothing left behind in the model."""

import pytest
import timm
import torch

from toco_lab.backbones.activations import attention_maps, capture, encoder_of

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}


def make(name="vit_tiny_patch16_224", **changes):
    torch.manual_seed(0)
    return timm.create_model(name, **({"dynamic_img_size": True} | SIZES | changes))


@pytest.fixture(scope="module")
def vit():
    return make()


def state_of(model):
    """Everything a look inside might have changed."""
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())
    fused = [part.fused_attn for part in model.modules() if hasattr(part, "fused_attn")]
    return hooks, fused, [part.training for part in model.modules()]


@torch.no_grad()
def by_hand(vit, image):
    """Embedding, tokens after each attention and block, final tokens and attention, written from the definition."""
    vit.eval()
    tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(image)))
    embedding, middles, blocks, maps = tokens, [], [], []
    for block in vit.blocks:
        normed = block.norm1(tokens)
        width = normed.shape[-1] // 2
        q, k, v = block.attn.qkv(normed).chunk(3, dim=-1)
        heads = []
        for head in range(2):
            part = slice(head * width, (head + 1) * width)
            heads.append((q[..., part] @ k[..., part].transpose(1, 2) / width**0.5).softmax(-1))
        maps.append(torch.stack(heads, dim=1))
        mixed = torch.cat([maps[-1][:, i] @ v[..., i * width : (i + 1) * width] for i in range(2)], dim=-1)
        tokens = tokens + block.attn.proj(mixed)
        middles.append(tokens)
        tokens = tokens + block.mlp(block.norm2(tokens))
        blocks.append(tokens)
    return embedding, middles, blocks, vit.norm(tokens), maps


@pytest.mark.parametrize("fused", [True, False])
def test_every_site_equals_the_pass_by_hand(vit, fused):
    for block in vit.blocks:
        block.attn.fused_attn = fused
    image = torch.randn(2, 3, 40, 24)
    found = capture(vit, image, attention=True, after_attention=True)
    embedding, middles, blocks, final, maps = by_hand(vit, image)
    assert found.grid == (5, 3) and found.num_prefix == 1 and found.norm == "LayerNorm"
    torch.testing.assert_close(found.embedding, embedding)
    torch.testing.assert_close(found.patch_embedding, vit.patch_embed(image).flatten(1, 2))
    torch.testing.assert_close(found.final, final)
    for ours, expected in ((found.after_block, blocks), (found.after_attention, middles), (found.attention, maps)):
        assert len(ours) == 3
        for one, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(one, other)
    torch.testing.assert_close(found.patches(found.final), final[:, 1:])
    torch.testing.assert_close(found.class_token(found.final), final[:, 0])
    assert all(block.attn.fused_attn is fused for block in vit.blocks)


def test_what_is_not_asked_for_is_not_kept(vit):
    found = capture(vit, torch.randn(1, 3, 32, 32))
    assert found.attention == found.after_attention == []


def test_the_model_is_as_it_was_also_after_an_error(vit):
    vit.train()
    vit.blocks[1].eval()
    before = state_of(vit)
    capture(vit, torch.randn(1, 3, 32, 32), attention=True, after_attention=True)
    assert state_of(vit) == before
    with pytest.raises(RuntimeError, match="channels"):
        capture(vit, torch.randn(1, 4, 32, 32), attention=True, after_attention=True)
    assert state_of(vit) == before
    vit.eval()


def test_one_pass_serves_all(vit):
    passes = []
    handle = vit.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    capture(vit, torch.randn(1, 3, 32, 32), attention=True, after_attention=True)
    handle.remove()
    assert len(passes) == 1


@pytest.mark.parametrize("name, prefix", [("deit_tiny_distilled_patch16_224", 2), ("vit_small_patch14_reg4_dinov2", 5)])
def test_prefix_tokens_come_first_whatever_their_number(name, prefix):
    model = make(name).eval()
    image = torch.randn(1, 3, 32, 48)
    found = capture(model, image, attention=True)
    torch.testing.assert_close(found.final, model.forward_features(image))
    assert found.num_prefix == prefix and found.grid == (4, 6)
    assert found.patches(found.after_block[0]).shape == (1, 24, 24)
    assert found.attention[2].shape == (1, 2, prefix + 24, prefix + 24)
    torch.testing.assert_close(found.attention[2].sum(-1), torch.ones(1, 2, prefix + 24))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_vit_without_prefix_tokens(batch):
    model = make("vit_base_patch16_siglip_224").eval()
    image = torch.randn(batch, 3, 32, 24)
    found = capture(model, image, attention=True, after_attention=True)
    assert found.num_prefix == 0 and found.attention[0].shape == (batch, 2, 12, 12)
    torch.testing.assert_close(found.final, model.forward_features(image))
    torch.testing.assert_close(model.norm(found.after_block[-1]), found.final)


def test_attention_maps_carry_gradients(vit):
    with attention_maps(vit) as maps:
        vit(torch.randn(1, 3, 32, 32)).square().sum().backward(inputs=[vit.cls_token])
    assert len(maps) == 3 and all(one.requires_grad for one in maps)
    assert vit.blocks[0].attn.qkv.weight.grad is None
    vit.cls_token.grad = None


def test_images_that_do_not_fit_are_named(vit):
    with pytest.raises(ValueError, match="smaller than one patch of 8"):
        capture(vit, torch.randn(1, 3, 7, 20))
    rigid = make(dynamic_img_size=False)
    assert capture(rigid, torch.randn(1, 3, 33, 35)).grid == (4, 4)  # what is over is cut off
    with pytest.raises(ValueError, match="patches of 16 x 8 pixels"):
        capture(make(patch_size=(16, 8)), torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="dynamic_img_size=True"):
        capture(rigid, torch.randn(1, 3, 48, 32))


def test_what_is_no_vit_is_named(vit):
    with pytest.raises(ValueError, match="Linear cannot be read: it is no plain ViT"):
        encoder_of(torch.nn.Linear(2, 2))
    wrapper = torch.nn.Module()
    wrapper.encoder = vit
    assert encoder_of(wrapper) is vit
    strange = make(depth=1)
    strange.blocks[0].attn = torch.nn.Identity()
    with pytest.raises(ValueError, match="attention of Identity"), attention_maps(strange):
        pass
