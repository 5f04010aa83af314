"""Attributions of a class to places in the image, to be compared with ToCo's CAM.

A CAM is what the classifier says at each patch. These maps ask where the logit came from: through attention alone
(rollout), through the features of one layer (Grad-CAM), or through attention that the gradient marks as relevant. All
work on a plain timm classifier and on ToCo, in evaluation mode, also inside `torch.no_grad()`. No parameter gets a
gradient, and no mode and no `requires_grad` is changed. The two that follow attention need a plain ViT.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toco_lab.backbones.activations import attention_maps, capture, evaluating
from toco_lab.backbones.kinds import any_encoder_of, blocks_of, encoder_of, fill_patches, is_plain_vit, map_of_layer
from toco_lab.backbones.pixels import check_images, check_normalised
from toco_lab.method.cam import min_max
from toco_lab.method.model import ToCo

Attribution = Callable[[nn.Module, Tensor, int | Tensor], Tensor]


def attention_rollout(attentions: Sequence[Tensor], *, num_prefix: int, grid: tuple[int, int]) -> Tensor:
    """How much of each patch reaches the class token through the attention of all layers, whatever the class.

    Source: Abnar and Zuidema, "Quantifying Attention Flow in Transformers" (ACL 2020): the product over the layers of
    (mean over heads + I) / 2 with rows of sum 1. A widely used implementation divides along the wrong axis (entry i, j
    by the sum of row j) and discards small entries before it adds the identity; then the rows no longer sum to 1.

    Args:
        attentions: First layer first, (B, heads, T, T) each, rows sum to 1, class token first.
        num_prefix: Tokens before the patches.
        grid: Rows and columns (h, w) of the patches, T = num_prefix + h * w.

    Returns:
        The patches in the row of the class token, also where the logits read other tokens: (B, h, w). Their sum is at
        most 1; they are >= 0 if the attention is (that of AttnScale may be negative).

    Raises:
        ValueError: If the number of tokens does not fit the grid.
    """
    size = attentions[0].shape[-1]
    if size != num_prefix + grid[0] * grid[1]:
        raise ValueError(f"attention between {size} tokens is not that of {num_prefix} and {grid[0]} x {grid[1]} more")
    flow = torch.eye(size, device=attentions[0].device)
    for attention in attentions:
        layer = (attention.float().mean(1) + torch.eye(size, device=flow.device)) / 2
        flow = layer / layer.sum(2, keepdim=True) @ flow
    return flow[:, 0, num_prefix:].unflatten(1, grid)


def grad_cam(model: nn.Module, image: Tensor, class_index: int | Tensor, *, layer: nn.Module | None = None) -> Tensor:
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

    Returns:
        (B, h, w), >= 0; zero throughout where every patch speaks against the class.

    Warns:
        UserWarning: If a map is zero everywhere.

    Raises:
        ValueError: If the model has no classifier, or not this class, or the image is no float or holds NaN.
    """
    encoder = any_encoder_of(model)
    check_images(image)
    check_normalised(image)
    image, grid = fill_patches(encoder, image)
    plain = is_plain_vit(encoder)
    if layer is None:
        blocks = blocks_of(encoder)
        behind = not plain and getattr(encoder, "cls_token", None) is not None and len(blocks) > 1
        layer = blocks[-1].get_submodule("norm1") if plain else blocks[-2 if behind else -1]
    with evaluating(model), torch.enable_grad(), _output_of(layer) as outputs:
        logit = _class_logit(model, image, class_index)
        (gradient,) = torch.autograd.grad(logit, outputs)
    if not plain:
        size = image.shape[-2:]
        maps, gradient = (map_of_layer(encoder, layer, x.detach().float(), size) for x in (outputs[0], gradient))
        return _said_if_zero((maps * gradient.mean((2, 3), keepdim=True)).sum(1).relu(), class_index)
    tokens, gradient = (x.detach().float()[:, encoder.num_prefix_tokens :] for x in (outputs[0], gradient))
    return _said_if_zero((tokens * gradient.mean(1, keepdim=True)).sum(2).relu().unflatten(1, grid), class_index)


def _said_if_zero(maps: Tensor, class_index: int | Tensor) -> Tensor:
    """The maps of Grad-CAM, with a warning that names those that are zero everywhere."""
    classes = torch.as_tensor(class_index).expand(len(maps)).tolist()
    empty = [f"{i} (class {classes[i]})" for i, one in enumerate(maps) if not one.any()]
    if empty:
        warnings.warn(
            f"Grad-CAM is zero everywhere for image {', '.join(empty)}: every patch speaks against the class, or no "
            "gradient reaches the layer",
            stacklevel=3,
        )
    return maps


