"""Class activation maps: multi-scale CAM, thresholds to labels, uncertain regions and the local crops of CTC."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.config import IGNORE_INDEX
from toco_lab.model import ToCo, TokenFeatures, pieces_of

BACKGROUND, UNCERTAIN, FOREGROUND = 0, 1, 2  # values of a region mask


@dataclass(frozen=True)
class Cams:
    """Multi-scale CAMs, (B, C, H, W), each map min-max normalised to [0, 1), or 0 where a class does not count.

    Attributes:
        cam: From the final patch tokens.
        cam_aux: From the auxiliary patch tokens.
    """

    cam: Tensor
    cam_aux: Tensor


@dataclass(frozen=True)
class Slots:
    """The classes present in each image of a batch, in the first of S slots: what costs time need not see the others.

    Attributes:
        classes: (B, S) int64, class index of each slot: present ones in order, absent ones behind them.
        present: (B, S) bool, whether the class of the slot is there.
        num_classes: C.
    """

    classes: Tensor
    present: Tensor
    num_classes: int

    @classmethod
    def of(cls, image_label: Tensor, most: int | None = None) -> "Slots":
        """Slots of image labels, (B, C) in {0, 1}.

        Args:
            most: Their number: a bound the caller knows on the present classes of one image, further ones would be
                dropped. None counts, for which the host waits where the labels are on a GPU.
        """
        most = max(1, int(image_label.count_nonzero(1).max()) if most is None else most)
        classes = image_label.bool().int().argsort(dim=1, descending=True, stable=True)[:, :most]
        return cls(classes, image_label.gather(1, classes) != 0, image_label.shape[1])

    def take(self, maps: Tensor) -> Tensor:
        """Maps of classes, (..., B, C, h, w), to maps of slots, (..., B, S, h, w).

        Raises:
            ValueError: If they do not fit the image labels.
        """
        if maps.shape[-4:-2] != (len(self.classes), self.num_classes):
            raise ValueError(
                f"image_label {(len(self.classes), self.num_classes)} does not fit maps {tuple(maps.shape)}"
            )
        return maps[..., self._images, self.classes, :, :]

    def spread(self, maps: Tensor) -> Tensor:
        """The way back, to (..., B, C, h, w); maps of absent classes are 0."""
        spread = maps.new_zeros(*maps.shape[:-3], self.num_classes, *maps.shape[-2:])
        spread[..., self._images, self.classes, :, :] = maps * self.present[:, :, None, None]
        return spread

    def class_label(self, label: Tensor) -> Tensor:
        """A label map in slots, (B, h, w): 0 background, 1..S slots, 255 ignored; the same with 1..C classes."""
        numbers = F.pad(self.classes + 1, (1, 0))  # (B, 1 + S)
        slot = label.flatten(1)
        return numbers.gather(1, slot.clamp(max=numbers.shape[1] - 1)).where(slot != IGNORE_INDEX, slot).view_as(label)

    @property
    def _images(self) -> Tensor:
        return torch.arange(len(self.classes), device=self.classes.device)[:, None]


@dataclass(frozen=True)
class LocalCrops:
    """Where local crops lie and what they show.

    Attributes:
        top, left: First row and column of each crop, (B, n) int64, in pixels.
        positive: (B, n) float: 1 where the crop shows enough of an object, 0 where it is a negative.
        size: Side in pixels.
    """

    top: Tensor
    left: Tensor
    positive: Tensor
    size: int

    @property
    def flags(self) -> Tensor:
        """(B, 2 + n): `positive` behind a column of ones for each global view (always positives in the method)."""
        return torch.cat([self.positive.new_ones(len(self.positive), 2), self.positive], dim=1)


@torch.no_grad()
def multi_scale_cam(
    model: ToCo,
    image: Tensor,
    scales: tuple[float, ...] = (1.0, 0.5, 1.5),
    *,
    plain: TokenFeatures | None = None,
    image_label: Tensor | None = None,
    max_present: int | None = None,
    size: Sequence[int] | None = None,
) -> Cams:
    """Multi-scale CAM of the final and of the auxiliary tokens (method: training step, 1).

    Each scale: raw CAMs of the image and of its mirror image, resized to H x W, their maximum, ReLU. Summed over
    scales, then min-max normalised per map.

    Args:
        image: Normalised images, (B, 3, H, W).
        scales: Image scales; each runs once as it is and once mirrored.
        plain: Tokens of `image` where a pass at scale 1 was already made: that pass is not repeated.
        image_label: (B, C) in {0, 1}: the maps of absent classes are 0, and nothing is spent on them. None: all count.
        max_present: Bound on the present classes of one image, see `Slots.of`.
        size: The maps are resized to it at the end; None leaves them at H x W.

    Raises:
        ValueError: If `image_label` does not fit the images and the classes of the model.
    """
    if image_label is None:
        image_label = image.new_ones(len(image), model.classifier.out_channels)
    slots = Slots.of(image_label, max_present)
    maps = slot_cams(model, image, slots, scales, plain=plain, size=size)
    return Cams(slots.spread(maps.cam), slots.spread(maps.cam_aux))


@torch.no_grad()
def slot_cams(
    model: ToCo,
    image: Tensor,
    slots: Slots,
    scales: tuple[float, ...] = (1.0, 0.5, 1.5),
    *,
    plain: TokenFeatures | None = None,
    size: Sequence[int] | None = None,
) -> Cams:
    """`multi_scale_cam` of the classes in slots alone, (B, S, H, W); what stands in slots of absent classes means
    nothing.
    """
    raw = (slots.take(raw_cams(model, image, scale, plain=plain)) for scale in scales)
    maps = min_max(sum(fuse_flip(one, image.shape[-2:]) for one in raw))  # (2, B, S, H, W)
    return Cams(*(maps if size is None else resize_each(maps, size)))


@torch.no_grad()
def raw_cams(model: ToCo, image: Tensor, scale: float, *, plain: TokenFeatures | None = None) -> Tensor:
    """CAMs of one scale as they come: (2, 2, B, C, h, w), of the final and the auxiliary tokens, by image and mirror
    image (still mirrored). Where the grids of the two differ, both have the finer one. Arguments as in
    `multi_scale_cam`.
    """
    scaled = image if scale == 1 else resize(image, [int(length * scale) for length in image.shape[-2:]])
    if scale == 1 and plain is not None:
        parts, rest = [model.cams(plain)], scaled.flip(-1)
    else:
        parts, rest = [], torch.cat([scaled, scaled.flip(-1)])
    parts += [model.cams(model.encode(piece)) for piece in pieces_of(rest, model.patch_size)]
    both = [torch.cat(of_head) for of_head in zip(*parts, strict=True)]
    finer = max((maps.shape[-2:] for maps in both), key=sum)
    both = [maps if maps.shape[-2:] == finer else resize(maps, finer) for maps in both]
    return torch.stack([maps.unflatten(0, (2, -1)) for maps in both])


def fuse_flip(raw: Tensor, size: Sequence[int], *, flip: bool = True) -> Tensor:
    """One scale's share of a multi-scale CAM: the maximum of image and mirror image at full size, ReLU.

    Args:
        raw: (K, 2, B, C, h, w), by map and by mirroring, as `raw_cams` gives it.
        size: (H, W).
        flip: Without it the mirror image does not count.

    Returns:
        (K, B, C, H, W).
    """
    straight, mirrored = resize_each(raw, size).unbind(1)
    return (torch.maximum(straight, mirrored.flip(-1)) if flip else straight).relu_()


def min_max(cam: Tensor) -> Tensor:
    """Shift and scale each map (..., H, W) to [0, 1): minus its minimum, over its maximum + 1e-5."""
    cam = cam - cam.amin((-2, -1), keepdim=True)
    return cam / (cam.amax((-2, -1), keepdim=True) + 1e-5)


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) at another size: bilinear, corners not aligned, as CAMs and their images are resized throughout."""
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def resize_each(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(..., h, w) at another size, each map to the same bits whatever others there are: `resize` may round differently
    where there are three channels, for which torch has a kernel of its own.
    """
    return resize(maps.flatten(0, -3)[:, None], size).view(*maps.shape[:-2], *size)


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
    """Draw local crops around random positions that are not confident foreground (method: training step, 2).

    Args:
        region: Region mask, (B, H, W) with 0 background, 1 uncertain, 2 foreground.
        crop_size: Side c, even, smaller than H and W. The last start row H - c is never drawn, as in the reference.
        num_crops: Crops n per image. Where fewer candidates exist, any position will do.
        candidates: `uncertain`, or `not_foreground` as the released code (background as well).
        content: A crop's content is its share of non-background pixels (`area`); the released code counts foreground
            twice (`double_foreground`).
        min_content: A crop with this content or less is a negative.
        valid_box: (B, 4): keep crops inside it, on an axis where it is too small around it; None does not (released).
        generator: CPU generator; None uses torch's global one.

    Raises:
        ValueError: If the crop is odd or does not leave room to move.
    """
    height, width = region.shape[-2:]
    if crop_size % 2 or crop_size >= min(height, width):
        raise ValueError(f"crop_size {crop_size} must be even and smaller than the region mask {height} x {width}")
    half = crop_size // 2
    # a position of the window is a crop's centre in the image; its index in the window is the crop's corner
    window = region[:, half : height - half, half : width - half]
    wanted = window == UNCERTAIN if candidates == "uncertain" else window < FOREGROUND
    allowed = torch.ones_like(wanted)
    if valid_box is not None:
        top, bottom, left, right = valid_box.unbind(1)
        rows = _fitting(top, bottom, crop_size, window.shape[1])
        allowed = rows[:, :, None] & _fitting(left, right, crop_size, window.shape[2])[:, None, :]
    draw = _draw_by_permutation if region.device.type == "cpu" else _draw_by_rank
    corner = draw((wanted & allowed).flatten(1), allowed.flatten(1), num_crops, generator)
    top, left = corner // window.shape[-1], corner % window.shape[-1]
    weight = (region if content == "double_foreground" else region.clamp(max=1)).float()
    shown = _cut(weight[:, None], top, left, crop_size).mean((-3, -2, -1))  # (B, n)
    return LocalCrops(top, left, (shown > min_content).float(), crop_size)


def _draw_by_permutation(
    wanted: Tensor, allowed: Tensor, number: int, generator: torch.Generator | None = None
) -> Tensor:
    """Indices of random places, (B, number): different wanted ones; where there are fewer, any allowed, again and again
    if need be.

    Args:
        wanted: (B, P) bool.
        allowed: (B, P) bool, at least one True in a row.
        number: Places to draw for each image.
        generator: CPU generator; None uses torch's global one.
    """
    drawn = []
    for image_wanted, image_allowed in zip(wanted, allowed, strict=True):
        places = image_wanted.nonzero().flatten()
        if len(places) < number:
            places = image_allowed.nonzero().flatten()
        chosen = torch.randperm(len(places), generator=generator)[:number]
        drawn.append(places[chosen[torch.arange(number) % len(chosen)]])
    return torch.stack(drawn)


def _draw_by_rank(wanted: Tensor, allowed: Tensor, number: int, generator: torch.Generator | None = None) -> Tensor:
    """As `_draw_by_permutation`, with other random numbers: the first in a random order of all places. For a GPU, where
    the host must not wait to learn how many places there are.
    """
    pool = torch.where(wanted.sum(1, keepdim=True) >= number, wanted, allowed)
    scores = torch.rand(pool.shape, generator=generator)
    if pool.is_cuda:
        scores = scores.pin_memory()  # so much from ordinary memory would wait for what is queued on the device
    scores = scores.to(pool.device, non_blocking=True)
    most = min(number, pool.shape[1])
    first = torch.where(pool, scores, -1.0).topk(most, dim=1).indices
    turns = torch.arange(number, device=pool.device) % pool.sum(1, keepdim=True).clamp(max=most)
    return first.gather(1, turns)


def _fitting(begin: Tensor, end: Tensor, crop_size: int, num_starts: int) -> Tensor:
    """(B, starts) bool: starts of crops inside [begin, end) on one axis; where none fits, those that cover it."""
    start = torch.arange(num_starts, device=begin.device)
    begin, end = begin[:, None], end[:, None]
    inside = (start >= begin) & (start + crop_size <= end)
    over = (start <= begin) & (start + crop_size >= end)
    return torch.where(inside.any(1, keepdim=True), inside, torch.where(over.any(1, keepdim=True), over, True))


def cut_local_views(image: Tensor, crops: LocalCrops) -> Tensor:
    """The crops of each image, view-major: (n*B, 3, c, c), row v*B + i is crop v of image i."""
    return _cut(image, crops.top, crops.left, crops.size).transpose(0, 1).flatten(0, 1)


def _cut(image: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """(B, K, H, W) and corners (B, n) -> (B, n, K, size, size), by indexing alone: no host synchronisation."""
    step = torch.arange(size, device=image.device)
    rows, columns = (
        top[:, :, None, None] + step[:, None],
        left[:, :, None, None] + step,
    )  # (B, n, size, 1), (B, n, 1, size)
    which = torch.arange(len(image), device=image.device)[:, None, None, None]
    return image.permute(0, 2, 3, 1)[which, rows, columns].permute(0, 1, 4, 2, 3)
