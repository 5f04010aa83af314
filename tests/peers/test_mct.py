"""MCTformer beyond its golden arrays: any ViT and size, pretrained weights, options; formulas in small cases."""

import pytest
import torch

from toco_lab.attribution.attention import rollout
from toco_lab.attribution.catalogue import ATTRIBUTIONS, methods_of
from toco_lab.backbones.activations import capture
from toco_lab.backbones.weights import read_weights
from toco_lab.config import Config
from toco_lab.method.batch import Batch
from toco_lab.method.cam import multi_scale_cam
from toco_lab.peers.build import build_model
from toco_lab.peers.mct import MCTformer
from toco_lab.peers.mct_maps import class_attention, class_contrast, ranked_pooling, summed_map
from toco_lab.training.checkpoints import initial_model

SMOKE = Config.preset("smoke")
METHODS = ["mct", "mct_plus"]
KINDS = {
    "vit_tiny_patch16_224": 0,
    "deit_tiny_distilled_patch16_224": 1,
    "vit_small_patch14_reg4_dinov2": 4,
    "eva02_tiny_patch14_224": 0,
    "vit_small_patch16_dinov3": 4,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", KINDS)
def test_any_plain_vit_and_size(backbone, method):
    sizes = {"patch_size": 8, "image_size": 96, "crop_size": 96, "local_crop_size": 32, "embed_dim": 24, "depth": 4}
    cfg = SMOKE.replace(method=method, backbone=backbone).replace(**sizes, num_heads=2)
    model = build_model(cfg)
    assert isinstance(model, MCTformer) and model.num_prefix_tokens == cfg.num_classes + KINDS[backbone]
    assert model.encoder.cls_token.shape == (1, 6, 24)
    image = torch.randn(2, 3, 50, 70, generator=torch.Generator().manual_seed(0))
    maps = model.maps(image)
    assert maps.refined.shape == (2, 6, 6, 8) and maps.affinity.shape == (2, 48, 48)
    assert maps.affinity.sum(2).max() < cfg.depth, "rows of attention, without what goes to class tokens"
    # the encoder alone is the network that is trained: what reads encoders sees its class tokens, and no final norm
    seen = capture(model, image, attention=True)
    tokens = model.tokens(image)
    torch.testing.assert_close(seen.final[:, :6], tokens.after_block[-1].detach())
    torch.testing.assert_close(seen.patches(seen.final), tokens.patches.flatten(2).mT.detach())
    assert seen.num_prefix == model.num_prefix_tokens


@pytest.mark.parametrize("method", METHODS)
def test_pretrained_weights_are_copied_for_each_class(method):
    cfg = Config.preset("toy").replace(method=method)
    model, file = initial_model(cfg), read_weights(cfg.weights)
    assert torch.equal(model.encoder.cls_token, file["cls_token"].repeat(1, 6, 1))
    positions = model.encoder.pos_embed
    assert torch.equal(positions[:, :6], file["pos_embed"][:, :1].repeat(1, 6, 1))
    assert torch.equal(positions[:, 6:], file["pos_embed"][:, 1:]) and not positions.requires_grad
    assert torch.equal(model.encoder.blocks[0].attn.qkv.weight, file["blocks.0.attn.qkv.weight"])
    assert isinstance(model.encoder.norm, torch.nn.Identity) and model.encoder.cls_token.requires_grad


def test_frozen_blocks_leave_the_class_tokens_free():
    model = build_model(SMOKE.replace(method="mct", frozen_blocks=2))
    assert model.encoder.cls_token.requires_grad
    assert not model.encoder.blocks[1].attn.qkv.weight.requires_grad
    image = torch.zeros(1, 3, 96, 96)
    batch = Batch([], image, image, image, torch.tensor([[1.0, 0, 0, 0, 0, 0]]), torch.tensor([[0, 96, 0, 96]]))
    model.losses(batch, SMOKE.replace(method="mct"), 0).terms.total.backward()
    gradient = model.encoder.cls_token.grad[0]
    assert (gradient[0] - gradient[1]).abs().max() > 0, "training parts the copies"


@pytest.mark.parametrize(
    "options", [{"method": "mct"}, {"method": "mct_plus"}, {"method": "mct", "mct_head_weights": True}]
)
def test_an_encoder_in_bf16_gives_maps_in_fp32_that_are_near(options):
    torch.manual_seed(0)
    whole, half = build_model(SMOKE.replace(**options)), build_model(SMOKE.replace(**options, precision="bf16"))
    half.load_state_dict(whole.state_dict())
    image = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    expected, found = whole.maps(image), half.maps(image)
    assert found.refined.dtype == torch.float32
    torch.testing.assert_close(found.affinity, expected.affinity, rtol=0.02, atol=1e-4)
    torch.testing.assert_close(found.attention, expected.attention, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_maps_of_a_weak_classifier_are_normalised_all_the_same(method):
    torch.manual_seed(0)
    model = build_model(SMOKE.replace(method=method))
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    strong = multi_scale_cam(model, image, (1.0, 0.5))
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.mul_(1e-6)
    weak = multi_scale_cam(model, image, (1.0, 0.5))
    torch.testing.assert_close(weak.cam, strong.cam, rtol=0, atol=2e-3)
    assert weak.cam.amax() > 0.99


def test_more_layers_than_blocks_are_refused():
    with pytest.raises(ValueError, match="mct_layers 5 is more than the 4 blocks that depth asks for"):
        SMOKE.replace(method="mct", mct_layers=5)
    cfg = SMOKE.replace(method="mct", depth=None, aux_layer=-3, mct_layers=13)
    with pytest.raises(ValueError, match="mct_layers 13 is more than the 12 blocks of the backbone"):
        build_model(cfg)
    with pytest.raises(ValueError, match=r"mct_layers must lie in \[1, 2\].*got 3"):
        class_attention([torch.zeros(1, 2, 4)] * 2, (2, 2), last=3, mean=False)


def test_ranked_pooling_lies_between_maximum_and_mean():
    maps = torch.tensor([[[[1.0, 4.0], [2.0, 3.0]]]])
    torch.testing.assert_close(ranked_pooling(maps, 0.0), torch.tensor([[4.0]]))
    torch.testing.assert_close(ranked_pooling(maps, 1.0), torch.tensor([[2.5]]))
    torch.testing.assert_close(ranked_pooling(maps, 0.5), torch.tensor([[(4 + 1.5 + 0.5 + 0.125) / 1.875]]))


def test_contrast_falls_as_present_class_tokens_part():
    label = torch.tensor([[1.0, 1.0, 0.0]])
    equal = torch.ones(2, 1, 3, 4)
    apart = torch.eye(3, 4).repeat(2, 1, 1, 1)
    assert class_contrast(equal, label).item() == pytest.approx(torch.tensor(3.0).log().item(), rel=1e-5)
    assert class_contrast(apart, label) < class_contrast(equal, label)
    moved = apart.clone()
    moved[:, :, 2] = torch.tensor([0.0, 0, 0, 5])  # an absent class, as far away as before
    torch.testing.assert_close(class_contrast(moved, label), class_contrast(apart, label))
    assert class_contrast(apart, torch.zeros(1, 3)) == 0, "an image without a class"


def test_summed_map_mirrors_every_second_one_back():
    left = torch.zeros(1, 2, 1, 4)
    left[..., 0] = 1
    found = summed_map([left, left.flip(-1)], (1, 4), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([1.0, 0, 0, 0]))
    assert not found[0, 1].any()


def test_what_reads_the_one_class_token_is_not_offered():
    model = build_model(SMOKE.replace(method="mct"))
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    offered = methods_of(model)
    assert {"Grad-CAM", "gradient x attention"} <= set(offered) and "attention rollout" not in offered
    with pytest.raises(ValueError, match="this model has one for each class"):
        rollout(model, image)
    for name in offered:
        found = ATTRIBUTIONS[name](model, image, 2)
        assert found.shape == (1, 96, 96) and found.isfinite().all(), name
