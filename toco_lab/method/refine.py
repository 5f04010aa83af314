"""Refinement of CAMs by the image: pixel-adaptive refinement (PAR) and the pseudo label it gives, step 5 of
`toco_lab.method`.

PAR comes from Ru et al., "Learning affinity from attention" (CVPR 2022), and ToCo uses it unchanged (CVPR 2023,
section on the segmentation decoder).
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.config import IGNORE_INDEX
from toco_lab.method.labels import outside_to_ignore
from toco_lab.method.present import PresentClasses

DILATIONS = (1, 2, 4, 8, 12, 24)  # distances of the eight neighbours, in pixels
PAR_SIGMA = 0.3  # width of the affinity, in local standard deviations
PAR_POSITION_WEIGHT = 0.01  # share of the position term; the weights of a pixel sum to 1.01
STACK_NUMBERS = 2**27  # of neighbours that a GPU takes at a time, 512 MB


@torch.no_grad()
def par_weights(image: Tensor, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """Weight of each pixel's neighbours: similar colour and, slightly, short distance.

    With n = 8 * len(dilations) neighbours: softmax over them of -(|I_k - I| / std / 0.3)^2, averaged over RGB, plus
    0.01 times the same of the distance in place of the colour difference; std is over the n neighbours.

    Args:
        image: (B, 3, h, w) float, values in [0, 1].
        dilations: Distances of the eight neighbours, in pixels; beyond the border the border pixel counts.

    Returns:
        (B, n, h, w), dilation-major; sums to 1.01 over n.
    """
    image = image.float()
    squared = (_squared_differences_in_stacks if in_stacks(image) else _squared_differences)(image, dilations)
    distance = torch.tensor([math.hypot(*offset) for offset in _offsets(dilations)])
    position_term = -(distance / (distance.std() + 1e-8) / PAR_SIGMA).square()  # (n,)
    position = (PAR_POSITION_WEIGHT * position_term.softmax(0)).to(image.device, non_blocking=True)
    return squared.neg_().softmax(1).add_(position[:, None, None])


@torch.no_grad()
def par_filter(weights: Tensor, masks: Tensor, dilations: Sequence[int] = DILATIONS, num_iter: int = 10) -> Tensor:
    """Replace every pixel by the weighted sum of its neighbours, `num_iter` times.

    Args:
        weights: (B, n, h, w) from `par_weights` with the same `dilations`.
        masks: (B, C, h, w); channels do not influence each other.
        dilations: Distances of the eight neighbours, in pixels.
        num_iter: Number of repetitions.

    Returns:
        (B, C, h, w), 1.01 ** num_iter times the range of `masks`.

    Raises:
        ValueError: If weights and masks do not fit each other or the dilations.
    """
    expected = (masks.shape[0], 8 * len(dilations), *masks.shape[2:])
    if weights.shape != expected:
        raise ValueError(f"weights {tuple(weights.shape)} do not fit masks {tuple(masks.shape)}: need {expected}")
    weighted_sum = _weighted_sum_in_stacks if in_stacks(masks) else _weighted_sum
    for _ in range(num_iter):
        masks = weighted_sum(weights, masks, dilations)
    return masks


def par(image: Tensor, masks: Tensor, *, dilations: Sequence[int] = DILATIONS, num_iter: int = 10) -> Tensor:
    """Pixel-adaptive refinement of masks of any size at the size of the image.

    Args:
        image: (B, 3, h, w), values in [0, 1].
        masks: (B, C, any, any), resized to (h, w) bilinearly with aligned corners.
        dilations: Distances of the eight neighbours, in pixels.
        num_iter: Number of repetitions.

    Returns:
        (B, C, h, w) float32.
    """
    masks = F.interpolate(masks.float(), size=image.shape[2:], mode="bilinear", align_corners=True)
    return par_filter(par_weights(image, dilations), masks, dilations, num_iter)


@torch.no_grad()
def refine_cam(
    image01: Tensor,
    cam: Tensor,
    present: PresentClasses,
    *,
    low: float,
    high: float | Tensor,
    valid_box: Tensor | None = None,
    scale: float = 0.5,
    dilations: Sequence[int] = DILATIONS,
    num_iter: int = 10,
) -> Tensor:
    """Pseudo label from a CAM: certain only where a strict and a loose background agree after PAR.

    The CAM is refined beside a constant background score of `high` and beside one of `low`. A pixel gets a class where
    the first run shows one, background where both runs show background, and is ignored in between.

    Args:
        image01: (B, 3, H, W), values in [0, 1].
        cam: (B, S, H, W), values in [0, 1].
        present: Its classes. The cost of PAR grows with S; absent classes take no part.
        low: Background score of the loose run.
        high: Background score of the strict run. With `high` equal to `low`, nothing inside the box is ignored. One
            number, or one for each image, (B,).
        valid_box: (B, 4) top, bottom, left, right in pixels, half-open; outside it the label is 255.
        scale: Size at which PAR works, relative to the image.
        dilations: Of PAR, in pixels of the scaled image.
        num_iter: Of PAR.

    Returns:
        (B, H, W) int64: 0 background, 1..C classes, 255 ignored.

    Raises:
        ValueError: If the shapes do not fit.
    """
    strict, loose = _refined_places(image01, cam, present, (high, low), scale, dilations, num_iter)
    label = present.class_label(strict).masked_fill((strict == 0) & (loose != 0), IGNORE_INDEX)
    return label if valid_box is None else outside_to_ignore(label, valid_box)


@torch.no_grad()
def refined_labels(
    image01: Tensor,
    cam: Tensor,
    present: PresentClasses,
    backgrounds: Sequence[float],
    *,
    scale: float = 0.5,
    dilations: Sequence[int] = DILATIONS,
    num_iter: int = 10,
    weights_of: Callable[[Tensor, Sequence[int]], Tensor] = par_weights,
) -> list[Tensor]:
    """For each background score, what `refine_cam` gives with that score as `low` and as `high`: nothing is ignored.

    The weights of PAR are computed once for all of them. Arguments and errors are those of `refine_cam`; `weights_of`
    may give other weights than PAR's, of an image with values in [0, 1].

    Returns:
        A label map (B, H, W) int64 for each of `backgrounds`: 0 background, 1..C classes.
    """
    places = _refined_places(image01, cam, present, backgrounds, scale, dilations, num_iter, weights_of)
    return [present.class_label(place) for place in places]


def _refined_places(
    image01: Tensor,
    cam: Tensor,
    present: PresentClasses,
    backgrounds: Sequence[float | Tensor],
    scale: float,
    dilations: Sequence[int],
    num_iter: int,
    weights_of: Callable[[Tensor, Sequence[int]], Tensor] = par_weights,
) -> list[Tensor]:
    """The strongest after PAR beside each constant background score: (B, H, W), 0 background, s + 1 class s of S."""
    batch, _, height, width = cam.shape
    if image01.shape != (batch, 3, height, width) or present.mask.shape != cam.shape[:2]:
        raise ValueError(
            f"cam {tuple(cam.shape)} does not fit image01 {tuple(image01.shape)} or the present classes "
            f"{tuple(present.mask.shape)}: need (B, S, H, W), (B, 3, H, W) and (B, S)"
        )
    size = int(height * scale), int(width * scale)
    image = F.interpolate(image01.float(), size=size, mode="bilinear", align_corners=False)
    foreground = F.interpolate(cam.float(), size=size, mode="bilinear", align_corners=False)
    absent = F.pad(~present.mask, (1, 0))[:, :, None, None]  # (B, 1 + S, 1, 1), the background first
    scores = [
        beside_background(foreground, background).masked_fill(absent, -torch.inf).softmax(1)
        for background in backgrounds
    ]
    refined = par_filter(weights_of(image, dilations), torch.cat(scores, 1), dilations, num_iter)
    refined = F.interpolate(refined, size=(height, width), mode="bilinear", align_corners=False)
    # max(1).indices is argmax(1), which is many times slower on a CPU where the axis is not the last
    return [run.max(1).indices for run in refined.chunk(len(backgrounds), dim=1)]


def beside_background(maps: Tensor, score: float | Tensor) -> Tensor:
    """Maps (B, S, h, w) behind a constant one: (B, 1 + S, h, w). The score is one for all images or (B,)."""
    if not isinstance(score, Tensor):
        return F.pad(maps, (0, 0, 0, 0, 1, 0), value=score)
    constant = score.to(maps.dtype)[:, None, None, None].expand(-1, 1, *maps.shape[2:])
    return torch.cat([constant, maps], dim=1)


def _offsets(dilations: Sequence[int]) -> list[tuple[int, int]]:
    """(dy, dx) of the eight neighbours at each dilation, row-major."""
    return [(dy * d, dx * d) for d in dilations for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]


def neighbours(maps: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """Shifted views of (B, C, h, w), one per offset; the border is repeated outwards."""
    reach = max(dilations)
    height, width = maps.shape[2:]
    padded = F.pad(maps, (reach,) * 4, mode="replicate")
    for dy, dx in _offsets(dilations):
        yield padded[:, :, reach + dy : reach + dy + height, reach + dx : reach + dx + width]


def in_stacks(maps: Tensor) -> bool:
    """Whether the neighbours of `maps` are taken many at a time.

    A GPU waits for launches rather than for memory: PAR of the toy's size is 50 of them then, not 900. A CPU takes one
    neighbour at a time, a view of the padded map that stays in its cache, in a tenth of the time of a stack.
    """
    return maps.device.type != "cpu"


def neighbour_stacks(maps: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """The neighbours of (B, C, h, w) copied side by side, (B, k, C, h, w): those of as many dilations at a time as
    `STACK_NUMBERS` has room for, of one at least.
    """
    together = max(1, STACK_NUMBERS // (8 * maps.numel()))
    for first in range(0, len(dilations), together):
        near = list(neighbours(maps, dilations[first : first + together]))
        # channels side by side: a GPU joins maps of four dimensions in one launch, of five in one for each
        yield torch.cat(near, dim=1).unflatten(1, (len(near), -1))


def _squared_differences(image: Tensor, dilations: Sequence[int]) -> Tensor:
    """(|I_k - I| / std / 0.3)^2 of each neighbour k, averaged over RGB: (B, n, h, w)."""
    number = 8 * len(dilations)
    # Three passes, neighbour by neighbour: all neighbours at once would need the memory of 48 images, and more time.
    mean = sum(neighbours(image, dilations)) / number
    variance = torch.zeros_like(image)
    for near in neighbours(image, dilations):
        centred = near - mean
        variance.addcmul_(centred, centred, value=1 / (number - 1))
    width = _width(variance)
    squared = image.new_empty(len(image), number, *image.shape[2:])
    for term, near in zip(squared.unbind(1), neighbours(image, dilations), strict=True):
        torch.mean((near - image).div_(width).square_(), dim=1, out=term)
    return squared


def _squared_differences_in_stacks(image: Tensor, dilations: Sequence[int]) -> Tensor:
    """`_squared_differences`, with many neighbours at a time."""
    number, zero = 8 * len(dilations), torch.zeros_like(image)
    mean = sum((near.sum(1) for near in neighbour_stacks(image, dilations)), zero).div(number)[:, None]
    squares = (near.sub_(mean).square_().sum(1) for near in neighbour_stacks(image, dilations))
    width = _width(sum(squares, zero).div(number - 1))[:, None]
    near_by = neighbour_stacks(image, dilations)
    return torch.cat([near.sub_(image[:, None]).div_(width).square_().mean(2) for near in near_by], dim=1)


def _width(variance: Tensor) -> Tensor:
    """The width of the affinity, of the variance over the neighbours; works in place."""
    return variance.sqrt_().add_(1e-8).mul_(PAR_SIGMA)


def _weighted_sum(weights: Tensor, masks: Tensor, dilations: Sequence[int]) -> Tensor:
    """Every pixel of masks (B, C, h, w) replaced by the sum of its neighbours times weights (B, n, h, w)."""
    refined = torch.zeros_like(masks)
    for weight, near in zip(weights.split(1, dim=1), neighbours(masks, dilations), strict=True):
        refined.addcmul_(weight, near)
    return refined


def _weighted_sum_in_stacks(weights: Tensor, masks: Tensor, dilations: Sequence[int]) -> Tensor:
    """`_weighted_sum`, with many neighbours at a time."""
    refined, first = torch.zeros_like(masks), 0
    for near in neighbour_stacks(masks, dilations):
        refined += near.mul_(weights[:, first : first + near.shape[1], None]).sum(1)
        first += near.shape[1]
    return refined
