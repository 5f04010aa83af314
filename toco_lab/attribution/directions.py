"""Maps of models without a classifier: how alike each patch is to the class token, or to a chosen patch."""

from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from toco_lab.attribution.reading import block_number, check_image
from toco_lab.backbones.activations import capture
from toco_lab.backbones.kinds import any_encoder_of, has_class_token

Towards = Literal["class token"] | tuple[int, int]


def token_similarity(
    model: nn.Module, image: Tensor, *, towards: Towards = "class token", block: int | None = None
) -> Tensor:
    """The cosine of every patch token to the class token or to a chosen patch, in one layer.

    Args:
        model: Any encoder that is read here, with or without a classifier.
        image: Normalised, (B, 3, H, W).
        towards: `class token` (the mean of the patches where there is none), or row and column of a patch from 0.
        block: Tokens behind this block, from 1, not normalised. None takes the final tokens, behind the final norm.

    Returns:
        (B, h, w) in [-1, 1]; in a model in stages on the grid of the block.

    Raises:
        ValueError: If there is no such block or patch, or the image is no float or holds NaN.
    """
    encoder = any_encoder_of(model)
    check_image(image)
    number = None if block is None else block_number(encoder, block)
    seen = capture(model, image)
    tokens, grid = seen.final, seen.grid
    if number is not None:
        tokens, grid = seen.after_block[number - 1], seen.block_grids[number - 1]
    place, patches = place_of(towards, grid), seen.patches(tokens)  # (B, N, D)
    if place is not None:
        direction = patches[:, place]
    elif has_class_token(encoder) and seen.num_prefix:
        direction = seen.class_token(tokens)
    else:
        direction = patches.mean(1)
    return F.cosine_similarity(patches, direction[:, None], dim=2).unflatten(1, grid)


def place_of(towards: Towards, grid: tuple[int, int]) -> int | None:
    """The number of a patch in reading order; None for the class token.

    Raises:
        ValueError: If it is neither the class token nor a patch of the grid.
    """
    if isinstance(towards, str) and towards == "class token":
        return None
    whole = isinstance(towards, tuple | list) and all(isinstance(number, int | np.integer) for number in towards)
    if not whole or len(towards) != 2 or not all(0 <= at < side for at, side in zip(towards, grid, strict=True)):
        raise ValueError(
            f"towards must be 'class token', or row and column of a patch in the grid of {grid[0]} x {grid[1]}, from "
            f"0; got {towards!r}"
        )
    return int(towards[0]) * grid[1] + int(towards[1])
