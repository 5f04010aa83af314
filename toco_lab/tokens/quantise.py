"""Tokens of a layer in fewer dimensions and as int8, with the largest error of a cosine known.

The cosine similarity of one patch to all others needs every token of a layer, and that is too much for a web page: a
ViT-B at 448 px has 784 x 768 floats after each of 12 blocks. So the unit tokens of a layer are projected on their
leading singular vectors and rounded to int8, with the fewest dimensions that keep every cosine within `max_error` of
the exact one. The error is measured over all pairs of tokens, and the explorer shows it beside the picture.

Images that are quantised together (`quantise_images`) share the directions of each layer, so that a patch of one can be
looked for in the others; the error then counts pairs of tokens of two images as well. Lengths are kept beside the
directions, as a byte for each token.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # reading tokens, as a report does, needs no torch
    from torch import Tensor

MAX_ERROR = 0.02  # of a cosine: a fiftieth of the colour scale, less than the eye can tell apart
WIDTH_STEP = 8  # numbers of dimensions tried are multiples of this
_CHUNK = 256  # rows of the similarity matrix that are in memory at once
_LEVELS = 255  # a length is one of so many steps between the logarithms of the shortest and the longest


@dataclass(frozen=True, eq=False)
class QuantisedTokens:
    """Tokens of one image as int8, in slabs: one slab (N, k) for each step and layer, each with its own k.

    Cosines need directions alone, so every token is scaled by itself to use the whole range of int8.

    Attributes:
        values: The slabs one after another, layers within steps, each row-major; 1-D int8.
        widths: Dimensions k kept of each slab, (num_steps, num_layers) int.
        errors: Largest |cosine - exact cosine| over all pairs of tokens of each slab and of the slabs that share its
            directions, (num_steps, num_layers).
        num_tokens: N.
        dim: Dimensions D before the projection.
        bases: What tells the directions of each slab apart, (num_steps, num_layers) uint64: tokens of two images can be
            compared where these are equal. None for tokens that were kept without it.
        lengths: Of every token, (num_steps, num_layers, N) uint8: 0 the shortest, 255 the longest of its slab, by
            logarithm. None for tokens that were kept without them.
        length_ends: Shortest and longest of each slab, (num_steps, num_layers, 2) float32.
    """

    values: np.ndarray
    widths: np.ndarray
    errors: np.ndarray
    num_tokens: int
    dim: int
    bases: np.ndarray | None = None
    lengths: np.ndarray | None = None
    length_ends: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.widths.ndim != 2 or self.errors.shape != self.widths.shape:
            raise ValueError(f"widths {self.widths.shape} and errors {self.errors.shape} must be (steps, layers)")
        wanted = self.num_tokens * int(self.widths.sum())
        if self.values.dtype != np.int8 or self.values.shape != (wanted,):
            raise ValueError(f"values must be int8 ({wanted},), got {self.values.dtype} {self.values.shape}")
        for name, more in (("bases", ()), ("lengths", (self.num_tokens,)), ("length_ends", (2,))):
            array, shape = getattr(self, name), (*self.widths.shape, *more)
            if array is not None and array.shape != shape:
                raise ValueError(f"{name} must be {shape}, got {array.shape}")

    @property
    def error(self) -> float:
        """Largest |cosine - exact cosine| over all pairs, layers and steps."""
        return float(self.errors.max())

    @property
    def slab_bytes(self) -> np.ndarray:
        """Bytes of each slab with its lengths, (num_steps, num_layers) int."""
        return self.num_tokens * (self.widths + (self.lengths is not None))

    def slab(self, step: int, layer: int) -> np.ndarray:
        """Tokens of one step and layer (both indices), (N, k) int8."""
        sizes = self.num_tokens * self.widths
        index = np.ravel_multi_index((step, layer), self.widths.shape)
        begin, size = int(sizes.flat[:index].sum()), int(sizes[step, layer])
        return self.values[begin : begin + size].reshape(self.num_tokens, -1)

    def unit_tokens(self, step: int, layer: int) -> np.ndarray:
        """The slab as unit vectors, (N, k) float64; a zero token stays zero."""
        slab = self.slab(step, layer).astype(np.float64)
        norms = np.sqrt((slab**2).sum(axis=1, keepdims=True))
        return np.divide(slab, norms, out=np.zeros_like(slab), where=norms > 0)

    def similarity(self, step: int, layer: int, patch: int) -> np.ndarray:
        """Cosine of one token to all, (N,) float32 in [-1, 1]; 0 to and from a zero token.

        The products are those of the browser: of the rounded tokens, over their norms.

        Args:
            step, layer: Indices of the slab.
            patch: Index of the token, row-major.
        """
        return self.similarity_of(self, (step, layer), (step, layer), patch)

    def similarity_of(
        self, other: "QuantisedTokens", theirs: tuple[int, int], ours: tuple[int, int], patch: int
    ) -> np.ndarray:
        """Cosine of a token of another image to all of this one, (N,) float32; `theirs` and `ours` are (step, layer).

        Raises:
            ValueError: If the two slabs do not share their directions.
        """
        if other is not self and not self.shares_directions(other, theirs, ours):
            raise ValueError(
                "the tokens of these two images were not kept together: keep them again with this version "
                "(delete the folder `tokens` of the run, then tl.maps_of_run(run))"
            )
        here, there = (one.slab(*place).astype(np.int32) for one, place in ((self, ours), (other, theirs)))
        scale = np.sqrt((here**2).sum(axis=1)) * np.sqrt((there[patch] ** 2).sum())
        return np.divide(here @ there[patch], scale, out=np.zeros(len(here)), where=scale > 0).astype(np.float32)

    def shares_directions(self, other: "QuantisedTokens", theirs: tuple[int, int], ours: tuple[int, int]) -> bool:
        """Whether a slab of another image has the directions of a slab of this one; both are (step, layer)."""
        if self.bases is None or other.bases is None:
            return False
        return bool(self.bases[ours] == other.bases[theirs])

    def token_lengths(self, step: int, layer: int) -> np.ndarray | None:
        """Length of every token of a slab, (N,) float64; None where lengths were not kept."""
        if self.lengths is None or self.length_ends is None:
            return None
        low, high = np.log(self.length_ends[step, layer].astype(np.float64))
        return np.exp(low + (high - low) * self.lengths[step, layer] / _LEVELS)

    def take(self, *, steps: Sequence[int] | None = None, layers: Sequence[int] | None = None) -> "QuantisedTokens":
        """The same tokens at these steps and layers (indices) only; None takes all."""
        first, second = self.widths.shape
        at, of = list(range(first) if steps is None else steps), list(range(second) if layers is None else layers)
        kept: dict[str, Any] = {}
        for name in _TABLES:
            table = getattr(self, name)
            kept[name] = None if table is None else table[np.ix_(at, of)]
        slabs = [self.slab(step, layer).ravel() for step in at for layer in of]
        return replace(self, values=np.concatenate(slabs), **kept)


_TABLES = ("widths", "errors", "bases", "lengths", "length_ends")  # fields whose first axes are steps and layers


def join_steps(parts: Sequence[QuantisedTokens]) -> QuantisedTokens:
    """Tokens of one image at some steps, and at later ones: all of them. What one part lacks, the whole lacks."""

    def joined(name: str) -> Any:
        arrays = [getattr(part, name) for part in parts]
        return None if any(array is None for array in arrays) else np.concatenate(arrays)

    return replace(parts[0], **{name: joined(name) for name in ("values", *_TABLES)})


def quantise_tokens(steps: "Sequence[Sequence[Tensor]]", *, max_error: float = MAX_ERROR) -> QuantisedTokens:
    """Project and round the tokens of one image to as few dimensions per layer as `max_error` allows.

    Args:
        steps: For each step of training the tokens of each layer, (N, D) each, of any scale. A zero token has cosine 0
            with every other token.
        max_error: Largest |cosine - exact cosine| allowed, over all pairs of tokens. Where all dimensions are needed,
            the error of int8 alone remains and is reported.

    Raises:
        ValueError: If there are no tokens, they differ in shape, or are not finite.
    """
    shapes = {tuple(tokens.shape) for layers in steps for tokens in layers}
    counts = {len(layers) for layers in steps}
    if len(counts) != 1 or len(shapes) != 1 or len(shape := next(iter(shapes))) != 2 or 0 in shape:
        raise ValueError(
            f"every step needs the same layers of tokens (N, D), got {sorted(counts)} layers of {sorted(shapes)}"
        )
    for step, layers in enumerate(steps):
        _check_finite(layers, f"step {step}")
    return join_steps([quantise_images([layers], max_error=max_error)[0] for layers in steps])


def quantise_images(images: "Sequence[Sequence[Tensor]]", *, max_error: float = MAX_ERROR) -> list[QuantisedTokens]:
    """The tokens of several images at one step, each layer in directions that all images share.

    Args:
        images: For each image the tokens of each layer, (N, D) each; N may differ between images.
        max_error: As in `quantise_tokens`, also over pairs of tokens of two images.

    Raises:
        ValueError: If there are no tokens, the images differ in layers or dimensions, or a token is not finite.
    """
    shapes = [[tuple(tokens.shape) for tokens in layers] for layers in images]
    widths = {(len(layers), shape[-1]) for layers in shapes for shape in layers}
    if len(widths) != 1 or not all(layers and len(set(layers)) == 1 and 0 not in layers[0] for layers in shapes):
        raise ValueError(f"every image needs the same layers of tokens (N, D), got {shapes}")
    for image, layers in enumerate(images):
        _check_finite(layers, f"image {image}")
    made = [_quantise_layer([layers[index] for layers in images], max_error) for index in range(len(images[0]))]
    return [_one_image([layer[image] for layer in made]) for image in range(len(images))]


def _check_finite(layers: "Sequence[Tensor]", where: str) -> None:
    for layer, tokens in enumerate(layers):
        if not tokens.isfinite().all():
            raise ValueError(f"the tokens of {where}, layer {layer} (counted from 0) are not finite")


@dataclass(frozen=True)
class _Slab:
    """One layer of one image, see `QuantisedTokens`."""

    values: np.ndarray
    error: float
    basis: int
    lengths: np.ndarray
    ends: tuple[float, float]
    dim: int


def _one_image(slabs: Sequence[_Slab]) -> QuantisedTokens:
    return QuantisedTokens(
        values=np.concatenate([slab.values.ravel() for slab in slabs]),
        widths=np.array([[slab.values.shape[1] for slab in slabs]]),
        errors=np.array([[slab.error for slab in slabs]]),
        num_tokens=len(slabs[0].values),
        dim=slabs[0].dim,
        bases=np.array([[slab.basis for slab in slabs]], np.uint64),
        lengths=np.array([[slab.lengths for slab in slabs]]),
        length_ends=np.array([[slab.ends for slab in slabs]], np.float32),
    )


def _quantise_layer(images: "Sequence[Tensor]", max_error: float) -> list[_Slab]:
    """One layer of some images, (N, D) each; they are projected on directions of their own."""
    import torch
    import torch.nn.functional as F

    tokens = [one.detach().float().cpu() for one in images]
    unit = F.normalize(torch.cat(tokens), dim=1)
    # right singular vectors from the Gram matrix: quicker than an SVD, and the error is measured anyway
    vectors = torch.linalg.eigh((unit.T @ unit).double()).eigenvectors.flip(1).float()
    values, error = _fewest_dimensions(unit, unit @ vectors, max_error)
    kept = vectors[:, : values.shape[1]].contiguous().numpy().tobytes()
    basis = int.from_bytes(hashlib.blake2b(kept, digest_size=8).digest(), "big")
    slabs = []
    for own, rounded in zip(tokens, values.split([len(one) for one in tokens]), strict=True):
        lengths, ends = _quantise_lengths(own.norm(dim=1).double().numpy())
        slabs.append(_Slab(rounded.to(torch.int8).numpy(), error, basis, lengths, ends, unit.shape[1]))
    return slabs


def _quantise_lengths(lengths: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Lengths (N,) as bytes between the logarithms of the shortest and the longest, and these two."""
    lengths = lengths.clip(min=np.finfo(np.float32).tiny)
    low, high = float(lengths.min()), float(lengths.max())
    span = np.log(high / low)
    levels = np.log(lengths / low) / span * _LEVELS if span > 0 else np.zeros_like(lengths)
    return levels.round().clip(0, _LEVELS).astype(np.uint8), (low, high)


