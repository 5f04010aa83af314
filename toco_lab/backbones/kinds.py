"""Which of timm's models can be an encoder, where their blocks are, how wide they are and how coarse.

There are two kinds: plain ViTs, with one grid of tokens from the first block to the last, and models in stages (Swin,
ResNet, ConvNeXt), whose grid becomes coarser and whose tokens become wider from stage to stage. A "token" of a model in
stages is one position of a feature map. Code that calls `ToCo.encode` does not see the kind.

| | ViT, DeiT, DINOv2 | ViT without class token | Swin, Swin v2 | ResNet, ConvNeXt |
|---|---|---|---|---|
| class token (CTC) | its own | mean of final tokens | mean of final tokens | mean of final tokens |
| final tokens | after the norm | after the norm | after the norm | ConvNeXt: after the norm; ResNet: last block |
| side of a final token | `patch_size` | `patch_size` | 32 pixels | `output_stride`, 16 unless set |
| `aux_layer` counts | blocks | blocks | blocks of all stages | blocks of all stages |
| sizes of the config | apply | apply | its own | its own |
| image of no whole tokens | cut | cut | resized | resized |
| all losses, evaluation, explorer | yes | yes | yes | yes |
| metrics after block, final norm | yes | yes | each block on its grid | likewise; ResNet has no final norm |
| ... of embedding, attention | yes | yes | no | no |
| ... of the class token | yes | no | no | no |
| token snapshots | all blocks | all blocks | blocks like the final one | blocks like the final one |
| CAM of every block | yes | yes | yes | yes |
| Grad-CAM | yes | yes | last block | last block |
| rollout, gradient x attention | yes | second | no | no |
| AttnScale, FeatScale | yes | yes | refused | refused |

The mean over positions stands for the class token because the heads of these models read it in pretraining. (That is
exact for Swin and ResNet. ConvNeXt pools before its norm; here the mean is taken after it, so that CTC and PTC move the
same tokens.) Batch norms keep the statistics of the pretrained weights: `ToCo.train` leaves them in evaluation mode.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeGuard, cast

import torch
import torch.nn.functional as F
from timm.layers import Attention, NormMlpClassifierHead
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from toco_lab.backbones.interfaces import Encoder, PlainViT, SelfAttention, ViTBlock


@dataclass(frozen=True)
class Stage:
    """The blocks of one grid, their number of channels, and the side of one position in pixels."""

    blocks: list[nn.Module]
    width: int
    stride: int


def is_plain_vit(encoder: nn.Module) -> TypeGuard[PlainViT]:
    """Whether the encoder has one patch embedding, blocks, a number of prefix tokens (it may be 0), and a norm."""
    return not _absent_parts(encoder) and hasattr(encoder, "forward_intermediates")


def encoder_of(model: nn.Module) -> PlainViT:
    """The ViT of a model: `model.encoder` if there is one, else the model itself.

    Raises:
        ValueError: If it is no plain ViT (blocks, patch embedding, prefix tokens).
    """
    encoder = any_encoder_of(model)
    if not is_plain_vit(encoder):
        absent = ", ".join(_absent_parts(encoder)) or "forward_intermediates"
        raise ValueError(
            f"{type(encoder).__name__} is no plain ViT (it has no {absent}): this needs attention between all tokens"
        )
    return encoder


def any_encoder_of(model: nn.Module) -> Encoder:
    """The encoder of a model, of either kind: `model.encoder` if there is one, else the model itself.

    Raises:
        ValueError: If it is neither a plain ViT nor a timm model with stages.
    """
    encoder = getattr(model, "encoder", model)
    if not is_plain_vit(encoder) and not stages_of(encoder):
        raise ValueError(f"{type(encoder).__name__} is no plain ViT, and no model of timm with stages of blocks either")
    return cast(Encoder, encoder)


def is_timm_attention(part: nn.Module | None) -> TypeGuard[SelfAttention]:
    """Whether a part of a block is timm's attention: fused or not, with a dropout that sees the attention matrix."""
    dropout = getattr(part, "attn_drop", None)
    return isinstance(dropout, nn.Module) and all(hasattr(part, name) for name in ("fused_attn", "num_heads", "proj"))


