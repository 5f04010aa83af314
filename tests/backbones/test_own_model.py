"""Own networks as encoders: the tokens are those of the network, its numbers stay, and every tool reads it."""

import copy
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torchvision.models import ConvNeXt, ResNet, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock

from toco_lab.backbones.activations import capture
from toco_lab.backbones.adapters import from_torchvision, from_transformers
from toco_lab.backbones.kinds import any_encoder_of, block_widths, blocks_of, final_norm, token_side
from toco_lab.backbones.own_model import OwnModel, adapt
from toco_lab.config import Config
from toco_lab.explorers.attribution import ATTRIBUTIONS, attention_rollout, grad_cam
from toco_lab.explorers.cam_session import CamSession
from toco_lab.explorers.token_explorer import TokenExplorer
from toco_lab.method.cam import multi_scale_cam
from toco_lab.method.model import ToCo
from toco_lab.smoothing.layers import layer_similarity
from toco_lab.smoothing.per_layer import smoothing_per_layer
from toco_lab.tokens.snapshots import maps_of_model

SIDE = 32
PAGE = Path(__file__).resolve().parents[2] / "docs" / "own_model.md"


class Tokens(nn.Module):
    """A network of tokens (B, P + N, D): `prefix` learnt tokens, then patches of 8 pixels."""

    def __init__(self, prefix=1, classes=3, width=12, pooled="class"):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.start = nn.Parameter(torch.randn(1, prefix, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 16, dropout=0.5, batch_first=True) for _ in range(3)
        )
        self.norm, self.head, self.pooled = nn.LayerNorm(width), nn.Linear(width, classes), pooled

    def forward(self, image):
        x = self.patches(image).flatten(2).mT
        x = torch.cat([self.start.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x[:, 0] if self.pooled == "class" else x[:, self.start.shape[1] :].mean(1))


LAYERS = ["blocks.0", "blocks.1", "blocks.2"]


def by_hand(net, image):
    """Tokens after each block and after the norm, as the network computes them in evaluation mode."""
    net, found = copy.deepcopy(net).eval(), []
    x = net.patches(image).flatten(2).mT
    x = torch.cat([net.start.expand(len(x), -1, -1), x], dim=1)
    for block in net.blocks:
        x = block(x)
        found.append(x)
    return [*found, net.norm(x)]


@pytest.fixture(params=[0, 1, 5])
def own(request):
    torch.manual_seed(request.param)
    net = Tokens(request.param, pooled="class" if request.param else "mean")
    return net, adapt(net, LAYERS, norm="norm", image_size=SIDE)


def test_tokens_of_every_layer_are_those_of_the_network(own):
    net, model = own
    image = torch.randn(2, 3, 48, 64)  # another size than the first pass
    net.train()
    seen = capture(model, image)
    assert net.training and net.blocks[1].training  # left as it was
    assert seen.grid == (6, 8) and seen.block_grids == [(6, 8)] * 3
    assert seen.num_prefix == net.start.shape[1] and seen.norm == "LayerNorm"
    for tokens, expected in zip([*seen.after_block, seen.final], by_hand(net, image), strict=True):
        torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)
    assert token_side(model) == 8 and block_widths(model) == [12] * 3 and len(blocks_of(model)) == 3
    assert any_encoder_of(model) is model and final_norm(model) is net.norm


def test_the_network_computes_what_it_always_did(own):
    net, model = own
    net.eval()
    image = torch.randn(2, 3, SIDE, SIDE)
    before = net(image)
    torch.testing.assert_close(model(image), before, rtol=1e-5, atol=1e-6)
    assert all(not part._forward_hooks for part in net.modules())
    model(image).sum().backward()
    assert net.patches.weight.grad is not None and net.blocks[0].linear1.weight.grad.any()


