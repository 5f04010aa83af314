"""Swin, ResNet, ConvNeXt and ViTs of every kind behind one interface: tokens, gradients, refusals, a whole run each."""

import json

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from timm.models import get_arch_pretrained_cfgs

from toco_lab.attribution import grad_cam, gradient_attention
from toco_lab.backbones.activations import capture
from toco_lab.backbones.kinds import block_widths, blocks_of, fill_patches, final_norm, token_side
from toco_lab.backbones.weights import CheckpointError
from toco_lab.config import Config, backbone_kind
from toco_lab.evaluation.cam_per_layer import layer_cam_quality
from toco_lab.evaluation.evaluate import evaluate_run
from toco_lab.explorers.cam_session import CamSession
from toco_lab.method.cam import multi_scale_cam, raw_cams, resize
from toco_lab.method.model import ToCo
from toco_lab.method.step import compute_losses
from toco_lab.runs.run_dir import RunDir
from toco_lab.smoothing.formulas import layer_cka
from toco_lab.smoothing.layers import layer_similarity, layers_of
from toco_lab.smoothing.of_runs import smoothing_of_run
from toco_lab.smoothing.per_layer import SITES, smoothing_per_layer
from toco_lab.tokens.snapshots import Snapshots, token_maps
from toco_lab.tokens.token_maps import load_run_maps
from toco_lab.training.checkpoints import check_crops, initial_model
from toco_lab.training.loop import fit
from toco_lab.vocabulary import TUNED

SWIN = {"embed_dim": 8, "depths": [1, 2, 1, 2], "num_heads": [1, 2, 2, 4], "window_size": 3}
CNN = {"layers": [1, 1, 2, 1], "channels": [8, 8, 16, 24]}
CONVNEXT = {"depths": [1, 1, 2, 1], "dims": [8, 8, 16, 24]}
STAGED = {  # name -> (config fields, stride of each block, width of each block, final width)
    "swin": ({"backbone": "swin_tiny_patch4_window7_224", "backbone_args": json.dumps(SWIN)},
             [4, 8, 8, 16, 32, 32], [8, 16, 16, 32, 64, 64]),
    "swin v2": ({"backbone": "swinv2_tiny_window8_256", "backbone_args": json.dumps(SWIN | {"window_size": 4})},
                [4, 8, 8, 16, 32, 32], [8, 16, 16, 32, 64, 64]),
    "resnet": ({"backbone": "resnet18", "backbone_args": json.dumps(CNN)}, [4, 8, 16, 16, 16], [8, 8, 16, 16, 24]),
    "bottlenecks": ({"backbone": "resnet50", "output_stride": 8, "backbone_args": json.dumps(CNN)},
                    [4, 8, 8, 8, 8], [32, 32, 64, 64, 96]),
    "convnext": ({"backbone": "convnext_atto", "output_stride": 32, "backbone_args": json.dumps(CONVNEXT)},
                 [4, 8, 16, 16, 32], [8, 8, 16, 16, 24]),
}  # fmt: skip
DINO = {"backbone": "vit_small_patch14_reg4_dinov2"}
POOLED = {"backbone": "vit_base_patch16_siglip_224"}


def small(name: str, **changes) -> Config:
    fields = {"dino": DINO, "pooled": POOLED}.get(name) or STAGED[name][0]
    return Config.preset("smoke").replace(**fields, **changes)


