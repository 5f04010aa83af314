"""AFA's options, and the affinity as an addition to ToCo: what it reads, what it leaves alone, what it refuses."""

from dataclasses import replace

import pytest
import torch

from toco_lab.config import Config
from toco_lab.data.loader import train_loader
from toco_lab.experiment import make, open_run
from toco_lab.method.model import ToCo
from toco_lab.method.step import compute_losses
from toco_lab.peers.afa import AFA, ToCoWithAffinity, radius_of
from toco_lab.peers.build import build_model
from toco_lab.peers.learned_affinity import attention_scores

SMOKE = Config.preset("smoke").replace(num_workers=0)


def first_batch(cfg, model):
    return next(iter(train_loader(cfg, model.mean, model.std)))


def step_of(cfg, step, *, training=True):
    """A model of the config, and the losses of one step with the gradient of each weight."""
    torch.manual_seed(0)
    model = build_model(cfg).train(training)
    torch.manual_seed(1)
    made = compute_losses(model, first_batch(cfg, model), cfg, step, generator=torch.Generator().manual_seed(2))
    made.terms.total.backward()
    return model, made


def test_scores_are_those_of_the_attention_that_is_used():
    model = build_model(SMOKE.replace(method="afa")).eval()
    image = torch.randn(2, 3, 96, 96)
    attention = model.encoder.blocks[-1].attn
    seen = []
    attention.fused_attn = False
    hook = attention.attn_drop.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad(), attention_scores(model, scaled=True) as scores:
        model.encoder.forward_features(image)
    hook.remove()
    first = model.num_prefix_tokens
    between = seen[0][:, :, first:, first:]
    torch.testing.assert_close(scores()[-1].softmax(-1), between / between.sum(-1, keepdim=True))
    affinity, grid = model.affinity(image)
    assert affinity.shape == (2, grid[0] * grid[1], grid[0] * grid[1])
    torch.testing.assert_close(affinity, affinity.mT)


def test_segmentation_is_taught_by_the_walk_from_its_step_on():
    cfg = SMOKE.replace(method="afa", low_threshold=0.3, high_threshold=0.6)
    labels = [step_of(cfg.replace(afa_walk_start_step=start), 2)[1].pseudo_label for start in (3, 2)]
    assert not torch.equal(*labels)
    before = step_of(cfg, 0)[1].terms  # the losses join at step 1
    assert before.aff == before.seg == 0 and step_of(cfg, 1)[1].terms.aff > 0


def test_labels_of_an_earlier_block_have_a_classifier_of_their_own():
    model, made = step_of(SMOKE.replace(method="afa", afa_labels="aux", aux_layer=-2), 3)
    assert isinstance(model, AFA) and made.terms.cls_aux > 0
    assert model.aux_classifier.weight.grad.abs().sum() > 0 and model.affinity_head.read.weight.grad.abs().sum() > 0
    features = model(torch.randn(1, 3, 96, 96)).features
    torch.testing.assert_close(model.cams(features)[0], model.aux_classifier(features.labelled_tokens).detach())


@pytest.mark.parametrize("method", ["afa", "toco"])
def test_recomputed_blocks_give_the_same_gradients(method):
    cfg = SMOKE.replace(method=method, w_aff=0.1)
    plain, again = (step_of(cfg.replace(checkpoint_blocks=value), 3)[0] for value in (False, True))
    for (name, one), two in zip(plain.named_parameters(), again.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-7, msg=name)


def test_toco_without_the_addition_is_toco_and_with_it_keeps_its_losses(smoke_run):
    assert type(build_model(SMOKE)) is ToCo and SMOKE.replace(w_aff=0.0).digest() == SMOKE.digest()
    (_, plain), (model, added) = step_of(SMOKE, 3), step_of(SMOKE.replace(w_aff=0.1), 3)
    assert isinstance(model, ToCoWithAffinity) and plain.terms.aff is None
    for name, term in plain.terms.named().items():
        if name != "total":
            torch.testing.assert_close(getattr(added.terms, name), term, equal_nan=True)
    torch.testing.assert_close(added.terms.total, plain.terms.total + 0.1 * added.terms.aff)
    assert "aff_loss" not in smoke_run.metrics()


def test_toco_with_the_addition_trains_and_is_scored(tmp_path):
    run = open_run(SMOKE.replace(w_aff=0.1), tmp_path)
    make(run, progress=False)
    losses = run.metrics()["aff_loss"]
    assert losses.iloc[0] == 0 and losses.iloc[-1] > 0
    assert {"cam", "cam_aux", "seg"} <= set(run.read_table("evaluation")["target"])


def test_a_method_begins_with_its_own_values_and_leaves_them_behind():
    cfg = SMOKE.replace(method="afa")
    assert (cfg.w_aff, cfg.low_threshold, cfg.high_threshold, cfg.w_reg) == (0.1, 0.35, 0.55, 0)
    assert cfg.replace(method="toco") == SMOKE
    assert SMOKE.replace(method="afa", low_threshold=0.2).low_threshold == 0.2
    assert (
        radius_of(replace(cfg, crop_size=512, patch_size=16), 16) == 8 and radius_of(cfg.replace(afa_radius=2), 8) == 2
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "afa", "backbone": "resnet18"}, "method 'afa' reads the attention between all patches.*resnet18"),
        ({"w_aff": 0.1, "backbone": "swin_tiny_patch4_window7_224"}, "w_aff 0.1 reads .*take a plain ViT"),
        ({"method": "afa", "compile_blocks": True}, "compile_blocks"),
        ({"w_aff": 0.1, "w_seg": 0.0, "w_reg": 0.0}, "w_seg and w_reg are 0"),
        ({"method": "tscam", "w_aff": 0.1}, "w_aff 0.1 has no effect: method 'tscam'.*toco, afa"),
        ({"method": "afa", "w_ptc": 0.1}, "w_ptc 0.1 has no effect"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(changes, words):
    with pytest.raises(ValueError, match=words):
        SMOKE.replace(**changes)
