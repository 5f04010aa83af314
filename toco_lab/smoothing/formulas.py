"""Formulas of over-smoothing metrics that are more than one quantity of a `TokenView`.

Notation is that of `view`: X is (N, D), one row per patch token, A the attention, T the number of all tokens.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from toco_lab.files import require
from toco_lab.smoothing.arithmetic import mean_where, off_diagonal_mean, ratio
from toco_lab.smoothing.grid import patch_distance
from toco_lab.smoothing.pairs import PairCosine
from toco_lab.smoothing.singular_values import singular_values_of_gram
from toco_lab.smoothing.token_view import TokenView
from toco_lab.words import counted

LOG_FLOOR = 1e-6  # added to a Fourier amplitude before the logarithm, as in the notebook of Park and Kim
HIGH_FREQUENCY = 0.5  # radius, as a share of the Nyquist frequency, beyond which a frequency counts as high
RANKME_EPSILON = 1e-7  # added to each share of the singular values, as in the paper


# --- cosines ----------------------------------------------------------------------------------------------------------


def token_similarity(tokens: Tensor) -> Tensor:
    """Mean absolute cosine over all pairs of different tokens: (1 / N(N-1)) sum_{i != j} |cos(x_i, x_j)|.

    Args:
        tokens: Patch tokens, (B, D, h, w), any scale. A zero token has cosine 0 with every other.

    Returns:
        (B,) float64 in [0, 1]: 1 when all tokens point the same way (smooth), 0 when they are orthogonal; NaN for one
        token.

    Raises:
        ValueError: If the tokens are no floats of this shape, or hold NaN.
    """
    return off_diagonal_mean(_view_of_map(tokens).absolute_cosine)


def pair_cosine(tokens: Tensor, label: Tensor) -> PairCosine:
    """Mean absolute cosine of positive (same label) and of negative pairs: the two parts of patch token contrast.

    The PTC loss is 0.5 for equal and for orthogonal tokens alike; these two numbers tell the two apart.

    Args:
        tokens: Patch tokens, (B, D, h, w), any scale.
        label: Class of each token, (B, h, w) integers; `IGNORE_INDEX` leaves a token out.

    Raises:
        ValueError: If label and tokens differ in grid or batch, or the tokens are no floats of this shape, or hold NaN.
    """
    view = _view_of_map(tokens)
    require(label, Tensor, "label")
    if label.shape != (tokens.shape[0], *tokens.shape[2:]):
        raise ValueError(f"label {tuple(label.shape)} does not fit tokens (B, D, h, w) {tuple(tokens.shape)}")
    return replace(view, label=label.flatten(1)).pairs.mean


def ptc(view: TokenView) -> Tensor:
    """ToCo's patch token contrast of each image by its true labels, (B,); NaN without positive or negative pairs.

    1/2 (1 - sum_pos |cos| / (n_pos + 1)) + 1/2 sum_neg |cos| / (n_neg + 1). Where one kind of pair is missing, the
    other half alone would pass for the whole.
    """
    pairs = view.pairs
    pull = 1 - pairs.positive / (pairs.num_positive + 1)
    loss = 0.5 * pull + 0.5 * pairs.negative / (pairs.num_negative + 1)
    return loss.where((pairs.num_positive > 0) & (pairs.num_negative > 0), torch.nan)


def where_spread(view: TokenView, values: Tensor) -> Tensor:
    """Values of each image, (B,), and NaN where its tokens have no spread."""
    return values.where(view.has_spread, torch.nan)


# --- ranks ------------------------------------------------------------------------------------------------------------


def effective_rank(weights: Tensor) -> Tensor:
    """exp of the entropy of weights (B, K) that are divided by their sum, (B,); NaN where the sum is 0."""
    share = weights / weights.sum(1, keepdim=True)
    return torch.special.entr(share).sum(1).exp()


def participation_ratio(eigenvalues: Tensor) -> Tensor:
    """(sum lambda)^2 / sum lambda^2 of eigenvalues (B, K), (B,)."""
    return ratio(eigenvalues.sum(1).square(), eigenvalues.square().sum(1))


# --- frequencies ------------------------------------------------------------------------------------------------------


def relative_log_amplitude(view: TokenView) -> Tensor:
    """Log of the Fourier amplitude from frequency 0 to 1.0 pi along the diagonal, minus its first value.

    log(|FFT| + 1e-6), mean over channels; Park and Kim 2022, figure 2a. This curve ends at 1.0 pi (half a step below
    for an odd side). The notebook of the paper stops one step below for an even side and still calls it 1.0 pi.

    Returns:
        (B, K) in K - 1 equal steps, where K - 1 is half the shorter side; the first value is 0.
    """
    steps = max(min(view.grid) // 2, 1) + 1
    rows, columns = (torch.linspace(0, side // 2, steps).round().long() for side in view.grid)
    return log_amplitude_at(view, rows, columns)


def log_amplitude_at_last_bin(view: TokenView) -> Tensor:
    """Relative log amplitude at the last bin of a shifted transform, (B,): at frequency (side - 1) // 2."""
    rows, columns = (torch.tensor([0, (side - 1) // 2]) for side in view.grid)
    return log_amplitude_at(view, rows, columns)[:, 1]


def log_amplitude_at(view: TokenView, rows: Tensor, columns: Tensor) -> Tensor:
    """Log amplitude at K frequencies (rows[k], columns[k]), minus its value at the first of them, (B, K)."""
    curve = (view.amplitude[:, rows, columns] + LOG_FLOOR).log().mean(2)
    return curve - curve[:, :1]


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


# --- attention --------------------------------------------------------------------------------------------------------


def attention_spectrum(attention: Tensor) -> Tensor:
    """Row norms of F A F^H, with F the unitary Fourier transform over tokens: how much of a frequency a layer outputs.

    Wang et al. 2022 (arXiv 2203.05962), appendix F.2; their code takes all tokens, the class token included.

    Args:
        attention: (B, heads, T, T): `TokenView.attention` or `TokenView.patch_attention`.

    Returns:
        (B, heads, T), frequency 0 in the middle, at T // 2. A layer that only averages outputs this frequency alone.
    """
    norms = torch.fft.fft(attention, dim=2, norm="ortho").norm(dim=3)  # F^H from the right keeps the length of rows
    return torch.fft.fftshift(norms, dim=2)


def spectral_share(attention: Tensor) -> Tensor:
    """Share of the energy of F A F^H outside the row of output frequency 0, per head.

    By Parseval this is 1 - ||1^T A||^2 / (T ||A||_F^2), without a Fourier transform. Rows of A sum to 1, so the column
    of input frequency 0 is zero except for the corner: the share outside that row and column is the same.

    Args:
        attention: As in `attention_spectrum`.

    Returns:
        (B, heads) in [0, 1): 0 when all queries look at the same places, (T - 1) / T when each looks at itself alone.
    """
    total = attention.square().sum(3).double().sum(2)
    row = attention.sum(2).double().square().sum(2) / attention.shape[3]
    return (1 - ratio(row, total)).clamp(min=0)


def attention_energy(view: TokenView) -> Tensor:
    """Dirichlet energy weighted by attention, 1/2 sum_ij A_ij ||x_i - x_j||^2, (B,); A is the mean over heads.

    Computed from norms and inner products, without an (N, N, D) array.
    """
    attention, squares = view.patch_attention.mean(1).double(), view.centred_norms.square()
    ends = (attention.sum(2) + attention.sum(1)) * squares  # centring keeps the distances and loses fewer digits
    return (ends.sum(1) / 2 - (attention * view.centred_gram).sum((1, 2))).clamp(min=0) * view.distribution[:, 0]


def uniform_attention_distance(grid: tuple[int, int], patch_size: int) -> float:
    """Mean attention distance in pixels if every patch looked at all patches alike, itself included."""
    return patch_distance(grid, patch_size).mean().item()


# --- outliers ---------------------------------------------------------------------------------------------------------


def outlier_share(view: TokenView, cut: float) -> Tensor:
    """Share of tokens longer than a given cut, (B,) in [0, 1].

    Args:
        view: The tokens.
        cut: One length for a whole model: 150 for DINOv2-g as published (2.37 % of its tokens), or a `norm_cut`.
    """
    return (view.norms > cut).double().mean(1)


def outlier_neighbour_excess(view: TokenView) -> Tensor:
    """Neighbour cosine in the patch embedding of tokens of high norm minus that of the others, (B,)."""
    high = mean_where(view.embedding_cosine, view.high_norm)
    return high - mean_where(view.embedding_cosine, ~view.high_norm)


# --- between layers, and over images ----------------------------------------------------------------------------------


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


def gram_distance(tokens: Tensor, others: Tensor) -> Tensor:
    """How differently two layers, or two models, relate the same places: mean squared difference of their cosines.

    (1 / N^2) sum_ij (cos(x_i, x_j) - cos(y_i, y_j))^2: the Gram objective of DINOv3 (Simeoni et al. 2025, arXiv
    2508.10104), which keeps the patches of a student related as those of an early teacher are, over the number of
    entries. Turning or scaling all tokens of a side changes nothing, so widths and models may differ.

    Args:
        tokens: Patch tokens, (B, N, D).
        others: Of the same images and places, (B, N, D'); D' may differ.

    Returns:
        (B,) float64, from 0 (each pair of places is as alike in both) to 4.

    Raises:
        ValueError: If they differ in images or places.

    Example:
        >>> gram_distance(torch.eye(2)[None], torch.ones(1, 2, 3)).item()  # orthogonal here, equal there
        0.5
    """
    if tokens.ndim != 3 or tokens.shape[:2] != others.shape[:2]:
        raise ValueError(
            f"the cosines of tokens {tuple(tokens.shape)} and {tuple(others.shape)} cannot be compared: both must be "
            "(B, N, D) of the same images and places"
        )
    here, there = (TokenView(side, (1, side.shape[1])).cosine for side in (tokens, others))
    return (here - there).square().mean((1, 2))


def inner_minus_border(view: TokenView) -> Tensor:
    """Mean `border_cosine` of the inner tokens minus that of the border itself, (B,); NaN without inner tokens."""
    return view.border_cosine[:, view.inner].mean(1) - view.border_cosine[:, ~view.inner].mean(1)


class RankMe:
    """RankMe of all tokens of a data set: exp(-sum_k p_k log p_k), p_k = sigma_k / sum sigma + eps.

    Garrido et al. 2023 (arXiv 2210.02885); tokens are not centred. It pools the tokens of all images, while the
    effective rank in `METRICS` is that of one image. It needs one (D, D) matrix of memory for any number of tokens.

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
        sigma = singular_values_of_gram(self.moment, width)[: min(self.count, width)]
        return torch.special.entr(sigma / sigma.sum() + RANKME_EPSILON).sum().exp().item()


def _view_of_map(tokens: Tensor) -> TokenView:
    """The view of tokens (B, D, h, w), without labels; ValueError for another shape, type or NaN."""
    if not isinstance(tokens, Tensor) or tokens.ndim != 4 or not tokens.numel() or not tokens.is_floating_point():
        found = f"{tokens.dtype} {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"tokens must be a tensor of floats, (B, D, h, w), got {found}")
    if bad := int((~tokens.isfinite()).sum()):
        raise ValueError(f"tokens hold {counted(bad, 'number')} that are NaN or infinite")
    return TokenView(tokens.flatten(2).mT, (tokens.shape[2], tokens.shape[3]))
