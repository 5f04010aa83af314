"""Class activation maps at several scales."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.backbones.pixels import pieces_of
from toco_lab.method.model import ToCo, TokenFeatures
from toco_lab.method.present import Slots


@dataclass(frozen=True)
class Cams:
    """Multi-scale CAMs, (B, C, H, W), each map min-max normalised to [0, 1), or 0 where a class does not count.

    Attributes:
        cam: From the final patch tokens.
        cam_aux: From the auxiliary patch tokens.
    """

    cam: Tensor
    cam_aux: Tensor


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
