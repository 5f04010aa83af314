"""From grey levels to the input of an encoder: normalisation, and how many images an encoder should see at once."""

import warnings
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

    Raises:
        ValueError: If the image has another shape, or mean and std are not three numbers each, in (0, 1].
    """
    _check_colours(image, mean, std)
    return (image - _per_channel(mean, image)) / _per_channel(std, image)


def denormalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Inverse of `normalise`: (..., 3, H, W) float32 grey levels 0..255, neither rounded nor clipped.

    Raises:
        ValueError: As `normalise`.
    """
    _check_colours(image, mean, std)
    return image.float() * _per_channel(std, image) + _per_channel(mean, image)


def _check_colours(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    if not isinstance(image, Tensor) or image.ndim < 3 or image.shape[-3] != 3:
        found = f"shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"image must be a tensor of shape (..., 3, H, W), got {found}")
    for name, values, lowest in (("mean", mean, "0 <="), ("std", std, "0 <")):
        inside = [0 <= value <= 1 and (value > 0 or name == "mean") for value in values]
        if len(inside) != 3 or not all(inside):
            raise ValueError(f"{name} must be three numbers, {lowest} each <= 1 (grey levels / 255), got {values}")


def _per_channel(values: Sequence[float], image: Tensor) -> Tensor:
    # first made on the CPU: a tensor made from a list on a GPU would wait for all work that is queued there
    return (255 * torch.tensor(values, dtype=torch.float32).reshape(3, 1, 1)).to(image.device, non_blocking=True)


LARGEST_NORMALISED = 20.0  # white is below 3 by ImageNet's numbers; pixels of 0 to 255 lie far above
PIECE_TOKENS = 2048  # tokens of a pass without gradient on a CPU: larger passes are up to a tenth slower


def pieces_of(image: Tensor, token_side: int) -> tuple[Tensor, ...]:
    """Split images into the batches in which an encoder is fastest without gradient.

    On a CPU about 2,000 tokens at once keep the activations of a ViT's block in the cache; a GPU takes all images
    together.

    Args:
        image: (B, 3, H, W).
        token_side: Side of a final token in pixels.

    Returns:
        Parts of the batch in their order, at least one image each.
    """
    if image.device.type != "cpu":
        return (image,)
    tokens = image.shape[-2] * image.shape[-1] // token_side**2
    return image.split(max(1, PIECE_TOKENS // max(1, tokens)))


def check_images(image: Tensor, name: str = "image") -> None:
    """Refuse what is no batch of images for an encoder, by type and shape; no number is read.

    Args:
        image: Should be floats, (B, 3, H, W).
        name: How messages name it.

    Raises:
        ValueError: Naming it, with what it is.
    """
    if not isinstance(image, Tensor):
        raise ValueError(f"{name} must be a tensor of floats, (B, 3, H, W), got {type(image).__name__}")
    if image.ndim != 4 or image.shape[1] != 3 or image.shape[0] == 0:
        raise ValueError(f"{name} must be of shape (B, 3, H, W), got {tuple(image.shape)}")
    if not image.is_floating_point():
        raise ValueError(f"{name} is of {image.dtype}, not normalised: give floats, (pixels / 255 - mean) / std")


def check_normalised(image: Tensor, name: str = "image") -> None:
    """Refuse an image that a model would read as noise: pixels that are no floats, or NaN among them.

    Args:
        image: (..., 3, H, W), as a model is to see it.
        name: How messages name it.

    Warns:
        UserWarning: If its numbers are larger than normalisation leaves them: pixels of 0 to 255 as floats.

    Raises:
        ValueError: If it is no tensor of floats with three axes at least, or a number is NaN or infinite.
    """
    if not isinstance(image, Tensor) or image.ndim < 3:
        found = f"shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"{name} must be a tensor of floats, (..., 3, H, W), got {found}")
    if not image.is_floating_point():
        raise ValueError(f"{name} is of {image.dtype}, not normalised: give floats, (pixels / 255 - mean) / std")
    if bad := int((~image.isfinite()).sum()):
        raise ValueError(f"{name} holds {bad} numbers that are NaN or infinite")
    if image.numel() and (largest := image.abs().max().item()) > LARGEST_NORMALISED:
        warnings.warn(
            f"{name} has numbers up to {largest:.0f}: is it normalised, (pixels / 255 - mean) / std?", stacklevel=3
        )
