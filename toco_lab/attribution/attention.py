"""Attributions that follow attention: of one block, through all blocks (rollout), or marked by the gradient.

They need a plain ViT whose attention can be read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toco_lab.attribution.reading import block_number, check_image, class_logit, output_of
from toco_lab.backbones.activations import Activations, attention_maps, capture
from toco_lab.backbones.kinds import encoder_of, fill_patches, has_class_token
from toco_lab.backbones.modes import evaluating

Fusion = Literal["mean", "max", "min"]
FUSIONS: tuple[Fusion, ...] = ("mean", "max", "min")


def fuse_heads(attention: Tensor, heads: Fusion = "mean") -> Tensor:
    """Attention (B, heads, T, T) -> (B, T, T): mean, maximum or minimum over the heads, entry by entry.

    Raises:
        ValueError: For an unknown fusion, or for `max` and `min` where attention is negative (AttnScale): the largest
            of numbers of both signs is no measure of flow.
    """
    if heads not in FUSIONS:
        raise ValueError(f"heads must be one of {', '.join(FUSIONS)}, got {heads!r}")
    attention = attention.float()
    if heads == "mean":
        return attention.mean(1)
    if attention.min() < 0:
        raise ValueError(f"heads={heads!r} needs attention that is not negative, and that of AttnScale is: take 'mean'")
    return attention.amax(1) if heads == "max" else attention.amin(1)


def attention_rollout(
    attentions: Sequence[Tensor],
    *,
    num_prefix: int,
    grid: tuple[int, int],
    heads: Fusion = "mean",
    discard: float = 0.0,
) -> Tensor:
    """How much of each patch reaches the class token through the attention of all layers, whatever the class.

    Source: Abnar and Zuidema, "Quantifying Attention Flow in Transformers" (ACL 2020): the product over the layers of
    (mean over heads + I) / 2 with rows of sum 1. Other fusions of the heads, and leaving out the smallest entries of
    each layer, are options that Gildenblat's vit-explain (2020) added. That widely used implementation divides along
    the wrong axis (entry i, j by the sum of row j), so that its rows do not sum to 1, and discards the entries of
    the first image of a batch alone. Here each image loses its own, and every row sums to 1.

    Args:
        attentions: First layer first, (B, heads, T, T) each, rows sum to 1, class token first.
        num_prefix: Tokens before the patches.
        grid: Rows and columns (h, w) of the patches, T = num_prefix + h * w.
        heads: `mean`, `max` or `min` over the heads.
        discard: Share of the T * T fused entries of each layer and image, the smallest ones, that are set to 0 before
            the identity is added; 0 <= discard < 1. The count is rounded down.

    Returns:
        The patches in the row of the class token, also where the logits read other tokens: (B, h, w). Their sum is at
        most 1; they are >= 0 if the attention is (that of AttnScale may be negative).

    Raises:
        ValueError: If the number of tokens does not fit the grid, or an option is none of these.
    """
    size = attentions[0].shape[-1]
    if size != num_prefix + grid[0] * grid[1]:
        raise ValueError(f"attention between {size} tokens is not that of {num_prefix} and {grid[0]} x {grid[1]} more")
    if not 0 <= discard < 1:
        raise ValueError(f"discard must be a share, 0 <= discard < 1, got {discard!r}")
    # only the row of the class token is followed, from the last layer down: no product of matrices
    row = torch.eye(1, size, device=attentions[0].device).expand(len(attentions[0]), 1, -1)
    for attention in reversed(attentions):
        fused = _without_smallest(fuse_heads(attention, heads), int(discard * size * size))
        row = row / (fused.sum(2)[:, None] + 1)  # (B, 1, T); the identity adds 1 to each row of a layer
        row = row @ fused + row
    return row[:, 0, num_prefix:].unflatten(1, grid)


def _without_smallest(fused: Tensor, count: int) -> Tensor:
    """(B, T, T) with the `count` smallest entries of each image set to 0."""
    if not count:
        return fused
    flat = fused.flatten(1)
    return flat.scatter(1, flat.topk(count, largest=False, sorted=False).indices, 0.0).view_as(fused)


def rollout(
    model: nn.Module, image: Tensor, *, block: int | None = None, heads: Fusion = "mean", discard: float = 0.0
) -> Tensor:
    """`attention_rollout` of a model's blocks 1 to `block`, (B, h, w).

    Args:
        model: A plain ViT with a class token, or ToCo on one.
        image: Normalised, (B, 3, H, W).
        block: The last one that counts, from 1; None takes all.
        heads: As in `attention_rollout`.
        discard: As in `attention_rollout`.

    Raises:
        ValueError: If the model has no class token, its attention cannot be read, or it has no such block.
    """
    last, seen = _seen(model, image, block, "attention rollout follows attention to the class token")
    return attention_rollout(
        seen.attention[:last], num_prefix=seen.num_prefix, grid=seen.grid, heads=heads, discard=discard
    )


def class_token_attention(
    model: nn.Module, image: Tensor, *, block: int | None = None, heads: Fusion = "mean"
) -> Tensor:
    """How much the class token attends to each patch in one block, (B, h, w): what DINO (ICCV 2021) shows of its last.

    Arguments and errors as in `rollout`; None takes the last block. The sum over patches is at most 1 for `mean`.
    """
    last, seen = _seen(model, image, block, "this shows the attention of the class token")
    fused = fuse_heads(seen.attention[last - 1][:, :, :1], heads)
    return fused[:, 0, seen.num_prefix :].unflatten(1, seen.grid)


def _seen(model: nn.Module, image: Tensor, block: int | None, why: str) -> tuple[int, Activations]:
    """The number of the block and what a pass of the model saw; ValueError if it has no class token."""
    encoder = encoder_of(model)
    if not has_class_token(encoder):
        has = "none" if getattr(encoder, "cls_token", None) is None else "one for each class, whose maps are its CAMs"
        raise ValueError(f"{why}, and this model has {has}")
    check_image(image)
    return block_number(encoder, block), capture(model, image, attention=True)


def gradient_attention(
    model: nn.Module, image: Tensor, class_index: int | Tensor, *, block: int | None = None
) -> Tensor:
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
        block: The first one that counts, from 1: the relevance of the tokens that enter it. None takes block 1.

    Returns:
        (B, h, w), >= 0.

    Raises:
        ValueError: If the model has no classifier, or not this class or block, or its attention cannot be read.
    """
    seen = read_gradients(model, image, class_index, block_number(encoder_of(model), block, 1))
    identity = torch.eye(seen.reading.shape[1], device=seen.reading.device)
    relevance = identity
    for attention, gradient in zip(seen.attention, seen.gradients, strict=True):
        relevance = relevance + (attention * gradient).float().relu().mean(1) @ relevance
    return seen.read(relevance - identity)


