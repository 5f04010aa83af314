"""A step of ToCo in which some images have their true mask: what is taught by it, and what is not changed."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from toco_lab.config import Config
from toco_lab.data.loader import train_loader
from toco_lab.method.batch import Batch
from toco_lab.method.labels import region_of_mask, token_labels_of_mask
from toco_lab.method.losses import affinity_mask, ptc_loss, seg_loss
from toco_lab.method.model import ToCo
from toco_lab.method.step import StepOutput, compute_losses

CFG = Config.preset("smoke").replace(masks_for=4, train_images=100, batch_size=4, seg_start_step=0)


@pytest.fixture(scope="module")
def model() -> ToCo:
    torch.manual_seed(0)
    model = ToCo(CFG).train()
    with torch.no_grad():
        [*model.decoder.parameters()][-1].mul_(30)  # an untrained network has nearly equal losses everywhere
    return model


@pytest.fixture(scope="module")
def batch(model: ToCo) -> Batch:
    """Of its four images the first and the third have a mask."""
    made = next(iter(train_loader(CFG, model.mean, model.std)))
    assert made.known == [True, False, True, False]
    return made


def made_of(model: ToCo, batch: Batch, cfg: Config = CFG) -> StepOutput:
    return compute_losses(model, batch, cfg, 1, generator=torch.Generator().manual_seed(0))


def without(batch: Batch) -> Batch:
    return replace(batch, mask=None, has_mask=None)


def test_labels_tokens_and_regions_come_from_the_mask_where_there_is_one(model: ToCo, batch: Batch) -> None:
    made, plain = made_of(model, batch), made_of(model, without(batch))
    grid = made.token_label.shape[-2:]
    for place, known in enumerate(batch.known):
        mask = batch.mask[place : place + 1]
        if known:
            assert torch.equal(made.pseudo_label[place], mask[0])
            assert torch.equal(made.token_label[place], token_labels_of_mask(mask, grid)[0])
            assert torch.equal(made.region[place] == 0, mask[0] == 0)
            assert torch.equal(made.region[place], region_of_mask(mask, plain.region[place : place + 1])[0])
        else:
            for name in ("pseudo_label", "token_label", "region"):
                assert torch.equal(getattr(made, name)[place], getattr(plain, name)[place]), name
    assert not torch.equal(made.pseudo_label, plain.pseudo_label) and not torch.equal(made.region, plain.region)
    for name in ("cls", "cls_aux"):
        assert getattr(made.terms, name) == getattr(plain.terms, name)


def test_the_losses_are_those_of_these_labels(model: ToCo, batch: Batch) -> None:
    made, output = made_of(model, batch), model(batch.image)
    logits = F.interpolate(output.seg_logits, batch.image.shape[-2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(made.terms.seg, seg_loss(logits, made.pseudo_label))
    tokens = output.features.patch_tokens
    torch.testing.assert_close(made.terms.ptc, ptc_loss(tokens, affinity_mask(made.token_label)))
    weights = list(model.decoder.parameters())
    slopes = [torch.autograd.grad(loss, weights, retain_graph=True) for loss in
              (made.terms.seg, seg_loss(logits, made.pseudo_label))]  # fmt: skip
    for ours, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_crops_around_objects_of_the_mask_are_positives(model: ToCo, batch: Batch) -> None:
    """Whatever the CAM says: here it sees nothing, and an image without a mask has no positive crop."""
    blind = CFG.replace(low_threshold=0.998, high_threshold=0.999, crop_min_content=0.2)
    made = made_of(model, batch, blind)
    kinds = made.views.flags[:, 2:]
    assert (kinds[::2] == 1).any(1).all() and not (kinds[1::2] == 1).any()


def test_the_noise_filter_leaves_true_masks_alone(model: ToCo, batch: Batch) -> None:
    cfg = CFG.replace(refine=False, w_ctc=0.0, w_ptc=0.0, w_reg=0.0)
    on = cfg.replace(noise_start_step=0, noise_min_pixels=10, noise_gap=0.1, noise_posterior=0.5)
    made, plain, unfiltered = made_of(model, batch, on), made_of(model, without(batch), on), made_of(model, batch, cfg)
    assert torch.equal(made.pseudo_label[::2], batch.mask[::2])
    assert torch.equal(made.pseudo_label[1::2], plain.pseudo_label[1::2])
    dropped = (made.pseudo_label != unfiltered.pseudo_label).sum()
    pseudo = unfiltered.pseudo_label[1::2]
    assert dropped > 0
    torch.testing.assert_close(made.terms.noise_share, dropped / ((pseudo > 0) & (pseudo < 255)).sum())


def test_masks_that_count_nowhere_leave_no_nan(model: ToCo, batch: Batch) -> None:
    nothing = replace(batch, mask=torch.full_like(batch.mask, 255), has_mask=[True] * 4)
    made = made_of(model, nothing)
    assert made.terms.seg == 0 and made.terms.total.isfinite() and (made.token_label == 255).all()
    made.terms.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad()
    nobody = replace(nothing, has_mask=[False] * 4)
    assert torch.equal(made_of(model, nobody).terms.total, made_of(model, without(batch)).terms.total)
