"""Singular values of tokens and of centred tokens, from one tridiagonalisation.

Both come from a Gram matrix, and the two Gram matrices differ only in the direction of one unit vector u, along which
the mean token m adds: u is m / ||m|| among channels, (1, ..., 1) / sqrt(N) among tokens. First, a reflection turns u
into the first axis; then the matrix is reduced to a tridiagonal matrix T, which leaves that axis alone. So T of the
centred tokens equals T of the tokens except for its first entry (channels), or without its first row and column
(tokens). The cubic work is done once, and no digits cancel, because the centred part is reduced before the mean comes
in.
"""

import math

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

from toco_lab.words import counted

TOKENS_TO_CHANNELS = 1.2  # up to this ratio of N to D the (N, N) Gram matrix is cheaper: a view has it already


def singular_values_of_gram(gram: Tensor, size: int) -> Tensor:
    """Singular values, descending, of a matrix that is given by its Gram matrix.

    Args:
        gram: (..., n, n), symmetric.
        size: Larger side of the matrix; eigenvalues below `size` rounding errors of the largest become 0.

    Returns:
        (..., n).
    """
    return _roots(torch.linalg.eigvalsh(gram).flip(-1), size)


def reduces_by_tokens(tokens: int, channels: int) -> bool:
    """Whether `singular_values` takes the Gram matrix of the tokens, (N, N), and not that of the channels, (D, D)."""
    return tokens <= TOKENS_TO_CHANNELS * channels


def singular_values(centred: Tensor, mean: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values of tokens and of centred tokens, descending.

    Values below about 4e-7 of the largest (for N, D = 784, 768) are rounding, of float32 tokens as well; they become 0.

    Args:
        centred: Tokens minus their mean, HC, (B, N, D) float64.
        mean: Their mean, (B, D).
        gram: HC HC^T, (B, N, N), where `reduces_by_tokens` says so, else HC^T HC, (B, D, D).

    Returns:
        Those of X and those of HC, (B, min(N, D)) each.

    Raises:
        ValueError: If a token is not finite.
    """
    batch, tokens, channels = centred.shape
    added: np.ndarray | None = None
    if reduces_by_tokens(tokens, channels):
        matrix = _reflected_by_tokens(centred, mean, gram)
    else:
        matrix, added = _reflected_by_channels(centred, mean, gram)
    squares, centred_squares = np.zeros((2, batch, matrix.shape[1]))
    for number, one in enumerate(matrix.cpu().numpy()):
        if not np.isfinite(one).all():
            raise ValueError(f"tokens {tuple(centred.shape)} are not finite: they have no singular values")
        diagonal, beside = _tridiagonal(one)
        if added is None:  # the first row and column are those of the mean
            squares[number] = _eigenvalues(diagonal, beside)
            centred_squares[number, 1:] = _eigenvalues(diagonal[1:], beside[1:])  # and a 0
        else:
            centred_squares[number] = _eigenvalues(diagonal, beside)
            diagonal[0] += added[number]
            squares[number] = _eigenvalues(diagonal, beside)

    def largest_roots(values: np.ndarray) -> Tensor:
        descending = np.sort(values)[:, ::-1][:, : min(tokens, channels)].copy()
        return _roots(torch.from_numpy(descending).to(gram.device), max(tokens, channels))

    return largest_roots(squares), largest_roots(centred_squares)


def _reflected_by_tokens(centred: Tensor, mean: Tensor, gram: Tensor) -> Tensor:
    """H X X^T H with H u = -e1, u = (1, ..., 1) / sqrt(N); without its first row and column it is H HC HC^T H."""
    tokens = centred.shape[1]
    axis = gram.new_full((tokens,), 1 / math.sqrt(tokens))
    axis[0] += 1  # v = u + e1; H = 1 - f v v^T
    factor = 2 / axis.square().sum()
    first = gram[:, :, 0]  # gram v = gram e1, as gram u = 0
    matrix = gram - factor * (axis[:, None] * first[:, None, :] + first[:, :, None] * axis)
    matrix += factor**2 * gram[:, :1, :1] * (axis[:, None] * axis)
    towards = (centred @ mean[:, :, None]).squeeze(2)  # HC m
    towards = towards - factor * towards[:, :1] * axis  # H HC m, as v . HC m is its first entry
    matrix[:, 0, 1:] = matrix[:, 1:, 0] = -math.sqrt(tokens) * towards[:, 1:]
    matrix[:, 0, 0] = tokens * mean.square().sum(1)
    return matrix


def _reflected_by_channels(centred: Tensor, mean: Tensor, gram: Tensor) -> tuple[Tensor, np.ndarray]:
    """H HC^T HC H with H m along e1; and N ||m||^2, (B,), which makes it H X^T X H when added to the first entry."""
    length = mean.norm(dim=1)
    axis = mean.clone()
    axis[:, 0] += torch.where(mean[:, 0] < 0, -length, length)
    factor = torch.where(length > 0, 2 / axis.square().sum(1), 0)[:, None, None]
    row, column = axis[:, None, :], axis[:, :, None]
    image = gram @ column  # (B, D, 1)
    matrix = gram - factor * (column * image.mT + image * row) + factor**2 * (row @ image) * (column * row)
    return matrix, (centred.shape[1] * length.square()).cpu().numpy()


def _tridiagonal(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Diagonal and subdiagonal of a tridiagonal matrix with the same eigenvalues; the first axis stays.

    LAPACK reduces the lower triangle from its first column on, and none of its reflections acts on the first axis.
    """
    if len(matrix) == 1:
        return matrix[0].copy(), np.zeros(0)
    work, _ = lapack.dsytrd_lwork(len(matrix), lower=1)
    _, diagonal, beside, _, _ = lapack.dsytrd(matrix, lower=1, lwork=int(work))
    return diagonal, beside


def _eigenvalues(diagonal: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """Eigenvalues of a symmetric tridiagonal matrix, given by diagonal and subdiagonal."""
    if len(diagonal) < 2:
        return diagonal
    values, info = lapack.dsterf(diagonal, beside)
    if info:
        raise np.linalg.LinAlgError(
            f"{counted(info, 'eigenvalue')} of a tridiagonal matrix of {len(diagonal)} were not found"
        )
    return values


def _roots(values: Tensor, size: int) -> Tensor:
    """Square roots of descending eigenvalues; those below `size` rounding errors of the first become 0."""
    floor = size * torch.finfo(values.dtype).eps * values[..., :1]
    return values.where(values > floor, 0).sqrt()