@dataclass(frozen=True)
class AttentionGradients:
    """Attention of some blocks, and what a class logit says of it.

    Attributes:
        attention: (B, heads, T, T) of each block.
        gradients: Of the logit with respect to each.
        reading: (B, T), the share of the logit's positive evidence that is read at each token: the positive part of
            gradient * value over the tokens that the classifier reads, summed over channels, of sum 1.
        num_prefix: Tokens before the patches.
        grid: Rows and columns (h, w) of the patches.
    """

    attention: list[Tensor]
    gradients: list[Tensor]
    reading: Tensor
    num_prefix: int
    grid: tuple[int, int]

    def read(self, relevance: Tensor) -> Tensor:
        """The rows of (B, T, T), averaged where the logit is read, as a map of the patches: (B, h, w)."""
        rows = self.reading[:, None] @ relevance
        return rows[:, 0, self.num_prefix :].unflatten(1, self.grid)


def read_gradients(model: nn.Module, image: Tensor, class_index: int | Tensor, first: int) -> AttentionGradients:
    """Attention and its gradients of the blocks from `first` (counted from 1) on; errors as in `gradient_attention`."""
    encoder = encoder_of(model)
    check_image(image)
    image, grid = fill_patches(encoder, image)
    image = image.detach().requires_grad_()  # so that every layer has a gradient, even if all parameters are frozen
    normed = getattr(model, "reads_final_norm", True)
    last = encoder.get_submodule("norm") if normed else encoder.blocks[len(encoder.blocks) - 1]
    with evaluating(model), torch.enable_grad(), output_of(last) as outputs, attention_maps(encoder) as attentions:
        logit = class_logit(model, image, class_index)
        final_gradient, *gradients = torch.autograd.grad(logit, [*outputs, *attentions[first - 1 :]])
    reading = F.normalize((outputs[0].detach() * final_gradient).float().relu().sum(2), p=1, dim=1)
    kept = [attention.detach() for attention in attentions[first - 1 :]]
    return AttentionGradients(kept, gradients, reading, encoder.num_prefix_tokens, grid)
