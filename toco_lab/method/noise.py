"""DuPL's noise filter: foreground of a pseudo label that the network does not believe is ignored, step 5 of
`toco_lab.method`.

Wu, Ye, Yang, Li, Li: "DuPL: Dual Student with Trustworthy Progressive Learning for Robust Weakly Supervised Semantic
Segmentation" (CVPR 2024). Not part of ToCo; off unless `noise_start_step` is set. A wrong label keeps a large loss
while the right ones are learned, so the losses of an image fall into two heaps, and the upper heap is taken for noise.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from toco_lab.config import IGNORE_INDEX

LEAST_LOSS = 0.1  # pixels with this loss or less are learned, and take no part in the fit
VARIANCE_FLOOR = 5e-4  # added to both variances
ITERATIONS, TOLERANCE = 10, 1e-2  # of EM: at most so many, and until the mean log likelihood gains less


@dataclass(frozen=True)
class TwoGaussians:
    """A mixture of two normal distributions for each of B images; weight, mean and variance are (B, 2)."""

    weight: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def of_shares(cls, values: Tensor, shares: Tensor) -> "TwoGaussians":
        """The M step: moments of values (B, N), of which each component has the shares (B, 2, N) in [0, 1]."""
        values = values[:, None]
        number = shares.sum(2) + 10 * torch.finfo(values.dtype).eps  # (B, 2), never 0
        mean = (shares * values).sum(2) / number
        variance = (shares * (values - mean[:, :, None]).square()).sum(2) / number + VARIANCE_FLOOR
        return cls(number / number.sum(1, keepdim=True), mean, variance)

    def log_density(self, values: Tensor) -> Tensor:
        """(B, 2, N): log of weight times density of both components at values (B, N)."""
        weight, mean, variance = (part[:, :, None] for part in (self.weight, self.mean, self.variance))
        spread = (2 * math.pi * variance).log() + (values[:, None] - mean).square() / variance
        return weight.log() - 0.5 * spread

    def upper_posterior(self, values: Tensor) -> Tensor:
        """(B, N) in [0, 1]: the probability that a value comes from the component with the larger mean."""
        upper = self.mean.argmax(1)[:, None, None].expand(-1, 1, values.shape[1])
        return self.log_density(values).softmax(1).gather(1, upper).squeeze(1)

    @property
    def gap(self) -> Tensor:
        """(B,): how far the two means are apart."""
        return (self.mean[:, 1] - self.mean[:, 0]).abs()


def fit_two_gaussians(values: Tensor, counted: Tensor) -> TwoGaussians:
    """Mixture of two normal distributions by expectation and maximisation (EM), for each image by itself.

    EM begins with the two groups of least squares. The images run side by side, each until it has converged, and the
    host asks for no value, so it never waits for a GPU.

    Args:
        values: (B, N) float.
        counted: (B, N) bool: the values that take part. An image with none has a mixture without meaning.
    """
    values = values.masked_fill(~counted, 0)
    upper = counted & (values > _best_cut(values, counted))
    mixture = TwoGaussians.of_shares(values, torch.stack([counted & ~upper, upper], 1).to(values.dtype))
    previous = torch.full_like(values[:, :1], -torch.inf)  # (B, 1): mean log likelihood
    moving = torch.ones_like(previous, dtype=torch.bool)
    for _ in range(ITERATIONS):
        density = mixture.log_density(values)
        total = density.logsumexp(1, keepdim=True)  # (B, 1, N)
        likelihood = (total.squeeze(1) * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True)
        after = TwoGaussians.of_shares(values, (density - total).exp() * counted[:, None])
        mixture = TwoGaussians(
            after.weight.where(moving, mixture.weight),
            after.mean.where(moving, mixture.mean),
            after.variance.where(moving, mixture.variance),
        )
        moving = moving & ((likelihood - previous).abs() >= TOLERANCE)
        previous = likelihood
    return mixture


def foreground(label: Tensor) -> Tensor:
    """Where a label (B, H, W) is a class, neither background nor ignored: bool of the same shape."""
    return (label != 0) & (label != IGNORE_INDEX)


def ignore_noise(
    label: Tensor, loss: Tensor, *, posterior: float = 0.95, gap: float = 1.0, min_pixels: int = 1000
) -> Tensor:
    """The pseudo label with its noisy foreground set to 255, each image by its own losses.

    Two normal distributions are fitted to the losses of an image's foreground pixels. If their means are further apart
    than `gap`, foreground pixels that belong to the upper one with a probability above `posterior` are ignored.
    Background is never touched. Nor is a loss below the lower mean, which DuPL's code ignores as well where the upper
    distribution is so wide that it claims both ends.

    Args:
        label: (B, H, W): 0 background, 1..C classes, 255 ignored.
        loss: (B, H, W) cross entropy of each pixel with `label`, >= 0.
        posterior: In [0, 1].
        gap: In units of the loss, >= 0.
        min_pixels: Only an image with more foreground pixels of loss above 0.1 is filtered.

    Returns:
        (B, H, W) like `label`.

    Raises:
        ValueError: If the two shapes differ.
    """
    if loss.shape != label.shape:
        raise ValueError(f"loss {tuple(loss.shape)} does not fit label {tuple(label.shape)}: need (B, H, W) twice")
    classes = foreground(label)
    values = loss.detach().float().flatten(1)
    counted = classes.flatten(1) & (values > LEAST_LOSS)
    mixture, number = fit_two_gaussians(values, counted), counted.sum(1)
    both = mixture.weight.amin(1) * number >= 1  # equal losses are one heap
    filtered = (number > min_pixels) & both & (mixture.gap > gap)  # (B,)
    above = values > mixture.mean.amin(1, keepdim=True)
    noisy = above & (mixture.upper_posterior(values) > posterior) & filtered[:, None]
    return label.masked_fill(classes & noisy.view_as(label), IGNORE_INDEX)


def _best_cut(values: Tensor, counted: Tensor) -> Tensor:
    """(B, 1): the counted value up to which the lower group of least squares reaches (two means, exactly)."""
    ordered = values.masked_fill(~counted, torch.inf).sort(1).values
    number = counted.sum(1, keepdim=True)
    sums = ordered.masked_fill(ordered.isinf(), 0).double().cumsum(1)
    lower = torch.arange(1, values.shape[1] + 1, device=values.device)  # size of the lower group at each cut
    between = sums.square() / lower + (sums[:, -1:] - sums).square() / (number - lower).clamp(min=1)
    return ordered.gather(1, between.masked_fill(lower >= number, -1).argmax(1, keepdim=True))
