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
| rollout, gradient x attention, GETAM | yes | the last two | no | no |
| methods but ToCo (`toco_lab.peers`) | yes | no | refused | refused |
| AttnScale, FeatScale | yes | yes | refused | refused |

Other families of timm are read for analysis only (`smoothing_per_layer`, `layer_similarity`, Grad-CAM): BEiT and ViTs
with relative positions as plain ViTs, and as models in stages those whose blocks all lie in stages that timm announces
and give one map of the announced channels and stride, channels first or last. Such are EfficientNet, MobileNetV3,
the nets of `byobnet`, Swin v2 CR, TinyViT, MaxViT, DaViT, FastViT, MetaFormer, MambaOut and more. Refused with the
reason are CaiT, XCiT, ConViT, LeViT, PiT, PVT v2, VOLO, CrossViT, CoaT, Twins, MViT v2, Hiera, GhostNet and more; the
lists in `tests/backbones/test_families.py` name every family of timm.

The mean over positions stands for the class token because the heads of these models read it in pretraining. (That is
exact for Swin and ResNet. ConvNeXt pools before its norm; here the mean is taken after it, so that CTC and PTC move the
same tokens.) Batch norms keep the statistics of the pretrained weights: `ToCo.train` leaves them in evaluation mode.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TypeGuard, cast

import torch
import torch.nn.functional as F
from timm.layers import Attention, NormMlpClassifierHead
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from toco_lab.backbones.interfaces import Encoder, PlainViT, SelfAttention, ViTBlock
from toco_lab.backbones.stages import channels_last, declared_last, read_map, refusal, stages_of


def is_plain_vit(encoder: nn.Module) -> TypeGuard[PlainViT]:
    """Whether the encoder has one patch embedding, blocks, a number of prefix tokens (it may be 0), and a norm."""
    return not _absent_parts(encoder)


def encoder_of(model: nn.Module) -> PlainViT:
    """The ViT of a model: `model.encoder` if there is one, else the model itself.

    Raises:
        ValueError: If it is no plain ViT (blocks, patch embedding, prefix tokens).
    """
    encoder = any_encoder_of(model)
    if not is_plain_vit(encoder):
        absent = ", ".join(_absent_parts(encoder))
        raise ValueError(
            f"{type(encoder).__name__} is no plain ViT (it has no {absent}): this needs attention between all tokens"
        )
    return encoder


def any_encoder_of(model: nn.Module) -> Encoder:
    """The encoder of a model, of either kind: `model.encoder` if there is one, else the model itself.

    Raises:
        ValueError: If it is neither a plain ViT nor a timm model whose stages hold all its blocks (`stages.stages_of`).
    """
    encoder = getattr(model, "encoder", model)
    if not is_plain_vit(encoder) and not stages_of(encoder):
        absent = ", ".join(_absent_parts(encoder))
        raise refusal(encoder, f"it is no plain ViT (no {absent}) and announces no stages that are sequences of blocks")
    return cast(Encoder, encoder)


def has_class_token(encoder: nn.Module) -> bool:
    """Whether an encoder has one token for the whole image; MCTformer's has one for each class, and that is none."""
    token = getattr(encoder, "cls_token", None)
    return token is not None and not (isinstance(token, Tensor) and token.shape[1] > 1)


def is_timm_attention(part: nn.Module | None) -> TypeGuard[SelfAttention]:
    """Whether a part of a block is timm's attention: fused or not, with a dropout that sees the attention matrix."""
    dropout = getattr(part, "attn_drop", None)
    return isinstance(dropout, nn.Module) and all(hasattr(part, name) for name in ("fused_attn", "num_heads", "proj"))


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

    Raises:
        ValueError: If the output of a block is no map of the channels and stride that timm announces.
    """
    parts, outputs = blocks_of(encoder), dict[int, Tensor]()
    with ExitStack() as stack:
        for index in blocks:
            hook = parts[index].register_forward_hook(
                lambda _, __, output, index=index: outputs.update({index: output})
            )
            stack.callback(hook.remove)
        final = encoder.forward_features(image)
    stages, size = stages_of(encoder), image.shape[-2:]
    stage_of_block = [stage for stage in stages for _ in stage.blocks]
    layouts: dict[type, bool] = {}
    for index in blocks:
        if index not in outputs:
            raise refusal(encoder, f"block {index + 1} of {len(parts)} took no part in the pass")
        last = channels_last(encoder, outputs[index], stage_of_block[index], size)
        if last is not None:
            layouts[type(parts[index])] = last
    maps = [
        read_map(encoder, outputs[index], stage_of_block[index], size, like=layouts.get(type(parts[index])))
        for index in blocks
    ]
    final = read_map(encoder, final, replace(stages[-1], width=0), size)
    head_norm = _head_norm(encoder)
    return final if head_norm is None else head_norm(final), maps


def map_of_layer(encoder: nn.Module, layer: nn.Module, output: Tensor, size: Sequence[int]) -> Tensor:
    """The output of a block of a model in stages as (B, D, h, w), whichever layout it has.

    Args:
        encoder: A model in stages.
        layer: The block; of a Swin, ResNet or ConvNeXt any layer that gives a map.
        output: What it gave for an image of `size`.
        size: Height and width of that image.

    Raises:
        ValueError: If it is no block and its layout is not known, or no map.
    """
    for stage in stages_of(encoder):
        if any(layer is block for block in stage.blocks):
            return read_map(encoder, output, stage, size)
    last = declared_last(encoder)
    if last is None or output.ndim != 4:
        raise refusal(encoder, f"a {type(layer).__name__} that is no block of it has no known layout")
    return output.permute(0, 3, 1, 2) if last else output


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
    parts = ("blocks", "patch_embed", "num_prefix_tokens", "norm", "forward_intermediates")
    absent = [name for name in parts if not hasattr(encoder, name)]
    # CaiT and XCiT have all of these, but their class token joins after the blocks
    method = cast(Callable, getattr(encoder, "forward_intermediates", None))
    if not absent and "return_prefix_tokens" not in inspect.signature(method).parameters:
        absent.append("prefix tokens among the tokens of its blocks")
    return absent
