"""The local crops of class token contrast: where they lie, what they show, and how they are cut."""

from dataclasses import dataclass

import torch
from torch import Tensor

from toco_lab.method.labels import FOREGROUND, UNCERTAIN


@dataclass(frozen=True)
class LocalCrops:
    """Where local crops lie and what they show.

    Attributes:
        top, left: First row and column of each crop, (B, n) int64, in pixels.
        positive: (B, n) float: 1 where the crop shows enough of an object; 0 for a negative.
        size: Side in pixels.
    """

    top: Tensor
    left: Tensor
    positive: Tensor
    size: int

    @property
    def flags(self) -> Tensor:
        """(B, 2 + n): a column of ones for each global view, which is always a positive, then `positive`."""
        return torch.cat([self.positive.new_ones(len(self.positive), 2), self.positive], dim=1)


def sample_local_crops(
    region: Tensor,
    *,
    crop_size: int,
    num_crops: int,
    candidates: str = "uncertain",
    content: str = "area",
    min_content: float = 0.2,
    valid_box: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> LocalCrops:
    """Draw local crops around random positions that are not confident foreground (step 2 of `toco_lab.method`).

    Args:
        region: Region mask, (B, H, W): 0 background, 1 uncertain, 2 foreground.
        crop_size: Side c, even, smaller than H and W. The last start row H - c is never drawn, as in the reference.
        num_crops: Crops n per image. Where there are fewer candidates, every position is one.
        candidates: Regions a crop may be centred on: `uncertain`, or `not_foreground` as in the released code, which
            takes background as well.
        content: What a crop shows is measured as its share of pixels that are not background (`area`), or with
            foreground counted twice as in the released code (`double_foreground`).
        min_content: A crop with this content or less is a negative.
        valid_box: (B, 4) top, bottom, left, right. Crops stay inside it; on an axis on which it is smaller than a crop,
            they cover it. None allows crops anywhere, as the released code does.
        generator: CPU generator; None uses torch's global one.

    Raises:
        ValueError: If the crop size is odd or leaves no room to move.
    """
    height, width = region.shape[-2:]
    if crop_size % 2 or crop_size >= min(height, width):
        raise ValueError(f"crop_size {crop_size} must be even and smaller than the region mask {height} x {width}")
    half = crop_size // 2
    # a position of the window is a crop's centre in the image; its index in the window is the crop's corner
    window = region[:, half : height - half, half : width - half]
    candidate = window == UNCERTAIN if candidates == "uncertain" else window < FOREGROUND
    allowed = torch.ones_like(candidate)
    if valid_box is not None:
        top, bottom, left, right = valid_box.unbind(1)
        rows = _fitting(top, bottom, crop_size, window.shape[1])
        allowed = rows[:, :, None] & _fitting(left, right, crop_size, window.shape[2])[:, None, :]
    draw = _draw_by_permutation if region.device.type == "cpu" else _draw_by_rank
    corner = draw((candidate & allowed).flatten(1), allowed.flatten(1), num_crops, generator)
    top, left = corner // window.shape[-1], corner % window.shape[-1]
    weight = (region if content == "double_foreground" else region.clamp(max=1)).float()
    shown = _cut(weight[:, None], top, left, crop_size).mean((-3, -2, -1))  # (B, n)
    return LocalCrops(top, left, (shown > min_content).float(), crop_size)


def cut_local_views(image: Tensor, crops: LocalCrops) -> Tensor:
    """The crops of each image, view-major: (n*B, 3, c, c), row v*B + i is crop v of image i."""
    return _cut(image, crops.top, crops.left, crops.size).transpose(0, 1).flatten(0, 1)


def _draw_by_permutation(
    candidate: Tensor, allowed: Tensor, number: int, generator: torch.Generator | None = None
) -> Tensor:
    """Indices of random places, (B, number): different candidates, or allowed places where there are too few of them.

    Allowed places are drawn again in turn where there are fewer than `number`.

    Args:
        candidate: (B, P) bool.
        allowed: (B, P) bool, at least one True in a row.
        number: Places to draw for each image.
        generator: CPU generator; None uses torch's global one.
    """
    drawn = []
    for image_candidate, image_allowed in zip(candidate, allowed, strict=True):
        places = image_candidate.nonzero().flatten()
        if len(places) < number:
            places = image_allowed.nonzero().flatten()
        chosen = torch.randperm(len(places), generator=generator)[:number]
        drawn.append(places[chosen[torch.arange(number) % len(chosen)]])
    return torch.stack(drawn)


def _draw_by_rank(candidate: Tensor, allowed: Tensor, number: int, generator: torch.Generator | None = None) -> Tensor:
    """`_draw_by_permutation` for a GPU: the first places in a random order of all of them.

    The host does not wait to learn how many candidates there are. The random numbers are others.
    """
    pool = torch.where(candidate.sum(1, keepdim=True) >= number, candidate, allowed)
    scores = torch.rand(pool.shape, generator=generator)
    if pool.is_cuda:
        scores = scores.pin_memory()  # a large copy from ordinary memory would wait for all that is queued on the GPU
    scores = scores.to(pool.device, non_blocking=True)
    most = min(number, pool.shape[1])
    first = torch.where(pool, scores, -1.0).topk(most, dim=1).indices
    turns = torch.arange(number, device=pool.device) % pool.sum(1, keepdim=True).clamp(max=most)
    return first.gather(1, turns)


def _fitting(begin: Tensor, end: Tensor, crop_size: int, num_starts: int) -> Tensor:
    """(B, starts) bool: starts of crops inside [begin, end) on one axis; if none fits, of those that cover it."""
    start = torch.arange(num_starts, device=begin.device)
    begin, end = begin[:, None], end[:, None]
    inside = (start >= begin) & (start + crop_size <= end)
    over = (start <= begin) & (start + crop_size >= end)
    return torch.where(inside.any(1, keepdim=True), inside, torch.where(over.any(1, keepdim=True), over, True))


def _cut(image: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """(B, K, H, W) and corners (B, n) -> (B, n, K, size, size), by indexing alone: no host synchronisation."""
    step = torch.arange(size, device=image.device)
    rows = top[:, :, None, None] + step[:, None]  # (B, n, size, 1)
    columns = left[:, :, None, None] + step  # (B, n, 1, size)
    which = torch.arange(len(image), device=image.device)[:, None, None, None]
    return image.permute(0, 2, 3, 1)[which, rows, columns].permute(0, 1, 4, 2, 3)
