"""Learning from images without a mask: a confident prediction on a weak view teaches a strong one.

Sohn et al., "FixMatch" (NeurIPS 2020), pixel by pixel as in Yang et al., "Revisiting Weak-to-Strong Consistency in
Semi-Supervised Semantic Segmentation" (UniMatch, CVPR 2023), of which this is the part with one strong view of the
image. The strong view has other colours and CutMix: French et al., "Semi-supervised semantic segmentation needs strong,
varied perturbations" (BMVC 2020), paste rectangles of half the image's area.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.config import IGNORE_INDEX
from toco_lab.method.labels import inside_box, outside_to_ignore

CUT_SHARE = 0.5  # of the area of an image, in the rectangle that is pasted
Box = tuple[int, int, int, int]  # top, bottom, left, right in pixels, half-open


@torch.no_grad()
def certain_label(logits: Tensor, valid_box: Tensor, *, threshold: float) -> Tensor:
    """What a prediction says where it is sure: the label of the strong view.

    Args:
        logits: (B, K, H, W).
        valid_box: (B, 4) top, bottom, left, right in pixels, half-open.
        threshold: The largest probability of a pixel must be above it.

    Returns:
        (B, H, W) int64 in 0..K-1, 255 where the prediction is not sure and outside the box.
    """
    confidence, label = logits.float().softmax(1).max(1)
    return outside_to_ignore(label.where(confidence > threshold, IGNORE_INDEX), valid_box)


def consistency_loss(logits: Tensor, label: Tensor, inside: Tensor) -> Tensor:
    """Cross entropy of the certain pixels, summed, over the number of all pixels inside (FixMatch, equation 4).

    Pixels that are not certain count in the divisor: the loss is small while the network is sure of little.

    Args:
        logits: Of the strong view, (B, K, H, W).
        label: (B, H, W), 255 where the weak view was not certain; no gradient reaches it.
        inside: (B, H, W) bool, False in padding.

    Returns:
        Scalar >= 0; 0 where no pixel is certain.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if label.shape != inside.shape or label.shape != logits[:, 0].shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} do not fit label {tuple(label.shape)} and inside {tuple(inside.shape)}: "
            "need (B, K, H, W) and (B, H, W) twice"
        )
    pixels = F.cross_entropy(logits.float(), label, ignore_index=IGNORE_INDEX, reduction="none")
    return pixels.sum() / inside.sum().clamp(min=1)


def draw_boxes(
    count: int, side: int, *, share: float = CUT_SHARE, generator: torch.Generator | None = None
) -> list[Box]:
    """Rectangles of a share of a square's area, anywhere in it, with sides of any proportion (French et al.).

    Height and width are share^u and share^(1 - u) of the side, with u uniform in [0, 1].

    Args:
        count: How many.
        side: Of the square, in pixels.
        share: In (0, 1].
        generator: CPU generator; None uses torch's global one.
    """
    boxes = []
    for u, down, across in torch.rand(count, 3, generator=generator, dtype=torch.float64).tolist():
        height, width = (min(side, max(1, round(side * share**power))) for power in (u, 1 - u))
        top, left = (int(place * (side - length + 1)) for place, length in ((down, height), (across, width)))
        boxes.append((top, top + height, left, left + width))
    return boxes


def cut_mix(maps: Tensor, boxes: Sequence[Box]) -> Tensor:
    """Each image with a rectangle of the next one, the last one with one of the first.

    Args:
        maps: Images, labels or anything else that lies alike, (B, ..., H, W).
        boxes: One for each image.

    Returns:
        A copy of the same shape. Of a single image it is the image.
    """
    mixed = maps.clone()
    for place, (top, bottom, left, right) in enumerate(boxes):
        other = maps[(place + 1) % len(maps)]
        mixed[place, ..., top:bottom, left:right] = other[..., top:bottom, left:right]
    return mixed


def strong_view(
    image: Tensor, label: Tensor, valid_box: Tensor, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """CutMix of images and of all that belongs to them.

    Args:
        image: In the colours of the strong view, (B, 3, S, S).
        label: `certain_label` of the weak view, (B, S, S).
        valid_box: (B, 4).
        generator: CPU generator for the rectangles.

    Returns:
        Image, label, and where the mixed image is no padding, (B, S, S) bool.
    """
    inside = inside_box(valid_box, *label.shape[-2:])
    boxes = draw_boxes(len(image), image.shape[-1], generator=generator)
    return cut_mix(image, boxes), cut_mix(label, boxes), cut_mix(inside, boxes)