def stages_of(encoder: nn.Module) -> list[Stage]:
    """The stages of a Swin, ResNet or ConvNeXt, first one first; a plain ViT has none."""
    stages = []
    for info in getattr(encoder, "feature_info", None) or ():
        part = encoder.get_submodule(info["module"])
        blocks = getattr(part, "blocks", part)
        # the other entries of `feature_info` are the stem of a ResNet and the single blocks of a ViT
        if isinstance(blocks, nn.Sequential | nn.ModuleList):
            stages.append(Stage(list(blocks), info["num_chs"], info["reduction"]))
    return stages


def blocks_of(encoder: nn.Module) -> list[nn.Module]:
    """All blocks in the order an image meets them; `Config.aux_layer` is an index into this list."""
    if is_plain_vit(encoder):
        return list(encoder.blocks)
    return [block for stage in stages_of(encoder) for block in stage.blocks]


def block_widths(encoder: nn.Module) -> list[int]:
    """Channels of the output of each block."""
    if is_plain_vit(encoder):
        return [encoder.embed_dim] * len(encoder.blocks)
    return [stage.width for stage in stages_of(encoder) for _ in stage.blocks]


def token_side(encoder: nn.Module) -> int:
    """Side of one final token in pixels."""
    return encoder.patch_embed.patch_size[0] if is_plain_vit(encoder) else stages_of(encoder)[-1].stride


def final_norm(encoder: nn.Module) -> nn.Module | None:
    """The norm behind the last block; None where there is none, as in a ResNet."""
    norm = getattr(encoder, "norm", None)
    if norm is None:
        norm = _head_norm(encoder) or getattr(encoder, "norm_pre", None)
    return None if isinstance(norm, nn.Identity) else norm


