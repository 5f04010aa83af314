"""The share of artifact tokens: a mixture of two Gaussians over the lengths of the tokens of an image.

Darcet et al. 2024 ("Vision Transformers Need Registers") found that large ViTs keep global information in a few patch
tokens of much larger norm, and that the norms then have two modes. `outliers.norm_cut` asks how far a token lies from
the others and flags some in a flat image too; this asks first whether there are two modes at all, and says 0 where
there are not. No torch: reports compute it from the lengths that a run has kept.
"""

from dataclasses import dataclass

import numpy as np

SEPARATION = 2.0  # Ashman's D: below it two Gaussians have one mode between them
RATIO = 1.5  # the longer tokens are at least so many times as long: a split within a few per cent is no artifact
_ROUNDS = 100  # of EM, at most


@dataclass(frozen=True)
class LengthModes:
    """What a mixture says of the lengths of some tokens.

    Attributes:
        share: Of the tokens that are longer than `cut`, in [0, 0.5); 0 where there is one mode.
        cut: Length at which a token is as likely short as long; None where there is one mode.
    """

    share: float
    cut: float | None


def length_modes(lengths: np.ndarray) -> LengthModes:
    """Whether the lengths (n,) of tokens have two modes, and which share belongs to the longer one.

    Two Gaussians are fitted to log(length) by EM, begun from the lengths below and above the middle of the range. There
    are two modes if all of this holds: they describe the lengths better than one Gaussian does by BIC (Schwarz 1978:
    three more parameters), they lie apart by Ashman's D > `SEPARATION` (Ashman, Bird and Zepf 1994), the mean of the
    longer ones is at least `RATIO` times that of the others, they are fewer than half, and tokens are less than half as
    dense at the cut as at either mean (two Gaussians fit a uniform distribution well, too).

    Raises:
        ValueError: If a length is negative or not finite.
    """
    lengths = np.asarray(lengths, np.float64).ravel()
    if not np.isfinite(lengths).all() or (lengths < 0).any():
        raise ValueError("lengths of tokens must be finite and not negative")
    logs = np.log(lengths[lengths > 0])
    if len(logs) < 4 or np.ptp(logs) < np.log(RATIO):
        return LengthModes(0.0, None)
    weights, means, sds = _fitted(logs)
    apart = (means[1] - means[0]) / np.sqrt((sds**2).mean())
    gain = (
        _log_density(logs, weights, means, sds).sum()
        - _log_density(logs, np.ones(1), logs.mean(keepdims=True), logs.std(keepdims=True)).sum()
    )
    if 2 * gain <= 3 * np.log(len(logs)) or apart <= SEPARATION or means[1] - means[0] < np.log(RATIO):
        return LengthModes(0.0, None)
    grid = np.linspace(means[0], means[1], 1001)
    short, long = weights[:, None] * _density(grid, means, sds)
    cut = float(np.exp(grid[np.argmax(long >= short)]))
    share = float((lengths > cut).mean())
    at_modes = [_near(logs, mean, sd / 2) for mean, sd in zip(means, sds, strict=True)]
    valley = _near(logs, np.log(cut), sds.min() / 2) < 0.5 * min(at_modes)
    return LengthModes(share, cut) if share < 0.5 and valley else LengthModes(0.0, None)


def _near(logs: np.ndarray, place: float, within: float) -> float:
    """Density of the values around a place."""
    return float((np.abs(logs - place) <= within).sum() / within)


def _density(values: np.ndarray, means: np.ndarray, sds: np.ndarray) -> np.ndarray:
    """(components, n) Gaussian densities."""
    return np.exp(-0.5 * ((values - means[:, None]) / sds[:, None]) ** 2) / (sds[:, None] * np.sqrt(2 * np.pi))


def _log_density(values: np.ndarray, weights: np.ndarray, means: np.ndarray, sds: np.ndarray) -> np.ndarray:
    """(n,) log density of a mixture."""
    return np.log((weights[:, None] * _density(values, means, sds)).sum(axis=0).clip(min=np.finfo(float).tiny))


def _fitted(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, means and standard deviations of two Gaussians by EM, the smaller mean first, (2,) each."""
    least = max(1e-3, 0.02 * logs.std())  # no component may shrink to a single token
    own = np.stack([logs <= (logs.min() + logs.max()) / 2, logs > (logs.min() + logs.max()) / 2]).astype(float)
    before = -np.inf
    for _ in range(_ROUNDS):
        counts = own.sum(axis=1).clip(min=1e-12)
        weights, means = counts / len(logs), own @ logs / counts
        sds = np.sqrt((own * (logs - means[:, None]) ** 2).sum(axis=1) / counts).clip(min=least)
        joint = weights[:, None] * _density(logs, means, sds)
        total = joint.sum(axis=0).clip(min=np.finfo(float).tiny)
        own = joint / total
        now = np.log(total).sum()
        if now - before < 1e-6 * len(logs):
            break
        before = now
    order = np.argsort(means)
    return weights[order], means[order], sds[order]