@pytest.fixture(scope="module", params=list(STAGED))
def staged(request):
    torch.manual_seed(0)
    model = ToCo(small(request.param)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # zeroed branches and scales would hide what a block does
            parameter.add_(0.1 * torch.randn_like(parameter))
    return request.param, model


def by_hand(model: ToCo, image: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Maps (B, D, h, w) after every block and the final ones, from the parts of each family one after another."""
    net, found = model.encoder, []

    def through(blocks, x, last=False):
        for block in blocks:
            x = block(x)
            found.append(x.permute(0, 3, 1, 2) if last else x)
        return x

    match type(net).__name__:
        case "SwinTransformer" | "SwinTransformerV2":
            x = net.patch_embed(image)
            for stage in net.layers:
                x = through(stage.blocks, stage.downsample(x), last=True)
            final = net.norm(x).permute(0, 3, 1, 2)
        case "ResNet":
            x = net.maxpool(net.act1(net.bn1(net.conv1(image))))
            for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
                x = through(stage, x)
            final = x
        case "ConvNeXt":
            x = net.stem(image)
            for stage in net.stages:
                x = through(stage.blocks, stage.downsample(x))
            weight, bias = net.head.norm.weight, net.head.norm.bias
            final = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), weight, bias, 1e-6).permute(0, 3, 1, 2)
    return found, final


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_tokens_of_every_block_are_those_of_its_family(staged):
    name, model = staged
    _, strides, widths = STAGED[name]
    image = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        maps, final = by_hand(model, image)
        features = model.encode(image)
    seen = capture(model, image)
    assert [(len(strides), *one.shape) for one in maps] == [
        (len(maps), 2, width, 96 // stride, 64 // stride) for width, stride in zip(widths, strides, strict=True)
    ]
    assert token_side(model.encoder) == model.patch_size == strides[-1]
    assert block_widths(model.encoder) == widths and len(blocks_of(model.encoder)) == len(strides)
    torch.testing.assert_close(features.patch_tokens, final)
    torch.testing.assert_close(features.class_token, final.mean((2, 3)))
    torch.testing.assert_close(features.aux_patch_tokens, maps[-3])
    assert model.aux_classifier.weight.shape[1] == widths[-3]
    for tokens, grid, expected in zip(seen.after_block, seen.block_grids, maps, strict=True):
        torch.testing.assert_close(tokens.mT.unflatten(2, grid), expected)
    torch.testing.assert_close(seen.final.mT.unflatten(2, seen.grid), final)
    assert (final_norm(model.encoder) is None) == (seen.norm == "none") == ("ResNet" in type(model.encoder).__name__)


def test_the_last_block_as_auxiliary_one_is_the_final_tokens():
    model = ToCo(small("swin", aux_layer=-1))
    features = model.encode(torch.randn(1, 3, 64, 64))
    assert features.aux_patch_tokens is features.patch_tokens
    with pytest.raises(ValueError, match="aux_layer 6 is not one of the 6 blocks of swin_tiny"):
        ToCo(small("swin", aux_layer=6))


def test_an_image_of_no_whole_tokens_is_resized_not_cut(staged):
    _, model = staged
    torch.manual_seed(0)
    image, label = torch.randn(2, 3, 79, 115), torch.randint(0, 9, (2, 79, 115))
    side = model.patch_size
    size = [round(length / side) * side for length in (79, 115)]
    fitted, grid = fill_patches(model.encoder, image)
    assert grid == (size[0] // side, size[1] // side)
    # torch rounds images of three channels by a kernel of their own
    torch.testing.assert_close(fitted, resize(image, size), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        read, resized = model.encode(image).patch_tokens, model.encode(resize(image, size)).patch_tokens
    torch.testing.assert_close(read, resized, rtol=1e-3, atol=1e-3)
    rows, columns = (torch.arange(new) * old // new for new, old in zip(size, (79, 115), strict=True))
    assert torch.equal(fill_patches(model.encoder, label)[0], label[:, rows][:, :, columns])
    assert model.encode(torch.randn(1, 3, 3, 5)).patch_tokens.shape[-2:] == (1, 1)


def test_gradients_reach_every_parameter(staged):
    _, model = staged
    model.zero_grad()
    out = model(torch.randn(2, 3, 64, 64))
    loss = out.logits.sum() + out.aux_logits.sum() + out.seg_logits.square().mean()
    (loss + model.projection_head(out.features.class_token).sum()).backward()
    silent = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    zero = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.any()]
    assert not silent and not [name for name in zero if "teacher" not in name], (silent, zero)


def test_batch_norms_keep_the_statistics_of_their_weights():
    model = ToCo(small("resnet"))
    norms = [part for part in model.encoder.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    before = [part.running_mean.clone() for part in norms]
    image = torch.randn(2, 3, 64, 64)
    trained = model.train().encode(image).patch_tokens
    assert model.encoder.layer1.training and not any(part.training for part in norms)
    torch.testing.assert_close(trained, model.eval().encode(image).patch_tokens)
    assert all(torch.equal(a, part.running_mean) for a, part in zip(before, norms, strict=True))
    assert norms[0].weight.requires_grad


def test_training_mode_is_no_other_network(staged):
    """No stochastic depth, no moving statistics: the CAMs of training are those that are evaluated."""
    _, model = staged
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.train().encode(image).class_token, model.eval().encode(image).class_token)


# --- CAMs -------------------------------------------------------------------------------------------------------------


def test_cams_of_two_grids_are_brought_to_the_finer_one(staged):
    name, model = staged
    strides = STAGED[name][1]
    image = torch.randn(2, 3, 64, 96)
    raw = raw_cams(model, image, 1.0)
    assert raw.shape == (2, 2, 2, 6, 64 // strides[-3], 96 // strides[-3])
    with torch.no_grad():
        cam, aux = model.cams(model.encode(image))
        torch.testing.assert_close(raw[0, 0], resize(cam, raw.shape[-2:]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(raw[1, 0], aux, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(raw_cams(model, image, 1.0, plain=model.encode(image)), raw, rtol=1e-4, atol=1e-5)


def test_multi_scale_cams_turn_with_the_image(staged):
    _, model = staged
    image = torch.randn(1, 3, 64, 96)
    maps, mirrored = (multi_scale_cam(model, x, (1.0, 0.5, 1.5)) for x in (image, image.flip(-1)))
    assert maps.cam.shape == maps.cam_aux.shape == (1, 6, 64, 96) and maps.cam.amax() > 0.5
    torch.testing.assert_close(maps.cam.flip(-1), mirrored.cam, atol=1e-3, rtol=0)
    torch.testing.assert_close(maps.cam_aux.flip(-1), mirrored.cam_aux, atol=1e-3, rtol=0)


def test_grad_cam_of_the_last_block_and_no_attention_to_follow(staged):
    _, model = staged
    image = torch.randn(2, 3, 64, 96)
    found = grad_cam(model, image, 2)
    maps, final = by_hand(model, image)
    if final_norm(model.encoder) is None:  # the logit reads the maximum of each channel of the last block
        places = torch.zeros_like(final).flatten(2).scatter_(2, final.flatten(2).argmax(2, keepdim=True), 1)
        gradient = model.classifier.weight[2, :, 0, 0][:, None] * places  # (B, D, N)
        weights = gradient.mean(2)[:, :, None, None]
        torch.testing.assert_close(found, (final * weights).sum(1).relu(), rtol=1e-4, atol=1e-6)
    assert found.shape == (2, *final.shape[-2:]) and found.min() >= 0
    earlier = grad_cam(model, image, 2, layer=blocks_of(model.encoder)[0])
    assert earlier.shape == (2, *maps[0].shape[-2:])
    with pytest.raises(ValueError, match=r"no plain ViT .* attention between all tokens"):
        gradient_attention(model, image, 2)
    with pytest.raises(ValueError, match="no plain ViT"):
        capture(model, image, attention=True)


def test_a_session_shows_maps_and_says_what_it_can_not(rng):
    cfg = small("convnext")
    session = CamSession(ToCo(cfg), cfg)
    session.set_image(rng.integers(0, 256, (70, 90, 3)).astype("uint8"))
    assert session.score("cam_aux", 1).shape == session.attribution("Grad-CAM", 1).shape == (70, 90)
    with pytest.raises(ValueError, match="no plain ViT"):
        session.attribution("attention rollout", 1)


# --- over-smoothing ---------------------------------------------------------------------------------------------------


def test_every_block_is_measured_on_its_own_grid(staged):
    name, model = staged
    _, strides, _ = STAGED[name]
    images, labels = torch.randn(2, 3, 96, 96), torch.randint(0, 2, (2, 96, 96)).float()
    labels = F.interpolate(F.interpolate(labels[:, None], (12, 12)), (96, 96))[:, 0].long()
    metrics = ["pairwise cosine", "positive cosine"]
    frame = smoothing_per_layer(model, images, labels, name=name, metrics=metrics, sites=SITES)
    normed = final_norm(model.encoder) is not None
    assert list(frame["site"].unique()) == ["after block"] + ["final norm"] * normed
    blocks = frame[frame["site"] == "after block"].drop_duplicates("layer")
    assert blocks["tokens"].tolist() == [(96 // stride) ** 2 for stride in strides]
    one = frame[(frame["metric"] == "pairwise cosine") & (frame["variant"] == "absolute, off-diagonal")]
    one = one[(one["site"] == "after block") & (one["layer"] == 2) & (one["image"] == "1")]
    tokens = F.normalize(by_hand(model, images[1:])[0][1][0].flatten(1).double(), dim=0)
    cosine, count = (tokens.T @ tokens).abs(), tokens.shape[1]
    expected = (cosine.sum() - cosine.trace()) / (count * (count - 1))
    assert one["value"].item() == pytest.approx(expected.item(), abs=1e-5)
    views = [layer.view for layer in layers_of(model, images[:1], labels[:1])]
    assert [view.patch_size for view in views[: len(strides)]] == strides
    assert torch.equal(views[0].label[0].unflatten(0, (24, 24)), labels[0, ::4, ::4])  # labels are made of 8 x 8 pixels


def test_all_metrics_that_need_no_attention(staged):
    name, model = staged
    frame = smoothing_per_layer(model, torch.randn(1, 3, 64, 96), name=name)
    assert frame["value"].abs().max() < float("inf") and "attention" not in set(frame["site"])
    with pytest.raises(ValueError, match="this model has no site patch embedding: take the site 'after block'"):
        smoothing_per_layer(model, torch.randn(1, 3, 64, 96), name=name, sites=["patch embedding"])
    with pytest.raises(ValueError, match="'attention entropy' is about attention between all tokens"):
        smoothing_per_layer(model, torch.randn(1, 3, 64, 96), name=name, metrics=["attention entropy"])


def test_similarity_of_layers_averages_finer_grids_down(staged):
    _, model = staged
    image = torch.randn(3, 64, 96)
    maps, final = by_hand(model, image[None])
    means = [F.adaptive_avg_pool2d(one, final.shape[-2:]).flatten(2).mT for one in maps]
    matrix = layer_similarity(model, [image])
    torch.testing.assert_close(torch.tensor(matrix.to_numpy()), layer_cka(means)[0].double(), rtol=1e-4, atol=1e-5)


def test_snapshots_keep_the_blocks_like_the_final_one(staged, smoke_samples):
    name, model = staged
    cfg = small(name)
    (maps,) = token_maps(model, cfg, smoke_samples[:1], name="m", weights="w")
    _, strides, widths = STAGED[name]
    last = (strides[-1], widths[-1])
    kept = [i for i, shape in enumerate(zip(strides, widths, strict=True), start=1) if shape == last]
    assert maps.layers == (*(f"block {i}" for i in kept), *(["final norm"] * (final_norm(model.encoder) is not None)))
    assert maps.grid == (96 // strides[-1],) * 2
    seen = capture(model, smoke_samples[0].image[None])
    unit = F.normalize(seen.final[0], dim=1)
    assert abs(maps.tokens.similarity(0, len(maps.layers) - 1, 0) - (unit @ unit[0]).numpy()).max() < 0.02


@pytest.fixture
def smoke_samples():
    from toco_lab.data.loader import eval_samples

    cfg = Config.preset("smoke")
    return [eval_samples(cfg, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))[0]]


# --- ViTs -------------------------------------------------------------------------------------------------------------


def test_a_vit_without_a_class_token_gives_the_mean():
    model = ToCo(small("pooled")).eval()
    image = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        features = model.encode(image)
        tokens = model.encoder._pos_embed(model.encoder.patch_embed(image))
        for block in model.encoder.blocks:
            tokens = block(tokens)
        tokens = model.encoder.norm(tokens)
    assert model.num_prefix_tokens == 0 and features.patch_tokens.shape == (2, 24, 6, 8)
    torch.testing.assert_close(features.patch_tokens.flatten(2).mT, tokens)
    torch.testing.assert_close(features.class_token, tokens.mean(1))


def test_registers_alone_are_no_class_token():
    cfg = Config.preset("smoke").replace(backbone="vit_medium_patch16_reg4_gap_256")
    features = (model := ToCo(cfg)).encode(torch.randn(1, 3, 48, 64))
    assert model.num_prefix_tokens == 4
    torch.testing.assert_close(features.class_token, features.patch_tokens.mean((2, 3)))


# --- names, sizes, weights --------------------------------------------------------------------------------------------


def test_sizes_of_the_preset_go_with_its_vit():
    cfg = Config.preset("toy").replace(backbone="resnet18")
    assert (cfg.embed_dim, cfg.patch_size, cfg.depth, cfg.weights) == (None, None, None, "")
    assert Config.from_json(cfg.to_json()) == cfg
    assert Config.preset("smoke").replace(**DINO).embed_dim == 24  # a plain ViT takes them
    kept = Config.preset("toy").replace(backbone="resnet18", weights="mine.pth")
    assert kept.weights == "mine.pth" and kept.replace(w_ptc=0).weights == "mine.pth"


def test_names_tell_the_kind():
    for module, kind in {"resnet": "cnn", "convnext": "cnn", "swin_transformer": "swin", "swin_transformer_v2": "swin",
                         "vision_transformer": "vit", "deit": "vit", "eva": "vit", "beit": "vit"}.items():  # fmt: skip
        assert {backbone_kind(name) for name in timm.list_models(module=module)} == {kind}, module
    assert backbone_kind("hf-hub:timm/resnet18.a1_in1k") == "cnn"


@pytest.mark.parametrize("changes, words", [
    ({"backbone": "resnet18", "embed_dim": 32, "depth": 3}, "embed_dim=32, depth=3 are sizes of plain ViTs; resnet18"),
    ({"output_stride": 8}, "vit_tiny_patch16_224 is none: the side of its tokens is patch_size"),
    ({"backbone": "swin_tiny_patch4_window7_224", "output_stride": 16}, "32 pixels, or less with backbone_args="),
    ({"backbone": "resnet18", "output_stride": 12}, "output_stride must be 8, 16 or 32, got 12"),
    ({"backbone": "resnet18", "anti_smoothing": "attn_scale"}, "attention between all tokens, which resnet18 does not"),
    ({"backbone": "resnet18", "compile_blocks": True}, "compile_blocks is for plain ViTs"),
    ({"backbone_args": "depths=3"}, "backbone_args must be a JSON object"),
    ({"backbone": "vit_base_patch16_224.mae", "weights_tag": "mae"}, "names its weights already"),
])  # fmt: skip
def test_wrong_combinations_are_refused_by_the_config(changes, words):
    with pytest.raises(ValueError, match=words):
        Config.preset("smoke").replace(**changes)


@pytest.mark.parametrize("changes, words", [
    ({"backbone": "swin_tinny_patch4_window7_224"}, "did you mean 'swin_tiny_patch4_window7_224'"),
    ({"backbone": "resnetv2_50"}, "a ResNetV2, which is not read here. Backbones are timm's plain ViTs"),
    ({"backbone": "maxvit_tiny_tf_224"}, "cannot be built"),
    ({"backbone": "resnet18", "backbone_args": '{"num_classes": 3}'}, "backbone_args cannot set num_classes"),
    ({"backbone": "resnet18", "backbone_args": '{"no_such": 3}'}, "'resnet18' cannot be built: .*no_such"),
    ({"weights_tag": "in22k"}, "no weights_tag 'in22k' for vit_tiny_patch16_224; there are: augreg_in21k_ft_in1k"),
])  # fmt: skip
def test_what_timm_can_not_make_is_said_when_the_model_is_made(changes, words):
    with pytest.raises(ValueError, match=words):
        ToCo(Config.preset("smoke").replace(**changes))


def test_crops_of_no_whole_tokens_are_refused_with_those_that_are():
    own = dict.fromkeys(("image_size", "patch_size", "embed_dim", "depth", "num_heads"))
    cfg = Config.preset("smoke").replace(backbone="vit_tiny_patch16_224", **own, backbone_args='{"patch_size": 14}')
    with pytest.raises(ValueError, match=r"crop_size 96 .* 14 pixels; take 84 = 6 x 14 or 98 = 7 x 14"):
        initial_model(cfg)
    with pytest.raises(ValueError, match=r"local_crop_size 32 .* take 28 = 2 x 14 or 42 = 3 x 14"):
        initial_model(cfg.replace(crop_size=98))
    assert initial_model(cfg.replace(crop_size=98, local_crop_size=42)).patch_size == 14
    with pytest.raises(ValueError, match=r"crop_size 80 .* 32 pixels; take 64 = 2 x 32 or 96 = 3 x 32"):
        initial_model(small("swin", crop_size=80))
    check_crops(ToCo(small("swin")), small("swin", local_crop_size=30))


def test_a_tag_names_the_weights(monkeypatch):
    cfg = Config.preset("voc_vit_b").replace(weights_tag="augreg_in1k")
    assert (cfg.backbone, cfg.weights_tag) == ("vit_base_patch16_224", "augreg_in1k")
    assert cfg.replace(backbone="deit_base_patch16_224.fb_in1k").weights_tag == ""
    tags = [name.partition(".")[2] for name in get_arch_pretrained_cfgs("swin_tiny_patch4_window7_224")]
    assert {"ms_in1k", "ms_in22k"} <= set(tags)
    for tag in ("ms_in1k", "ms_in22k"):
        model = ToCo(small("swin", weights_tag=tag))
        assert model.encoder.pretrained_cfg["tag"] == tag
    asked = []
    monkeypatch.setattr("timm.create_model", stand_in(asked, timm.create_model))
    model = initial_model(small("swin", pretrained=True, weights_tag="ms_in22k"))
    assert asked == ["swin_tiny_patch4_window7_224.ms_in22k"]
    assert (model.encoder.layers[1].blocks[0].mlp.fc1.bias == 3).all()


def stand_in(asked, real):
    """timm.create_model whose pretrained Swin is a tiny one, its biases 3."""

    def create(name, pretrained=False, **kwargs):
        if not pretrained:
            return real(name, **kwargs)
        asked.append(name)
        model = real(name, **kwargs, **SWIN)
        for key, value in model.named_parameters():
            if key.endswith("bias"):
                torch.nn.init.constant_(value, 3)
        return model

    return create


@pytest.mark.parametrize("name, classifier", [("swin", "head.fc"), ("resnet", "fc"), ("convnext", "head.fc")])
def test_local_weights_of_every_family(tmp_path, name, classifier):
    cfg = small(name, pretrained=True, weights=str(tmp_path / "net.safetensors"))
    source = ToCo(small(name)).encoder
    for value in source.parameters():
        torch.nn.init.normal_(value)
    state = source.state_dict() | {f"{classifier}.weight": torch.zeros(5, 24), f"{classifier}.bias": torch.zeros(5)}
    safetensors.torch.save_file(state, cfg.weights)
    loaded = initial_model(cfg).encoder.state_dict()
    assert loaded.keys() == source.state_dict().keys()
    assert all(torch.equal(value, loaded[key]) for key, value in source.state_dict().items())
    del state[next(key for key in state if key.endswith("bias") and classifier not in key)]
    safetensors.torch.save_file(state, cfg.weights)
    with pytest.raises(CheckpointError, match=r"does not fit this backbone; missing \(1\): .*bias"):
        initial_model(cfg)


def test_a_norm_behind_the_pooling_is_the_final_one(tmp_path):
    source = ToCo(small("pooled")).encoder.state_dict()
    source["norm.weight"] += 1
    state = {key.replace("norm.", "fc_norm.") if key.startswith("norm.") else key: v for key, v in source.items()}
    safetensors.torch.save_file(state | {"attn_pool.latent": torch.zeros(1)}, tmp_path / "vit.safetensors")
    model = initial_model(small("pooled", pretrained=True, weights=str(tmp_path / "vit.safetensors")))
    assert torch.equal(model.encoder.norm.weight, source["norm.weight"])


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["swin", "resnet", "convnext"])
def test_all_losses_of_a_step(name, smoke_batch):
    torch.manual_seed(0)
    cfg = small(name)
    model = ToCo(cfg).train()
    output = compute_losses(model, smoke_batch, cfg, cfg.steps - 1, generator=torch.Generator().manual_seed(0))
    assert output.token_label.shape[1:] == (96 // model.patch_size,) * 2
    terms = vars(output.terms)
    assert all(torch.isfinite(terms[key]) for key in ("cls", "cls_aux", "ptc", "ctc", "seg", "reg", "total"))
    output.terms.ctc.backward()
    assert any(p.grad is not None and p.grad.any() for p in model.encoder.parameters())


@pytest.mark.parametrize("name", ["swin", "resnet", "convnext", "dino"])
def test_blocks_that_compute_twice_give_the_same_gradients(name, smoke_batch):
    """The auxiliary tokens leave the encoder from within a block whose activations are not kept."""
    gradients, kept = [], []
    for twice in (False, True):
        cfg = small(name, checkpoint_blocks=twice)
        torch.manual_seed(0)
        model, bytes_kept = ToCo(cfg).train(), 0

        def count(tensor):
            nonlocal bytes_kept
            bytes_kept += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            features = model.encode(smoke_batch.image)
        (features.patch_tokens.square().mean() + features.aux_patch_tokens.square().mean()).backward()
        gradients.append({name: p.grad for name, p in model.encoder.named_parameters() if p.requires_grad})
        kept.append(bytes_kept)
    for key, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], expected, msg=lambda m, key=key: f"{key}: {m}")
    assert kept[1] < kept[0]


@pytest.fixture
def smoke_batch():
    from toco_lab.data.loader import train_loader

    return next(iter(train_loader(Config.preset("smoke"), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin", "resnet", "convnext", "dino"])
def test_a_run_trains_is_evaluated_and_measured(tmp_path, name):
    cfg = small(name, steps=2, checkpoint_every=1, val_images=2, train_images=4)
    run = RunDir.create(cfg, tmp_path)
    fit(cfg, run, snapshot=Snapshots(run), progress=False)
    scores = evaluate_run(run, progress=False).scores
    assert set(scores) == {"cam", "cam_aux", "cam_refined", "seg", "labels", *TUNED.values()}
    frame = smoothing_of_run(run, 2, metrics=None, sites=SITES, progress=False)
    model = ToCo(cfg)
    assert frame[frame["site"] == "after block"]["layer"].max() == len(blocks_of(model.encoder))
    assert load_run_maps(run)[0].steps == (0, 1, 2)
    quality = layer_cam_quality(model, cfg, num_train=4, num_images=2, progress=False)
    layers = len(blocks_of(model.encoder)) + (final_norm(model.encoder) is not None)
    assert quality["own"].sum() == layers and quality["miou"].between(0, 1).all()
    again = fit(cfg, run, progress=False).state_dict()
    assert all(value.isfinite().all() for value in again.values())
