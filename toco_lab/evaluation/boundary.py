"""Boundary IoU: how well the edges of a label map agree with the true ones, which is what refinement is for.

Cheng, Girshick, Dollar, Berg, Kirillov: "Boundary IoU" (CVPR 2021). Each class keeps the pixels of its mask that lie
near its edge, 2 % of the image's diagonal (the mask minus its erosion), and IoU is taken of these. A pixel at the edge
of the image lies at the edge of its mask.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.config import IGNORE_INDEX

WIDTH = 0.02  # of the boundary, relative to the diagonal of the image
OUTSIDE = -1  # label of what surrounds the image


def boundary(label: Tensor) -> Tensor:
    """The pixels of a label map near the edge of their region.

    Args:
        label: (B, H, W) integers, -1 nowhere.

    Returns:
        (B, H, W) bool: True where a pixel at most round(0.02 * diagonal) away, 1 at least, in rows and columns, has
        another label or lies outside the image.
    """
    radius = max(1, round(WIDTH * math.hypot(*label.shape[-2:])))
    padded = F.pad(label.to(torch.int16), (radius,) * 4, value=OUTSIDE)
    smallest, largest = (
        _of_windows(_of_windows(padded, 2 * radius + 1, pick, 1), 2 * radius + 1, pick, 2)
        for pick in (torch.minimum, torch.maximum)
    )
    return smallest != largest


def boundary_counts(prediction: Tensor, truth: Tensor, num_labels: int, *, edges: Tensor | None = None) -> Tensor:
    """Pixel counts (3, K) int64 of K labels: shared by the boundaries of both maps, in the true one, in the predicted.

    Pixels whose truth is none of the K labels belong to no mask of either map, so that a perfect prediction has a
    boundary IoU of 1 whatever it says there.

    Args:
        prediction: (B, H, W) in 0..K-1 where the truth is a label.
        truth: (B, H, W) integers; 255 is ignored.
        num_labels: K, with background.
        edges: `boundary` of the truth, where it is at hand.
    """
    known = (truth >= 0) & (truth < num_labels)
    prediction = prediction.where(known, IGNORE_INDEX)  # one region of its own, as in the truth
    in_truth = known & (boundary(truth) if edges is None else edges)
    predicted = known & boundary(prediction)
    rows, columns = truth.where(in_truth, num_labels).long(), prediction.where(predicted, num_labels).long()
    side = num_labels + 1  # the last row and column are of pixels at no edge
    matrix = torch.bincount((rows * side + columns).flatten(), minlength=side * side).view(side, side)
    return torch.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)])[:, :num_labels]


def boundary_iou(counts: Tensor) -> Tensor:
    """Boundary IoU (K,) in [0, 1] of counts of `boundary_counts`; NaN where a class is in neither map."""
    shared, in_truth, predicted = counts.double()
    return shared / (in_truth + predicted - shared)


def _of_windows(maps: Tensor, width: int, pick: Callable[[Tensor, Tensor], Tensor], dim: int) -> Tensor:
    """Minimum or maximum of each window of `width` along a dimension, by windows that double."""
    reach = 1
    while reach < width:
        step = min(reach, width - reach)
        length = maps.shape[dim] - step
        maps = pick(maps.narrow(dim, 0, length), maps.narrow(dim, step, length))
        reach += step
    return maps
