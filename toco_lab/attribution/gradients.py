"""Grad-CAM: the features of one layer, weighted by the gradient of a class logit or of a direction of tokens."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toco_lab.attribution.directions import Towards, place_of
from toco_lab.attribution.reading import block_number, check_image, class_logit, output_of, said_if_zero
from toco_lab.backbones.interfaces import Encoder
from toco_lab.backbones.kinds import (
    any_encoder_of,
    blocks_of,
    fill_patches,
    has_class_token,
    is_plain_vit,
    map_of_layer,
)
from toco_lab.backbones.modes import evaluating


def grad_cam(
    model: nn.Module,
    image: Tensor,
    class_index: int | Tensor,
    *,
    layer: nn.Module | None = None,
    block: int | None = None,
) -> Tensor:
    """Grad-CAM of one layer: its patch tokens weighted by the mean gradient of the class logit, summed, ReLU.

    Source: Selvaraju et al., "Grad-CAM" (ICCV 2017), equations 1 and 2, with patches as positions.

    Args:
        model: A timm ViT, Swin, ResNet or ConvNeXt with a classifier, or ToCo.
        image: Normalised, (B, 3, H, W).
        class_index: The class whose logit is explained, one for all images or (B,).
        layer: Part of the encoder whose output, (B, T, D), is explained. None takes the first norm of the last block,
            as is usual for ViTs: behind the last attention no patch has a gradient if the logit reads the class token.
            It sees what passes through that attention, not what a patch of ToCo carries past it. With
            `model.encoder.norm` of a ToCo model the result is the ReLU of its CAM, divided by the number of patches.
            For a model in stages None takes the last block, as the paper does; any layer that gives a map will do. For
            an own model with a class token (`backbones.adapt`) None takes the last block but one.
        block: The same of another block than the last, from 1: its first norm, or in a model in stages its output. The
            earlier the block, the longer the way back: up to 1.5 more passes.

    Returns:
        (B, h, w), >= 0; zero throughout where every patch speaks against the class.

    Warns:
        UserWarning: If a map is zero everywhere.

    Raises:
        ValueError: If the model has no classifier, or not this class or block, or layer and block are both given, or
            the image is no float or holds NaN.
    """
    encoder = any_encoder_of(model)
    check_image(image)
    if layer is not None and block is not None:
        raise ValueError("give a layer or a block, not both")
    image, grid = fill_patches(encoder, image)
    layer = _read_layer(encoder, block) if layer is None else layer
    with evaluating(model), gradient_from(model, layer) as outputs:
        logit = class_logit(model, image, class_index)
        (gradient,) = torch.autograd.grad(logit, outputs)
    maps = _weighted(encoder, layer, outputs[0], gradient, grid, image)
    return said_if_zero(maps, torch.as_tensor(class_index).expand(len(maps)).tolist())


def direction_grad_cam(
    model: nn.Module, image: Tensor, *, towards: Towards = "class token", block: int | None = None
) -> Tensor:
    """Grad-CAM without a classifier: which patches push a token into the direction that it ends up with.

    In place of a class logit stands y = <d, x>: x is the class token or a chosen patch behind the last block, before
    the final norm, and d = x / |x| is its direction, held fixed. The dot product, and not the cosine, because at its
    own direction the cosine is at its maximum and has no gradient; and before the norm, because a LayerNorm keeps the
    length of tokens fixed, which comes to the same.

    Args:
        model: Any encoder that is read here, with or without a classifier.
        image: Normalised, (B, 3, H, W).
        towards: `class token` (the mean of the patches where there is none, and in an own model), or row and column
            of a patch from 0.
        block: As in `grad_cam`.

    Returns:
        (B, h, w), >= 0.

    Warns:
        UserWarning: If a map is zero everywhere.

    Raises:
        ValueError: If there is no such block or patch, or the image is no float or holds NaN.
    """
    encoder = any_encoder_of(model)
    check_image(image)
    image, grid = fill_patches(encoder, image)
    place = place_of(towards, grid)
    layer, last = _read_layer(encoder, block), blocks_of(encoder)[-1]
    with evaluating(model), gradient_from(model, layer) as outputs, output_of(last) as final:
        encoder.forward_features(image)
        token = _token(encoder, final[0], place, image)
        (gradient,) = torch.autograd.grad((F.normalize(token.detach(), dim=1) * token).sum(), outputs)
    return said_if_zero(_weighted(encoder, layer, outputs[0], gradient, grid, image))


@contextmanager
def gradient_from(model: nn.Module, layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the outputs of a layer in the passes made inside, which have a graph from there on alone.

    Nothing is kept for a way back through the layers before it, or for weights: nobody asks for their gradients.
    """
    outputs: list[Tensor] = []

    def begin(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1].clone()  # what follows may work in place, which a leaf refuses

    learning = [weight for weight in model.parameters() if weight.requires_grad]
    hook = layer.register_forward_hook(begin)
    try:
        for weight in learning:
            weight.requires_grad_(False)
        with torch.enable_grad():
            yield outputs
    finally:
        hook.remove()
        for weight in learning:
            weight.requires_grad_()


def _read_layer(encoder: Encoder, block: int | None) -> nn.Module:
    """The layer that Grad-CAM of a block reads; None is the last block, behind which no patch may have a gradient."""
    blocks, plain = blocks_of(encoder), is_plain_vit(encoder)
    behind = not plain and has_class_token(encoder) and len(blocks) > 1
    usual = len(blocks) - 1 if behind else len(blocks)
    read = blocks[block_number(encoder, block, usual) - 1]
    return read.get_submodule("norm1") if plain else read


def _token(encoder: Encoder, output: Tensor, place: int | None, image: Tensor) -> Tensor:
    """The token (B, D) at a place of the last block's output; None is the class token, or the mean of the patches."""
    if is_plain_vit(encoder):
        if place is None and has_class_token(encoder):
            return output[:, 0]
        patches = output[:, encoder.num_prefix_tokens :]
    else:
        patches = map_of_layer(encoder, blocks_of(encoder)[-1], output, image.shape[-2:]).flatten(2).mT
    return patches.mean(1) if place is None else patches[:, place]


def _weighted(
    encoder: Encoder, layer: nn.Module, output: Tensor, gradient: Tensor, grid: tuple[int, int], image: Tensor
) -> Tensor:
    """The patches of a layer's output weighted by their mean gradient, summed over channels, ReLU: (B, h, w)."""
    if not is_plain_vit(encoder):
        size = image.shape[-2:]
        maps, gradient = (map_of_layer(encoder, layer, x.detach().float(), size) for x in (output, gradient))
        return (maps * gradient.mean((2, 3), keepdim=True)).sum(1).relu()
    tokens, gradient = (x.detach().float()[:, encoder.num_prefix_tokens :] for x in (output, gradient))
    return (tokens * gradient.mean(1, keepdim=True)).sum(2).relu().unflatten(1, grid)