def _fewest_dimensions(unit: "Tensor", projected: "Tensor", max_error: float) -> "tuple[Tensor, float]":
    """Rounded tokens (n, k) with the smallest k among the multiples of `WIDTH_STEP`, and their largest error.

    k is doubled until the error fits, and then halved back between the last two. (n, D) unit tokens, and the same on
    their directions, the leading one first.
    """
    dim = unit.shape[1]
    tried: dict[int, tuple[Tensor, float]] = {}

    def fits(width: int) -> bool:
        values = _rounded(projected[:, :width])
        tried[width] = values, _largest_error(unit, values, stop_above=np.inf if width == dim else max_error)
        return width == dim or tried[width][1] <= max_error

    below, width = 0, min(WIDTH_STEP, dim)
    while not fits(width):
        below, width = width, min(2 * width, dim)
    while width - below > WIDTH_STEP:
        middle = below + max(WIDTH_STEP, (width - below) // 2 // WIDTH_STEP * WIDTH_STEP)
        if middle >= width:
            break
        below, width = (below, middle) if fits(middle) else (middle, width)
    return tried[width]


def _rounded(part: "Tensor") -> "Tensor":
    """Each row scaled so that its largest entry is 127, and rounded."""
    import torch

    largest = part.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(part.dtype).tiny)
    return (part / largest * 127).round()


def _largest_error(unit: "Tensor", values: "Tensor", *, stop_above: float) -> float:
    """Largest |difference of cosines| over all pairs; stops as soon as it is above `stop_above`."""
    import torch.nn.functional as F

    rounded, largest = F.normalize(values, dim=1), 0.0
    for rows, exact in zip(rounded.split(_CHUNK), unit.split(_CHUNK), strict=True):
        largest = max(largest, (rows @ rounded.T - exact @ unit.T).abs().max().item())
        if largest > stop_above:
            break
    return largest
