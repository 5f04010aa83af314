"""Over-smoothing metrics: how alike the tokens of one layer have become, and what the attention that made them does.

The tokens, and what goes with them, stand in a `TokenView`; a metric is a function of a view that gives one number per
image. `METRICS` lists all of them under (metric, variant), because the same name stands for different formulas in the
literature; `metric_table` shows the list, `measure` computes it.

No metric is the one right measure. One direction that all tokens share raises the pairwise cosine whatever else they
hold (look at the centred one), a few tokens of large norm rule every norm and rank (look at the outliers), and N enters
many of them (keep the input size fixed).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toco_lab.smoothing.spectra import gram_singular_values
from toco_lab.smoothing.view import TokenView, off_diagonal_mean, patch_distance, ratio

LOG_FLOOR = 1e-6  # added to a Fourier amplitude before the logarithm, as in the notebook of Park and Kim


HIGH_FREQUENCY = 0.5  # radius, as a share of the Nyquist frequency, beyond which a frequency counts as high


RANKME_EPSILON = 1e-7


@dataclass(frozen=True)
class PairCosine:
    """Mean |cos| over the token pairs of each image, (B,) each, in [0, 1]; NaN where there is no such pair.

    Attributes:
        positive: Over pairs of equal label; high is good.
        negative: Over pairs of different labels; low is good.
    """

    positive: Tensor
    negative: Tensor

    @property
    def gap(self) -> Tensor:
        """Positive minus negative, (B,); 0 when the tokens are smooth."""
        return self.positive - self.negative


def token_similarity(tokens: Tensor) -> Tensor:
    """Mean absolute cosine over all pairs of different tokens: (1 / N(N-1)) sum_{i != j} |cos(x_i, x_j)|.

    Args:
        tokens: Patch tokens, (B, D, h, w), any scale. A zero token has cosine 0 with every other.

    Returns:
        (B,) float64 in [0, 1]: 1 when all tokens point the same way (smooth), 0 when they are orthogonal; NaN for one
        token.
    """
    return off_diagonal_mean(_view(tokens).absolute_cosine)


def pair_cosine(tokens: Tensor, label: Tensor) -> PairCosine:
    """Mean absolute cosine of positive (same label) and of negative pairs: the two parts of patch token contrast.

    PTC is 0.5 both for equal and for orthogonal tokens; this pair of numbers tells the two apart.

    Args:
        tokens: Patch tokens, (B, D, h, w), any scale.
        label: Class of each token, (B, h, w) integers; `IGNORE_INDEX` leaves a token out. See `majority_label`.

    Raises:
        ValueError: If label and tokens differ in grid or batch.
    """
    if label.shape != (tokens.shape[0], *tokens.shape[2:]):
        raise ValueError(f"label {tuple(label.shape)} does not fit tokens (B, D, h, w) {tuple(tokens.shape)}")
    sums = _view(tokens, label=label.flatten(1)).pairs
    return PairCosine(sums.positive_mean, sums.negative_mean)


def relative_log_amplitude(view: TokenView) -> Tensor:
    """Fourier amplitude from frequency 0 to 1.0 pi along the diagonal, in logarithm, minus its first value.

    log(|FFT| + 1e-6), mean over channels; Park and Kim 2022, figure 2a. Here the curve ends at 1.0 pi (for an odd side
    one half step below); the notebook of the paper stops one step below for an even side and still writes 1.0 pi.

    Returns:
        (B, K), K - 1 equal steps, K - 1 = half the shorter side; the first value is 0.
    """
    steps = max(min(view.grid) // 2, 1) + 1
    return _relative_log_amplitude(view, *(torch.linspace(0, side // 2, steps).round().long() for side in view.grid))


def radial_band_energy(view: TokenView, *, radius: float = HIGH_FREQUENCY) -> Tensor:
    """Share of the Fourier energy, frequency 0 included, farther than `radius` from frequency 0.

    Args:
        view: The tokens.
        radius: As a share of the Nyquist frequency (1.0 pi).

    Returns:
        (B,) in [0, 1]; NaN for zero tokens.
    """
    height, width = view.grid  # Nyquist is 1
    rows, columns = (one.to(view.power) for one in (torch.fft.fftfreq(height, 0.5), torch.fft.rfftfreq(width, 0.5)))
    high = torch.hypot(rows[:, None], columns) > radius + 1e-6  # rounding must not move a frequency on the circle
    return ratio((view.power * high).sum((1, 2)), view.power.sum((1, 2)))


def attention_spectrum(attention: Tensor) -> Tensor:
    """Row norms of F A F^H, F the unitary Fourier transform over tokens: how strongly each frequency leaves the layer.

    Wang et al. 2022 (arXiv 2203.05962), appendix F.2, whose code takes all tokens, the class token among them.

    Args:
        attention: (B, heads, T, T): `TokenView.attention` or `TokenView.patch_attention`.

    Returns:
        (B, heads, T), frequency 0 in the middle, at T // 2. A layer that only averages keeps nothing but this one.
    """
    norms = torch.fft.fft(attention, dim=2, norm="ortho").norm(dim=3)  # F^H from the right keeps the length of rows
    return torch.fft.fftshift(norms, dim=2)


def spectral_share(attention: Tensor) -> Tensor:
    """Share of the energy of F A F^H outside the row of output frequency 0, per head.

    1 - ||1^T A||^2 / (T ||A||_F^2), by Parseval without a Fourier transform. Rows of A sum to 1, so the column of input
    frequency 0 holds nothing but the corner, and this is the share outside that row and that column together.

    Args:
        attention: As in `attention_spectrum`.

    Returns:
        (B, heads) in [0, 1): 0 when all queries look at the same places, (T - 1) / T when each looks at itself alone.
    """
    total = attention.square().sum(3).double().sum(2)
    row = attention.sum(2).double().square().sum(2) / attention.shape[3]
    return (1 - ratio(row, total)).clamp(min=0)


def uniform_attention_distance(grid: tuple[int, int], patch_size: int) -> float:
    """Mean attention distance in pixels if every patch looked at all patches alike, itself included."""
    return patch_distance(grid, patch_size).mean().item()


def outlier_share(view: TokenView, cut: float) -> Tensor:
    """Share of tokens longer than a given cut, (B,) in [0, 1].

    Args:
        view: The tokens.
        cut: One length for a whole model: 150 for DINOv2-g as published (2.37 % of its tokens), or a `norm_cut`.
    """
    return (view.norms > cut).double().mean(1)


def layer_cka(tokens: Sequence[Tensor]) -> Tensor:
    """Linear CKA between every two layers, per image, over its tokens.

    ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F) on centred X and Y; Kornblith et al. 2019.

    Args:
        tokens: Patch tokens of L layers, (B, N, D) each; D may differ.

    Returns:
        (B, L, L) in [0, 1]; NaN for a layer whose tokens are all equal.
    """
    views = [TokenView(layer, (1, layer.shape[1])) for layer in tokens]
    flat = torch.stack([view.unit_gram for view in views], dim=1)  # (B, L, N * N)
    return (flat @ flat.mT).clamp(0, 1)


class RankMe:
    """RankMe of all the tokens of a data set: exp(-sum_k p_k log p_k), p_k = sigma_k / sum sigma + eps.

    Garrido et al. 2023 (arXiv 2210.02885), tokens not centred. Pooled over images, where `METRICS` has the effective
    rank of each. Memory is one (D, D) matrix, however many tokens come.

    Example:
        >>> rank = RankMe()
        >>> rank.update(torch.eye(4)[None])  # four orthogonal tokens
        >>> round(rank.compute(), 3)
        4.0
    """

    def __init__(self) -> None:
        self.moment: Tensor | None = None
        self.count = 0

    @torch.no_grad()
    def update(self, tokens: Tensor) -> None:
        """Add tokens, (B, N, D); D must not change."""
        rows = tokens.flatten(0, 1).double()
        self.add(rows.mT @ rows, len(rows))

    def add(self, moment: Tensor, count: int) -> None:
        """Add `count` tokens by their X^T X, (D, D)."""
        self.moment = moment.clone() if self.moment is None else self.moment.add_(moment)
        self.count += count

    def compute(self) -> float:
        """The number, from 1 (all tokens on one line) to min(number of tokens, D); NaN for zero tokens.

        Raises:
            ValueError: Before the first update.
        """
        if self.moment is None:
            raise ValueError("RankMe has seen no tokens: call update(tokens) first")
        width = len(self.moment)
        sigma = gram_singular_values(self.moment, width)[: min(self.count, width)]
        return torch.special.entr(sigma / sigma.sum() + RANKME_EPSILON).sum().exp().item()


def _relative_log_amplitude(view: TokenView, rows: Tensor, columns: Tensor) -> Tensor:
    """At these frequencies, minus the value at the first of them, (B, number of frequencies)."""
    curve = (view.amplitude[:, rows, columns] + LOG_FLOOR).log().mean(2)
    return curve - curve[:, :1]


def _view(tokens: Tensor, **fields: Tensor) -> TokenView:
    """Of tokens (B, D, h, w)."""
    return TokenView(tokens.flatten(2).mT, tuple(tokens.shape[2:]), **fields)
