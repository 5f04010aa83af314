"""Modes come back; casts of weights are shared inside the context, are right, and do not outlive it."""

from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from toco_lab.backbones.modes import evaluating, weights_cast_once
from toco_lab.config import Config
from toco_lab.data.loader import train_loader
from toco_lab.evaluation import evaluate
from toco_lab.peers.build import build_model
from toco_lab.training import learner

CFG = Config.preset("smoke").replace(precision="bf16", seg_start_step=0, cam_scales=(1.0, 0.5), val_images=3)


class Casts(TorchDispatchMode):
    """Counts how often each parameter of a model is copied to bf16."""

    def __init__(self, model):
        super().__init__()
        self.places = {p.data_ptr(): name for name, p in model.named_parameters()}
        self.shapes = {name: p.shape for name, p in model.named_parameters()}
        self.of = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16:
            name = self.places.get(args[0].data_ptr())
            if name and args[0].shape == self.shapes[name]:  # not a part of a weight, as CTC's last block takes
                self.of[name] += 1
        return func(*args, **(kwargs or {}))


def step(cfg, *, once, monkeypatch, counted=False):
    """Gradients of one training step by name, and how often each weight was cast."""
    if not once:
        monkeypatch.setattr(learner, "weights_cast_once", lambda _: nullcontext())
    torch.manual_seed(0)
    learns = learner.Learner.of(build_model(cfg).train(), cfg)
    torch.manual_seed(0)
    batch = next(iter(train_loader(cfg, learns.model.mean, learns.model.std)))
    with Casts(learns.model) if counted else nullcontext() as casts:
        learner.train_step(learns, batch, cfg, 1)
    monkeypatch.undo()
    return {name: p.grad for name, p in learns.model.named_parameters() if p.grad is not None}, casts and casts.of


def test_evaluating_gives_each_part_its_mode_back():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout())
    model[1].eval()
    with evaluating(model):
        assert not any(part.training for part in model.modules())
    assert [part.training for part in model.modules()] == [True, True, False]


@pytest.mark.parametrize("changes, passes", [
    ({}, 5),  # the image, its mirror image with the other scale, the second view, the crops
    ({"method": "getam", "seg_start_step": 0}, 3),  # the image; both scales with their mirror images
    ({"method": "afa"}, 4),  # the image; its mirror image, the other scale; the affinity that the label walks along
    ({"method": "mct_plus"}, 1), ({"method": "supervised"}, 1),
])  # fmt: skip
def test_a_training_step_casts_each_weight_once(changes, passes, monkeypatch):
    cfg = CFG.replace(**changes)
    shared, casts = step(cfg, once=True, monkeypatch=monkeypatch, counted=True)
    apart, many = step(cfg, once=False, monkeypatch=monkeypatch, counted=True)
    assert set(casts.values()) == {1} and casts.keys() == many.keys()
    assert max(many.values()) == passes
    exact, _ = step(cfg.replace(precision="fp32"), once=True, monkeypatch=monkeypatch)
    assert shared.keys() == apart.keys() == exact.keys()

    def error(found):
        """The median over the weights of the relative error of their gradient."""
        wrong = [(found[name] - exact[name]).norm() / exact[name].norm() for name in exact if exact[name].any()]
        return torch.stack(wrong).median()

    assert error(shared) < max(1.2 * error(apart), 0.01)  # sums over views are rounded to bf16 once more


def test_with_accumulation_each_part_casts_once(monkeypatch):
    cfg = CFG.replace(accumulate=2)
    _, casts = step(cfg, once=True, monkeypatch=monkeypatch, counted=True)
    assert set(casts.values()) == {2}


def test_what_was_cast_is_forgotten_with_the_context():
    torch.manual_seed(0)
    model = build_model(CFG).eval()
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        with weights_cast_once(model):
            before = [model(image).logits for _ in range(2)]
        for weight in model.encoder.parameters():
            weight.mul_(1.5)
        with weights_cast_once(model):
            after = model(image).logits
        assert torch.equal(*before) and torch.equal(after, model(image).logits) and not torch.equal(after, before[0])


def test_the_first_pass_may_be_without_gradient():
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    with weights_cast_once(layer):
        for context in (torch.no_grad(), nullcontext()):
            with context, torch.autocast("cpu", torch.bfloat16):
                y = layer(x)
    y.float().sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(4, -1), rtol=0.02, atol=0.02)


def test_the_arithmetic_around_it_stays():
    x = torch.randn(2, 4)
    layer = torch.nn.Linear(4, 4)
    with weights_cast_once(layer):
        assert layer(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16), weights_cast_once(layer):
        assert layer(x).dtype == torch.bfloat16


def test_an_evaluation_casts_once_and_says_the_same(monkeypatch):
    torch.manual_seed(0)
    model = build_model(CFG).eval()
    with Casts(model) as casts:
        once = evaluate.evaluate_model(model, CFG, progress=False)
    monkeypatch.setattr(evaluate, "weights_cast_once", lambda _: nullcontext())
    with Casts(model) as many:
        apart = evaluate.evaluate_model(model, CFG, progress=False)
    assert once.table.equals(apart.table)
    assert set(casts.of.values()) == {1} and min(many.of.values()) > 3