def gradient_attention(model: nn.Module, image: Tensor, class_index: int | Tensor) -> Tensor:
    """Relevance of each patch to a class, passed on by attention whose gradient is positive.

    Source: Chefer et al., "Generic Attention-model Explainability" (ICCV 2021), rule for self-attention: R = I, then
    layer by layer R <- R + mean over heads of ReLU(A * gradient of the logit with respect to A) times R.

    The paper takes the row of the class token, because its logits are read there. ToCo's logits read patches, by the
    maximum of each channel. So here the rows of R - I are averaged, each weighted by how much of the logit is read at
    its token: the positive part of gradient * value over the final tokens, summed over channels. That is the row of
    the class token where the logit reads nothing else; in ToCo it is, for each patch, the positive evidence of the
    channels whose maximum it holds. R - I leaves out the relevance of a token to itself: it is no patch in the row of
    the class token, but in the row of a patch it would outweigh what attention brought there.

    Args:
        model: A timm ViT with a classifier, or ToCo.
        image: Normalised, (B, 3, H, W).
        class_index: The class whose logit is explained, one for all images or (B,).

    Returns:
        (B, h, w), >= 0.

    Raises:
        ValueError: If the model has no classifier, or not this class, or its attention cannot be read.
    """
    encoder = encoder_of(model)
    check_images(image)
    check_normalised(image)
    image, grid = fill_patches(encoder, image)
    with (
        evaluating(model),
        torch.enable_grad(),
        _output_of(encoder.get_submodule("norm")) as outputs,
        attention_maps(encoder) as attentions,
    ):
        logit = _class_logit(model, image, class_index)
        final_gradient, *gradients = torch.autograd.grad(logit, [*outputs, *attentions])
    identity = torch.eye(attentions[0].shape[-1], device=image.device)
    relevance = identity
    for attention, gradient in zip(attentions, gradients, strict=True):
        relevance = relevance + (attention.detach() * gradient).float().relu().mean(1) @ relevance
    reading = (outputs[0].detach() * final_gradient).float().relu().sum(2)  # (B, T)
    reading = F.normalize(reading, p=1, dim=1)
    rows = reading[:, None] @ (relevance - identity)  # (B, 1, T)
    return rows[:, 0, encoder.num_prefix_tokens :].unflatten(1, grid)


def _class_logit(model: nn.Module, image: Tensor, class_index: int | Tensor) -> Tensor:
    """Logit of each image's class, summed over the images (they do not influence each other)."""
    if getattr(model, "num_classes", None) == 0:
        raise ValueError("the model has no classifier: make it with num_classes > 0, or use ToCo")
    image = image.detach().requires_grad_()  # so that every layer has a gradient, even if all parameters are frozen
    logits = model(image, segment=False).logits if isinstance(model, ToCo) else model(image)
    index = _checked_classes(class_index, len(logits), logits.shape[1]).to(logits.device)
    return logits.gather(1, index[:, None]).sum()


def _checked_classes(class_index: int | Tensor, images: int, num_classes: int) -> Tensor:
    """The class of each image, (B,); ValueError if it is none of the model's."""
    if isinstance(class_index, Tensor):
        fits = not class_index.is_floating_point() and class_index.shape in ((), (1,), (images,))
    else:
        fits = isinstance(class_index, int | np.integer)
    if not fits:
        raise ValueError(f"class_index must be a whole number, or one for each image of {images}: {class_index!r}")
    index = torch.as_tensor(class_index).expand(images)
    if index.min() < 0 or index.max() >= num_classes:
        raise ValueError(f"class_index {class_index} is not one of the model's {num_classes} classes, from 0")
    return index


@contextmanager
def _output_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the outputs of a layer in the passes made inside."""
    outputs: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


def _rollout(model: nn.Module, image: Tensor, class_index: int | Tensor) -> Tensor:
    """Attention rollout, which is the same for every class; one that the model does not have is a slip all the same."""
    if getattr(encoder_of(model), "cls_token", None) is None:
        raise ValueError("attention rollout follows attention to the class token, and this model has none")
    check_images(image)
    check_normalised(image)
    num_classes = model.classifier.out_channels if isinstance(model, ToCo) else getattr(model, "num_classes", 0)
    if num_classes:
        _checked_classes(class_index, len(image), num_classes)
    seen = capture(model, image, attention=True)
    return attention_rollout(seen.attention, num_prefix=seen.num_prefix, grid=seen.grid)


def _on_image(attribution: Attribution, model: nn.Module, image: Tensor, class_index: int | Tensor) -> Tensor:
    """An attribution (B, h, w) at the size of the image and min-max normalised, as a CAM is."""
    maps = attribution(model, image, class_index)
    maps = maps / maps.amax((1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)  # gradients may be tiny
    return min_max(F.interpolate(maps[:, None], image.shape[-2:], mode="bilinear", align_corners=False)[:, 0])


ATTRIBUTIONS: dict[str, Attribution] = {  # (model, image (B, 3, H, W), class_index) -> (B, H, W) in [0, 1]
    "attention rollout": partial(_on_image, _rollout),
    "Grad-CAM": partial(_on_image, grad_cam),
    "gradient x attention": partial(_on_image, gradient_attention),
}
