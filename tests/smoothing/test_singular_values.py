"""Singular values of tokens and centred tokens from one reduction, against decompositions of each."""

import numpy as np
import pytest
import torch

from toco_lab.smoothing.singular_values import reduces_by_tokens, singular_values
from toco_lab.smoothing.token_view import TokenView

SIZES = [(5, 7), (7, 5), (4, 1), (6, 6), (1, 4), (2, 2), (20, 30), (30, 12), (49, 40)]  # tokens, channels


def of(tokens):
    """(X, HC) by `singular_values`."""
    mean = tokens.mean(1)
    centred = tokens - mean[:, None]
    by_tokens = reduces_by_tokens(*tokens.shape[1:])
    return singular_values(centred, mean, centred @ centred.mT if by_tokens else centred.mT @ centred)


@pytest.mark.parametrize("tokens, channels", SIZES)
@pytest.mark.parametrize("shared", [0.0, 1.0, 1e4], ids=["no mean", "mean", "smooth"])
def test_both_are_those_of_a_decomposition_of_each(tokens, channels, shared):
    torch.manual_seed(tokens)
    x = (torch.randn(3, tokens, channels) + shared * torch.randn(3, 1, channels)).double()
    both = [torch.linalg.svdvals(x), torch.linalg.svdvals(x - x.mean(1, keepdim=True))]
    for found, expected in zip(of(x), both, strict=True):
        assert found.shape == (3, min(tokens, channels))
        # roots of eigenvalues: what is below 1e-7 of the largest is rounding. The centred ones to their own scale
        largest = max(expected.max().item(), 1e-12 * x.abs().max().item())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * largest)


@pytest.mark.parametrize("shape", [(1, 4, 6), (1, 9, 3)])
def test_a_small_spread_on_a_large_mean_is_not_lost(shape):
    """X^T X minus N m m^T would leave eps ||X||^2, ten thousand times the spread's square: nothing."""
    torch.manual_seed(0)
    spread = torch.randn(shape, dtype=torch.float64)
    spread -= spread.mean(1, keepdim=True)
    mean = torch.full((1, shape[2]), 1e10, dtype=torch.float64)
    gram = spread @ spread.mT if reduces_by_tokens(*shape[1:]) else spread.mT @ spread
    whole, centred = singular_values(spread, mean, gram)
    torch.testing.assert_close(centred, torch.linalg.svdvals(spread), rtol=1e-6, atol=1e-7)
    assert whole[0, 0].item() == pytest.approx(1e10 * np.sqrt(shape[1] * shape[2]), rel=1e-12)


def test_zero_tokens_and_a_mean_of_zero():
    assert all((values == 0).all() for values in of(torch.zeros(2, 3, 5, dtype=torch.float64)))
    opposite = torch.tensor([[[1.0, 2.0, 0.0], [-1.0, -2.0, 0.0]] * 3], dtype=torch.float64)
    for values in of(opposite):
        torch.testing.assert_close(values, torch.tensor([[np.sqrt(30), 0, 0]], dtype=torch.float64))


def test_a_token_that_is_not_finite_is_named():
    tokens = torch.ones(1, 3, 4)
    tokens[0, 1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"tokens \(1, 3, 4\) are not finite"):
        TokenView(tokens, (1, 3)).singular_values  # noqa: B018
