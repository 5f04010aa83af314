"""Two modes of token lengths or one: by distributions whose share of long tokens is known."""

import numpy as np
import pytest

from toco_lab.smoothing.artifacts import length_modes


def lengths(count: int, share: float, ratio: float, *, spread: float = 0.1, seed: int = 0) -> np.ndarray:
    """`share` of the tokens is `ratio` times as long as the others."""
    rng = np.random.default_rng(seed)
    long = np.arange(count) < round(share * count)
    return 40 * np.exp(spread * rng.standard_normal(count)) * np.where(long, ratio, 1)


@pytest.mark.parametrize("share", [0.01, 0.0237, 0.1, 0.3])
@pytest.mark.parametrize("ratio", [3.0, 10.0])
def test_the_share_of_the_long_ones_is_found(share, ratio):
    found = length_modes(lengths(784, share, ratio))
    assert found.share == round(share * 784) / 784
    assert 40 * 1.3 < found.cut < 40 * ratio


@pytest.mark.parametrize(
    "values",
    [
        lengths(784, 0.0, 1.0),
        lengths(784, 0.0, 1.0, spread=0.5),
        lengths(784, 0.1, 1.2, spread=0.02),  # two modes, but within a fifth of the length
        np.linspace(20, 80, 784),
        np.full(784, 7.0),
        np.random.default_rng(0).exponential(size=784),
        np.zeros(9),
        np.array([1.0, 9.0]),
    ],
)
def test_one_mode_has_no_artifacts(values):
    assert (length_modes(values).share, length_modes(values).cut) == (0.0, None)


def test_scale_does_not_matter_and_the_long_ones_are_the_few():
    values = lengths(784, 0.05, 6.0)
    assert length_modes(1000 * values).share == length_modes(values).share == round(0.05 * 784) / 784
    assert length_modes(1000 * values).cut == pytest.approx(1000 * length_modes(values).cut)
    assert length_modes(lengths(784, 0.95, 6.0)).share == 0  # the few are the short ones


@pytest.mark.parametrize("values", [[1.0, np.nan], [1.0, -2.0], [np.inf, 1.0]])
def test_what_is_no_length_is_refused(values):
    with pytest.raises(ValueError, match="finite and not negative"):
        length_modes(np.array(values))