def test_over_smoothing_of_an_own_model(own):
    net, model = own
    image = torch.randn(1, 3, SIDE, SIDE)
    frame = smoothing_per_layer(model, image, name="own")
    found = frame[(frame["metric"] == "pairwise cosine") & (frame["variant"] == "raw, off-diagonal")]
    assert found[["site", "layer"]].values.tolist() == [["after block", 1], ["after block", 2], ["after block", 3],
                                                        ["final norm", 3]]  # fmt: skip
    for value, tokens in zip(found["value"], by_hand(net, image), strict=True):
        unit = nn.functional.normalize(tokens[0, net.start.shape[1] :].detach().double(), dim=1).numpy()
        cosines = unit @ unit.T
        assert value == pytest.approx(cosines[~np.eye(16, dtype=bool)].mean(), abs=1e-5)
    with_class = "class-patch cosine" in set(frame["metric"])
    assert with_class == bool(net.start.shape[1])
    assert layer_similarity(model, image).shape == (3, 3)


def test_grad_cam_of_an_own_model_is_that_by_hand():
    torch.manual_seed(0)
    net = Tokens(0, pooled="mean")
    model = adapt(net, LAYERS, norm="norm", image_size=SIDE)
    image = torch.randn(2, 3, SIDE, SIDE)
    found = grad_cam(model, image, 2)
    plain = copy.deepcopy(net).eval()
    tokens = by_hand(net, image)[2].detach().requires_grad_()
    logit = plain.head(plain.norm(tokens).mean(1))[:, 2].sum()
    (gradient,) = torch.autograd.grad(logit, tokens)
    expected = (tokens * gradient.mean(1, keepdim=True)).sum(2).relu().unflatten(1, (4, 4))
    torch.testing.assert_close(found, expected.detach(), rtol=1e-3, atol=1e-6)
    assert found.any()


def test_grad_cam_of_a_class_token_reads_the_block_before_the_last():
    """Behind the last attention no patch has a gradient where the logit reads the class token."""
    torch.manual_seed(0)
    model = adapt(Tokens(1), LAYERS, norm="norm", image_size=SIDE)
    image = torch.randn(1, 3, SIDE, SIDE)
    found = grad_cam(model, image, 1)
    torch.testing.assert_close(found, grad_cam(model, image, 1, layer=blocks_of(model)[1]))
    assert found.any()
    with pytest.warns(UserWarning, match="zero everywhere"):
        assert not grad_cam(model, image, 1, layer=blocks_of(model)[2]).any()
    with pytest.raises(ValueError, match="OwnModel is no plain ViT"):
        ATTRIBUTIONS["attention rollout"](model, image, 1)


def test_cams_of_an_own_model_are_its_classifier_at_each_token():
    torch.manual_seed(0)
    net = Tokens(1)
    cfg = Config.preset("smoke").replace(num_classes=3, dataset="folder", eval_cam_size=SIDE, cam_scales=(1.0,))
    model = ToCo(cfg, encoder=adapt(net, LAYERS, norm="norm", image_size=SIDE), classifier=net.head).eval()
    image = torch.randn(1, 3, SIDE, SIDE)
    final = by_hand(net, image)[-1][:, 1:]
    raw = torch.einsum("cd,bnd->bcn", net.head.weight, final).unflatten(2, (4, 4))
    torch.testing.assert_close(model(image).cam, raw.detach(), rtol=1e-4, atol=1e-5)
    assert multi_scale_cam(model, image, (1.0, 2.0)).cam.shape == (1, 3, SIDE, SIDE)
    session = CamSession(model, cfg)
    session.set_image(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8))
    assert session.image.output.cam.shape == (1, 3, 4, 4)
    model.train().read(model.encode(image)).logits.sum().backward()
    assert net.blocks[0].linear1.weight.grad.any()  # it can be trained
    with pytest.raises(ValueError, match=r"classifier has weights \(2, 12\), needed are .* \(3, 12\)"):
        ToCo(cfg, encoder=model.encoder, classifier=nn.Linear(12, 2))


