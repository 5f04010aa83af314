"""Singular values of tokens and of centred tokens, from one tridiagonalisation.

Both come from a Gram matrix, and the two Gram matrices differ by what the mean token m adds, in the direction of one
unit vector u: m / ||m|| among channels, (1, ..., 1) / sqrt(N) among tokens. A reflection that turns u into the first
axis is put before the reduction to a tridiagonal matrix T, which leaves that axis alone. So T of the centred tokens is
that of the tokens but for the first entry (channels), or without the first row and column (tokens). What is cubic in
the size of the matrix is done once, and nothing cancels: the centred part is reduced before the mean comes in.
"""

import math

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

TOKENS_TO_CHANNELS = 1.2  # up to this ratio of N to D the (N, N) Gram matrix, which is there already, is the cheaper


def gram_singular_values(gram: Tensor, size: int) -> Tensor:
    """Roots of the eigenvalues of (..., n, n), descending; below `size` rounding errors of the largest they are 0."""
    return _roots(torch.linalg.eigvalsh(gram).flip(-1), size)


def by_tokens(tokens: int, channels: int) -> bool:
    """Whether `spectra` wants the Gram matrix of the tokens, (N, N), and not that of the channels, (D, D)."""
    return tokens <= TOKENS_TO_CHANNELS * channels


def spectra(centred: Tensor, mean: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values of tokens and of centred tokens, descending.

    Only those above about 4e-7 of the largest (N, D = 784, 768) can be told from 0; smaller ones, which float32 tokens
    do not hold either, are set to 0.

    Args:
        centred: Tokens minus their mean, HC, (B, N, D) float64.
        mean: Their mean, (B, D).
        gram: HC HC^T, (B, N, N), where `by_tokens` says so, else HC^T HC, (B, D, D).

    Returns:
        Of X and of HC, (B, min(N, D)) each.

    Raises:
        ValueError: If a token is not finite.
    """
    batch, tokens, channels = centred.shape
    reduced = _reduced_by_tokens if by_tokens(tokens, channels) else _reduced_by_channels
    matrix, changed = reduced(centred, mean, gram)
    squares, centred_squares = np.zeros((2, batch, matrix.shape[1]))
    for number, one in enumerate(matrix.cpu().numpy()):
        if not np.isfinite(one).all():
            raise ValueError(f"tokens {tuple(centred.shape)} are not finite: they have no singular values")
        diagonal, beside = _tridiagonal(one)
        if changed is None:  # the first row and column are those of the mean
            squares[number] = _eigenvalues(diagonal, beside)
            centred_squares[number, 1:] = _eigenvalues(diagonal[1:], beside[1:])  # and a 0
        else:
            centred_squares[number] = _eigenvalues(diagonal, beside)
            diagonal[0] += changed[number]
            squares[number] = _eigenvalues(diagonal, beside)
    least, most = min(tokens, channels), max(tokens, channels)
    both = (torch.from_numpy(np.sort(values)[:, ::-1][:, :least].copy()) for values in (squares, centred_squares))
    return tuple(_roots(values.to(gram.device), most) for values in both)


def _reduced_by_tokens(centred: Tensor, mean: Tensor, gram: Tensor) -> tuple[Tensor, None]:
    """H X X^T H with H u = -e1, u = (1, ..., 1) / sqrt(N); behind its first row and column, H HC HC^T H."""
    tokens = centred.shape[1]
    axis = gram.new_full((tokens,), 1 / math.sqrt(tokens))
    axis[0] += 1  # v = u + e1; H = 1 - f v v^T
    factor = 2 / axis.square().sum()
    first = gram[:, :, 0]  # gram v = gram e1, as gram u = 0
    matrix = gram - factor * (axis[:, None] * first[:, None, :] + first[:, :, None] * axis)
    matrix += factor**2 * gram[:, :1, :1] * (axis[:, None] * axis)
    towards = (centred @ mean[:, :, None]).squeeze(2)  # what the tokens share with their mean, beyond its own
    towards = towards - factor * towards[:, :1] * axis  # H of it, v . towards = towards[0]
    matrix[:, 0, 1:] = matrix[:, 1:, 0] = -math.sqrt(tokens) * towards[:, 1:]
    matrix[:, 0, 0] = tokens * mean.square().sum(1)
    return matrix, None


def _reduced_by_channels(centred: Tensor, mean: Tensor, gram: Tensor) -> tuple[Tensor, np.ndarray]:
    """H HC^T HC H with H m along e1, and what to add to its first entry for H X^T X H: N ||m||^2."""
    length = mean.norm(dim=1)
    axis = mean.clone()
    axis[:, 0] += torch.where(mean[:, 0] < 0, -length, length)
    factor = torch.where(length > 0, 2 / axis.square().sum(1), 0)[:, None, None]
    row, column = axis[:, None, :], axis[:, :, None]
    image = gram @ column  # (B, D, 1)
    matrix = gram - factor * (column * image.mT + image * row) + factor**2 * (row @ image) * (column * row)
    return matrix, (centred.shape[1] * length.square()).cpu().numpy()


def _tridiagonal(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Diagonal and what lies beside it of a tridiagonal matrix with the same eigenvalues; the first axis stays.

    LAPACK's reduction from below: no reflection touches the first row before it is eliminated.
    """
    if len(matrix) == 1:
        return matrix[0].copy(), np.zeros(0)
    work, _ = lapack.dsytrd_lwork(len(matrix), lower=1)
    _, diagonal, beside, _, _ = lapack.dsytrd(matrix, lower=1, lwork=int(work))
    return diagonal, beside


def _eigenvalues(diagonal: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """Of a symmetric tridiagonal matrix."""
    if len(diagonal) < 2:
        return diagonal
    values, info = lapack.dsterf(diagonal, beside)
    if info:
        raise np.linalg.LinAlgError(f"{info} eigenvalues of a tridiagonal matrix of {len(diagonal)} were not found")
    return values


def _roots(values: Tensor, size: int) -> Tensor:
    floor = size * torch.finfo(values.dtype).eps * values[..., :1]
    return values.where(values > floor, 0).sqrt()
