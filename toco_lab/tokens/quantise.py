"""Tokens of a layer in fewer dimensions and as int8, with the largest error of a cosine known.

The cosine similarity of one patch to all others needs every token of a layer, and that is too much for a web page: a
ViT-B at 448 px has 784 x 768 floats after each of 12 blocks. So the unit tokens of a layer are projected on their
leading singular vectors and rounded to int8, with the fewest dimensions that keep every cosine within `max_error` of
the exact one. The error is measured over all pairs of tokens, and the explorer shows it beside the picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # reading tokens, as a report does, needs no torch
    from torch import Tensor

MAX_ERROR = 0.02  # of a cosine: a fiftieth of the colour scale, less than the eye can tell apart
FIRST_WIDTH = 8  # smallest number of dimensions tried; doubled until the error fits
_CHUNK = 256  # rows of the similarity matrix that are in memory at once


@dataclass(frozen=True, eq=False)
class QuantisedTokens:
    """Tokens of one image as int8, in slabs: one slab (N, k) for each step and layer, each with its own k.

    Only directions count, so every token is scaled by itself to use the whole range of int8.

    Attributes:
        values: The slabs one after another, layers within steps, each row-major; 1-D int8.
        widths: Dimensions k kept of each slab, (num_steps, num_layers) int.
        errors: Largest |cosine - exact cosine| over all pairs of tokens of each slab, (num_steps, num_layers).
        num_tokens: N.
        dim: Dimensions D before the projection.
    """

    values: np.ndarray
    widths: np.ndarray
    errors: np.ndarray
    num_tokens: int
    dim: int

    def __post_init__(self) -> None:
        if self.widths.ndim != 2 or self.errors.shape != self.widths.shape:
            raise ValueError(f"widths {self.widths.shape} and errors {self.errors.shape} must be (steps, layers)")
        wanted = self.num_tokens * int(self.widths.sum())
        if self.values.dtype != np.int8 or self.values.shape != (wanted,):
            raise ValueError(f"values must be int8 ({wanted},), got {self.values.dtype} {self.values.shape}")

    @property
    def error(self) -> float:
        """Largest |cosine - exact cosine| over all pairs, layers and steps."""
        return float(self.errors.max())

    def slab(self, step: int, layer: int) -> np.ndarray:
        """Tokens of one step and layer (both indices), (N, k) int8."""
        sizes = self.num_tokens * self.widths
        index = np.ravel_multi_index((step, layer), self.widths.shape)
        begin, size = int(sizes.flat[:index].sum()), int(sizes[step, layer])
        return self.values[begin : begin + size].reshape(self.num_tokens, -1)

    def similarity(self, step: int, layer: int, patch: int) -> np.ndarray:
        """Cosine of one token to all, (N,) float32 in [-1, 1]; 0 to and from a zero token.

        The sums are those of the browser: exact integer products, and norms of the rounded tokens.

        Args:
            step, layer: Indices of the slab.
            patch: Index of the token, row-major.
        """
        slab = self.slab(step, layer).astype(np.int32)
        norms = np.sqrt((slab**2).sum(axis=1))
        scale = norms * norms[patch]
        return np.divide(slab @ slab[patch], scale, out=np.zeros(len(slab)), where=scale > 0).astype(np.float32)

    def take(self, steps: Sequence[int]) -> "QuantisedTokens":
        """The same tokens at these steps (indices) only."""
        steps = list(steps)
        slabs = [self.slab(step, layer).ravel() for step in steps for layer in range(self.widths.shape[1])]
        return replace(self, values=np.concatenate(slabs), widths=self.widths[steps], errors=self.errors[steps])


def quantise_tokens(steps: "Sequence[Sequence[Tensor]]", *, max_error: float = MAX_ERROR) -> QuantisedTokens:
    """Project and round the tokens of one image to as few dimensions per layer as `max_error` allows.

    It tries 8, 16, 32, ... dimensions and at last all of them; the error of int8 alone then remains and is reported.

    Args:
        steps: For each step of training the tokens of each layer, (N, D) each, of any scale. A zero token has cosine 0
            with every other token.
        max_error: Largest |cosine - exact cosine| allowed, over all pairs of tokens.

    Raises:
        ValueError: If there are no tokens, they differ in shape, or are not finite.
    """
    import torch.nn.functional as F

    shapes = {tuple(tokens.shape) for layers in steps for tokens in layers}
    counts = {len(layers) for layers in steps}
    if len(counts) != 1 or len(shapes) != 1 or len(shape := next(iter(shapes))) != 2 or 0 in shape:
        raise ValueError(
            f"every step needs the same layers of tokens (N, D), got {sorted(counts)} layers of {sorted(shapes)}"
        )
    slabs, errors = [], []
    for step, layers in enumerate(steps):
        for layer, tokens in enumerate(layers):
            if not tokens.isfinite().all():
                raise ValueError(f"the tokens of step {step}, layer {layer} (counted from 0) are not finite")
            values, error = _quantise_layer(F.normalize(tokens.detach().float().cpu(), dim=1), max_error)
            slabs.append(values)
            errors.append(error)
    table = (len(steps), counts.pop())
    return QuantisedTokens(
        values=np.concatenate([values.ravel() for values in slabs]),
        widths=np.array([values.shape[1] for values in slabs]).reshape(table),
        errors=np.array(errors).reshape(table),
        num_tokens=shape[0],
        dim=shape[1],
    )


def _quantise_layer(unit: "Tensor", max_error: float) -> tuple[np.ndarray, float]:
    """Unit tokens (N, D) -> int8 (N, k) and its largest error."""
    import torch

    dim = unit.shape[1]
    # right singular vectors from the Gram matrix: quicker than an SVD, and the error is measured anyway
    vectors = torch.linalg.eigh((unit.T @ unit).double()).eigenvectors.flip(1).float()
    projected = unit @ vectors  # (N, D), leading direction first
    width = min(FIRST_WIDTH, dim)
    while True:
        last = width == dim
        part = projected[:, :width]
        largest = part.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(part.dtype).tiny)
        values = (part / largest * 127).round()
        error = _largest_error(unit, values, stop_above=torch.inf if last else max_error)
        if last or error <= max_error:
            return values.to(torch.int8).numpy(), error
        width = min(2 * width, dim)


def _largest_error(unit: "Tensor", values: "Tensor", *, stop_above: float) -> float:
    """Largest |difference of cosines| over all pairs; stops as soon as it is above `stop_above`."""
    import torch.nn.functional as F

    rounded, largest = F.normalize(values, dim=1), 0.0
    for rows, exact in zip(rounded.split(_CHUNK), unit.split(_CHUNK), strict=True):
        largest = max(largest, (rows @ rounded.T - exact @ unit.T).abs().max().item())
        if largest > stop_above:
            break
    return largest
