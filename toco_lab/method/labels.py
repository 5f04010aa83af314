"""From a CAM to labels: thresholds, valid boxes, regions, and the label of every token."""

import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.config import IGNORE_INDEX

BACKGROUND, UNCERTAIN, FOREGROUND = 0, 1, 2  # values of a region mask


def mask_by_label(cam: Tensor, image_label: Tensor) -> Tensor:
    """`cam` (B, C, H, W) with the maps of absent classes set to 0. `image_label` is (B, C) in {0, 1}."""
    if image_label.shape != cam.shape[:2]:
        raise ValueError(f"image_label {tuple(image_label.shape)} does not fit the CAM {tuple(cam.shape)}")
    return cam * image_label[:, :, None, None].to(cam.dtype)


def cam_to_label(cam: Tensor, image_label: Tensor, *, threshold: float, valid_box: Tensor | None = None) -> Tensor:
    """The label a CAM stands for: its strongest present class, background where that is at or below the threshold.

    Args:
        cam: (B, C, H, W) in [0, 1].
        image_label: (B, C) in {0, 1}.
        threshold: Background score in [0, 1]; a negative one gives the strongest class everywhere.
        valid_box: (B, 4) top, bottom, left, right; outside it the label is 255.

    Returns:
        (B, H, W) int64: 0 background, 1..C classes, 255 outside the box.
    """
    score, label = mask_by_label(cam, image_label).max(dim=1)
    label = torch.where(score <= threshold, 0, label + 1)
    return label if valid_box is None else outside_to_ignore(label, valid_box)


def confident_label(cam: Tensor, image_label: Tensor, *, low: float, high: float, valid_box: Tensor) -> Tensor:
    """Class above `high`, background at or below `low`, 255 between them and outside the valid box; as
    `cam_to_label`.
    """
    score, label = mask_by_label(cam, image_label).max(dim=1)
    label = torch.where(score <= high, IGNORE_INDEX, label + 1)
    return outside_to_ignore(torch.where(score <= low, 0, label), valid_box)


def region_mask(cam: Tensor, image_label: Tensor, *, low: float, high: float) -> Tensor:
    """BACKGROUND at or below `low`, FOREGROUND at or above `high`, UNCERTAIN between: (B, H, W) int64."""
    score = mask_by_label(cam, image_label).amax(dim=1)
    region = torch.where(score <= low, BACKGROUND, torch.full_like(score, UNCERTAIN, dtype=torch.int64))
    return torch.where(score >= high, FOREGROUND, region)


def inside_box(valid_box: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W) bool: True inside each half-open box (top, bottom, left, right)."""
    top, bottom, left, right = (edge[:, None, None] for edge in valid_box.long().unbind(1))
    row = torch.arange(height, device=valid_box.device)[:, None]
    column = torch.arange(width, device=valid_box.device)
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)


def token_box(valid_box: Tensor, patch_size: int) -> Tensor:
    """A box in pixels, (B, 4), as a box of tokens: those wholly inside."""
    top, bottom, left, right = valid_box.unbind(1)
    up = patch_size - 1
    return torch.stack(
        [(top + up) // patch_size, bottom // patch_size, (left + up) // patch_size, right // patch_size], dim=1
    )


def outside_to_ignore(label: Tensor, valid_box: Tensor) -> Tensor:
    """`label` (B, H, W) with 255 outside each image's box."""
    return label.where(inside_box(valid_box, *label.shape[-2:]), IGNORE_INDEX)


def token_labels(
    cam_aux: Tensor,
    image_label: Tensor,
    grid: tuple[int, int],
    valid_box: Tensor,
    *,
    low: float,
    high: float,
    patch_size: int,
    box_units: str = "tokens",
) -> Tensor:
    """The label of every token position, from the auxiliary CAM: what PTC contrasts (method: training step, 4).

    Args:
        cam_aux: Multi-scale auxiliary CAM, (B, C, H, W) in [0, 1].
        image_label: (B, C) in {0, 1}.
        grid: Token rows and columns (h, w).
        valid_box: (B, 4) in pixels.
        low, high: Thresholds in [0, 1].
        patch_size: Side of a token in pixels.
        box_units: `tokens` divides the box by the patch size, keeping only tokens wholly inside; `pixels` uses it as
            it is, as the released code does, which ignores many images altogether.

    Returns:
        (B, h, w) int64 with 0 background, 1..C classes, 255 ignored.
    """
    small = F.interpolate(cam_aux, grid, mode="bilinear", align_corners=False)
    if box_units == "tokens":
        valid_box = token_box(valid_box, patch_size)
    return confident_label(small, image_label, low=low, high=high, valid_box=valid_box)