def test_token_maps_of_any_model(own):
    net, model = own
    image = torch.randn(1, 3, SIDE, SIDE).clamp(-2, 2)
    maps = maps_of_model(model, image, name="own", image_names=["a"], mean=(0.5,) * 3, std=(0.2,) * 3)[0]
    assert maps.layers == ("block 1", "block 2", "block 3", "final norm") and maps.image_name == "a"
    unit = nn.functional.normalize(by_hand(net, image)[1][0, net.start.shape[1] :], dim=1)
    np.testing.assert_allclose(maps.similarity(0, 1, 5).flatten(), (unit @ unit[5]).detach(), atol=0.02)
    shown = (image[0] * 0.2 + 0.5).mul(255).clamp(0, 255).round().byte().permute(1, 2, 0)
    np.testing.assert_allclose(maps.image.astype(int), shown, atol=1)  # of a half, rounding decides
    assert TokenExplorer([maps]).selection["image"] == "a"


def test_the_page_about_own_models_runs():
    names: dict = {}
    for block in re.findall(r"(?ms)^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"))[:2]:
        exec(compile(block, PAGE.name, "exec"), names)
    assert names["frame"]["layer"].max() == 4 and names["heat"].shape == (2, 6, 6)
    assert names["cams"].cam.shape == (2, 5, 96, 96)


# --- maps -------------------------------------------------------------------------------------------------------------


def small_swin():
    return SwinTransformer([4, 4], 8, [1, 2], [1, 2], [4, 4], num_classes=2, stochastic_depth_prob=0.0)


def test_maps_in_both_layouts_and_of_several_grids():
    torch.manual_seed(0)
    net = small_swin()
    image = torch.randn(2, 3, 64, 64)
    model = adapt(net, ["features.1.0", "features.3.0", "features.3.1"], norm="norm", image_size=64)
    assert [(one["num_chs"], one["reduction"]) for one in model.feature_info] == [(8, 4), (16, 8)]
    seen = capture(model, image)
    outputs = []
    for name in ("features.1.0", "features.3.0", "features.3.1", "norm"):
        net.get_submodule(name).register_forward_hook(lambda _, __, output: outputs.append(output))
    with torch.no_grad():
        net.eval()(image)
    for tokens, expected in zip([*seen.after_block, seen.final], outputs, strict=True):
        torch.testing.assert_close(tokens, expected.flatten(1, 2))
    assert grad_cam(model, image, 0).shape == (2, 8, 8)


def test_maps_whose_channels_are_as_many_as_their_rows():
    """The numbers cannot tell the layout in a first pass; what `adapt` found is what is read."""
    net = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.Conv2d(8, 8, 1))
    model = adapt(net, ["0", "1"], image_size=32)
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(capture(model, image).after_block[0], net[0](image).detach().flatten(2).mT)
    with pytest.raises(ValueError, match="can be read in two ways: give channels_last"):
        adapt(net, ["0", "1"], image_size=64)
    again = adapt(net, ["0", "1"], image_size=64, channels_last=False)
    torch.testing.assert_close(capture(again, image).final, net(image).detach().flatten(2).mT)


def test_what_the_network_changes_in_place_was_read_before():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 8, stride=8), nn.ReLU(inplace=True), nn.Conv2d(5, 5, 1))
    image = torch.randn(1, 3, 32, 32)
    seen = capture(adapt(net, ["0", "2"], image_size=32), image)
    torch.testing.assert_close(seen.after_block[0], net[0](image).detach().flatten(2).mT)
    assert (seen.after_block[0] < 0).any()


# --- torchvision ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torchvision_vit():
    torch.manual_seed(0)
    net = VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=40, num_classes=3)
    nn.init.normal_(net.heads.head.weight)
    return net.eval()


