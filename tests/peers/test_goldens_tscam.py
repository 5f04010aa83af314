"""TS-CAM against arrays that the authors' code gave."""

import pytest
import torch
from helpers.baseline_goldens import assert_near, config_of, load_golden, needed, part

from toco_lab.backbones.activations import attention_maps
from toco_lab.method.losses import classification_loss
from toco_lab.peers.boxes import box_iou, largest_box, unit_map
from toco_lab.peers.tscam import TSCAM, attention_map, class_token_row, coupled

pytestmark = needed


@pytest.fixture(scope="module")
def case():
    arrays, meta = load_golden("tscam")
    model = TSCAM(config_of(meta, "tscam"))
    weights = part(arrays, "w/")
    model.classifier.load_state_dict(part(weights, "head."))
    model.encoder.load_state_dict({name: value for name, value in weights.items() if not name.startswith("head.")})
    return arrays, model.eval()


def test_forward_and_maps(case):
    golden, model = case
    output = model(golden["input"])
    assert_near(output.features.semantic, golden["semantic"], 1e-5, "semantic")
    assert_near(output.logits, golden["logits"], 1e-5, "logits")
    assert_near(output.features.attention, golden["attn_map"], 1e-5, "attn_map")
    cam, semantic = model.raw_maps(golden["input"])
    assert_near(cam, golden["cam"], 1e-5, "cam")
    assert torch.equal(semantic, output.features.semantic.detach())
    assert_near(classification_loss(output.logits, golden["label"]), golden["loss"], 1e-5, "loss")


def test_attention_of_every_block_and_the_functions_alone(case):
    golden, model = case
    with attention_maps(model) as seen, torch.no_grad():
        model.encoder.forward_features(golden["input"])
    assert_near(torch.stack(seen), golden["attn"], 1e-5, "attn")
    grid = tuple(golden["attn_map"].shape[-2:])
    found = attention_map([class_token_row(one) for one in golden["attn"]], model.num_prefix_tokens, grid)
    assert_near(found, golden["attn_map"], 1e-5, "attn_map")
    assert_near(coupled(golden["attn_map"], golden["semantic"]), golden["cam"], 1e-5, "cam")


def test_gradients(case):
    golden, model = case
    model.encoder.pos_embed.requires_grad_(True)  # frozen here; the authors train it
    named = dict(model.encoder.named_parameters()) | {f"head.{n}": p for n, p in model.classifier.named_parameters()}
    expected = part(golden, "grad/")
    loss = (golden["R"] * model.semantic_map(golden["input"]).mean((2, 3))).sum()
    found = torch.autograd.grad(loss, [named[name] for name in expected])
    model.encoder.pos_embed.requires_grad_(False)
    for (name, value), gradient in zip(expected.items(), found, strict=True):
        assert_near(gradient, value, 5e-5, name)
    assert expected["cls_token"].abs().max() > 0


def test_boxes_and_their_iou(case):
    golden, _ = case
    unit = unit_map(golden["box_maps"], golden["box_resized"].shape[-1])
    assert_near(unit, golden["box_resized"], 1e-5, "box_resized")
    expected, thresholds = golden["boxes"].int(), golden["box_thresholds"].tolist()
    found = torch.tensor([[largest_box(one, threshold) for threshold in thresholds] for one in unit], dtype=torch.int)
    assert (found - expected).abs().sum() <= 1  # where a value of a map meets the threshold
    assert_near(box_iou(golden["boxes"][:, 0], golden["boxes"][:, 2]), golden["box_iou"], 1e-5, "box_iou")


def test_a_box_of_nothing_and_of_a_ring():
    assert largest_box(torch.zeros(8, 8), 0.1) == (0, 0, 1, 1)
    ring = torch.zeros(20, 20)
    ring[2:12, 2:12], ring[3:11, 3:11] = 1, 0  # 36 pixels around 64: larger than the square of 49
    ring[13:20, 13:20] = 1
    assert largest_box(ring, 0.5) == (2, 2, 12, 12)
