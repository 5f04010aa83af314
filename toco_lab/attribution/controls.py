"""Maps that know neither the model nor the image: what an attribution has to beat."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toco_lab.backbones.kinds import any_encoder_of, fill_patches


def random_map(model: nn.Module, image: Tensor, generator: torch.Generator) -> Tensor:
    """A random number for each final token, as coarse and as smooth as an attribution: (B, H, W) in [0, 1]."""
    _, grid = fill_patches(any_encoder_of(model), image)
    maps = torch.rand(len(image), 1, *grid, generator=generator).to(image)
    return F.interpolate(maps, image.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def centre_map(model: nn.Module, image: Tensor, generator: torch.Generator) -> Tensor:
    """High in the middle, where photographers put what they show, and 0 in the corners: (B, H, W) in [0, 1]."""
    height, width = image.shape[-2:]
    rows = torch.linspace(-1, 1, height, device=image.device, dtype=image.dtype)[:, None]
    columns = torch.linspace(-1, 1, width, device=image.device, dtype=image.dtype)
    return (1 - ((rows**2 + columns**2) / 2).sqrt()).expand(len(image), -1, -1)


# (model, image, generator): the generator draws on from image to image
CONTROLS: dict[str, Callable[[nn.Module, Tensor, torch.Generator], Tensor]] = {
    "random map": random_map,
    "centre": centre_map,
}
