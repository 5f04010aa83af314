"""Every family of timm: a table of all its blocks on the announced grids, or the refusal with its reason."""

import re

import pytest
import timm
import torch

import toco_lab as tl
from toco_lab.backbones.activations import capture
from toco_lab.backbones.kinds import any_encoder_of, final_norm, is_plain_vit
from toco_lab.backbones.stages import Stage, read_map

# module of timm.models -> (a small model, tokens along one side after the blocks: how many blocks have which)
SUPPORTED = {
    "beit": ("beit_base_patch16_224", {14: 12}),
    "byoanet": ("halonet26t", {64: 2, 32: 2, 16: 2, 8: 2}),
    "byobnet": ("test_byobnet", {40: 1, 20: 1, 10: 1, 5: 1}),
    "convnext": ("convnext_atto", {56: 2, 28: 2, 14: 6, 7: 2}),
    "cpubone": ("cpubone_nano", {56: 1, 28: 1, 14: 2, 7: 3}),
    "cspnet": ("darknet17", {128: 1, 64: 1, 32: 1, 16: 1, 8: 1}),
    "cspnext": ("cspnext_tiny", {56: 2, 28: 2, 14: 2, 7: 3}),
    "davit": ("davit_tiny", {56: 1, 28: 1, 14: 3, 7: 1}),
    "deit": ("deit_tiny_patch16_224", {14: 12}),
    "edgenext": ("edgenext_small", {64: 3, 32: 3, 16: 9, 8: 3}),
    "efficientformer_v2": ("efficientformerv2_s0", {56: 2, 28: 2, 14: 6, 7: 4}),
    "efficientnet": ("test_efficientnet", {80: 1, 40: 1, 20: 1, 10: 1, 5: 1}),
    "efficientvit_mit": ("efficientvit_b0", {56: 2, 28: 2, 14: 3, 7: 3}),
    "efficientvit_msra": ("efficientvit_m0", {16: 1, 8: 2, 4: 3}),
    "eva": ("eva02_tiny_patch14_224", {16: 12}),
    "fasternet": ("fasternet_t0", {56: 1, 28: 2, 14: 8, 7: 2}),
    "fastvit": ("fastvit_s12", {64: 2, 32: 2, 16: 6, 8: 2}),
    "focalnet": ("focalnet_tiny_srf", {56: 2, 28: 2, 14: 6, 7: 2}),
    "gcvit": ("gcvit_tiny", {56: 3, 28: 4, 14: 19, 7: 5}),
    "hardcorenas": ("hardcorenas_a", {112: 1, 56: 2, 28: 2, 14: 4, 7: 3}),
    "hgnet": ("hgnet_tiny", {56: 1, 28: 1, 14: 2, 7: 1}),
    "iformer": ("iformer_s", {56: 2, 28: 2, 14: 19, 7: 6}),
    "inception_next": ("inception_next_atto", {56: 2, 28: 2, 14: 6, 7: 2}),
    "lcnetv2": ("lcnetv2_small", {56: 2, 28: 2, 14: 4, 7: 2}),
    "lowformer": ("lowformer_b0", {56: 1, 28: 1, 14: 4, 7: 5}),
    "mambaout": ("test_mambaout", {40: 1, 20: 1, 10: 3, 5: 1}),
    "maxxvit": ("test_maxvit", {40: 1, 20: 1, 10: 1, 5: 1}),
    "metaformer": ("poolformer_s12", {56: 2, 28: 2, 14: 6, 7: 2}),
    "mobilenetv3": ("lcnet_035", {112: 1, 56: 2, 28: 2, 14: 6, 7: 2}),
    "mobilevit": ("mobilevit_xxs", {128: 1, 64: 3, 32: 2, 16: 2, 8: 2}),
    "nfnet": ("test_nfnet", {40: 1, 20: 1, 10: 1, 5: 1}),
    "repvit": ("repvit_m1_0", {56: 2, 28: 2, 14: 14, 7: 2}),
    "res2net": ("res2net50_26w_4s", {56: 3, 28: 4, 14: 6, 7: 3}),
    "resnest": ("resnest26d", {56: 2, 28: 2, 14: 2, 7: 2}),
    "resnet": ("test_resnet", {40: 1, 20: 1, 10: 1, 5: 1}),
    "resnetv2": ("resnetv2_18", {56: 2, 28: 2, 14: 2, 7: 2}),
    "senet": ("legacy_seresnet18", {56: 2, 28: 2, 14: 2, 7: 2}),
    "sequencer": ("sequencer2d_s", {32: 4, 16: 14}),
    "shvit": ("shvit_s1", {16: 2, 8: 4, 4: 5}),
    "sknet": ("skresnet18", {56: 2, 28: 2, 14: 2, 7: 2}),
    "starnet": ("starnet_s050", {56: 2, 28: 2, 14: 4, 7: 2}),
    "swiftformer": ("swiftformer_xs", {56: 3, 28: 3, 14: 6, 7: 4}),
    "swin_transformer": ("swin_s3_tiny_224", {56: 2, 28: 2, 14: 6, 7: 2}),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", {64: 2, 32: 2, 16: 6, 8: 2}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", {56: 2, 28: 2, 14: 6, 7: 2}),
    "tiny_vit": ("tiny_vit_5m_224", {56: 2, 28: 2, 14: 6, 7: 2}),
    "tresnet": ("tresnet_m", {56: 3, 28: 4, 14: 11, 7: 3}),
    "visformer": ("visformer_tiny", {28: 7, 14: 4, 7: 4}),
    "vision_transformer": ("test_vit", {10: 6}),
    "vision_transformer_relpos": ("test_vit_relpos", {10: 9}),
    "vovnet": ("vovnet39a", {56: 1, 28: 1, 14: 2, 7: 2}),
}  # fmt: skip
NO_STAGES = "announces no stages that are sequences of blocks"
NO_MAP = "where timm announces maps of"
REFUSED = {
    "cait": ("cait_xxs24_224", NO_STAGES),
    "coat": ("coat_tiny", "holds tokens of several grids at once"),
    "convit": ("convit_tiny", NO_STAGES),
    "convmixer": ("convmixer_768_32", NO_STAGES),
    "crossvit": ("crossvit_tiny_240", "holds tokens of several grids at once"),
    "csatv2": ("csatv2", NO_STAGES),
    "densenet": ("densenet121", NO_STAGES),
    "dla": ("dla46_c", NO_STAGES),
    "dpn": ("dpn68", NO_STAGES),
    "efficientformer": ("efficientformer_l1", "is no sequence of blocks"),
    "efficientvim": ("efficientvim_m1", NO_MAP),
    "ghostnet": ("ghostnet_050", NO_MAP),
    "hiera": ("hiera_tiny_224", NO_STAGES),
    "hieradet_sam2": ("sam2_hiera_tiny", NO_STAGES),
    "hrnet": ("hrnet_w18_small", NO_MAP),
    "inception_resnet_v2": ("inception_resnet_v2", "is no sequence of blocks"),
    "inception_v3": ("inception_v3", NO_STAGES),
    "inception_v4": ("inception_v4", NO_STAGES),
    "levit": ("levit_128", "with an image of 256 x 256 pixels, which fill whole tokens"),
    "mlp_mixer": ("gmlp_ti16_224", NO_STAGES),
    "mvitv2": ("mvitv2_tiny", NO_STAGES),
    "naflexvit": ("naflexvit_base_patch16_gap", NO_STAGES),
    "nest": ("nest_tiny", NO_STAGES),
    "nextvit": ("nextvit_small", NO_MAP),
    "pit": ("pit_xs_224", NO_MAP),
    "pvt_v2": ("pvt_v2_b0", NO_MAP),
    "rdnet": ("rdnet_tiny", "is no sequence of blocks"),
    "regnet": ("regnetv_040", NO_STAGES),
    "repghost": ("repghostnet_050", NO_MAP),
    "rexnet": ("rexnet_100", NO_STAGES),
    "selecsls": ("selecsls42", NO_STAGES),
    "tnt": ("tnt_b_patch16_224", NO_STAGES),
    "twins": ("twins_svt_small", NO_STAGES),
    "vgg": ("vgg11", NO_STAGES),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", "of a CNN before the ViT, are not supported"),
    "vision_transformer_sam": ("samvit_base_patch16", NO_STAGES),
    "vitamin": ("vitamin_small_224", "of a CNN before the ViT, are not supported"),
    "volo": ("volo_d1_224", NO_MAP),
    "xception": ("legacy_xception", NO_STAGES),
    "xception_aligned": ("xception41", NO_STAGES),
    "xcit": ("xcit_nano_12_p8_224", NO_STAGES),
}  # fmt: skip
TOO_LARGE = {
    "gemma4_vit": "its smallest model has 167 million weights", "mobilenetv5": "300 million", "nasnet": "90 million",
    "pnasnet": "90 million", "qwen3_vit": "90 million", "deepseek_vit": "412 million",
}  # fmt: skip
SMALLER = {  # arguments that make a small model of a family that has none
    "naflexvit_base_patch16_gap": {"depth": 2, "embed_dim": 48, "num_heads": 2},
    "samvit_base_patch16": {
        "depth": 2, "embed_dim": 48, "num_heads": 2, "img_size": 128, "global_attn_indexes": (1,), "neck_chans": 16,
    },
}  # fmt: skip
FAST = (
    "beit", "convnext", "efficientnet", "eva", "maxxvit", "mambaout", "resnet", "swin_transformer_v2_cr", "tiny_vit",
    "vision_transformer", "cait", "crossvit", "levit", "pvt_v2", "twins", "xcit", "mvitv2", "volo", "pit", "coat",
)  # fmt: skip


