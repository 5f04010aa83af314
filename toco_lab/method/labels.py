"""From a CAM to labels: thresholds, valid boxes, region masks, and the label of every token.

Every CAM here has the maps of the present classes, (B, S, H, W) in [0, 1], and comes with its `PresentClasses`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.config import IGNORE_INDEX
from toco_lab.method.present import PresentClasses

BACKGROUND, UNCERTAIN, FOREGROUND = 0, 1, 2  # values of a region mask


def mask_by_label(cam: Tensor, image_label: Tensor) -> Tensor:
    """`cam` (B, C, H, W) with the maps of absent classes set to 0. `image_label` is (B, C) in {0, 1}.

    Raises:
        ValueError: If the two do not fit.
    """
    if image_label.shape != cam.shape[:2]:
        raise ValueError(f"image_label {tuple(image_label.shape)} does not fit the CAM {tuple(cam.shape)}")
    return cam * image_label[:, :, None, None].to(cam.dtype)


def confident_label(
    cam: Tensor, present: PresentClasses, *, low: float, high: float | Tensor, valid_box: Tensor | None = None
) -> Tensor:
    """The label of a CAM by thresholds: the strongest present class where its score is clear, 255 where it is not.

    Args:
        cam: (B, S, H, W) in [0, 1].
        present: Its classes.
        low: At or below it a pixel is background; a negative value gives the strongest class everywhere.
        high: Above it a pixel has its strongest class; between the two it is ignored. With `high` equal to `low`,
            nothing is. One number, or one for each image, (B,).
        valid_box: (B, 4) top, bottom, left, right in pixels, half-open; outside it the label is 255.

    Returns:
        (B, H, W) int64: 0 background, 1..C classes, 255 ignored.
    """
    score, place = mask_by_label(cam, present.mask).max(dim=1)
    high = high[:, None, None] if isinstance(high, Tensor) else high
    label = torch.where(score <= high, IGNORE_INDEX, place + 1)
    label = present.class_label(torch.where(score <= low, 0, label))
    return label if valid_box is None else outside_to_ignore(label, valid_box)


def region_mask(cam: Tensor, present: PresentClasses, *, low: float, high: float) -> Tensor:
    """BACKGROUND at or below `low`, FOREGROUND at or above `high`, UNCERTAIN between: (B, H, W) int64."""
    score = mask_by_label(cam, present.mask).amax(dim=1)
    region = torch.where(score <= low, BACKGROUND, torch.full_like(score, UNCERTAIN, dtype=torch.int64))
    return torch.where(score >= high, FOREGROUND, region)


def where_known(label: Tensor, mask: Tensor, has_mask: Sequence[bool]) -> Tensor:
    """`mask` of the images that have one, `label` of the others.

    Args:
        label: (B, H, W) integers.
        mask: The same shape.
        has_mask: Of each image, on the host: nothing waits for a GPU.

    Raises:
        ValueError: If the three do not fit.
    """
    if label.shape != mask.shape or len(has_mask) != len(label):
        raise ValueError(
            f"mask {tuple(mask.shape)} and has_mask of {len(has_mask)} do not fit label {tuple(label.shape)}: need one "
            "shape, and a bool for each image"
        )
    return torch.stack([mask[place] if known else label[place] for place, known in enumerate(has_mask)])


def region_of_mask(mask: Tensor, region: Tensor) -> Tensor:
    """A region mask (B, H, W) after it was put right by a true mask of the same shape.

    Background of the mask is BACKGROUND. An object is FOREGROUND where the region says so, and UNCERTAIN elsewhere:
    what the CAM does not show yet is where positive crops are to be centred. Where the mask is 255 the region stays.
    """
    found = torch.where(mask == 0, BACKGROUND, region.clamp(min=UNCERTAIN))
    return torch.where(mask == IGNORE_INDEX, region, found)


def token_labels_of_mask(mask: Tensor, grid: Sequence[int]) -> Tensor:
    """The label of every token by a true mask (B, H, W), int64 (B, h, w): that of its pixels, 255 where they differ.

    A token that is not wholly inside the valid box is 255 as well, because padding is.
    """
    pixels = mask[:, None].float()
    highest, lowest = (sign * F.adaptive_max_pool2d(sign * pixels, tuple(grid)) for sign in (1, -1))
    return highest.where(highest == lowest, IGNORE_INDEX)[:, 0].long()


def token_labels(
    cam_aux: Tensor,
    present: PresentClasses,
    grid: Sequence[int],
    valid_box: Tensor,
    *,
    low: float,
    high: float | Tensor,
    patch_size: int,
    box_units: str = "tokens",
) -> Tensor:
    """The label of every token by the auxiliary CAM, from which PTC makes its pairs (step 4 of `toco_lab.method`).

    Args:
        cam_aux: Multi-scale auxiliary CAM, (B, S, H, W) in [0, 1].
        present: Its classes.
        grid: Token rows and columns (h, w).
        valid_box: (B, 4) in pixels.
        low, high: Thresholds in [0, 1]; `high` may be one for each image, (B,).
        patch_size: Side of a token in pixels.
        box_units: `tokens` divides the box by the patch size, keeping only tokens wholly inside; `pixels` uses it as
            it is, as the released code does, which ignores many images altogether.

    Returns:
        (B, h, w) int64: 0 background, 1..C classes, 255 ignored.
    """
    if box_units == "tokens":
        valid_box = token_box(valid_box, patch_size)
    cam_aux = F.interpolate(cam_aux, tuple(grid), mode="bilinear", align_corners=False)
    return confident_label(cam_aux, present, low=low, high=high, valid_box=valid_box)


def inside_box(valid_box: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W) bool: True inside each half-open box (top, bottom, left, right)."""
    top, bottom, left, right = (edge[:, None, None] for edge in valid_box.long().unbind(1))
    row = torch.arange(height, device=valid_box.device)[:, None]
    column = torch.arange(width, device=valid_box.device)
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)


def outside_to_ignore(label: Tensor, valid_box: Tensor) -> Tensor:
    """`label` (B, H, W) with 255 outside each image's box.

    Raises:
        ValueError: If there is not one box for each image.
    """
    if valid_box.shape != (len(label), 4):
        raise ValueError(f"valid_box {tuple(valid_box.shape)} does not fit label {tuple(label.shape)}: need (B, 4)")
    return label.where(inside_box(valid_box, *label.shape[-2:]), IGNORE_INDEX)


def token_box(valid_box: Tensor, patch_size: int) -> Tensor:
    """A box in pixels, (B, 4), as a box of tokens: the tokens that lie wholly inside it."""
    top, bottom, left, right = valid_box.unbind(1)
    up = patch_size - 1
    return torch.stack(
        [(top + up) // patch_size, bottom // patch_size, (left + up) // patch_size, right // patch_size], dim=1
    )
