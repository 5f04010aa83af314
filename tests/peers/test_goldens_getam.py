"""GETAM against arrays that the authors' code gave."""

import pytest
import torch
from helpers.baseline_goldens import assert_near, config_of, load_golden, needed, part

from toco_lab.backbones.activations import attention_maps
from toco_lab.backbones.build import _positions_on_grid
from toco_lab.peers.getam import GETAM, weighted_attention
from toco_lab.peers.saliency import saliency_label

pytestmark = needed
SIZES = ("native", "other")


@pytest.fixture(scope="module")
def case():
    arrays, meta = load_golden("getam")
    cfg = config_of(meta, "getam").replace(getam_start=meta["start_layer"])
    model = GETAM(cfg, channels=meta["head_channels"])
    weights = part(arrays, "w/")
    model.encoder.load_state_dict(part(weights, "vit."))
    model.classifier.load_state_dict({name: value for name, value in weights.items() if not name.startswith("vit.")})
    return arrays, model.eval()


@pytest.mark.parametrize("size", SIZES)
def test_logits_and_tokens(case, size):
    golden, model = case
    tokens = model.encode(golden[f"{size}/input"])
    expected, prefix = golden[f"{size}/last_block"], model.num_prefix_tokens
    assert_near(tokens.class_token, expected[:, 0], 1e-5, "class token")
    assert_near(tokens.patches.flatten(2).mT, expected[:, prefix:], 1e-5, "patches")
    assert_near(model.classifier(tokens), golden[f"{size}/logits"], 1e-5, "logits")
    assert_near(model(golden[f"{size}/input"]).logits, golden[f"{size}/logits"], 1e-5, "logits")


@pytest.mark.parametrize("size", SIZES)
def test_attention_gradients_and_maps_of_layers(case, size):
    golden, model = case
    image, place = golden[f"{size}/input"], int(golden[f"{size}/label"][0].argmax())
    with attention_maps(model) as seen:
        logits = model.classifier(model.encode(image.clone().requires_grad_()))
    gradients = torch.autograd.grad(logits[0, place], seen)
    attention, gradient = (torch.stack([one[0].detach() for one in every]) for every in (seen, gradients))
    assert_near(attention, golden[f"{size}/attn"], 1e-5, "attn")
    if golden[f"{size}/label"][0, 0]:  # the arrays are those of image 0, class 0
        assert_near(gradient, golden[f"{size}/attn_grad"], 5e-5, "attn_grad")
    maps, _ = weighted_attention(golden[f"{size}/attn"][model.start :], golden[f"{size}/attn_grad"][model.start :])
    assert_near(maps, golden[f"{size}/layer_maps"], 1e-5, "layer_maps")


@pytest.mark.parametrize("size", SIZES)
def test_maps(case, size):
    golden, model = case
    label = golden[f"{size}/label"]
    with torch.no_grad():
        cam, without = model.raw_maps(golden[f"{size}/input"], label)
        every, _ = model.raw_maps(golden[f"{size}/input"])
    assert_near(cam, golden[f"{size}/maps"], 1e-5, "maps")
    assert_near(every * label[:, :, None, None], golden[f"{size}/maps"], 1e-5, "maps of all classes")
    assert without.min() >= 0 and not without[label == 0].any() and not torch.equal(cam, without)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_positions_of_another_grid(case):
    golden, model = case
    grid, prefix = golden["other/maps"].shape[-2:], model.num_prefix_tokens
    assert_near(_positions_on_grid(model.encoder, prefix, *grid), golden["other/pos"][:, prefix:], 1e-6, "pos")


def test_label_from_maps_and_saliency():
    golden, _ = load_golden("getam_label")
    found = saliency_label(golden["cam"], golden["classes"].long(), golden["saliency"])
    assert torch.equal(found, golden["seg_label"].long())
    assert {0, 255} < set(found.unique().tolist())
