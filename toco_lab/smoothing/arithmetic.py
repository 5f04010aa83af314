"""Means and quotients that stay defined: NaN, and never infinity, where there is nothing to divide by."""

import math

import torch
from torch import Tensor


def ratio(top: Tensor, bottom: Tensor) -> Tensor:
    """top / bottom; NaN where bottom is 0."""
    return top / bottom.where(bottom != 0, torch.nan)


def inverse(norms: Tensor) -> Tensor:
    """1 / norm; 0 where the norm is 0, so that a zero vector stays zero when it is scaled to length 1."""
    return torch.where(norms > 0, 1 / norms, 0)


def trace(matrix: Tensor) -> Tensor:
    """Sum of the diagonal of each matrix, (B, N, N) -> (B,)."""
    return matrix.diagonal(dim1=1, dim2=2).sum(1)


def off_diagonal_mean(cosine: Tensor) -> Tensor:
    """Mean of each matrix of cosines without its diagonal, (B, N, N) -> (B,) in [-1, 1]; NaN for N = 1."""
    n = cosine.shape[1]
    mean = (cosine.sum((1, 2)) - trace(cosine)) / (n * (n - 1) or math.nan)
    return mean.clamp(-1, 1)


def mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values of each row, (B, N) and (B, N) bool -> (B,); NaN for a row with none."""
    return ratio((values * chosen).sum(1), chosen.sum(1).double())


def column_products(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the columns of two (B, heads, T, T), (B, heads, T)."""
    return (a * b).sum(2)  # for lengths, `norm(dim=2)` is five times slower
