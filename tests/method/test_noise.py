"""DuPL's noise filter: the mixture against EM written image by image, and which pixels it may touch."""

import math

import numpy as np
import pytest
import torch

from toco_lab.method.noise import fit_two_gaussians, ignore_noise


def em_by_hand(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, means and variances of one image: every cut tried for the start, then at most ten rounds of EM."""
    ordered = np.sort(values)
    errors = [ordered[:k].var() * k + ordered[k:].var() * (len(ordered) - k) for k in range(1, len(ordered))]
    start = values > ordered[int(np.argmin(errors))]
    shares, before = np.stack([~start, start]).astype(float), -math.inf
    weight, mean, variance = moments(values, shares)
    for _ in range(10):
        joint = weight[:, None] * density(values, mean[:, None], variance[:, None])
        weight, mean, variance = moments(values, joint / joint.sum(0))
        likelihood = np.log(joint.sum(0)).mean()
        if abs(likelihood - before) < 1e-2:
            break
        before = likelihood
    return weight, mean, variance


def moments(values, shares):
    number = shares.sum(1)
    mean = (shares @ values) / number
    variance = np.stack([share @ (values - middle) ** 2 for share, middle in zip(shares, mean, strict=True)]) / number
    return number / number.sum(), mean, variance + 5e-4


def density(values, mean, variance):
    return np.exp(-((values - mean) ** 2) / (2 * variance)) / np.sqrt(2 * math.pi * variance)


def heaps(seed: int, low=0.5, high=3.0, share=0.3, number=900) -> torch.Tensor:
    """Losses in two heaps, the upper one a share of them."""
    random = np.random.default_rng(seed)
    upper = random.random(number) < share
    losses = np.where(upper, random.normal(high, 0.4, number), random.gamma(3, low / 3, number))
    return torch.from_numpy(losses.clip(0.11)).float()


@pytest.mark.parametrize("share, high", [(0.3, 3.0), (0.05, 4.0), (0.5, 1.2)])
def test_the_mixture_is_that_of_em_image_by_image(share, high):
    """Three images side by side converge after different numbers of rounds, and have values that do not count."""
    values = torch.stack([heaps(seed, high=high, share=share) for seed in range(3)])
    counted = torch.rand(values.shape, generator=torch.Generator().manual_seed(0)) < torch.tensor([[1.0], [0.8], [0.5]])
    found = fit_two_gaussians(values, counted)
    for image in range(3):
        inside = values[image][counted[image]].double().numpy()
        for ours, expected in zip((found.weight, found.mean, found.variance), em_by_hand(inside), strict=True):
            np.testing.assert_allclose(ours[image], expected, rtol=1e-3)


def test_posterior_is_bayes_rule_for_the_larger_mean():
    values = torch.stack([heaps(0), heaps(1)])
    found = fit_two_gaussians(values, torch.ones_like(values, dtype=torch.bool))
    at = torch.linspace(0, 5, 11).expand(2, -1)
    for image in range(2):
        parts = (found.weight[image], found.mean[image], found.variance[image])
        (_, lower), (_, upper) = sorted(
            (float(mean), float(weight) * density(at[image].numpy(), float(mean), float(variance)))
            for weight, mean, variance in zip(*parts, strict=True)
        )
        np.testing.assert_allclose(found.upper_posterior(at)[image], upper / (lower + upper), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.gap, (found.mean[:, 0] - found.mean[:, 1]).abs())


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Label and losses of one image of 30 x 30: two classes in the middle rows, background above, ignored below."""
    label = torch.zeros(1, 30, 30, dtype=torch.int64)
    label[:, 5:15], label[:, 15:25], label[:, 25:] = 1, 2, 255
    loss = heaps(0).view(1, 30, 30).masked_fill(label == 255, 0)
    return label, loss


def test_the_upper_heap_of_the_foreground_is_ignored_and_nothing_else():
    label, loss = scene()
    kept = ignore_noise(label, loss, min_pixels=500)
    foreground = (label == 1) | (label == 2)
    assert torch.equal(kept[~foreground], label[~foreground])
    assert (loss[0, :5] > 2).any(), "background with a large loss is there, and stays"
    dropped = foreground & (kept == 255)
    assert torch.equal(kept[~dropped], label[~dropped])
    assert dropped[foreground & (loss > 2.2)].all() and not dropped[foreground & (loss < 1.4)].any()
    assert 0.2 < dropped.sum() / foreground.sum() < 0.4


def test_pixels_that_are_learned_best_are_no_noise():
    """A narrow lower heap leaves both ends to a wide upper one."""
    random = torch.Generator().manual_seed(0)
    loss = 1 + 0.05 * torch.randn(1, 30, 30, generator=random)
    loss[:, :10] = 3 + 0.6 * torch.randn(1, 10, 30, generator=random)
    loss[:, 29] = 0.0  # too small for the fit
    label = torch.ones(1, 30, 30, dtype=torch.int64)
    fitted = fit_two_gaussians(loss.flatten(1), loss.flatten(1) > 0.1)
    assert fitted.upper_posterior(loss.flatten(1))[0, -1] > 0.99, "Bayes' rule alone would take them for noise"
    kept = ignore_noise(label, loss, min_pixels=500)
    assert (kept[:, :10] == 255).float().mean() > 0.95 and (kept[:, 10:29] == 1).float().mean() > 0.95
    assert (kept[:, 29] == 1).all()


@pytest.mark.parametrize("changes", [{"min_pixels": 600}, {"gap": 3.0}, {"posterior": 1.0}])
def test_too_few_pixels_or_heaps_too_close_leave_the_label_alone(changes):
    label, loss = scene()
    settings = {"min_pixels": 599}
    assert ((label > 0) & (label != 255)).sum() == 600
    assert not torch.equal(ignore_noise(label, loss, **settings), label)
    assert torch.equal(ignore_noise(label, loss, **settings | changes), label)


def test_images_do_not_see_each_other():
    label, loss = scene()
    empty = torch.zeros_like(label), torch.rand_like(loss)  # background alone: nothing to fit
    equal = label, torch.full_like(loss, 2.0)  # one heap, of one value
    labels, losses = (torch.cat(parts) for parts in zip((label, loss), empty, equal, (label, loss / 10), strict=True))
    kept = ignore_noise(labels, losses, min_pixels=500)
    assert torch.equal(kept[0], ignore_noise(label, loss, min_pixels=500)[0]) and not torch.equal(kept[0], label[0])
    assert torch.equal(kept[1:], labels[1:])


def test_losses_of_another_size_are_named():
    with pytest.raises(ValueError, match=r"\(1, 2, 2\).*\(1, 3, 3\)"):
        ignore_noise(torch.zeros(1, 3, 3), torch.zeros(1, 2, 2))
