"""The network: any ViT, any image size, prefix tokens told apart, teacher moved by EMA alone."""

import pytest
import timm
import torch
import torch.nn.functional as F

from toco_lab.backbones import build, kinds
from toco_lab.backbones.build import build_encoder
from toco_lab.backbones.pixels import pieces_of
from toco_lab.config import Config
from toco_lab.method.model import ProjectionHead, ToCo


def tiny(**changes) -> Config:
    return Config.preset("smoke").replace(**changes)


@pytest.mark.parametrize("backbone, prefix", [
    ("vit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2), ("vit_small_patch14_reg4_dinov2", 5),
    ("deit3_small_patch16_224", 1),
])  # fmt: skip
def test_tokens_are_those_of_timm_whatever_the_prefix(backbone, prefix):
    cfg = tiny(backbone=backbone, image_size=32, aux_layer=-2, pos_embed_antialias=True)
    model = ToCo(cfg).eval()
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2}
    plain = timm.create_model(backbone, num_classes=0, dynamic_img_size=True, **sizes)
    plain.load_state_dict(model.encoder.state_dict())
    image = torch.randn(2, 3, 48, 40)
    with torch.no_grad():
        features = model.encode(image)
        sequence, (aux,) = plain.eval().forward_intermediates(image, indices=[2], norm=False)
    assert model.num_prefix_tokens == prefix
    assert features.patch_tokens.shape == features.aux_patch_tokens.shape == (2, 24, 6, 5)
    torch.testing.assert_close(features.class_token, sequence[:, 0])
    torch.testing.assert_close(features.patch_tokens.flatten(2).transpose(1, 2), sequence[:, prefix:])
    torch.testing.assert_close(features.aux_patch_tokens, aux)


CLASS_TOKEN_CASES = [
    # backbone, further config, whether the last block sees the class token alone
    ("vit_tiny_patch16_224", {}, True),
    ("deit_tiny_distilled_patch16_224", {}, True),
    ("vit_small_patch14_reg4_dinov2", {"backbone_args": '{"qk_norm": true, "qkv_bias": false}'}, True),
    ("deit3_small_patch16_224", {"checkpoint_blocks": True}, True),
    ("vit_tiny_patch16_224", {"anti_smoothing": "attn_scale"}, False),
    ("vit_tiny_patch16_224", {"anti_smoothing": "feat_scale"}, False),
    ("vit_tiny_patch16_224", {"depth": 1, "aux_layer": -1}, False),
    ("vit_base_patch16_clip_224", {}, True),
    ("eva02_tiny_patch14_224", {}, False),
    ("vit_base_patch16_gap_224", {}, False),  # no class token: the mean
]


@pytest.mark.parametrize("backbone, changes, alone", CLASS_TOKEN_CASES)
def test_the_class_token_alone_is_that_of_the_whole_pass(backbone, changes, alone, monkeypatch):
    torch.manual_seed(0)
    cfg = tiny(**{"backbone": backbone, "image_size": 32, "aux_layer": -2} | changes)
    model, last_blocks, shortcut = ToCo(cfg).train(), [], kinds._first_token_after
    monkeypatch.setattr(kinds, "_first_token_after", lambda *x: last_blocks.append(x) or shortcut(*x))
    with torch.no_grad():
        for parameter in model.encoder.parameters():  # zeroed scales would hide what a block does
            parameter.add_(0.1 * torch.randn_like(parameter))
    image, found = torch.randn(3, 3, 40, 48), []
    for encode in (lambda: model.encode(image).class_token, lambda: model.encode_class_token(image)):
        model.zero_grad()
        token = encode()
        (token * torch.arange(token.numel()).view_as(token).cos()).sum().backward()
        found.append((token.detach(), {name: p.grad for name, p in model.encoder.named_parameters()}))
    (whole, slopes), (short, short_slopes) = found
    assert bool(last_blocks) == alone  # twice where it is computed again in the backward pass
    torch.testing.assert_close(short, whole, rtol=1e-5, atol=1e-5)
    largest = max(slope.abs().max().item() for slope in slopes.values() if slope is not None)
    for name, slope in slopes.items():
        message = f"{name}: {{}}".format
        torch.testing.assert_close(short_slopes[name], slope, rtol=1e-4, atol=1e-6 * largest, msg=message)


