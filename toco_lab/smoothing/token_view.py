"""The tokens and attention of one layer of a ViT, with the quantities that several metrics share computed once.

Notation: X is (N, D), one row per patch token; DC is the matrix whose rows are all the mean token, HC = X - DC; T
counts all tokens, prefix tokens included. Quantities of tokens are computed in float64, so that only the rounding of
the tokens themselves remains; quantities of the (heads, T, T) attention stay in the precision of the attention.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.smoothing.arithmetic import column_products, inverse, off_diagonal_mean, ratio
from toco_lab.smoothing.grid import edge_ends, patch_distance, sum_of_edges
from toco_lab.smoothing.outliers import norm_cut
from toco_lab.smoothing.pairs import PairSums, pair_sums
from toco_lab.smoothing.singular_values import reduces_by_tokens, singular_values

SPREAD_FLOOR = torch.finfo(torch.float32).eps  # ||HC|| / ||X|| below this is rounding of float32 tokens


@dataclass(frozen=True, eq=False)
class TokenView:
    """Tokens and attention of one layer for some images; each shared quantity is computed when it is first asked for.

    Attributes:
        tokens: Patch tokens, (B, N, D), without prefix tokens.
        grid: (h, w) with N = h * w, row-major.
        label: Class of each token, (B, N) integers, or (1, N) for all; `IGNORE_INDEX` leaves a token out.
            `grid.majority_label` makes it from pixel labels.
        class_token: (B, D), of the same layer.
        attention: (B, heads, T, T), rows sum to 1, of the block that made these tokens; prefix tokens come first.
        previous_attention: The same of the block before.
        previous_tokens: Patch tokens of the block before, (B, N, D).
        embedding: Patch tokens of the patch embedding, (B, N, D) or (1, N, D).
        num_prefix: Tokens before the patches; T = num_prefix + N.
        patch_size: Side of a patch in pixels.

    Raises:
        ValueError: If the shapes do not fit each other.
    """

    tokens: Tensor
    grid: tuple[int, int]
    label: Tensor | None = None
    class_token: Tensor | None = None
    attention: Tensor | None = None
    previous_attention: Tensor | None = None
    previous_tokens: Tensor | None = None
    embedding: Tensor | None = None
    num_prefix: int = 1
    patch_size: int | None = None

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3 or self.tokens.shape[1] != math.prod(self.grid) or not self.tokens.numel():
            height, width = self.grid
            raise ValueError(f"tokens {tuple(self.tokens.shape)} must be (B, N, D) with N = {height} * {width}")
        batch, num_tokens, width = self.tokens.shape
        total, previous = self.num_prefix + num_tokens, self.num_previous
        self._check("label", _batch_of(self.label, batch), num_tokens)
        self._check("class_token", batch, width)
        self._check("attention", batch, None, total, total)
        self._check("previous_attention", previous, None, total, total)
        self._check("previous_tokens", previous, num_tokens, None)
        self._check("embedding", _batch_of(self.embedding, batch), num_tokens, None)

    def _check(self, name: str, *wanted: int | None) -> None:
        """ValueError if a field is there and has not the wanted shape; None is any size."""
        value = getattr(self, name)
        if value is None:
            return
        given = tuple(value.shape)
        sizes = zip(wanted, given, strict=False)
        if len(given) != len(wanted) or any(need not in (None, size) for need, size in sizes):
            shape = ", ".join("any" if need is None else str(need) for need in wanted)
            raise ValueError(f"{name} {given} does not fit tokens {tuple(self.tokens.shape)}: need ({shape})")

    @property
    def num_previous(self) -> int:
        """Batch of `previous_tokens` and `previous_attention`."""
        return len(self.tokens)

    def need(self, name: str) -> Tensor:
        """A field that a quantity cannot do without.

        Raises:
            ValueError: If the view was made without it.
        """
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"this quantity needs {name}: give it to TokenView")
        return value

    # --- tokens -------------------------------------------------------------------------------------------

    @cached_property
    def x(self) -> Tensor:
        """The tokens in float64, (B, N, D)."""
        return self.tokens.double()

    @cached_property
    def norms(self) -> Tensor:
        """Length of each token, (B, N)."""
        return self.x.norm(dim=2)

    @cached_property
    def energy(self) -> Tensor:
        """||X||_F^2, (B,)."""
        return self.norms.square().sum(1)

    @cached_property
    def unit(self) -> Tensor:
        """Tokens of length 1, (B, N, D); a zero token stays zero, so its cosine with any other is 0."""
        return self.x * inverse(self.norms)[..., None]

    @cached_property
    def mean(self) -> Tensor:
        """The mean token, (B, D)."""
        return self.x.mean(1)

    @cached_property
    def centred(self) -> Tensor:
        """HC: tokens minus their mean, (B, N, D)."""
        return self.x - self.mean[:, None]

    @cached_property
    def centred_norms(self) -> Tensor:
        """Length of each centred token, (B, N)."""
        return self.centred.norm(dim=2)

    @cached_property
    def centred_energy(self) -> Tensor:
        """||HC||_F^2, (B,)."""
        return self.centred_norms.square().sum(1)

    @cached_property
    def has_spread(self) -> Tensor:
        """(B,) bool: whether ||HC|| exceeds the rounding of float32 tokens.

        Where it does not, ranks and cosines of centred tokens would be those of noise (0 / 0 for equal tokens): NaN.
        """
        return self.centred_energy > SPREAD_FLOOR**2 * self.energy

    @cached_property
    def centred_gram(self) -> Tensor:
        """Inner products of the centred tokens, (B, N, N); centring after the product would cancel digits."""
        return self.centred @ self.centred.mT

    @cached_property
    def cosine(self) -> Tensor:
        """Cosine of every pair of tokens, (B, N, N), in [-1, 1]."""
        # not from `centred_gram`: the digits of tokens much shorter than the mean would cancel
        return (self.unit @ self.unit.mT).clamp_(-1, 1)  # rounding may exceed 1

    @cached_property
    def absolute_cosine(self) -> Tensor:
        """|cos| of every pair of tokens, (B, N, N)."""
        return self.cosine.abs()

    @cached_property
    def mean_cosine(self) -> Tensor:
        """Mean cosine over all pairs of different tokens, (B,); NaN for one token."""
        return off_diagonal_mean(self.cosine)

    @cached_property
    def centred_cosine(self) -> Tensor:
        """Cosine of every pair of centred tokens, (B, N, N)."""
        scale = inverse(self.centred_norms)
        return (self.centred_gram * scale[:, :, None]).mul_(scale[:, None]).clamp_(-1, 1)

    @cached_property
    def unit_gram(self) -> Tensor:
        """`centred_gram` as a vector of length 1, (B, N * N); NaN where the tokens have no spread."""
        flat = self.centred_gram.flatten(1)
        return (flat / flat.norm(dim=1, keepdim=True)).where(self.has_spread[:, None], torch.nan)

    @cached_property
    def previous_unit_gram(self) -> Tensor:
        """`unit_gram` of the block before. Needs `previous_tokens`."""
        return TokenView(self.need("previous_tokens"), self.grid).unit_gram

    @cached_property
    def previous_cosine(self) -> Tensor:
        """`cosine` of the block before, (B, N, N). Needs `previous_tokens`."""
        return TokenView(self.need("previous_tokens"), self.grid).cosine

    @cached_property
    def moment(self) -> Tensor:
        """X^T X, (B, D, D)."""
        return self.x.mT @ self.x

    @property
    def singular_values(self) -> Tensor:
        """Singular values of X, descending, (B, min(N, D)); those below about 4e-7 of the largest are 0."""
        return self._singular_values[0]

    @cached_property
    def centred_singular_values(self) -> Tensor:
        """Singular values of HC, likewise; NaN where the tokens have no spread."""
        return self._singular_values[1].where(self.has_spread[:, None], torch.nan)

    @cached_property
    def _singular_values(self) -> tuple[Tensor, Tensor]:
        by_tokens = reduces_by_tokens(*self.x.shape[1:])
        gram = self.centred_gram if by_tokens else self.centred.mT @ self.centred
        return singular_values(self.centred, self.mean, gram)

    @cached_property
    def composite_ratio(self) -> Tensor:
        """(||HC||_1 ||HC||_inf) / (||X||_1 ||X||_inf), operator norms, (B,)."""
        sizes = (z.abs() for z in (self.centred, self.x))
        top, bottom = (z.sum(1).amax(1) * z.sum(2).amax(1) for z in sizes)  # largest column sum times largest row sum
        return ratio(top, bottom)

    @cached_property
    def pairs(self) -> PairSums:
        """Sums of |cos| over pairs of equal and of different label. Needs `label`."""
        return pair_sums(self.absolute_cosine, self.need("label"))

    @cached_property
    def class_cosine(self) -> Tensor:
        """Cosine of the class token with every patch token, (B, h, w). Needs `class_token`."""
        token = F.normalize(self.need("class_token").double(), dim=1)
        return (self.unit @ token[:, :, None]).squeeze(2).clamp(-1, 1).unflatten(1, self.grid)

    @cached_property
    def high_norm(self) -> Tensor:
        """(B, N) bool: tokens longer than the `norm_cut` of their own image."""
        return self.norms > norm_cut(self.norms)[:, None]

    # --- the grid -----------------------------------------------------------------------------------------

    @cached_property
    def inner(self) -> Tensor:
        """(N,) bool: tokens that are not at the border of the grid; none on a grid of fewer than 3 rows or columns."""
        inside = torch.zeros(self.grid, dtype=torch.bool, device=self.tokens.device)
        inside[1:-1, 1:-1] = True
        return inside.flatten()

    @cached_property
    def border_cosine(self) -> Tensor:
        """Cosine of each token with the mean of the tokens at the border of the grid, (B, N)."""
        border = F.normalize(self.x[:, ~self.inner].mean(1), dim=1)
        return (self.unit @ border[:, :, None]).squeeze(2).clamp(-1, 1)

    @cached_property
    def num_neighbours(self) -> Tensor:
        """How many of its 4 grid neighbours each token has, (N,): 4 inside, fewer at the border."""
        field = self.x.new_ones(1, *self.grid)
        return sum_of_edges(field[:, :, 1:], field[:, 1:]).flatten()

    @cached_property
    def neighbour_cosine(self) -> Tensor:
        """Mean cosine of each token with its grid neighbours, (B, N); NaN for the only token of a 1 x 1 grid."""
        total = sum_of_edges(*((a * b).sum(3) for a, b in edge_ends(self.unit.unflatten(1, self.grid))))
        return total.flatten(1) / self.num_neighbours

    @cached_property
    def embedding_cosine(self) -> Tensor:
        """`neighbour_cosine` of the patch embedding, (B, N) or (1, N). Needs `embedding`."""
        return TokenView(self.need("embedding"), self.grid).neighbour_cosine

    @cached_property
    def grid_energy(self) -> Tensor:
        """Dirichlet energy on the 4-neighbour grid, (1/N) sum_i sum_{j next to i} ||x_i - x_j||^2, (B,)."""
        edges = edge_ends(self.x.unflatten(1, self.grid))
        horizontal, vertical = ((a - b).square().sum((1, 2, 3)) for a, b in edges)
        return 2 * (horizontal + vertical) / self.x.shape[1]  # an edge has two ends

    @cached_property
    def amplitude(self) -> Tensor:
        """|2-D Fourier transform| over the grid, not normalised, (B, h, w // 2 + 1, D); frequency 0 comes first.

        Tokens are real, so the other columns would repeat the amplitudes of the opposite frequencies.
        """
        return torch.fft.rfft2(self.x.unflatten(1, self.grid), dim=(1, 2)).abs()

    @cached_property
    def power(self) -> Tensor:
        """Fourier energy summed over channels, (B, h, w // 2 + 1); columns of two frequencies count twice."""
        power = self.amplitude.square().sum(3)
        power[:, :, 1 : (self.grid[1] + 1) // 2] *= 2
        return power

    # --- attention ----------------------------------------------------------------------------------------

    @cached_property
    def column_lengths(self) -> Tensor:
        """Length of each column of the attention, (B, heads, T). Needs `attention`."""
        attention = self.need("attention")
        return column_products(attention, attention).sqrt()

    @cached_property
    def attention_similarity(self) -> Tensor:
        """Cosine of each column of the attention with that of the block before, (B, heads, T).

        Needs `attention` and `previous_attention`.
        """
        previous = self.need("previous_attention")
        products = column_products(self.need("attention"), previous)
        return products * inverse(self.column_lengths) * inverse(column_products(previous, previous).sqrt())

    @cached_property
    def patch_attention(self) -> Tensor:
        """Attention from patches to patches, (B, heads, N, N), each row divided by its sum. Needs `attention`.

        Without the columns of the prefix tokens a row sums to less than 1, and to less still where the class token gets
        much attention; the division makes the rows of all layers comparable.
        """
        block = self.need("attention")[:, :, self.num_prefix :, self.num_prefix :]
        return ratio(block, block.sum(3, keepdim=True))

    @cached_property
    def distribution(self) -> Tensor:
        """1 for images whose attention is a distribution, else NaN, (B, 1). Needs `attention`.

        AttnScale makes entries negative; entropies, mean distances and weighted energies are then not defined.
        """
        negative = self.need("attention").flatten(1).amin(1, keepdim=True) < 0
        return torch.where(negative, torch.nan, 1.0).double()

    @cached_property
    def attention_entropy(self) -> Tensor:
        """-sum_j A_ij log A_ij in nats, mean over all T queries i, per head: (B, heads). Needs `attention`."""
        attention = self.need("attention")
        # as torch.special.entr, which is not vectorised: 0 log 0 is 0
        logarithm = attention.clamp_min(torch.finfo(attention.dtype).tiny).log_()
        return -logarithm.mul_(attention).sum(3).mean(2) * self.distribution

    @cached_property
    def attention_distance(self) -> Tensor:
        """Mean distance in pixels from a patch to the patches it looks at, per head: (B, heads).

        Needs `attention` and `patch_size`; rows of the attention are those of `patch_attention`.
        """
        if self.patch_size is None:
            raise ValueError("this quantity needs patch_size: give it to TokenView")
        distance = patch_distance(self.grid, self.patch_size).to(self.patch_attention)
        mean = torch.einsum("bhij,ij->bh", self.patch_attention, distance).double() / distance.shape[0]
        return mean * self.distribution


def _batch_of(value: Tensor | None, batch: int) -> int:
    """The batch that a field must have: 1 if it is one for all images, else that of the tokens."""
    return 1 if value is not None and len(value) == 1 else batch