def test_a_vit_of_torchvision_becomes_timms(torchvision_vit):
    vit = from_torchvision(torchvision_vit)
    assert isinstance(vit, timm.models.VisionTransformer) and not vit.training
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = torchvision_vit(image)
        torch.testing.assert_close(vit(image), logits, rtol=1e-4, atol=1e-5)
    names = [f"encoder.layers.encoder_layer_{number}" for number in range(3)]
    read = capture(adapt(torchvision_vit, names, norm="encoder.ln", image_size=32), image)
    ours = capture(vit, image, attention=True)
    for one, other in zip([*ours.after_block, ours.final], [*read.after_block, read.final], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    rollout = attention_rollout(ours.attention, num_prefix=1, grid=(4, 4))
    assert 0 < rollout.sum() <= 2  # attention is read too
    for attribution in ATTRIBUTIONS.values():
        assert attribution(vit, image, 1).shape == (2, 32, 32)
    assert capture(vit, torch.randn(1, 3, 48, 64)).grid == (6, 8)  # of any size
    cfg = Config.preset("smoke").replace(num_classes=3, aux_layer=-2)
    model = ToCo(cfg, encoder=vit, classifier=torchvision_vit.heads.head).eval()
    head = torchvision_vit.heads.head.weight
    raw = torch.einsum("cd,bnd->bcn", head, ours.final[:, 1:]).unflatten(2, (4, 4)).detach()
    torch.testing.assert_close(model(image).cam, raw, rtol=1e-4, atol=1e-4)


def test_a_changed_vit_of_torchvision_is_refused(torchvision_vit):
    net = copy.deepcopy(torchvision_vit)
    net.encoder.layers[1].mlp[1] = nn.ReLU()
    with pytest.raises(ValueError, match="does not compute what its class says"):
        from_torchvision(net)


@pytest.mark.parametrize(
    "net, blocks, side",
    [
        (ResNet(BasicBlock, [1, 2, 1, 1], num_classes=2), 5, 32),
        (ConvNeXt([CNBlockConfig(8, 12, 1), CNBlockConfig(12, None, 2)], num_classes=2), 3, 8),
        (small_swin(), 3, 8),
    ],
    ids=["ResNet", "ConvNeXt", "Swin"],
)
def test_other_networks_of_torchvision_at_their_blocks(net, blocks, side):
    model = from_torchvision(net)
    assert isinstance(model, OwnModel) and len(blocks_of(model)) == blocks and token_side(model) == side
    image = torch.randn(1, 3, 64, 64)
    assert smoothing_per_layer(model, image, name="net", metrics=["pairwise cosine"])["layer"].max() == blocks
    torch.testing.assert_close(model.eval()(image), net.eval()(image))


# --- transformers -----------------------------------------------------------------------------------------------------


def test_a_vit_of_transformers():
    transformers = pytest.importorskip("transformers", reason="the optional package transformers is not installed")
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=3)
    torch.manual_seed(0)
    net = transformers.ViTForImageClassification(config).eval()
    model, image = from_transformers(net), torch.randn(2, 3, 32, 32)
    seen = capture(model, image)
    with torch.no_grad():
        output = net(pixel_values=image, output_hidden_states=True)
    for tokens, expected in zip(seen.after_block, output.hidden_states[1:], strict=True):
        torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(seen.final, net.vit.layernorm(output.hidden_states[-1]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(image), output.logits, rtol=1e-4, atol=1e-5)
    assert grad_cam(model, image, 2).any() and capture(model, torch.randn(1, 3, 48, 64)).grid == (6, 8)
    dino = transformers.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28)
    model = from_transformers(transformers.Dinov2Model(dino))
    seen = capture(model, torch.randn(1, 3, 28, 42))
    assert seen.grid == (2, 3) and seen.num_prefix == 1 and seen.norm == "LayerNorm"

    masked = transformers.ViTMAEModel(transformers.ViTMAEConfig(**sizes, image_size=32, patch_size=8))
    with pytest.raises(ValueError, match="ViTMAEModel leaves out patches at random"):
        from_transformers(masked)