def cases(families):
    return [
        pytest.param(family, *what, id=family, marks=() if family in FAST else pytest.mark.slow)
        for family, what in families.items()
    ]


def make(name):
    torch.manual_seed(0)
    smaller = SMALLER.get(name, {})
    model = timm.create_model(name, **smaller).eval()
    side = smaller.get("img_size", model.pretrained_cfg["input_size"][-1])
    return model, torch.randn(3, side, side)


def test_every_family_of_timm_is_in_one_list():
    modules = {timm.models._registry._model_to_module[name] for name in timm.list_models()}
    listed = [*SUPPORTED, *REFUSED, *TOO_LARGE]
    assert len(listed) == len(set(listed)) and set(listed) == modules
    assert set(FAST) <= set(listed)


@pytest.mark.parametrize("family, name, sides", cases(SUPPORTED))
def test_a_table_has_every_block_on_its_announced_grid(family, name, sides):
    model, image = make(name)
    assert name in timm.list_models(module=family)
    frame = tl.smoothing_per_layer(model, [image], name=name, metrics=["Dirichlet energy"])
    blocks = frame[frame["site"] == "after block"].drop_duplicates("layer")
    assert blocks["layer"].tolist() == list(range(1, sum(sides.values()) + 1))
    assert blocks["tokens"].tolist() == [side**2 for side, count in sides.items() for _ in range(count)]
    norm = final_norm(model)
    assert ("final norm" in set(frame["site"])) == (norm is not None)
    if norm is not None:  # it is the norm behind the last block, and nothing lies between
        seen = capture(model, image[None])
        last = seen.after_block[-1]
        if not is_plain_vit(model):
            last = last.mT.unflatten(2, seen.grid)
        channels_last = type(norm) is torch.nn.LayerNorm and last.ndim == 4
        with torch.no_grad():
            final = norm(last.movedim(1, -1)).movedim(-1, 1) if channels_last else norm(last)
        final = final if is_plain_vit(model) else final.flatten(2).mT
        torch.testing.assert_close(seen.final, final, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family, name, reason", cases(REFUSED))
def test_a_refusal_names_class_and_reason(family, name, reason):
    model, image = make(name)
    assert name in timm.list_models(module=family)
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        tl.smoothing_per_layer(model, [image], name=name, metrics=["Dirichlet energy"])
    if "CNN before" not in reason:
        assert str(caught.value).startswith(f"{type(model).__name__} cannot be read")


@pytest.mark.parametrize("name", ["swinv2_cr_tiny_224", "tiny_vit_5m_224"])
def test_maps_with_channels_last_are_those_of_the_block(name):
    model, image = make(name)
    kept = []
    model.stages[1].blocks[0].register_forward_hook(lambda _, __, output: kept.append(output))
    seen = capture(model, image[None])
    index = len(model.stages[0].blocks)
    torch.testing.assert_close(seen.after_block[index], kept[0].flatten(1, 2))  # (B, h, w, D)


def test_a_block_between_the_announced_ones_is_no_longer_left_out():
    model, image = make("lcnet_035")  # announced are blocks 0, 1, 2, 4 and 5
    found = capture(model, image[None]).after_block
    assert len(found) == sum(len(stage) for stage in model.blocks) == 13


def test_rows_columns_and_channels_alike_in_number_are_told_apart_or_refused():
    cube, stage = torch.randn(1, 8, 8, 8), Stage([], 8, 4)
    cnn, swin = (timm.create_model(name) for name in ("test_resnet", "swin_s3_tiny_224"))
    assert torch.equal(read_map(cnn, cube, stage, (32, 32)), cube)
    assert torch.equal(read_map(swin, cube, stage, (32, 32)), cube.movedim(3, 1))
    other = timm.create_model("test_mambaout")
    assert torch.equal(read_map(other, cube, stage, (32, 32), like=True), cube.movedim(3, 1))
    with pytest.raises(ValueError, match=r"MambaOut cannot be read: .* two ways; take another image size"):
        read_map(other, cube, stage, (32, 32))


def test_an_image_that_a_model_in_stages_does_not_take_is_said():
    with pytest.raises(ValueError, match="SwinTransformer cannot be read with an image of 256 x 256 pixels"):
        capture(timm.create_model("swin_s3_tiny_224"), torch.randn(1, 3, 256, 256))


def test_beit_is_read_and_the_error_of_training_says_so():
    any_encoder_of(timm.create_model("beit_base_patch16_224", depth=1))
    own = dict.fromkeys(("image_size", "patch_size", "embed_dim", "depth", "num_heads"))
    cfg = tl.Config.preset("smoke").replace(backbone="beit_base_patch16_224", **own)
    with pytest.raises(ValueError, match="BEiT and other families are read for analysis only"):
        tl.ToCo(cfg)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["samvit_base_patch16", "naflexvit_base_patch16_gap"])
def test_models_too_large_for_a_pass_are_refused_before_one(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(ValueError, match=rf"{type(model).__name__} cannot be read: it is no plain ViT"):
        any_encoder_of(model)
