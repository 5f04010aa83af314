"""The grid of patches: neighbours, distances, and the label of each patch."""

import torch
import torch.nn.functional as F
from torch import Tensor

Ends = tuple[Tensor, Tensor]


def edge_ends(field: Tensor) -> tuple[Ends, Ends]:
    """Both ends of every horizontal, then of every vertical edge between neighbours of a field, (B, h, w, D)."""
    return (field[:, :, :-1], field[:, :, 1:]), (field[:, :-1], field[:, 1:])


def sum_of_edges(horizontal: Tensor, vertical: Tensor) -> Tensor:
    """Sum of the values of the up to 4 edges at each token: (B, h, w - 1) and (B, h - 1, w) -> (B, h, w)."""
    left, right = F.pad(horizontal, (0, 1)), F.pad(horizontal, (1, 0))
    upper, lower = F.pad(vertical, (0, 0, 0, 1)), F.pad(vertical, (0, 0, 1, 0))
    return left + right + upper + lower


def patch_distance(grid: tuple[int, int], patch_size: int) -> Tensor:
    """Distance in pixels between the centres of every two patches, (N, N) float64."""
    y, x = (patch_size * torch.arange(side, dtype=torch.float64) for side in grid)
    y, x = y.repeat_interleave(grid[1]), x.repeat(grid[0])
    return torch.hypot(y[:, None] - y, x[:, None] - x)


def majority_label(mask: Tensor, patch_size: int) -> Tensor:
    """Label of each patch: the most frequent value of its pixels. Ignored pixels count; ties go to the smaller value.

    Args:
        mask: Pixel labels, (B, H, W) integers.
        patch_size: Side of a patch; pixels at the right and bottom that fill no patch are dropped, as in the model.

    Returns:
        (B, H // patch_size, W // patch_size), of the dtype of the mask.
    """
    patches = mask.unfold(1, patch_size, patch_size).unfold(2, patch_size, patch_size)  # (B, h, w, p, p)
    return patches.flatten(3).mode(dim=3).values