class LikeTransformers(nn.Module):
    """What a model of transformers looks like from outside: a config, `pixel_values`, tuples, an object of outputs."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layernorm_before, self.dense = nn.LayerNorm(12), nn.Linear(12, 12)

        def forward(self, x):
            return (x + self.dense(self.layernorm_before(x)), "attention")

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=2, image_size=[SIDE, SIDE])
        self.embeddings, self.pre_layernorm = nn.Conv2d(3, 12, 8, stride=8), nn.LayerNorm(12)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList([self.Block(), self.Block()])})
        self.layernorm, self.pooled_layernorm, self.classifier = nn.LayerNorm(12), nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, *, pixel_values, interpolate_pos_encoding=False):
        assert interpolate_pos_encoding
        x = self.pre_layernorm(self.embeddings(pixel_values).flatten(2).mT)
        for block in self.encoder["layer"]:
            x = block(x)[0]
        x = self.layernorm(x)
        return SimpleNamespace(logits=self.classifier(self.pooled_layernorm(x.mean(1))), last_hidden_state=x)


def test_what_looks_like_transformers_is_read_without_it():
    torch.manual_seed(0)
    net = LikeTransformers()
    model, image = from_transformers(net), torch.randn(2, 3, SIDE, 48)
    with torch.no_grad():
        x = net.pre_layernorm(net.embeddings(image).flatten(2).mT)
        expected = [x := block(x)[0] for block in net.encoder["layer"]]
        expected.append(net.layernorm(x))
    seen = capture(model, image)
    for tokens, one in zip([*seen.after_block, seen.final], expected, strict=True):
        torch.testing.assert_close(tokens, one)
    assert model.final.name == "layernorm" and model.num_classes == 3 and seen.grid == (4, 6)
    torch.testing.assert_close(model(image), net(pixel_values=image, interpolate_pos_encoding=True).logits)
    assert grad_cam(model, image, 2).shape == (2, 4, 6)


def test_what_is_no_vision_model_of_transformers():
    with pytest.raises(ValueError, match="Tokens is no vision model of transformers"):
        from_transformers(Tokens())
    with pytest.raises(ValueError, match=r"Tokens of .* is no VisionTransformer, .* of torchvision"):
        from_torchvision(Tokens())


# --- what cannot be read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layers, options, message",
    [
        ([], {}, "layers must be a list of names"),
        ("blocks", {}, "layers must be a list of names"),
        (["block.0"], {}, "Tokens has no part 'block.0', did you mean 'blocks.0'"),
        (["head"], {}, r"part 'head' gives a tensor \(1, 3\) .* neither tokens"),
        (["blocks.0.self_attn.out_proj"], {}, "takes no part in a pass"),
        (["blocks.0"], {"prefix_tokens": 3}, "17 tokens .* without 3 tokens before the patches"),
        (["blocks.0"], {"image_size": 4}, "cannot be run on an image of 4 x 4 pixels"),
        (["blocks.0", "patches"], {}, "layers differ in the number of tokens before the patches"),
    ],
)
def test_what_cannot_be_read_is_said_at_once(layers, options, message):
    with pytest.raises(ValueError, match=message):
        adapt(Tokens(), layers, **({"image_size": SIDE} | options))


def test_a_network_without_logits_has_no_attribution():
    net = Tokens()
    features = nn.Sequential(net.patches, nn.Conv2d(12, 5, 1))
    model = adapt(features, ["0", "1"], image_size=SIDE)
    with pytest.raises(ValueError, match="the model has no classifier"):
        grad_cam(model, torch.randn(1, 3, SIDE, SIDE), 0)
    with pytest.raises(ValueError, match="Sequential gives no logits"):
        model(torch.randn(1, 3, SIDE, SIDE))


def test_a_size_that_the_network_does_not_take():
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=12, depth=2, num_heads=2)
    model = adapt(net, ["blocks.0", "blocks.1"], image_size=32)
    with pytest.raises(ValueError, match="OwnModel cannot be read with an image of 48 x 32"):
        capture(model, torch.randn(1, 3, 48, 32))