def fill_patches(encoder: nn.Module, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Make an image fill whole tokens of an encoder.

    A plain ViT drops the right and bottom pixels that fill no patch, as its strided convolution does. A model in stages
    would drop up to 31 pixels, and its maps would be stretched when they are laid over the image; for it the image is
    resized to the nearest size of whole tokens (label maps by their nearest pixel).

    Args:
        encoder: A plain ViT or a model in stages.
        image: Image or label map, (..., H, W).

    Returns:
        The image as the encoder reads it, (..., H', W'), and the grid (h, w) of its final tokens.

    Raises:
        ValueError: If a plain ViT gets an image smaller than one patch, or not of the one size it takes.
    """
    height, width = image.shape[-2:]
    if not is_plain_vit(encoder):
        return _resized_to_whole_tokens(image, token_side(encoder))
    rows, columns = encoder.patch_embed.patch_size
    if rows != columns or hasattr(encoder.patch_embed, "backbone"):
        raise ValueError(f"patches of {rows} x {columns} pixels, or of a CNN before the ViT, are not supported")
    grid = height // rows, width // columns
    if min(grid) == 0:
        raise ValueError(f"image {(height, width)} is smaller than one patch of {rows} pixels")
    if not getattr(encoder, "dynamic_img_size", True) and grid != tuple(encoder.patch_embed.grid_size):
        raise ValueError(
            f"this ViT takes images of {encoder.patch_embed.img_size} pixels only, got {(height, width)}; make "
            f"it with timm.create_model(..., dynamic_img_size=True)"
        )
    return image[..., : grid[0] * rows, : grid[1] * columns], grid


def _resized_to_whole_tokens(image: Tensor, side: int) -> tuple[Tensor, tuple[int, int]]:
    height, width = image.shape[-2:]
    grid = max(1, round(height / side)), max(1, round(width / side))
    size = grid[0] * side, grid[1] * side
    if size == (height, width):
        return image, grid
    flat = image.reshape(1, -1, height, width)
    if image.is_floating_point():
        flat = F.interpolate(flat, size, mode="bilinear", align_corners=False)
    else:
        flat = F.interpolate(flat.float(), size).to(image.dtype)
    return flat.reshape(*image.shape[:-2], *size), grid


def stage_maps(encoder: Encoder, image: Tensor, blocks: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """One pass of a model in stages: final features, and the raw outputs of some blocks.

    Args:
        encoder: A Swin, ResNet or ConvNeXt of timm.
        image: Normalised, (B, 3, H, W), filling whole tokens (`fill_patches`).
        blocks: Indices into `blocks_of`.

    Returns:
        The final features, (B, D, h, w), after the final norm where there is one; and the output of each of `blocks`,
        (B, D', h', w').
    """
    parts, outputs = blocks_of(encoder), dict[int, Tensor]()
    with ExitStack() as stack:
        for index in blocks:
            hook = parts[index].register_forward_hook(
                lambda _, __, output, index=index: outputs.update({index: output})
            )
            stack.callback(hook.remove)
        final = as_map(encoder, encoder.forward_features(image))
    head_norm = _head_norm(encoder)
    return final if head_norm is None else head_norm(final), [as_map(encoder, outputs[index]) for index in blocks]


def class_token_pass(encoder: PlainViT, image: Tensor) -> Tensor:
    """One pass of a plain ViT that computes only the class token: (B, D) after the final norm.

    In the last block the class token needs the keys and values of the other tokens, but not their queries, attention,
    projection and MLP. Leaving these out saves five sixths of the block, forward and backward. If the block is not
    timm's plain one, or has hooks, the pass is made in full; the result is the same.

    Args:
        encoder: A plain ViT with a class token.
        image: Normalised, (B, 3, H, W), filling whole patches (`fill_patches`).
    """
    before = len(encoder.blocks) - 2
    if before < 0 or not _is_bare_block(encoder.blocks[-1]):
        return encoder.forward_features(image)[:, 0]
    [(patches, prefix)] = encoder.forward_intermediates(
        image, indices=[before], norm=False, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True,
        stop_early=True,
    )  # fmt: skip
    last, tokens = encoder.blocks[-1], torch.cat([prefix, patches], dim=1)
    if encoder.grad_checkpointing and torch.is_grad_enabled():
        return encoder.norm(checkpoint(_first_token_after, last, tokens, use_reentrant=False))[:, 0]
    return encoder.norm(_first_token_after(last, tokens))[:, 0]


def as_map(encoder: nn.Module, features: Tensor) -> Tensor:
    """Features of a model in stages as (B, D, h, w): Swin keeps its channels last."""
    channels_last = getattr(encoder, "output_fmt", "NCHW") == "NHWC"
    return features.permute(0, 3, 1, 2) if channels_last else features


def _head_norm(encoder: nn.Module) -> nn.Module | None:
    """The final norm of a ConvNeXt, which timm keeps behind the pooling; it acts on each position alone."""
    head = getattr(encoder, "head", None)
    return head.norm if isinstance(head, NormMlpClassifierHead) else None


def _is_bare_block(block: nn.Module) -> bool:
    """Whether `_first_token_after` computes what the block does: it has no anti-smoothing part, gate or hook."""
    if type(block) is not Block or type(block.attn) is not Attention or not block.attn.fused_attn:
        return False
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in block.modules())
    return getattr(block.attn, "gate", None) is None and not hooked


def _first_token_after(block: ViTBlock, tokens: Tensor) -> Tensor:
    """The first of the tokens (B, T, D) behind a block, (B, 1, D)."""
    attn, normed = block.attn, block.norm1(tokens)
    width = attn.proj.in_features
    weights = attn.qkv.weight.split([width, 2 * width])
    biases = (None, None) if attn.qkv.bias is None else attn.qkv.bias.split([width, 2 * width])
    query, pair = (F.linear(x, *linear) for x, *linear in zip((normed[:, :1], normed), weights, biases, strict=True))
    query = query.unflatten(2, (1, attn.num_heads, -1))
    query, key, value = (
        part.transpose(1, 2) for part in (*query.unbind(2), *pair.unflatten(2, (2, attn.num_heads, -1)).unbind(2))
    )  # (B, heads, T, D / heads), T = 1 for the query
    dropout = attn.attn_drop.p if attn.training else 0.0
    seen = F.scaled_dot_product_attention(attn.q_norm(query), attn.k_norm(key), value, dropout_p=dropout)
    seen = getattr(attn, "norm", nn.Identity())(seen.transpose(1, 2).flatten(2))
    first = tokens[:, :1]
    first = first + block.drop_path1(block.ls1(attn.proj_drop(attn.proj(seen))))
    return first + block.drop_path2(block.ls2(block.mlp(block.norm2(first))))


def _absent_parts(encoder: nn.Module) -> list[str]:
    return [name for name in ("blocks", "patch_embed", "num_prefix_tokens", "norm") if not hasattr(encoder, name)]
