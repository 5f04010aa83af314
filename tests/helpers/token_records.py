"""Token maps of two made-up models, for tests of the token explorer."""

from dataclasses import replace

import numpy as np
import torch

from toco_lab.explorers.token_explorer import SimilarityMap
from toco_lab.tokens.quantise import join_steps, quantise_images, quantise_tokens
from toco_lab.tokens.token_maps import TokenMaps

LAYERS = ("block 1", "block 2", "block 3", "final norm")
GRID, PATCH = (6, 8), 10  # rows and columns, pixels


def make_maps(model, image_name, steps, *, grid=GRID, layers=LAYERS, seed=0) -> TokenMaps:
    """Smooth tokens of rank 6; the first channel makes cosines rise with the layer."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(layer):
        mixed = torch.randn(grid[0] * grid[1], 6, generator=generator) @ torch.randn(6, 24, generator=generator)
        mixed[:, 0] += 2.0 * layer
        return mixed

    values = quantise_tokens([[tokens(layer) for layer in range(len(layers))] for _ in steps])
    pixels = np.random.default_rng(len(image_name)).integers(0, 256, (6 * PATCH, 8 * PATCH, 3), np.uint8)
    return TokenMaps(model, "random", image_name, pixels, grid, tuple(steps), tuple(layers), values)


def two_models() -> list[TokenMaps]:
    """Two images, two models; `b` has other steps, one image `b` sees in a finer grid and with fewer layers."""
    return [
        make_maps("a", "cat", (0, 10, 20), seed=1),
        make_maps("b", "cat", (0, 14), seed=2),
        make_maps("a", "</script>dog", (0, 10, 20), seed=3),
        make_maps("b", "</script>dog", (5,), seed=4, grid=(12, 16), layers=("block 1", "final norm")),
    ]


def two_images() -> list[TokenMaps]:
    """Two images of different grids that one model kept together, at two steps; 3 tokens of the second are long."""
    generator = torch.Generator().manual_seed(5)
    grids, mixing = (GRID, (5, 7)), torch.randn(6, 24, generator=generator)

    def layers(h, w, long):
        tokens = [torch.randn(h * w, 6, generator=generator) @ mixing for _ in range(2)]
        tokens[1][:long] *= 30
        return tokens

    steps = [quantise_images([layers(*grid, long) for grid, long in zip(grids, (0, 3), strict=True)]) for _ in range(2)]
    return [
        TokenMaps(
            "a", "random", name, np.random.default_rng(h).integers(0, 256, (h * PATCH, w * PATCH, 3), np.uint8),
            (h, w), (0, 10), ("block 1", "final norm"), join_steps([step[image] for step in steps]),
        )
        for image, (name, (h, w)) in enumerate(zip(("cat", "dog"), grids, strict=True))
    ]  # fmt: skip


def others(panel: SimilarityMap) -> np.ndarray:
    """Similarities of the chosen patch to all others."""
    if panel.get("found"):
        return panel["map"].astype(float).ravel()
    row, column = panel["patch"]
    return np.delete(panel["map"].astype(float).ravel(), row * panel["map"].shape[1] + column)


def low_rank(num_tokens=30, dim=64, rank=5, noise=0.02, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(num_tokens, rank, generator=generator) @ torch.randn(rank, dim, generator=generator)
    sizes = 10 ** torch.randn(num_tokens, 1, generator=generator)  # a cosine does not care about a token's scale
    return sizes * (base + noise * torch.randn(num_tokens, dim, generator=generator))


def small_maps(steps=(0, 10), *, layers=3, model="a", image_name="x", seed=0, dim=16, **changes) -> TokenMaps:
    tokens = quantise_tokens([[low_rank(12, dim, seed=seed + 10 * s + i) for i in range(layers)] for s in steps])
    image = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    names = (*(f"block {i}" for i in range(1, layers)), "final norm")
    return replace(
        TokenMaps(model, f"of {steps[-1]}", image_name, image, (3, 4), tuple(steps), names, tokens), **changes
    )
