"""What all attributions share: which block is read, the logit of a class, and outputs collected on the way.

Nothing of a model is changed: hooks are removed, modes and `requires_grad` stay, no parameter gets a gradient.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from toco_lab.backbones.kinds import blocks_of
from toco_lab.backbones.pixels import check_images, check_normalised
from toco_lab.method.face import CamModel
from toco_lab.words import counted


def check_image(image: Tensor) -> None:
    """Refuse what is no batch of normalised images, (B, 3, H, W); errors as in `pixels.check_images`."""
    check_images(image)
    check_normalised(image)


def block_number(encoder: nn.Module, block: int | None, usual: int | None = None) -> int:
    """The number of a block, from 1 as in the tables of layers; None takes `usual`, or else the last block.

    Raises:
        ValueError: If the encoder has no such block.
    """
    blocks = len(blocks_of(encoder))
    if block is None:
        return usual or blocks
    if isinstance(block, bool) or not isinstance(block, int | np.integer) or not 1 <= block <= blocks:
        raise ValueError(f"block {block!r} is not one of the {counted(blocks, 'block')} of the encoder, from 1")
    return int(block)


def number_of_classes(model: nn.Module) -> int:
    """Classes of the classifier that reads the final tokens; 0 where there is none."""
    return getattr(model, "num_classes", 0)


def logits_of(model: nn.Module, image: Tensor) -> Tensor:
    """Image logits (B, C) of a trained model (of ToCo those of the final classifier), or of a timm classifier."""
    return model(image, segment=False).logits if isinstance(model, CamModel) else model(image)


def class_logit(model: nn.Module, image: Tensor, class_index: int | Tensor | None) -> Tensor:
    """Logit of each image's class, summed over the images (they do not influence each other).

    Raises:
        ValueError: If the model has no classifier, or not this class.
    """
    if getattr(model, "num_classes", None) == 0:
        raise ValueError("the model has no classifier: make it with num_classes > 0, or use ToCo")
    logits = logits_of(model, image)
    index = checked_classes(class_index, len(logits), logits.shape[1]).to(logits.device)
    return logits.gather(1, index[:, None]).sum()


def checked_classes(class_index: int | Tensor | None, images: int, num_classes: int) -> Tensor:
    """The class of each image, (B,); ValueError if it is none of the model's."""
    if isinstance(class_index, Tensor):
        fits = not class_index.is_floating_point() and class_index.shape in ((), (1,), (images,))
    else:
        fits = isinstance(class_index, int | np.integer)
    if class_index is None or not fits:
        raise ValueError(f"class_index must be a whole number, or one for each image of {images}: {class_index!r}")
    index = torch.as_tensor(class_index).expand(images)
    if index.min() < 0 or index.max() >= num_classes:
        raise ValueError(f"class_index {class_index} is not one of the model's {num_classes} classes, from 0")
    return index


@contextmanager
def output_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the outputs of a layer in the passes made inside."""
    outputs: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


def said_if_zero(maps: Tensor, classes: list[int] | None = None) -> Tensor:
    """Maps of Grad-CAM, (B, h, w), with a warning that names those that are zero everywhere."""
    empty = [f"{i}" + (f" (class {classes[i]})" if classes else "") for i, one in enumerate(maps) if not one.any()]
    if empty:
        what = "class" if classes else "direction"
        warnings.warn(
            f"Grad-CAM is zero everywhere for image {', '.join(empty)}: every patch speaks against the {what}, or no "
            "gradient reaches the layer",
            stacklevel=3,
        )
    return maps
