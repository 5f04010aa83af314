"""Class activation maps at several scales: step 1 of `toco_lab.method`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.backbones.pixels import check_images, check_normalised, pieces_of
from toco_lab.method.face import CamModel
from toco_lab.method.present import PresentClasses


@dataclass(frozen=True)
class Cams:
    """Multi-scale CAMs of the classes present in each image, each map min-max normalised to [0, 1).

    Maps that `present.mask` does not count mean nothing.

    Attributes:
        cam: From the final patch tokens, (B, S, H, W); (B, 0, H, W) where only the auxiliary ones were asked for.
        cam_aux: From the auxiliary patch tokens, (B, S, H, W).
        present: Which classes these are.
    """

    cam: Tensor
    cam_aux: Tensor
    present: PresentClasses

    def dense(self) -> "Cams":
        """The same with a map for every class, (B, C, H, W), which is 0 where the class is absent."""
        left_out = self.cam.shape[1] != self.cam_aux.shape[1]
        cam = self.cam if left_out else self.present.scatter(self.cam)
        return Cams(cam, self.present.scatter(self.cam_aux), self.present.dense())


@torch.no_grad()
def multi_scale_cam(
    model: CamModel,
    image: Tensor,
    scales: Sequence[float] = (1.0, 0.5, 1.5),
    *,
    present: PresentClasses | None = None,
    plain: Any = None,
    size: Sequence[int] | None = None,
    flip: bool = True,
    relu: bool = True,
    aux_only: bool = False,
) -> Cams:
    """Multi-scale CAM of the final and of the auxiliary tokens (step 1 of `toco_lab.method`).

    At each scale: raw CAMs of the image and of its mirror image, resized to H x W, their maximum, ReLU. The scales are
    summed, and each map is min-max normalised.

    Args:
        model: The network.
        image: Normalised images, (B, 3, H, W).
        scales: Image scales; each runs once as it is and once mirrored.
        present: The classes to make maps of; absent ones cost nothing. None takes all C classes in their order.
        plain: `Output.features` of `image`, if a pass at scale 1 was already made: that pass is not repeated.
        size: The maps are resized to it at the end; None leaves them at H x W.
        flip: False leaves the mirror images out, which takes half the passes.
        relu: False leaves out the ReLU, `Config.cam_relu`.
        aux_only: Leave the maps of the final tokens out: the passes of a plain ViT end at the auxiliary block.

    Returns:
        Maps of the present classes, (B, S, H, W); `.dense()` has one for every class.

    Raises:
        ValueError: If `image` is no batch of images, a scale is not positive, or `present` does not fit the images and
            the classes of the model.
    """
    if not isinstance(model, CamModel):
        raise ValueError(f"model must be a CamModel, got {type(model).__name__}: load_run_model(run) loads one")
    check_images(image)
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise ValueError(f"scales must be positive numbers, at least one, got {tuple(scales)}")
    if plain is None:  # in training a NaN is the loop's to say, with the step
        check_normalised(image)
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"size must be a height and a width of at least 1 pixel, got {tuple(size)}")
    if present is None:
        present = PresentClasses.of(image.new_ones(len(image), model.num_classes), model.num_classes)
    if (fits := (len(image), model.num_classes)) != (found := (len(present.index), present.num_classes)):
        raise ValueError(f"image_label {found} does not fit images and classes {fits}")
    asked = {"flip": flip, "relu": relu, "aux_only": aux_only}
    summed = summed_maps(model, image, scales, present=present, plain=plain, **asked)
    maps = normalised(model, summed)
    *cam, cam_aux = maps if size is None else resize_each(maps, size)
    return Cams(cam[0] if cam else cam_aux[:, :0], cam_aux, present)


@torch.no_grad()
def summed_maps(
    model: CamModel,
    image: Tensor,
    scales: Sequence[float],
    *,
    present: PresentClasses,
    plain: Any = None,
    flip: bool = True,
    relu: bool = True,
    aux_only: bool = False,
) -> Tensor:
    """Multi-scale CAMs before they are normalised, (2, B, S, H, W): of the final and of the auxiliary tokens.

    Arguments as in `multi_scale_cam`, not checked; (1, B, S, H, W) with `aux_only`.
    """
    wanted = present.dense().mask
    raw = (raw_cams(model, image, scale, plain=plain, flip=flip, wanted=wanted, aux_only=aux_only) for scale in scales)
    return reduce(torch.add, (fuse_flip(present.gather(maps), image.shape[-2:], flip=flip, relu=relu) for maps in raw))


@torch.no_grad()
def raw_cams(
    model: CamModel,
    image: Tensor,
    scale: float,
    *,
    plain: Any = None,
    flip: bool = True,
    wanted: Tensor | None = None,
    aux_only: bool = False,
) -> Tensor:
    """The raw CAMs of one scale: no ReLU, not normalised, at token resolution.

    Args:
        model: The network.
        image: Normalised images at scale 1, (B, 3, H, W).
        scale: Of the image.
        plain: As in `multi_scale_cam`.
        flip: False leaves the mirror image out.
        wanted: (B, C) bool, see `CamModel.raw_maps`; None wants all classes.
        aux_only: As in `multi_scale_cam`; the first number of the shape is 1 then.

    Returns:
        (2, 2, B, C, h, w): from the final and from the auxiliary tokens; of the image and of its mirror image (still
        mirrored); (2, 1, B, C, h, w) without `flip`. If the two kinds of tokens have different grids, all maps have the
        finer one.
    """
    scaled = image if scale == 1 else resize(image, scaled_size(image, scale))
    passes: list[tuple[Tensor, ...]] = []
    rest = [scaled]
    if scale == 1 and plain is not None:
        passes, rest = [model.cams(plain)[int(aux_only) :]], []
    if flip:
        rest.append(scaled.flip(-1))
    if rest:
        pieces = pieces_of(torch.cat(rest), model.patch_size)
        asked = [None] * len(pieces) if wanted is None else wanted.repeat(len(rest), 1).split([*map(len, pieces)])
        maps_of = model.aux_maps if aux_only else model.raw_maps
        passes += [maps_of(piece, one) for piece, one in zip(pieces, asked, strict=True)]
    heads = [torch.cat(maps) for maps in zip(*passes, strict=True)]  # twice (2B, C, h, w)
    finer = max((maps.shape[-2:] for maps in heads), key=sum)
    heads = [maps if maps.shape[-2:] == finer else resize(maps, finer) for maps in heads]
    return torch.stack([maps.unflatten(0, (1 + flip, -1)) for maps in heads])


def scaled_size(image: Tensor, scale: float) -> list[int]:
    """Height and width of (..., H, W) at a scale; ValueError if no pixel is left."""
    size = [int(length * scale) for length in image.shape[-2:]]
    if min(size) < 1:
        raise ValueError(f"scale {scale} of an image of {image.shape[-2]} x {image.shape[-1]} leaves no pixel of it")
    return size


def fuse_flip(raw: Tensor, size: Sequence[int], *, flip: bool = True, relu: bool = True) -> Tensor:
    """What one scale adds to a multi-scale CAM: the maximum of image and mirror image at full size, ReLU.

    Args:
        raw: (K, 2, B, C, h, w): K kinds of maps, each of the image and of its mirror image, as from `raw_cams`.
        size: (H, W).
        flip: False leaves the mirror image out, whether or not there is one.
        relu: False leaves what is negative as it is.

    Returns:
        (K, B, C, H, W).
    """
    straight, *mirrored = resize_each(raw, size).unbind(1)
    fused = torch.maximum(straight, mirrored[0].flip(-1)) if flip else straight
    return fused.relu_() if relu else fused


def normalised(model: CamModel, cam: Tensor) -> Tensor:
    """The multi-scale sum (..., H, W) of a model's maps to [0, 1), by `min_max`."""
    if model.maps_of_any_scale:
        cam = cam / cam.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(cam.dtype).tiny)
    return min_max(cam)


def min_max(cam: Tensor) -> Tensor:
    """Shift and scale each map (..., H, W) to [0, 1): minus its minimum, over its maximum + 1e-5."""
    cam = cam - cam.amin((-2, -1), keepdim=True)
    return cam / (cam.amax((-2, -1), keepdim=True) + 1e-5)


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) at another size, bilinear, corners not aligned: how CAMs and their images are resized everywhere."""
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def resize_each(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(..., h, w) at another size. Each map gets the same bits whatever others are resized with it.

    `resize` does not promise this: torch has a kernel of its own for three channels, which rounds differently.
    """
    return resize(maps.flatten(0, -3)[:, None], size).view(*maps.shape[:-2], *size)


def at_evaluation_size(image: Tensor, side: int) -> Tensor:
    """Images (B, 3, H, W) as the evaluation makes CAMs of them: side x side pixels, or unchanged where `side` is 0.

    `side` is `Config.eval_cam_size`.
    """
    return resize(image, (side, side)) if side else image
