"""The CAM of any block: the classifier of the final tokens, applied to the patch tokens behind that block."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toco_lab.attribution.reading import block_number, check_image, checked_classes, number_of_classes
from toco_lab.backbones.activations import capture
from toco_lab.backbones.interfaces import Encoder
from toco_lab.backbones.kinds import any_encoder_of, final_norm
from toco_lab.method.model import ToCo


@torch.no_grad()
def block_cam(model: nn.Module, image: Tensor, class_index: int | Tensor, *, block: int | None = None) -> Tensor:
    """What the final classifier says of each patch, had the network ended behind a block: final norm, weights, ReLU.

    The classifier was trained on the last block alone: of an early one the map says how far the tokens already speak
    the language of the last, not how well they tell classes apart (`evaluation.layer_cam_quality` trains a classifier
    for each block). The idea of reading early layers by the last layer's head is known as the logit lens
    (nostalgebraist, 2020).

    Args:
        model: ToCo, or a timm model whose classifier is one linear map, with or without fc_norm.
        image: Normalised, (B, 3, H, W).
        class_index: The class, one for all images or (B,).
        block: From 1; None takes the last one, which in ToCo gives the ReLU of `ToCoOutput.cam`.

    Returns:
        (B, h, w), >= 0, without the classifier's bias.

    Raises:
        ValueError: If the model has no such classifier, class or block, or the tokens of the block are not of the width
            that the classifier reads (early stages of a Swin, ResNet or ConvNeXt).
    """
    encoder = any_encoder_of(model)
    check_image(image)
    weight = _classifier_weight(model)
    index = checked_classes(class_index, len(image), len(weight)).to(weight.device)
    number = block_number(encoder, block)
    seen = capture(model, image)
    last = number == len(seen.after_block)
    grid = seen.grid if last else seen.block_grids[number - 1]
    patches = seen.patches(seen.final if last else seen.after_block[number - 1])  # (B, N, D)
    if patches.shape[2] != weight.shape[1]:
        raise ValueError(
            f"block {number} has tokens of {patches.shape[2]} channels, and the classifier reads {weight.shape[1]}: "
            "take a block of the last stage"
        )
    if not last:
        patches = _normed(encoder, patches)
    if not isinstance(model, ToCo) and isinstance(fc_norm := getattr(encoder, "fc_norm", None), nn.LayerNorm):
        patches = fc_norm(patches)
    return torch.einsum("bnd,bd->bn", patches, weight[index]).relu().unflatten(1, grid)


def _normed(encoder: Encoder, patches: Tensor) -> Tensor:
    """Patch tokens (B, N, D) behind the final norm of the encoder, whichever layout it is made for."""
    norm = final_norm(encoder)
    if norm is None:
        return patches
    if not isinstance(norm, nn.LayerNorm):  # timm's LayerNorm2d is one, and acts on each position alone
        raise ValueError(f"the final norm of this model, {type(norm).__name__}, cannot be applied to an earlier block")
    return F.layer_norm(patches, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _classifier_weight(model: nn.Module) -> Tensor:
    """(C, D) of the classifier that reads the final tokens; of a distilled model the mean of its two."""
    if not number_of_classes(model):
        raise ValueError("the model has no classifier: make it with num_classes > 0, or use ToCo")
    heads = linear_heads(model)
    if not heads:
        raise ValueError(f"the classifier of {type(model).__name__} is not known to be linear in the final tokens")
    return torch.stack([head.weight.flatten(1).float() for head in heads]).mean(0)


def linear_heads(model: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """The classifier of ToCo or of a timm model, two of a distilled one; none where it is not linear or not known."""
    if isinstance(model, ToCo):
        return [model.classifier]
    get = getattr(model, "get_classifier", None)  # of every timm model
    found = get() if callable(get) else None
    heads = found if isinstance(found, tuple) else (found,)
    linear = [head for head in heads if isinstance(head, nn.Linear | nn.Conv2d)]
    return linear if len(linear) == len(heads) else []
