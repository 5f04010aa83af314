"""Tokens as colours: their first three principal components are red, green and blue."""

import torch
from torch import Tensor

MARGIN = 0.02  # share of tokens beyond each end of the colours


def principal_colours(tokens: Tensor) -> Tensor:
    """The first three principal components of tokens of length 1, as colours in [0, 1].

    All tokens share one basis and one scale, so equal colours mean alike tokens, also across the images they come from.
    (DINOv2, Oquab et al. 2023, shows raw tokens; of length 1, a few tokens of large norm do not take all components.)
    The sign of each component is that which makes its few strong values bright.

    Args:
        tokens: (n, D), any scale, of one image or of several.

    Returns:
        (n, 3) float64; a component without spread is 0.5 everywhere.
    """
    unit = torch.nn.functional.normalize(tokens.double(), dim=1)
    centred = unit - unit.mean(0)
    wide = centred.shape[1] > centred.shape[0]
    values, vectors = torch.linalg.eigh(centred @ centred.mT if wide else centred.mT @ centred)
    kept = torch.arange(len(values) - 1, max(-1, len(values) - 4), -1)
    scores = vectors[:, kept] * values[kept].clamp(min=0).sqrt() if wide else centred @ vectors[:, kept]
    scores = torch.nn.functional.pad(scores, (0, 3 - scores.shape[1]))
    scores = scores * torch.where(scores.pow(3).sum(0) < 0, -1, 1)
    low, high = scores.quantile(MARGIN, dim=0), scores.quantile(1 - MARGIN, dim=0)
    flat = high - low <= 1e-9
    return torch.where(flat, 0.5, ((scores - low) / torch.where(flat, 1, high - low)).clamp(0, 1))
