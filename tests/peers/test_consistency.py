"""A few masks: consistency against its equations, steps of mixed batches, and runs that are killed and continued."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.interrupted import made_in_two_parts

from toco_lab.config import Config
from toco_lab.data.loader import train_loader
from toco_lab.experiment import make, open_run
from toco_lab.method.batch import Batch
from toco_lab.method.losses import seg_loss
from toco_lab.method.step import compute_losses
from toco_lab.peers.build import build_model
from toco_lab.peers.consistency import certain_label, consistency_loss, cut_mix, draw_boxes, strong_view
from toco_lab.peers.supervised import Supervised
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.timing import timed_steps

SMOKE = Config.preset("smoke").replace(masks_for=4, train_images=100)
ALONE = SMOKE.replace(method="supervised")
CFG = ALONE.replace(w_consistency=0.5, consistency_threshold=0.2, batch_size=4)  # an untrained network is unsure
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# --- pure functions ---------------------------------------------------------------------------------------------------


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def test_a_label_is_certain_above_the_threshold_and_inside_the_box(rng: np.random.Generator) -> None:
    logits, box = rng.normal(0, 2, (2, 3, 4, 5)), [[0, 4, 0, 5], [1, 3, 2, 5]]
    made = certain_label(torch.tensor(logits), torch.tensor(box), threshold=0.7)
    for image, row, column in np.ndindex(2, 4, 5):
        p, (top, bottom, left, right) = softmax(logits[image, :, row, column]), box[image]
        sure = p.max() > 0.7 and top <= row < bottom and left <= column < right
        assert made[image, row, column] == (p.argmax() if sure else 255)
    assert {0, 1, 2, 255} == set(made.unique().tolist())
    even = torch.zeros(1, 2, 1, 1)  # a probability of exactly 0.5 is not above 0.5
    assert certain_label(even, torch.tensor([[0, 1, 0, 1]]), threshold=0.5).item() == 255


def test_the_loss_is_the_cross_entropy_of_certain_pixels_over_all_pixels(rng: np.random.Generator) -> None:
    logits = torch.tensor(rng.normal(0, 2, (2, 3, 4, 5)), requires_grad=True)
    label = torch.from_numpy(rng.choice([0, 1, 2, 255], (2, 4, 5)))
    inside = torch.from_numpy(rng.random((2, 4, 5)) < 0.8) | (label != 255)
    total, slope = 0.0, np.zeros((2, 3, 4, 5))
    for image, row, column in np.ndindex(2, 4, 5):
        k, p = int(label[image, row, column]), softmax(logits.detach().numpy()[image, :, row, column])
        if k != 255:
            total -= np.log(p[k])
            slope[image, :, row, column] = (p - np.eye(3)[k]) / inside.sum().item()
    made = consistency_loss(logits, label, inside)
    assert made.item() == pytest.approx(total / inside.sum().item(), rel=1e-5)
    made.backward()
    np.testing.assert_allclose(logits.grad.numpy(), slope, atol=1e-6)


def test_no_certain_pixel_and_no_pixel_at_all_give_zero_and_no_nan() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    nothing, everywhere = torch.full((2, 4, 4), 255), torch.ones(2, 4, 4, dtype=torch.bool)
    for inside in (everywhere, ~everywhere):
        loss = consistency_loss(logits, nothing, inside)
        (slope,) = torch.autograd.grad(loss, logits)
        assert loss == 0 and (slope == 0).all()
    assert consistency_loss(logits[:0], nothing[:0], everywhere[:0]) == 0
    with pytest.raises(ValueError, match=r"logits \(2, 3, 4, 4\) do not fit label \(2, 2, 2\)"):
        consistency_loss(logits, nothing[:, :2, :2], everywhere)


def test_rectangles_have_half_the_area_lie_inside_and_are_those_of_the_generator() -> None:
    boxes = np.array(draw_boxes(500, 96, generator=torch.Generator().manual_seed(1)))
    assert boxes.tolist() == np.array(draw_boxes(500, 96, generator=torch.Generator().manual_seed(1))).tolist()
    top, bottom, left, right = boxes.T
    assert min(top.min(), left.min()) == 0 and max(bottom.max(), right.max()) == 96  # every place, and none outside
    area = (bottom - top) * (right - left) / 96**2
    assert np.abs(area - 0.5).max() < 0.01  # sides are whole pixels
    proportion = np.log((bottom - top) / (right - left)) / np.log(2)  # uniform in [-1, 1]
    assert abs(proportion.mean()) < 0.1 and proportion.var() == pytest.approx(1 / 3, abs=0.05)
    assert draw_boxes(1, 1) == [(0, 1, 0, 1)]


def test_cut_mix_pastes_a_rectangle_of_the_next_image(rng: np.random.Generator) -> None:
    maps, boxes = torch.from_numpy(rng.random((3, 2, 4, 5))), [(0, 2, 1, 4), (3, 4, 0, 5), (1, 3, 2, 3)]
    made = cut_mix(maps, boxes)
    for image, channel, row, column in np.ndindex(3, 2, 4, 5):
        top, bottom, left, right = boxes[image]
        pasted = top <= row < bottom and left <= column < right
        assert made[image, channel, row, column] == maps[(image + pasted) % 3, channel, row, column]
    assert torch.equal(cut_mix(maps[:1], boxes[:1]), maps[:1])


def test_image_label_and_padding_are_mixed_alike() -> None:
    size = 16
    label = torch.arange(3)[:, None, None].expand(3, size, size)
    image = label[:, None].expand(3, 3, size, size).float()
    box = torch.tensor([[0, size, 0, size], [0, 0, 0, 0], [0, size, 0, size]])  # the second is padding alone
    mixed, labels, inside = strong_view(image, label, box, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mixed, labels[:, None].expand(3, 3, size, size).float())
    assert torch.equal(inside, labels != 1) and all(len(one.unique()) == 2 for one in labels)


# --- steps ------------------------------------------------------------------------------------------------------------


def batch_of(cfg: Config = CFG, known: list[bool] | None = None) -> Batch:
    batch = next(iter(train_loader(cfg, MEAN, STD)))
    assert batch.known == [True, False, True, False]
    if known is None:
        return batch
    mask = torch.stack([m if there else torch.full_like(m, 255) for m, there in zip(batch.mask, known, strict=True)])
    return dataclasses.replace(batch, mask=mask, has_mask=known)


def fresh() -> Supervised:
    torch.manual_seed(0)
    model = build_model(CFG)
    assert isinstance(model, Supervised)
    with torch.no_grad():
        [*model.decoder.parameters()][-1].mul_(10)  # an untrained network is sure of nothing
    return model


def enlarged(logits: torch.Tensor) -> torch.Tensor:
    return F.interpolate(logits, (96, 96), mode="bilinear", align_corners=False)


def test_a_step_teaches_images_without_a_mask_by_what_the_network_is_sure_of() -> None:
    model, batch = fresh(), batch_of()
    made = compute_losses(model, batch, CFG, 0, generator=torch.Generator().manual_seed(3))
    of_masks = seg_loss(enlarged(model(batch.image[::2]).seg_logits), batch.mask[::2])
    weak = enlarged(model(batch.image[1::2]).seg_logits).detach()
    label = certain_label(weak, batch.valid_box[1::2], threshold=0.2)
    boxes = draw_boxes(2, 96, generator=torch.Generator().manual_seed(3))
    strong = enlarged(model(cut_mix(batch.local_source[1::2], boxes)).seg_logits)
    mixed = cut_mix(label, boxes)
    of_views = consistency_loss(strong, mixed, torch.ones(2, 96, 96, dtype=torch.bool))  # toy scenes fill their crops
    torch.testing.assert_close(made.terms.seg, of_masks, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(made.terms.consistency, of_views, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(made.terms.total, of_masks + 0.5 * of_views, rtol=1e-4, atol=1e-6)
    share = (mixed != 255).float().mean()
    torch.testing.assert_close(made.terms.certain_share, share)
    assert 0 < share < 1 and made.terms.consistency > 0 and torch.equal(made.pseudo_label, batch.mask)
    weights = [p for p in model.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(x, weights) for x in (made.terms.total, of_masks + 0.5 * of_views))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("known", "threshold", "share"),
    [([True, False, True, False], 1.0, 0.0), ([True] * 4, 0.2, float("nan")), ([False] * 4, 1.0, 0.0)],
    ids=["nothing is certain", "every image has a mask", "no image has a mask"],
)
def test_steps_in_which_one_side_is_silent_have_no_nan(known: list[bool], threshold: float, share: float) -> None:
    model, batch = fresh(), batch_of(known=known)
    terms = compute_losses(model, batch, CFG.replace(consistency_threshold=threshold), 0).terms
    assert (
        terms.consistency == 0
        and terms.total == terms.seg
        and terms.certain_share.item() == pytest.approx(share, nan_ok=True)
    )
    assert (terms.seg > 0) == any(known)
    terms.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_steps_can_be_timed_before_there_is_a_run() -> None:
    for cfg in (SMOKE, ALONE, CFG):
        assert timed_steps(cfg, torch.device("cpu"), expected=0.01, progress=False) is not None


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"masks_for": 0}, "masks_for 0 gives every image one: say how many have one, masks_for=64 say"),
        (
            {"w_consistency": 0.0},
            r"consistency_threshold 0.2 has no effect: w_consistency is 0. Set w_consistency to 1",
        ),
        ({"method": "toco", "w_consistency": 1.0}, "w_consistency 1.0 has no effect: method 'toco' does not read it"),
        (
            {"method": "afa", "masks_for": 8},
            "masks_for 8 has no effect: method 'afa' .* that reads it: toco, supervised",
        ),
        ({"mask_source": "labels"}, "masks_for 4 draws images that give their true mask, and mask_source 'labels'"),
        ({"soft_teacher": "results/RUN", "w_soft": 0.5}, "w_consistency 0.5 and w_soft 0.5 are not learnt together"),
        ({"flip_views_independently": True}, "mirrors the two views that w_consistency compares apart: leave it False"),
        ({"consistency_threshold": 1.5}, r"consistency_threshold must lie in \[0, 1\]"),
        ({"masks_for": -1}, "masks_for must not be negative"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CFG.replace(**changes)


def test_another_method_keeps_the_number_of_masks_only_where_it_reads_it() -> None:
    assert SMOKE.replace(method="supervised").masks_for == 4
    peer = CFG.replace(method="mct")
    assert (peer.masks_for, peer.w_consistency, peer.consistency_threshold) == (0, 0.0, 0.95)
    assert Config.preset("toy").replace(masks_for=8).digest() != Config.preset("toy").digest()


# --- whole runs -------------------------------------------------------------------------------------------------------

RUNS = {
    "masks and labels": SMOKE,
    "masks alone": ALONE,
    "consistency": CFG.replace(accumulate=2),
}


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = open_run(RUNS[request.param], tmp_path_factory.mktemp("few_masks"))
    make(run, progress=False)
    return run


def test_an_interrupted_run_ends_with_the_same_bytes(run: RunDir, tmp_path: Path) -> None:
    made_in_two_parts(run, tmp_path, step=3)  # one step after a checkpoint


def test_metrics_name_the_new_terms_only_where_they_are(run: RunDir) -> None:
    cfg, metrics = run.config(), run.metrics()
    there = {"consistency_loss", "certain_share"} & set(metrics)
    assert there == ({"consistency_loss", "certain_share"} if cfg.w_consistency else set())
    assert "seg" in set(run.read_table("evaluation")["target"]) and run.is_measured
    if there:
        total = cfg.w_seg * metrics["seg_loss"] + cfg.w_consistency * metrics["consistency_loss"]
        assert (metrics["total_loss"] - total).abs().max() < 1e-5 and metrics["certain_share"].between(0, 1).all()
        assert (metrics["consistency_loss"] > 0).any()


def test_a_number_of_masks_that_is_not_there_leaves_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="masks_for 17 asks for more masks than there are: 16 of 16 images"):
        open_run(SMOKE.replace(masks_for=17, train_images=16), tmp_path)
    assert not list(tmp_path.iterdir())
