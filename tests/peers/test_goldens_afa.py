"""Parity with arrays of the authors' code: AFA's affinity, its supervision, the walk and the pseudo label."""

import pytest
import torch
from helpers.baseline_goldens import assert_near, load_golden, needed, part
from timm.layers import Attention

from toco_lab.method.cam import resize
from toco_lab.method.labels import mask_by_label
from toco_lab.method.present import PresentClasses
from toco_lab.method.refine import refine_cam
from toco_lab.peers import learned_affinity as afa

pytestmark = needed
WALK_OF_A_CAM = 1e-4  # epsilon of the walk of a bare CAM, `propagated` in the file's description


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return {key: value if value.is_floating_point() else value.long() for key, value in load_golden("afa")[0].items()}


@pytest.fixture(scope="module")
def meta() -> dict:
    return load_golden("afa")[1]


def scores_of(golden: dict, meta: dict) -> list[torch.Tensor]:
    """`patch_scores` of both blocks, by a timm attention with the file's weights."""
    found = []
    for number in range(afa.BLOCKS):
        arrays = part(golden, f"attn{number}/")
        attention = Attention(meta["dim"], num_heads=meta["heads"], qkv_bias=True)
        attention.qkv.load_state_dict(
            {kind: torch.cat([arrays[f"q.{kind}"], arrays[f"kv.{kind}"]]) for kind in ("weight", "bias")}
        )
        found.append(afa.patch_scores(attention, attention.qkv(arrays["x"]), 0).detach())
    return found


def head_of(golden: dict) -> afa.AffinityHead:
    head = afa.AffinityHead(golden["head/weight"].shape[1])
    head.read.load_state_dict({"weight": golden["head/weight"], "bias": golden["head/bias"]})
    return head


def test_scores_and_affinity(golden, meta):
    scores = scores_of(golden, meta)
    for number, one in enumerate(scores):
        assert_near(one, golden[f"attn{number}/raw"], 1e-5)
    assert_near(head_of(golden)(scores).detach(), golden["affinity"], 1e-5)


def test_labels_of_pairs(golden, meta):
    grid, radius = meta["grid"], meta["radius"]
    assert torch.equal(afa.radius_mask(grid, radius).long(), golden["radius_mask"])
    label = afa.affinity_label(golden["pixel_label"], grid, radius=radius)
    assert torch.equal(label.long(), golden["affinity_label"])
    assert torch.equal(afa.affinity_label(golden["pixel_label"], grid).long(), golden["affinity_label_no_mask"])
    assert (label == 1).sum() + 1 == golden["pos_count"]
    assert (label == 0).sum() + 1 == golden["neg_count"]


def test_loss_and_gradients(golden):
    scores = [golden[f"attn{number}/raw"].clone().requires_grad_() for number in range(afa.BLOCKS)]
    head = head_of(golden)
    loss = afa.affinity_loss(head(scores), golden["affinity_label"]).loss
    assert_near(loss.detach(), golden["loss"], 1e-5)
    loss.backward()
    for number, one in enumerate(scores):
        assert_near(one.grad, golden[f"grad/attn{number}"], 5e-5)
    assert_near(head.read.weight.grad, golden["grad/head.weight"], 5e-5)
    assert_near(head.read.bias.grad, golden["grad/head.bias"], 5e-5)
    nothing = afa.affinity_loss(head(scores), torch.full_like(golden["affinity_label"], 255)).loss
    assert nothing == golden["degenerate_loss"]


def test_walk(golden, meta):
    radius, affinity = meta["radius"], golden["affinity"]
    assert_near(afa.walk(golden["cam"], affinity, radius=radius, epsilon=WALK_OF_A_CAM), golden["propagated"], 1e-5)
    present = PresentClasses.of(golden["image_label"]).dense()
    for name in ("low", "high"):
        walked = afa.walked_scores(golden["cam"], present, affinity, meta[name], radius=radius)
        assert_near(walked, golden[f"propagated_{name}"], 1e-5)


def test_pseudo_label(golden, meta):
    chain = part(golden, "chain/")
    grid, radius, low, high = meta["chain_grid"], meta["radius"], meta["low"], meta["high"]
    dense = PresentClasses.of(golden["image_label"]).dense()
    assert_near(resize(mask_by_label(chain["cam"], golden["image_label"]), grid), chain["small"], 1e-5)
    for name, background in (("low", low), ("high", high)):
        walked = afa.walked_scores(chain["small"], dense, chain["affinity"], background, radius=radius)
        assert_near(walked, chain[name], 1e-5)

    present = PresentClasses.of(golden["image_label"])
    cam = present.gather(chain["cam"])
    label = afa.walked_label(
        chain["image01"], cam, present, chain["affinity"], grid, low=low, high=high, radius=radius,
        valid_box=chain["box"],
    )  # fmt: skip
    assert (label != chain["label"]).sum() <= 2
    par_only = refine_cam(chain["image01"], cam, present, low=low, high=high, valid_box=chain["box"])
    assert (par_only != chain["label_par_only"]).sum() <= 2
    assert (chain["label"] != chain["label_par_only"]).any(), "the walk changes something here"
