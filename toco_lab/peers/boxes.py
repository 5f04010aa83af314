"""Boxes of maps, as the field of weakly-supervised localisation makes and scores them (TS-CAM's published figures).

The rules are those of the released code, its quirks included: maps in 256 levels, truncated; areas of contours that run
through the centres of pixels; an IoU in which every width and height counts one more.
"""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from toco_lab.method.cam import resize


def unit_map(maps: Tensor, side: int) -> Tensor:
    """Maps (n, h, w) at side x side pixels, bilinear, each from 0 to 1."""
    large = resize(maps[:, None], (side, side))[:, 0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    return (large - low) / (high - low)


def largest_box(unit: Tensor, threshold: float) -> tuple[int, int, int, int]:
    """The box around the largest region of a map that lies above a share of its maximum.

    Args:
        unit: (H, W) in [0, 1].
        threshold: Share of the maximum, in [0, 1).

    Returns:
        x0, y0, x1, y1, the latter one past the last pixel; (0, 0, 1, 1) where nothing lies above the threshold.
    """
    region = largest_region(unit.cpu().numpy(), threshold)
    if not region.any():
        return 0, 0, 1, 1
    rows, columns = ndimage.find_objects(region.astype(np.uint8))[0]
    return columns.start, rows.start, columns.stop, rows.stop


def largest_region(unit: np.ndarray, threshold: float) -> np.ndarray:
    """The region of `largest_box`, (H, W) bool, of a map (H, W) in [0, 1]; False everywhere where there is none."""
    levels = (255 * unit).astype(np.uint8)
    regions, count = ndimage.label(levels > int(threshold * levels.max()), np.ones((3, 3)))
    areas = [_contour_area(ndimage.binary_fill_holes(regions == number)) for number in range(1, count + 1)]
    return regions == 1 + int(np.argmax(areas)) if count else np.zeros(unit.shape, bool)


def _contour_area(region: np.ndarray) -> float:
    """Area inside the outline through the outermost pixels of a region without holes, (H, W) bool.

    A square of four neighbours lies inside with all its area if all four belong to the region, with half of it if
    three do.
    """
    corners = region.astype(int)
    inside = corners[:-1, :-1] + corners[:-1, 1:] + corners[1:, :-1] + corners[1:, 1:]
    return float((inside == 4).sum() + 0.5 * (inside == 3).sum())


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of boxes (n, 4) and (m, 4), as (n, m); every width and height counts one more."""
    one, two = first.double()[:, None], second.double()[None]
    sides = torch.minimum(one[..., 2:], two[..., 2:]) - torch.maximum(one[..., :2], two[..., :2]) + 1
    common = sides.clamp(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2] + 1).prod(-1) for boxes in (one, two)]
    return (common / (areas[0] + areas[1] - common)).float()
