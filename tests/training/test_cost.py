"""What a step costs, against counts made by hand and against real tensors."""

import pytest
import torch

from toco_lab.config import Config
from toco_lab.method.model import ToCo
from toco_lab.training.cost import measured_rate, step_cost

CFG = Config.preset("smoke").replace(num_local_crops=2, w_seg=0.0, w_reg=0.0)


def flops_of_a_pass(cfg: Config, side: int) -> float:
    """Two per multiplication of the ViT's matrices: patches, then per block qkv, attention twice, projection, MLP."""
    patches, width = (side // cfg.patch_size) ** 2, cfg.embed_dim
    tokens, hidden = patches + 1, 4 * width
    block = tokens * width * (3 * width + width + 2 * hidden) + 2 * tokens * tokens * width
    return 2 * (patches * 3 * cfg.patch_size**2 * width + cfg.depth * block)


def test_one_pass_is_what_the_matrices_say():
    assert step_cost(CFG).pass_flops == pytest.approx(flops_of_a_pass(CFG, 96), rel=0.01)


def test_a_step_is_the_sum_of_its_passes():
    """Backward costs twice the forward pass (thrice with it), a little less where an input needs no gradient."""
    one = {side: flops_of_a_pass(CFG, side) for side in (96, 48, 64, 32)}
    learnt = one[96] + one[64] + 2 * one[32]  # main view, second view, two crops
    looked = one[96] + 2 * one[48]  # mirror image, half size in both directions
    counted = step_cost(CFG).flops / CFG.batch_size
    assert 0.9 * (3 * learnt + looked) < counted < 1.1 * (3 * learnt + looked)
    plain = step_cost(CFG.replace(w_ptc=0.0, w_ctc=0.0)).flops / CFG.batch_size
    assert 0.9 * 3 * one[96] < plain < 1.1 * 3 * one[96]


def test_activations_are_those_autograd_keeps():
    cfg = CFG.replace(w_ptc=0.0, w_ctc=0.0)
    model, storages = ToCo(cfg).train(), {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def count(tensor):
        if (place := tensor.untyped_storage().data_ptr()) not in weights:
            storages[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = model(torch.zeros(2, 3, 96, 96), segment=False)
        loss = output.logits.sum() + output.aux_logits.sum()
    assert step_cost(cfg).activation_bytes == pytest.approx(sum(storages.values()), rel=0.05)
    assert loss.requires_grad


def test_what_lowers_memory_and_what_does_not_change_the_work():
    whole, split = step_cost(CFG), step_cost(CFG.replace(accumulate=2))
    assert split.activation_bytes < 0.6 * whole.activation_bytes
    assert split.flops == pytest.approx(whole.flops, rel=0.01)
    half = step_cost(CFG.replace(accumulate=2), processes=2)
    assert half.flops == pytest.approx(whole.flops / 2, rel=0.01)
    again = step_cost(CFG.replace(checkpoint_blocks=True))
    assert again.activation_bytes < whole.activation_bytes and again.flops > whole.flops
    assert step_cost(CFG.replace(precision="bf16")).activation_bytes < whole.activation_bytes


def test_weights_gradients_and_moments():
    model = ToCo(CFG)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    cost = step_cost(CFG)
    assert cost.parameters == frozen + trained and cost.weight_bytes == 4 * (frozen + 4 * trained)
    assert cost.memory_bytes == cost.weight_bytes + cost.activation_bytes


@pytest.mark.parametrize("backbone", ["resnet10t", "swin_tiny_patch4_window7_224"])
def test_other_backbones_are_counted_too(backbone):
    cfg = CFG.replace(backbone=backbone, local_crop_size=64)
    if backbone.startswith("swin"):
        cfg = cfg.replace(
            backbone_args='{"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 3}'
        )
    cost = step_cost(cfg)
    assert cost.flops > cost.pass_flops > 0 and cost.activation_bytes > 0


def test_the_rate_is_the_work_of_a_pass_over_its_time(monkeypatch):
    cost = step_cost(CFG)
    clock = iter([0.0, 9.0, 10.0, 12.0])  # the first pass warms up, the second takes two seconds
    monkeypatch.setattr("toco_lab.training.cost.time.perf_counter", lambda: next(clock))
    assert measured_rate(CFG, torch.device("cpu"), cost=cost) == pytest.approx(cost.pass_flops / 2)
