"""Every loss against its loop in oracles.py: value and gradient, invariances, and the degenerate inputs."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import oracles
from torch.autograd import gradcheck

from toco_lab.method.losses import (
    affinity_mask,
    classification_loss,
    ctc_loss,
    ctc_terms,
    distil_loss,
    ptc_loss,
    ptc_terms,
    reg_loss,
    seg_loss,
    temporal_loss,
)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def choice(values, *shape, seed=0):
    return torch.tensor(values)[torch.randint(len(values), shape, generator=torch.Generator().manual_seed(seed))]


def value_and_grad(loss, *leaves):
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    value = loss(*leaves)
    return value.detach(), torch.autograd.grad(value, leaves)


# --- classification -------------------------------------------------------------------------------


def test_classification_loss_by_hand():
    logits, label = torch.tensor([[0.0, 2.0]]), torch.tensor([[1, 0]])
    expected = (math.log(2) + math.log(1 + math.exp(2))) / 2
    assert classification_loss(logits, label).item() == pytest.approx(expected, rel=1e-6)
    assert classification_loss(logits.bfloat16(), label).dtype == torch.float32


# --- affinity mask and PTC ------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[0, 1, 2, 255], [3], [255], [0, 255]])
def test_affinity_mask_equals_the_loops(values):
    label = choice(values, 2, 3, 4)
    mask = affinity_mask(label)
    assert mask.dtype == torch.uint8 and torch.equal(mask.long(), oracles.affinity(label))
    assert torch.equal(mask, affinity_mask(label.to(torch.uint8)))


@pytest.mark.parametrize("similarity", ["absolute", "raw"])
@pytest.mark.parametrize("values", [[0, 1, 255], [0, 1, 2], [2], [255]])
@pytest.mark.parametrize("shape", [(1, 3, 2, 2), (2, 5, 3, 2)])
def test_ptc_equals_the_loops(shape, values, similarity):
    tokens, affinity = randn(*shape), affinity_mask(choice(values, shape[0], *shape[2:]))
    actual = value_and_grad(lambda t: ptc_loss(t, affinity, similarity=similarity), tokens)
    loss, positive, negative = oracles.ptc(tokens, affinity, similarity)
    assert actual[0].item() == pytest.approx(float(loss), rel=1e-9)
    if values == [255]:
        assert actual[0] == 0.5 and not actual[1][0].any()
    else:
        expected = value_and_grad(lambda t: oracles.ptc(t, affinity, similarity)[0], tokens)
        torch.testing.assert_close(actual[1], expected[1])
    terms = ptc_terms(tokens, affinity, similarity=similarity)
    np.testing.assert_allclose([terms.positive_cosine, terms.negative_cosine], [positive, negative], rtol=1e-9)
    assert terms.loss == actual[0] and not terms.positive_cosine.requires_grad


def test_ptc_is_half_for_equal_and_for_orthogonal_tokens_and_the_means_tell_which():
    affinity = affinity_mask(torch.arange(64).view(1, 8, 8) % 2)
    equal = ptc_terms(torch.ones(1, 64, 8, 8), affinity)
    orthogonal = ptc_terms(torch.eye(64).view(1, 64, 8, 8), affinity)
    assert equal.loss.item() == pytest.approx(0.5, abs=1e-3) and orthogonal.loss == 0.5
    assert equal.positive_cosine.item() == pytest.approx(1) and orthogonal.positive_cosine == 0
    solved = torch.eye(64)[torch.arange(64) % 2].T.reshape(1, 64, 8, 8)
    assert ptc_loss(solved, affinity) < 1e-3


def test_ptc_is_invariant_to_token_and_image_order_and_scale():
    tokens, label = randn(3, 6, 2, 4), choice([0, 1, 255], 3, 2, 4)
    order, images = torch.randperm(8), torch.tensor([2, 0, 1])
    shuffled = tokens.flatten(2)[images][:, :, order].view_as(tokens)
    shuffled_label = label.flatten(1)[images][:, order].view_as(label)
    expected = ptc_loss(tokens, affinity_mask(label))
    torch.testing.assert_close(ptc_loss(shuffled, affinity_mask(shuffled_label)), expected)
    torch.testing.assert_close(ptc_loss(7 * tokens, affinity_mask(label)), expected)


def test_ptc_gradcheck():
    affinity = affinity_mask(choice([0, 1, 255], 2, 2, 2, seed=1))
    for similarity in ("absolute", "raw"):
        tokens = randn(2, 3, 2, 2).requires_grad_()
        assert gradcheck(lambda t, s=similarity: ptc_loss(t, affinity, similarity=s), tokens)


def test_ptc_stays_in_fp32_under_autocast():
    tokens, affinity = randn(1, 8, 3, 3, dtype=torch.float32), affinity_mask(choice([0, 1], 1, 3, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ptc_loss(tokens, affinity), value_and_grad(lambda t: ptc_loss(t, affinity), tokens)[0])
    assert ptc_loss(tokens.bfloat16(), affinity).dtype == torch.float32


def test_ptc_zero_token_has_a_finite_gradient():
    _, (gradient,) = value_and_grad(lambda t: ptc_loss(t, affinity_mask(torch.zeros(1, 2, 2))), torch.zeros(1, 3, 2, 2))
    assert gradient.isfinite().all()


def test_ptc_names_wrong_input():
    with pytest.raises(ValueError, match=r"\(1, 4, 4\).*\(1, 3, 2, 3\)"):
        ptc_loss(torch.zeros(1, 3, 2, 3), torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="cosine"):
        ptc_loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 4), similarity="cosine")


# --- CTC ------------------------------------------------------------------------------------------


FLAGS = {
    "mixed": [[1, 1, 0, 1, 0], [1, 1, 1, 0, 0]],
    "positives": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    "globals": [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0]],
    "one": [[1, 1]],
    "ignored": [[1, 1, 0, 255, 1], [1, 1, 255, 255, 0]],
    "all ignored": [[1, 1, 255, 255, 255], [1, 1, 255, 255, 255]],
}


@pytest.mark.parametrize("negative_only_term", [True, False])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("case", FLAGS)
def test_ctc_equals_the_loops(case, temperature, negative_only_term):
    flags = torch.tensor(FLAGS[case])
    batch, views = flags.shape
    student, teacher = randn(views * batch, 4), randn(2 * batch, 4, seed=1)
    options = dict(temperature=temperature, negative_only_term=negative_only_term)
    actual = value_and_grad(lambda s, t: ctc_loss(s, t, flags, **options), student, teacher)
    expected = value_and_grad(lambda s, t: oracles.ctc(s, t, flags, temperature, negative_only_term), student, teacher)
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-12)
    single = ctc_loss(student.float(), teacher.float(), flags.float(), **options)
    assert single.item() == pytest.approx(expected[0].item(), rel=1e-5)


@pytest.mark.parametrize("negative_only_term", [True, False])
def test_ctc_of_ignored_crops_is_that_of_the_crops_without_them(negative_only_term):
    """Removed altogether, image by image: value and gradients stay, and the ignored crops get no gradient at all."""
    flags = torch.tensor([[1, 1, 255, 0, 1, 255], [1, 1, 0, 255, 255, 1]])
    student, teacher = randn(6, 2, 4), randn(2, 2, 4, seed=1)

    def removed(s, t):
        rows = [
            oracles.ctc(s[kept, i], t[:, i], flags[i : i + 1, kept], 0.5, negative_only_term)
            for i in range(2)
            if len(kept := (flags[i] != 255).nonzero().flatten())
        ]
        return sum(rows) / 2

    def found(s, t):
        return ctc_loss(s.flatten(0, 1), t.flatten(0, 1), flags, negative_only_term=negative_only_term)

    actual, expected = value_and_grad(found, student, teacher), value_and_grad(removed, student, teacher)
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-12)
    gradient = actual[1][0]
    assert (gradient.transpose(0, 1)[flags == 255] == 0).all()
    assert (gradient.transpose(0, 1)[flags != 255].abs().sum(1) > 0).all()
    elsewhere = torch.where((flags == 255).T[..., None], 1e3 * student, student)  # whatever they are
    assert found(elsewhere, teacher) == actual[0]


@pytest.mark.parametrize("case", FLAGS)
def test_ctc_says_whether_the_kinds_of_crops_part(case):
    flags = torch.tensor(FLAGS[case])
    batch, views = flags.shape
    student, teacher = randn(views * batch, 4).requires_grad_(), randn(2 * batch, 4, seed=1)
    terms = ctc_terms(student, teacher, flags)
    cosines = [terms.positive_cosine, terms.negative_cosine]
    expected = oracles.crop_cosines(student.detach(), teacher, flags)
    np.testing.assert_allclose(torch.stack(cosines), expected, rtol=1e-7)
    shares = [terms.positive_share, terms.negative_share, terms.ignored_share]
    local = FLAGS[case][0][2:] + (FLAGS[case][1][2:] if batch > 1 else [])
    expected = [local.count(kind) / len(local) if local else np.nan for kind in (1, 0, 255)]
    np.testing.assert_allclose(torch.stack(shares), expected)
    assert terms.loss == ctc_loss(student, teacher, flags) and not any(v.requires_grad for v in cosines + shares)


def test_ctc_cosines_are_the_same_under_autocast_and_at_any_length():
    flags, student, teacher = torch.tensor(FLAGS["mixed"]), randn(10, 4).float(), randn(4, 4, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ctc_terms(7 * student, 0.1 * teacher, flags)
    expected = ctc_terms(student, teacher, flags)
    assert found.positive_cosine.item() == pytest.approx(expected.positive_cosine.item(), rel=1e-5)
    assert found.negative_cosine.item() == pytest.approx(expected.negative_cosine.item(), rel=1e-5)


def test_ctc_is_invariant_to_image_order_and_local_view_order():
    flags = torch.tensor(FLAGS["mixed"])
    student, teacher = randn(5, 2, 4), randn(2, 2, 4, seed=1)
    expected = ctc_loss(student.flatten(0, 1), teacher.flatten(0, 1), flags)
    swapped = ctc_loss(student.flip(1).flatten(0, 1), teacher.flip(1).flatten(0, 1), flags.flip(0))
    views = torch.tensor([0, 1, 4, 2, 3])
    reordered = ctc_loss(student[views].flatten(0, 1), teacher.flatten(0, 1), flags[:, views])
    torch.testing.assert_close(torch.stack([swapped, reordered]), expected.expand(2))


def test_ctc_does_not_overflow():
    flags = torch.tensor(FLAGS["mixed"])
    student, teacher = 30 * randn(10, 16, dtype=torch.float32), 30 * randn(4, 16, seed=1, dtype=torch.float32)
    loss, gradients = value_and_grad(lambda s, t: ctc_loss(s, t, flags, temperature=0.1), student, teacher)
    assert loss.isfinite() and loss > 100 and all(g.isfinite().all() for g in gradients)


def test_ctc_gradcheck():
    flags = torch.tensor(FLAGS["mixed"])
    leaves = randn(10, 3).requires_grad_(), randn(4, 3, seed=1).requires_grad_()
    assert gradcheck(lambda s, t: ctc_loss(s, t, flags), leaves)


def test_ctc_names_wrong_shapes():
    with pytest.raises(ValueError, match=r"\(9, 3\).*\(4, 3\).*\(2, 5\)"):
        ctc_loss(torch.zeros(9, 3), torch.zeros(4, 3), torch.ones(2, 5))


# --- regression on the auxiliary CAM --------------------------------------------------------------


def test_distil_equals_the_loops():
    cam, target = randn(2, 3, 2, 4), randn(2, 3, 2, 4, seed=1).sigmoid()
    labels, inside = torch.tensor([[1, 0, 1], [0, 1, 0]]), choice([True, True, False], 2, 2, 4)

    def loops(cam):
        errors = [
            (1 / (1 + torch.exp(-cam[b, c, y, x])) - target[b, c, y, x]) ** 2
            for b in range(2) for c in range(3) for y in range(2) for x in range(4)
            if labels[b, c] and inside[b, y, x]
        ]  # fmt: skip
        return sum(errors) / len(errors)

    expected, (slope,) = value_and_grad(loops, cam)
    loss, (gradient,) = value_and_grad(lambda z: distil_loss(z, target, labels, inside), cam)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, slope)
    assert not gradient[0, 1].any() and not gradient[1, 0].any()  # absent classes
    assert distil_loss(cam, target, torch.zeros(2, 3), inside) == 0
    assert distil_loss(cam, cam.sigmoid(), labels, inside) < 1e-12
    with pytest.raises(ValueError, match=r"cam \(2, 3, 2, 4\) does not fit target \(2, 3, 2, 3\)"):
        distil_loss(cam, target[..., :3], labels, inside)


# --- two frames of a clip ---------------------------------------------------------------------------------------------


def temporal_by_loops(logits, flow, holds):
    """Each pixel with a mean of the four pixels around the place where it goes, by hand."""
    probability, terms = logits.softmax(1), []
    for image, row, column in np.argwhere(holds.numpy()).tolist():
        other = probability[image + 1 if image % 2 == 0 else image - 1]
        right, down = flow[image, :, row, column].tolist()
        x, y = min(max(column + right, 0), other.shape[2] - 1), min(max(row + down, 0), other.shape[1] - 1)
        there = 0
        for r in {math.floor(y), math.ceil(y)}:
            for c in {math.floor(x), math.ceil(x)}:
                there = there + (1 - abs(y - r)) * (1 - abs(x - c)) * other[:, r, c]
        terms.append((probability[image, :, row, column] - there).abs().sum())
    return torch.stack(terms).mean()


def test_temporal_loss_is_the_mean_over_what_holds_of_the_distance_along_the_flow():
    logits, flow = 2 * randn(4, 3, 5, 6), 1.5 * randn(4, 2, 5, 6, seed=1)
    holds = choice([True, True, False], 4, 5, 6)
    value, (slope,) = value_and_grad(lambda z: temporal_loss(z, flow, holds), logits)
    expected, (by_hand,) = value_and_grad(lambda z: temporal_by_loops(z, flow, holds), logits)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(slope, by_hand)
    assert slope.flatten(1).abs().amax(1).min() > 0  # every frame learns


def test_temporal_loss_by_hand():
    far = torch.tensor([[30.0, -30.0], [-30.0, 30.0]])[:, :, None, None].expand(2, 2, 3, 3)  # all of one class, all not
    still, all_hold = torch.zeros(2, 2, 3, 3), torch.ones(2, 3, 3, dtype=torch.bool)
    assert temporal_loss(far, still, all_hold).item() == pytest.approx(2)
    assert temporal_loss(far[:1].expand(2, -1, -1, -1), still, all_hold) == 0
    leaf = far.clone().requires_grad_()
    nowhere = temporal_loss(leaf, still, ~all_hold)
    nowhere.backward()
    assert nowhere == 0 and not leaf.grad.any()
    moved = torch.zeros(1, 2, 3, 3)
    moved[0, 0, 1, 1], moved[0, 1, 1, 1] = 5.0, -5.0
    there = torch.cat([moved, moved.roll(1, 3)])  # one pixel to the right in the second frame
    flow = torch.stack([torch.tensor([1.0, -1.0]), torch.zeros(2)], dim=1)[:, :, None, None].expand(2, 2, 3, 3)
    inside = all_hold.clone()
    inside[0, :, 2] = inside[1, :, 0] = False
    assert temporal_loss(there, flow, inside).item() == pytest.approx(0, abs=1e-6)
    assert temporal_loss(there, -flow, inside) > 0.1


def test_temporal_loss_names_what_is_no_pair():
    with pytest.raises(ValueError, match=r"logits \(3, 2, 4, 4\) are no pairs of frames with holds \(3, 4, 4\)"):
        temporal_loss(randn(3, 2, 4, 4), randn(3, 2, 4, 4), torch.ones(3, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"flow \(2, 2, 4, 5\) does not fit maps \(2, 3, 4, 4\)"):
        temporal_loss(randn(2, 3, 4, 4), randn(2, 2, 4, 5), torch.ones(2, 4, 4, dtype=torch.bool))


# --- segmentation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[0, 1, 2, 255], [0, 255], [1, 2, 255], [255], [0, 2]])
def test_seg_equals_the_loops(values):
    logits, label = randn(2, 3, 3, 4), choice(values, 2, 3, 4)
    actual = value_and_grad(lambda x: seg_loss(x, label), logits)
    expected = value_and_grad(lambda x: oracles.seg(x, label), logits)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(seg_loss(logits.float(), label.to(torch.uint8)), expected[0].float())
    assert gradcheck(lambda x: seg_loss(x, label), logits.requires_grad_())


def test_seg_counts_each_half_by_its_own_mean():
    label = torch.zeros(1, 2, 2, dtype=torch.long)
    label[0, 0, 0] = 1  # one foreground pixel weighs as much as three of background
    logits = torch.zeros(1, 2, 2, 2)
    logits[:, 1] = 1.0
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.e)) / 2
    assert seg_loss(logits, label).item() == pytest.approx(expected, rel=1e-6)


# --- regularisation -------------------------------------------------------------------------------


def energy_case():
    image = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(5)) * 255
    box = torch.tensor([[0, 5, 0, 6], [1, 4, 2, 6]])
    return randn(2, 3, 5, 6, dtype=torch.float32) * 2, image, choice([0, 1, 2, 255], 2, 5, 6), box


def test_reg_equals_the_loops():
    logits, image, label, box = energy_case()
    x = logits.double().requires_grad_()
    pred = x.softmax(1)
    arrays = pred.detach().numpy(), image.double().numpy(), label.numpy(), box.tolist()
    loss, d_pred = oracles.energy(*arrays, weight=0.1, sigma_rgb=60.0, sigma_xy=4.0)
    (expected_grad,) = torch.autograd.grad(pred, x, torch.from_numpy(d_pred))
    actual, (gradient,) = value_and_grad(
        lambda z: reg_loss(z, image, label, box, weight=0.1, sigma_rgb=60.0, sigma_xy=4.0, scale=1.0), logits
    )
    assert loss < -0.1 and actual.item() == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(gradient.double(), expected_grad, rtol=1e-4, atol=1e-7)


def test_reg_works_at_half_size():
    # Nearest takes every second pixel of image, label and box; bilinear is the mean of 2 x 2 predictions.
    image, label = torch.rand(1, 3, 8, 10) * 255, choice([0, 255], 1, 8, 10)
    pred, box = randn(1, 3, 8, 10, dtype=torch.float32).softmax(1), torch.tensor([[0, 8, 3, 10]])
    half = F.avg_pool2d(pred, 2)
    small_box = torch.tensor([[0, 4, 2, 5]])  # columns 4, 6, 8 of 0, 2, 4, 6, 8 are inside
    expected = reg_loss(half.log(), image[..., ::2, ::2], label[..., ::2, ::2], small_box, sigma_xy=50.0, scale=1.0)
    torch.testing.assert_close(reg_loss(pred.log(), image, label, box, sigma_xy=100.0), expected, rtol=1e-5, atol=0)


def test_reg_exact_gradient_is_the_derivative_and_the_released_one_is_not():
    logits, image, label, box = energy_case()

    def loss(z, gate="released"):
        return reg_loss(z, image, label, box, weight=1.0, sigma_rgb=60.0, sigma_xy=4.0, scale=1.0, gate=gate)

    exact, (gradient,) = value_and_grad(lambda z: loss(z, "exact"), logits.double())
    released, (other,) = value_and_grad(loss, logits.double())
    direction = randn(*logits.shape, seed=9)
    up, down = (loss(logits.double() + h * direction) for h in (1e-5, -1e-5))
    assert exact == released
    slope = ((up - down) / 2e-5).item()
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-4)
    assert abs((other * direction).sum().item() - slope) > 0.05 * abs(slope)


def test_reg_is_zero_without_room_and_sums_over_images():
    logits, image, label, box = energy_case()
    empty = torch.zeros_like(box)
    loss, (gradient,) = value_and_grad(lambda z: reg_loss(z, image, label, empty), logits)
    assert loss == 0 and not gradient.any()
    each = [reg_loss(logits[i : i + 1], image[i : i + 1], label[i : i + 1], box[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(reg_loss(logits, image, label, box), torch.stack(each).mean(), rtol=1e-5, atol=0)


def test_reg_names_wrong_input():
    logits, image, label, box = energy_case()
    with pytest.raises(ValueError, match=r"\(2, 3, 5, 6\).*\(2, 3, 5, 5\)"):
        reg_loss(logits, image[..., 1:], label, box)
    with pytest.raises(ValueError, match="constant"):
        reg_loss(logits, image, label, box, gate="constant")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: make gpu")
def test_losses_do_not_wait_for_the_gpu():
    logits, image, label, box = (t.cuda() for t in energy_case())
    tokens, flags = randn(2, 4, 3, 3).cuda(), torch.tensor(FLAGS["mixed"]).cuda()
    affinity = affinity_mask(choice([0, 1, 255], 2, 3, 3).cuda())
    student, teacher = randn(10, 4).cuda(), randn(4, 4).cuda()
    leaves = [t.float().requires_grad_() for t in (logits, tokens, student)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        total = seg_loss(leaves[0], label) + reg_loss(leaves[0], image, label, box) + ptc_loss(leaves[1], affinity)
        (total + ctc_loss(leaves[2], teacher.float(), flags)).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(leaf.grad.isfinite().all() for leaf in leaves)