def test_a_hook_on_the_last_block_sees_all_of_it():
    """Whoever hangs something on the block gets what the block does, at the cost of the shortcut."""
    model, seen = ToCo(tiny()), []
    short = model.encode_class_token(torch.ones(1, 3, 32, 32))
    model.encoder.blocks[-1].mlp.register_forward_hook(lambda _, __, output: seen.append(output.shape[1]))
    torch.testing.assert_close(model.encode_class_token(torch.ones(1, 3, 32, 32)), short)
    assert seen == [1 + 16]


def test_448_pixels_give_28_by_28_tokens():
    cfg = Config.preset("voc_deit_b").replace(pretrained=False, backbone="deit_tiny_patch16_224", depth=3)
    with torch.no_grad():
        assert ToCo(cfg)(torch.zeros(1, 3, 448, 448)).cam.shape == (1, 20, 28, 28)


def test_image_logits_pool_before_the_classifier_and_cams_have_no_gradient():
    model = ToCo(tiny())
    out = model(torch.randn(2, 3, 32, 48))
    tokens = out.features.patch_tokens
    expected = torch.einsum("cd,bd->bc", model.classifier.weight[:, :, 0, 0], tokens.flatten(2).max(-1).values)
    torch.testing.assert_close(out.logits, expected)
    torch.testing.assert_close(out.cam, torch.einsum("cd,bdhw->bchw", model.classifier.weight[:, :, 0, 0], tokens))
    assert not out.cam.requires_grad and not out.cam_aux.requires_grad
    assert out.seg_logits.shape == (2, 7, 4, 6)
    assert model(torch.randn(1, 3, 32, 32), segment=False).seg_logits is None


def test_average_pooling_reads_every_token():
    model = ToCo(tiny(pooling="average"))
    out = model(torch.randn(2, 3, 32, 48))
    for logits, cam in ((out.logits, out.cam), (out.aux_logits, out.cam_aux)):  # linear: pooling the CAM is the same
        torch.testing.assert_close(logits, cam.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_a_classifier_can_read_the_class_token_beside_the_maximum():
    """Its logits are the mean of both readings; the auxiliary one has no class token to read."""
    model = ToCo(tiny(pooling="max_and_class"))
    out = model(torch.randn(2, 3, 32, 48))
    weight, aux_weight = (one.weight[:, :, 0, 0] for one in (model.classifier, model.aux_classifier))
    of_patches = out.features.patch_tokens.flatten(2).amax(2) @ weight.T
    torch.testing.assert_close(out.logits, (of_patches + out.features.class_token @ weight.T) / 2)
    torch.testing.assert_close(out.aux_logits, out.features.aux_patch_tokens.flatten(2).amax(2) @ aux_weight.T)


def test_right_and_bottom_pixels_that_fill_no_patch_do_not_count():
    model = ToCo(tiny()).eval()
    image = torch.randn(1, 3, 37, 45)
    with torch.no_grad():
        whole, cut = model.encode(image), model.encode(image[..., :32, :40])
    assert torch.equal(whole.patch_tokens, cut.patch_tokens)
    with pytest.raises(ValueError, match="smaller than one patch"):
        model.encode(torch.zeros(1, 3, 7, 32))


def test_positions_are_frozen_and_resampled_without_antialiasing():
    encoder = build_encoder(tiny())
    assert not encoder.pos_embed.requires_grad
    patches = torch.zeros(1, 5, 7, 24)
    tokens = encoder._pos_embed(patches)
    grid = encoder.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (12, 12))
    expected = F.interpolate(grid, size=(5, 7), mode="bicubic", align_corners=False)
    torch.testing.assert_close(tokens[:, 1:], expected.flatten(2).transpose(1, 2))
    torch.testing.assert_close(tokens[:, :1], encoder.cls_token + encoder.pos_embed[:, :1])


