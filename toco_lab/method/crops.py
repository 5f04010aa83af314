"""The local crops of class token contrast: where they lie, what they show, and how they are cut."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.method.labels import BACKGROUND, FOREGROUND, UNCERTAIN

# kinds of a crop, with the values of an affinity mask; an ignored one takes no part in the loss
POSITIVE, NEGATIVE, IGNORED = 1, 0, IGNORE_INDEX


@dataclass(frozen=True)
class LocalCrops:
    """Where local crops lie and what they show.

    Attributes:
        top, left: First row and column of each crop, (B, n) int64, in pixels.
        kind: (B, n) float: 1 positive, 0 negative, 255 ignored, see `sample_local_crops`.
        size: Side in pixels.
    """

    top: Tensor
    left: Tensor
    kind: Tensor
    size: int

    @property
    def flags(self) -> Tensor:
        """(B, 2 + n): a column of ones for each global view, which is always a positive, then `kind`."""
        return torch.cat([self.kind.new_ones(len(self.kind), 2), self.kind], dim=1)


def local_crops(
    region: Tensor, cfg: Config, *, valid_box: Tensor | None = None, generator: torch.Generator | None = None
) -> LocalCrops:
    """`sample_local_crops` with the settings of a config, which decides whether the valid box counts."""
    return sample_local_crops(
        region, crop_size=cfg.local_crop_size, num_crops=cfg.num_local_crops, candidates=cfg.crop_candidates,
        content=cfg.crop_content, min_content=cfg.crop_min_content, max_negative=cfg.crop_max_negative,
        between=cfg.ctc_between, valid_box=valid_box if cfg.crops_in_valid_box else None, generator=generator,
    )  # fmt: skip


def sample_local_crops(
    region: Tensor,
    *,
    crop_size: int,
    num_crops: int,
    candidates: Literal["uncertain", "not_foreground"] = "uncertain",
    content: Literal["area", "double_foreground"] = "area",
    min_content: float = 0.2,
    max_negative: float = 0.05,
    between: Literal["ignore", "negative"] = "negative",
    valid_box: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> LocalCrops:
    """Draw local crops around random positions that are not confident foreground (step 2 of `toco_lab.method`).

    What a crop is depends on `between`:

    * `ignore`: a positive is centred on an uncertain position and shows more than `min_content`, a negative is centred
      on background and shows `max_negative` or less, and what is neither is ignored. Half of the crops (the larger
      half) are drawn from the centres of positives, the others from those of negatives: drawing anywhere and leaving
      out what is neither would give the same crops, and encode many for nothing. Where an image has too few centres of
      a kind, the other kind fills up, then other centres that are not foreground, then any.
    * `negative`, as in the released code: centres are drawn from the candidates without regard to what their crops
      show; a crop that shows more than `min_content` is a positive, every other a negative.

    Args:
        region: Region mask, (B, H, W): 0 background, 1 uncertain, 2 foreground.
        crop_size: Side c, even, smaller than H and W. The last start row H - c is never drawn, as in the reference.
        num_crops: Crops n per image. With `negative`, every position is a candidate where there are fewer than n.
        candidates: Regions a crop may be centred on: `not_foreground` (uncertain and background), as in the paper and
            the released code, or `uncertain` alone; with `ignore` nothing is a negative then.
        content: What a crop shows is measured as its share of pixels that are not background (`area`), or with
            foreground counted twice as in the released code (`double_foreground`).
        min_content: A crop must show more than this to be a positive.
        max_negative: A crop must show this or less to be a negative (with `ignore`).
        between: What a crop is that is no clean positive and no clean negative.
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
    weight = (region if content == "double_foreground" else region.clamp(max=1)).float()
    columns = window.shape[-1]
    if between == "ignore":
        shown = _content_everywhere(weight, crop_size)[:, :-1, :-1]
        kinds = _kinds(window, candidate, shown, min_content, max_negative).flatten(1)  # of a crop at each position
        negatives = num_crops // 2 if candidates == "not_foreground" else 0
        corner = _draw_both_kinds(kinds, candidate.flatten(1), allowed.flatten(1), num_crops, negatives, generator)
        return LocalCrops(corner // columns, corner % columns, kinds.gather(1, corner), crop_size)
    draw = _draw_by_permutation if region.device.type == "cpu" else _draw_by_rank
    corner = draw((candidate & allowed).flatten(1), allowed.flatten(1), num_crops, generator)
    top, left = corner // columns, corner % columns
    content_of_each = _cut(weight[:, None], top, left, crop_size).mean((-3, -2, -1))  # (B, n)
    return LocalCrops(top, left, (content_of_each > min_content).float(), crop_size)


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
    return _highest(_random_scores(pool, generator), pool, number)


def _draw_both_kinds(
    kinds: Tensor,
    candidate: Tensor,
    allowed: Tensor,
    number: int,
    negatives: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Indices of random places, (B, number): first those that ask for a positive, then `negatives` for a negative.

    Allowed places of the kind asked for come first, then those of the other kind, then candidates, then any. Both
    halves read one random order of the places from its two ends, so that no place comes twice while there are enough.
    On every device the same places are drawn, and the host does not wait.

    Args:
        kinds: (B, P) float, the kind of a crop at each place.
        candidate, allowed: (B, P) bool.
        number: Places to draw for each image.
        negatives: How many of them ask for a negative.
        generator: CPU generator; None uses torch's global one.
    """
    chance = _random_scores(kinds, generator) / 2  # below 1 also after a whole number is added
    is_positive, is_negative = kinds == POSITIVE, kinds == NEGATIVE
    rest = candidate.float() + is_positive + is_negative
    asks = ((is_positive, chance, number - negatives), (is_negative, -chance, negatives))
    drawn = [_highest(rest + wanted + order, allowed, count) for wanted, order, count in asks if count]
    return torch.cat(drawn, dim=1)


def _random_scores(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random numbers in [0, 1) of a shape, drawn on the CPU; a GPU gets them without a wait."""
    scores = torch.rand(like.shape, generator=generator)
    if like.is_cuda:
        scores = scores.pin_memory()  # a large copy from ordinary memory would wait for all that is queued on the GPU
    return scores.to(like.device, non_blocking=True)


def _highest(scores: Tensor, pool: Tensor, number: int) -> Tensor:
    """Indices of the places of a pool (B, P) with the highest scores, (B, number): in turn where there are fewer."""
    most = min(number, pool.shape[1])
    first = torch.where(pool, scores, -1.0).topk(most, dim=1).indices
    turns = torch.arange(number, device=pool.device) % pool.sum(1, keepdim=True).clamp(max=most)
    return first.gather(1, turns)


def _kinds(window: Tensor, candidate: Tensor, shown: Tensor, min_content: float, max_negative: float) -> Tensor:
    """The kind of a crop around each position of the window, (B, h, w) float."""
    positive = candidate & (window == UNCERTAIN) & (shown > min_content)
    negative = candidate & (window == BACKGROUND) & (shown <= max_negative)
    kinds = torch.full_like(shown, IGNORED)
    return torch.where(positive, POSITIVE, torch.where(negative, NEGATIVE, kinds))


def _content_everywhere(weight: Tensor, size: int) -> Tensor:
    """Mean of every square of a side in (B, H, W), by its corner: (B, H - size + 1, W - size + 1).

    Whole numbers are summed without rounding, first along columns, then along rows.
    """
    sums = F.avg_pool2d(weight[:, None], (size, 1), stride=1, divisor_override=1)
    return F.avg_pool2d(sums, (1, size), stride=1, divisor_override=1)[:, 0] / size**2


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
