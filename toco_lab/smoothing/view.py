"""What one layer of a ViT gives for some images, with everything that several metrics share computed once.

Notation: X is (N, D), one row per patch token; DC is the matrix whose rows are all the mean token, HC = X - DC; T
counts all tokens, prefix tokens included. Everything on tokens is computed in float64, so that only the rounding of the
tokens themselves remains; everything that touches the (heads, T, T) attention stays in its own precision.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.config import IGNORE_INDEX
from toco_lab.smoothing.spectra import by_tokens, spectra

OUTLIER_DEVIATIONS = 5.0  # of a Gaussian's tokens 3e-7 lie beyond; 3 would flag one normal token in each 28 x 28 image
MAD_TO_DEVIATION = 1.4826  # median absolute deviation -> standard deviation, for a Gaussian
SPREAD_FLOOR = torch.finfo(torch.float32).eps  # ||HC|| / ||X|| below this is rounding of float32 tokens


@dataclass(frozen=True, eq=False)
class TokenView:
    """What one layer gives for some images. What several metrics share is computed once, when first asked for.

    Attributes:
        tokens: Patch tokens, (B, N, D), without prefix tokens.
        grid: (h, w) with N = h * w, row-major.
        label: Class of each token, (B, N) integers, or (1, N) for all; `IGNORE_INDEX` leaves a token out. See
            `majority_label`.
        class_token: (B, D), of the same layer.
        attention: (B, heads, T, T), rows sum to 1, of the block that made these tokens; prefix tokens come first.
        previous_attention: The same of the block before.
        previous_tokens: Patch tokens of the block before, (B, N, D).
        embedding: Tokens after the patch embedding, positions added, (B, N, D) or (1, N, D).
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
        total = self.num_prefix + num_tokens
        shapes = {
            "label": (_batch(self.label, batch), num_tokens),
            "class_token": (batch, width),
            "attention": (batch, None, total, total),
            "previous_attention": (self._num_previous, None, total, total),
            "previous_tokens": (self._num_previous, num_tokens, None),
            "embedding": (_batch(self.embedding, batch), num_tokens, None),
        }
        for name, wanted in shapes.items():
            value = getattr(self, name)
            if value is not None and (
                value.ndim != len(wanted)
                or any(need not in (None, size) for need, size in zip(wanted, value.shape, strict=True))
            ):
                wish = ", ".join("any" if need is None else str(need) for need in wanted)
                given = tuple(value.shape)
                raise ValueError(f"{name} {given} does not fit tokens {tuple(self.tokens.shape)}: need ({wish})")

    @property
    def _num_previous(self) -> int:
        """How many layers `previous_tokens` and `previous_attention` have."""
        return len(self.tokens)

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
        return _unit(self.x, self.norms)

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
        """Inner products of the centred tokens, (B, N, N). Centred before the product: the other way round cancels."""
        return self.centred @ self.centred.mT

    @cached_property
    def cosine(self) -> Tensor:
        """Cosine of every pair of tokens, (B, N, N), in [-1, 1]."""
        # not from the products of centred tokens, which are there: of tokens much shorter than the mean nothing is left
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
        return TokenView(self.previous_tokens, self.grid).unit_gram

    @cached_property
    def moment(self) -> Tensor:
        """X^T X, (B, D, D)."""
        return self.x.mT @ self.x

    @property
    def singular_values(self) -> Tensor:
        """Of X, descending, (B, min(N, D)); see `spectra`."""
        return self._spectra[0]

    @cached_property
    def centred_singular_values(self) -> Tensor:
        """Of HC, as `singular_values`; NaN where the tokens have no spread."""
        return self._spectra[1].where(self.has_spread[:, None], torch.nan)

    @cached_property
    def _spectra(self) -> tuple[Tensor, Tensor]:
        gram = self.centred_gram if by_tokens(*self.x.shape[1:]) else self.centred.mT @ self.centred
        return spectra(self.centred, self.mean, gram)

    @cached_property
    def composite_ratio(self) -> Tensor:
        """(||HC||_1 ||HC||_inf) / (||X||_1 ||X||_inf), operator norms, (B,)."""
        sizes = (z.abs() for z in (self.centred, self.x))
        top, bottom = (z.sum(1).amax(1) * z.sum(2).amax(1) for z in sizes)  # largest column sum times largest row sum
        return ratio(top, bottom)

    @cached_property
    def pairs(self) -> "PairSums":
        """Sums of |cos| over pairs of equal and of different label. Needs `label`."""
        classes = self.label[self.label != IGNORE_INDEX].unique()
        member = (self.label[:, :, None] == classes).double()  # (B, N, classes); an ignored token is in none
        blocks = member.mT @ self.absolute_cosine @ member  # sum of |cos| from class to class, (B, classes, classes)
        same, size = _trace(blocks), member.sum(1)
        itself = (self.absolute_cosine.diagonal(dim1=1, dim2=2)[:, None] @ member).sum((1, 2))
        known, num_same = size.sum(1), size.square().sum(1)
        return PairSums(same - itself, num_same - known, blocks.sum((1, 2)) - same, known.square() - num_same)

    @cached_property
    def class_cosine(self) -> Tensor:
        """Cosine of the class token with every patch token as a map, (B, h, w). Needs `class_token`."""
        token = F.normalize(self.class_token.double(), dim=1)
        return (self.unit @ token[:, :, None]).squeeze(2).clamp(-1, 1).unflatten(1, self.grid)

    @cached_property
    def high_norm(self) -> Tensor:
        """(B, N) bool: tokens longer than the `norm_cut` of their own image."""
        return self.norms > norm_cut(self.norms)[:, None]

    # --- the grid -----------------------------------------------------------------------------------------

    @cached_property
    def num_neighbours(self) -> Tensor:
        """How many of its 4 grid neighbours each token has, (N,): 4 inside, fewer at the border."""
        field = self.x.new_ones(1, *self.grid)
        return _at_both_ends(field[:, :, 1:], field[:, 1:]).flatten()

    @cached_property
    def neighbour_cosine(self) -> Tensor:
        """Mean cosine of each token with its grid neighbours, (B, N); NaN for the only token of a 1 x 1 grid."""
        total = _at_both_ends(*((a * b).sum(3) for a, b in _edges(self.unit.unflatten(1, self.grid))))
        return total.flatten(1) / self.num_neighbours

    @cached_property
    def embedding_cosine(self) -> Tensor:
        """`neighbour_cosine` of the patch embedding, (B, N) or (1, N). Needs `embedding`."""
        return TokenView(self.embedding, self.grid).neighbour_cosine

    @cached_property
    def grid_energy(self) -> Tensor:
        """Dirichlet energy on the 4-neighbour grid, (1/N) sum_i sum_{j next to i} ||x_i - x_j||^2, (B,)."""
        edges = _edges(self.x.unflatten(1, self.grid))
        return 2 * sum((a - b).square().sum((1, 2, 3)) for a, b in edges) / self.x.shape[1]  # an edge has two ends

    @cached_property
    def amplitude(self) -> Tensor:
        """|2-D Fourier transform| over the grid, not normalised, (B, h, w // 2 + 1, D); frequency 0 comes first.

        Tokens are real: the other columns would be those of the opposite frequencies once more.
        """
        return torch.fft.rfft2(self.x.unflatten(1, self.grid), dim=(1, 2)).abs()

    @cached_property
    def power(self) -> Tensor:
        """Fourier energy summed over channels, (B, h, w // 2 + 1); columns that stand for two count twice."""
        power = self.amplitude.square().sum(3)
        power[:, :, 1 : (self.grid[1] + 1) // 2] *= 2
        return power

    # --- attention ----------------------------------------------------------------------------------------

    @cached_property
    def column_lengths(self) -> Tensor:
        """Length of each column of the attention, (B, heads, T). Needs `attention`."""
        return column_products(self.attention, self.attention).sqrt()

    @cached_property
    def attention_similarity(self) -> Tensor:
        """Cosine of each column of the attention with that of the block before, (B, heads, T).

        Needs `attention` and `previous_attention`.
        """
        before = column_products(self.previous_attention, self.previous_attention).sqrt()
        products = column_products(self.attention, self.previous_attention)
        return products * inverse(self.column_lengths) * inverse(before)

    @cached_property
    def patch_attention(self) -> Tensor:
        """From patches to patches, (B, heads, N, N), rows divided by their sum. Needs `attention`.

        What a patch gives to the prefix tokens is left out, so each row would sum to less than 1, and to less in layers
        that look at the class token much; divided, the rows of all layers compare.
        """
        block = self.attention[:, :, self.num_prefix :, self.num_prefix :]
        return ratio(block, block.sum(3, keepdim=True))

    @cached_property
    def distribution(self) -> Tensor:
        """1 for images whose attention is a distribution, else NaN, (B, 1): AttnScale makes entries negative, and then
        entropies, mean distances and weighted energies mean nothing. Needs `attention`.
        """
        negative = self.attention.flatten(1).amin(1, keepdim=True) < 0
        return torch.where(negative, torch.nan, 1.0).double()

    @cached_property
    def attention_entropy(self) -> Tensor:
        """-sum_j A_ij log A_ij in nats, mean over all T queries i, per head: (B, heads). Needs `attention`."""
        # torch.special.entr takes one number at a time; 0 log 0 is 0 here, too
        logarithm = self.attention.clamp_min(torch.finfo(self.attention.dtype).tiny).log_()
        return -logarithm.mul_(self.attention).sum(3).mean(2) * self.distribution

    @cached_property
    def attention_distance(self) -> Tensor:
        """Mean distance in pixels from a patch to the patches it looks at, per head: (B, heads).

        Needs `attention` and `patch_size`; rows of the attention are those of `patch_attention`.
        """
        distance = patch_distance(self.grid, self.patch_size).to(self.patch_attention)
        mean = torch.einsum("bhij,ij->bh", self.patch_attention, distance).double() / distance.shape[0]
        return mean * self.distribution


@dataclass(frozen=True)
class PairSums:
    """Sums of |cos| over the ordered token pairs i != j of each image, and the number of these pairs, (B,) each."""

    positive: Tensor
    num_positive: Tensor
    negative: Tensor
    num_negative: Tensor

    @property
    def positive_mean(self) -> Tensor:
        """Mean over pairs of equal label, (B,), in [0, 1]; NaN where there is none."""
        return ratio(self.positive, self.num_positive).clamp(0, 1)

    @property
    def negative_mean(self) -> Tensor:
        """Mean over pairs of different labels, (B,), in [0, 1]; NaN where there is none."""
        return ratio(self.negative, self.num_negative).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class LayerStack(TokenView):
    """Layers of one image as the batch of a view: a metric works on all of them at once. See `stack_layers`.

    Attributes:
        gram_before: `unit_gram` of the layer before the first, (1, N * N), where it is known.
    """

    gram_before: Tensor | None = None

    @property
    def _num_previous(self) -> int:
        return 1  # what comes before the first layer

    @cached_property
    def previous_unit_gram(self) -> Tensor:
        """Each layer's is that of the layer before it: nothing is multiplied again."""
        before = self.gram_before
        if before is None:
            before = TokenView(self.previous_tokens, self.grid).unit_gram
        return torch.cat([before, self.unit_gram[:-1]])

    @cached_property
    def attention_similarity(self) -> Tensor:
        """Each layer's with the layer before it, which is here; only the first has `previous_attention`."""
        now, first, lengths = self.attention, self.previous_attention, self.column_lengths
        products = torch.cat([column_products(now[:1], first), column_products(now[1:], now[:-1])])
        before = torch.cat([column_products(first, first).sqrt(), lengths[:-1]])
        return products * inverse(lengths) * inverse(before)


def stack_layers(views: Sequence[TokenView], gram_before: Tensor | None = None) -> LayerStack:
    """Layers of one image, first one first, as one view whose batch they are.

    What only some of them have (attention, tokens of the block before) is NaN for the others, and so is what depends
    on it. Labels, patch embedding and what else is the image's are those of the first.

    Args:
        views: With one image each, of one grid and width. Where one has `previous_tokens`, these are the tokens of the
            one before it.
        gram_before: `unit_gram` of the layer before the first, to spare computing it.

    Raises:
        ValueError: If they are not.
    """
    for before, view in itertools.pairwise(views):
        if view.previous_tokens is not None and view.previous_tokens is not before.tokens:
            raise ValueError("the tokens of the block before are not those of the layer before in the stack")
    shapes = {tuple(view.tokens.shape) for view in views}
    if len(shapes) > 1 or len(views[0].tokens) != 1:
        raise ValueError(f"a stack is of layers of one image with equal grids, not of tokens {sorted(shapes)}")
    joined = {}
    # of the block before, the stack itself holds all but what precedes its first layer
    fields = {"tokens": views, "class_token": views, "attention": views, "previous_tokens": views[:1]}
    fields["previous_attention"] = views[:1]
    for name, holders in fields.items():
        values = [getattr(view, name) for view in holders]
        known = next((value for value in map(attrgetter(name), views) if value is not None), None)
        if known is not None:
            filled = [torch.full_like(known, torch.nan) if value is None else value for value in values]
            joined[name] = filled[0] if len(filled) == 1 else torch.cat(filled)
    alike = {name: getattr(views[0], name) for name in ("grid", "label", "embedding", "num_prefix", "patch_size")}
    return LayerStack(**joined, **alike, gram_before=gram_before)


def column_products(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the columns of two (B, heads, T, T), (B, heads, T). `norm(dim=2)` is five times slower."""
    return (a * b).sum(2)


def _batch(value: Tensor | None, batch: int) -> int:
    """The batch that is wanted of a field that may be one for all."""
    return 1 if value is not None and len(value) == 1 else batch


def majority_label(mask: Tensor, patch_size: int) -> Tensor:
    """Label of each patch: the most frequent value of its pixels (ignored pixels count; ties go to the smaller value).

    Args:
        mask: Pixel labels, (B, H, W) integers.
        patch_size: Side of a patch; pixels at the right and bottom that fill no patch are dropped, as in the model.

    Returns:
        (B, H // patch_size, W // patch_size), of the dtype of the mask.
    """
    patches = mask.unfold(1, patch_size, patch_size).unfold(2, patch_size, patch_size)  # (B, h, w, p, p)
    return patches.flatten(3).mode(dim=3).values


def norm_cut(norms: Tensor, *, deviations: float = OUTLIER_DEVIATIONS) -> Tensor:
    """Length above which a token is an outlier: median + deviations * 1.4826 * median absolute deviation.

    Darcet et al. 2024 read 150 off the histogram of DINOv2-g; the scale differs between models, so the cut must follow.
    Median and MAD do not move with up to half of the tokens. The default of 5 standard deviations keeps clear of the
    tail of a single mode. Pass the pooled norms of many images for one cut per model.

    Args:
        norms: (..., n).
        deviations: In standard deviations of a Gaussian of this MAD.

    Returns:
        (...).
    """
    median = norms.quantile(0.5, dim=-1)
    spread = (norms - median[..., None]).abs().quantile(0.5, dim=-1)
    return median + deviations * MAD_TO_DEVIATION * spread


def patch_distance(grid: tuple[int, int], patch_size: int) -> Tensor:
    """Distance in pixels between the centres of every two patches, (N, N) float64."""
    y, x = (patch_size * torch.arange(side, dtype=torch.float64) for side in grid)
    y, x = y.repeat_interleave(grid[1]), x.repeat(grid[0])
    return torch.hypot(y[:, None] - y, x[:, None] - x)


def ratio(top: Tensor, bottom: Tensor) -> Tensor:
    """top / bottom; NaN, and never infinity, where bottom is 0."""
    return top / bottom.where(bottom != 0, torch.nan)


def inverse(norms: Tensor) -> Tensor:
    """1 / norm; 0 where the norm is 0."""
    return torch.where(norms > 0, 1 / norms, 0)


def _unit(x: Tensor, norms: Tensor) -> Tensor:
    return x * inverse(norms)[..., None]


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=1, dim2=2).sum(1)


def off_diagonal_mean(matrix: Tensor) -> Tensor:
    """(B, N, N) cosines -> (B,) in [-1, 1]; NaN for N = 1."""
    n = matrix.shape[1]
    mean = (matrix.sum((1, 2)) - _trace(matrix)) / (n * (n - 1) or math.nan)
    return mean.clamp(-1, 1)


def _edges(field: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(B, h, w, D) -> both ends of all horizontal, then of all vertical edges of the grid."""
    return (field[:, :, :-1], field[:, :, 1:]), (field[:, :-1], field[:, 1:])


def _at_both_ends(horizontal: Tensor, vertical: Tensor) -> Tensor:
    """Values of edges, (B, h, w - 1) and (B, h - 1, w) -> their sum at each token, (B, h, w)."""
    left, right = F.pad(horizontal, (0, 1)), F.pad(horizontal, (1, 0))
    upper, lower = F.pad(vertical, (0, 0, 0, 1)), F.pad(vertical, (0, 0, 1, 0))
    return left + right + upper + lower
