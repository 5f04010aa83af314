"""From grey levels to what an encoder reads: normalisation, and how many images it should see at once."""

from collections.abc import Sequence

import torch
from torch import Tensor


def normalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Grey levels to the numbers a backbone was trained on.

    Args:
        image: (..., 3, H, W), grey levels 0..255, any dtype; not changed.
        mean: Mean of each colour, in 0..1 units (ImageNet: 0.485, 0.456, 0.406, which is 123.675, 116.28, 103.53).
        std: Standard deviation of each colour, in 0..1 units.

    Returns:
        float32 of the same shape; a pixel of mean colour is 0.
    """
    return (image - _per_channel(mean, image)) / _per_channel(std, image)


def denormalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Inverse of `normalise`: (..., 3, H, W) float32 grey levels 0..255, neither rounded nor clipped."""
    return image.float() * _per_channel(std, image) + _per_channel(mean, image)


def _per_channel(values: Sequence[float], image: Tensor) -> Tensor:
    # in this order: made on a GPU from a list, the host would wait for all that is queued there
    return (255 * torch.tensor(values, dtype=torch.float32).reshape(3, 1, 1)).to(image.device, non_blocking=True)


PIECE_TOKENS = 2048  # of a pass without gradient on a CPU: up to a tenth faster than more (benchmarks/pieces.py)


def pieces_of(image: Tensor, token_side: int) -> tuple[Tensor, ...]:
    """Images (B, 3, H, W) in the batches that an encoder should see them in where no gradient is wanted.

    On a CPU some 2,000 tokens of a ViT at once keep a block's activations in its cache (a model in stages has more of
    them in its first ones); a GPU takes all together.
    """
    if image.device.type != "cpu":
        return (image,)
    tokens = image.shape[-2] * image.shape[-1] // token_side**2
    return image.split(max(1, PIECE_TOKENS // max(1, tokens)))