def test_projection_head_gives_cosines():
    head = ProjectionHead(8, 16, 4, 10)
    out = head(torch.randn(5, 8))
    hidden = head.mlp(torch.zeros(5, 8) + torch.randn(5, 8))
    assert out.shape == (5, 10) and out.abs().max() <= 1 + 1e-6 and hidden.shape == (5, 4)
    head.directions.data *= 7  # length does not matter: the gain is fixed at 1
    x = torch.randn(3, 8)
    rows = F.normalize(head.directions, dim=1)
    torch.testing.assert_close(head(x), F.normalize(head.mlp(x), dim=1) @ rows.T)


def test_teacher_moves_only_by_update_teacher():
    model = ToCo(tiny(teacher_momentum=0.75))
    with torch.no_grad():
        for parameter in model.projection_head.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = [p.clone() for p in model.teacher_head.parameters()]
    model(torch.randn(1, 3, 32, 32))
    assert all(torch.equal(a, b) for a, b in zip(before, model.teacher_head.parameters(), strict=True))
    model.update_teacher()
    for old, new, student in zip(
        before, model.teacher_head.parameters(), model.projection_head.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * student)
        assert not new.requires_grad


@pytest.mark.parametrize("changes, words", [
    ({"backbone": "vit_tinny_patch16_224"}, "vit_tinny_patch16_224"),
    ({"backbone": "mobilenetv3_small_050"}, "mobilenetv3_small_050"),
    ({"aux_layer": -9}, "aux_layer -9 is not one of the 4 blocks"),
])  # fmt: skip
def test_wrong_backbones_are_refused_by_name(changes, words):
    with pytest.raises(ValueError, match=words):
        ToCo(tiny(**changes))


def test_bf16_encoder_keeps_fp32_outputs():
    exact, half = ToCo(tiny()).eval(), ToCo(tiny(precision="bf16")).eval()
    half.load_state_dict(exact.state_dict())
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        features, reference = half.encode(image), exact.encode(image)
    assert features.patch_tokens.dtype == features.aux_patch_tokens.dtype == torch.float32
    error = (features.patch_tokens - reference.patch_tokens).abs().max()
    assert 1e-4 < error < 0.2  # another arithmetic, the same network


@pytest.mark.parametrize(
    "size, count", [((448, 448), 2), ((672, 672), 1), ((64, 128), 64), ((2000, 1000), 1), ((4, 4), 70)]
)
def test_pieces_have_some_two_thousand_tokens(size, count):
    image = torch.zeros(70, 3, 1, 1).expand(-1, -1, *size)
    pieces = pieces_of(image, 16)
    assert len(pieces[0]) == count and sum(map(len, pieces)) == 70
    assert len(pieces_of(image.to("meta"), 16)) == 1  # no CPU: all at once


def test_positions_are_resampled_once_for_each_grid_until_they_change(monkeypatch):
    model = ToCo(tiny(image_size=32, crop_size=32, local_crop_size=16))
    encoder, calls = model.encoder, []
    plain = build._resampled
    monkeypatch.setattr(build, "_resampled", lambda *given: calls.append(given[-2:]) or plain(*given))
    patches = torch.rand(1, 3, 5, encoder.embed_dim)
    with torch.inference_mode():
        first = encoder._pos_embed(patches)
    again = encoder._pos_embed(patches.clone().requires_grad_())
    again.sum().backward()  # what was resampled without gradient serves a pass with one
    assert calls == [(3, 5)] and torch.equal(first, again)
    with torch.no_grad():
        encoder.pos_embed.add_(1.0)  # as loading weights does
    moved = encoder._pos_embed(patches)
    assert calls == [(3, 5)] * 2 and (moved - first).min() > 0.5
    for width in range(6, 6 + build._GRIDS_KEPT):
        encoder._pos_embed(torch.rand(1, 3, width, encoder.embed_dim))
    assert len(encoder._position_grids) == build._GRIDS_KEPT and (3, 5) not in encoder._position_grids
    encoder.pos_embed.requires_grad_(True)
    encoder._pos_embed(patches).sum().backward()
    assert encoder.pos_embed.grad is not None and encoder.pos_embed.grad.abs().sum() > 0
