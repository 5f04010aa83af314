"""Activations inside an encoder: tokens at every site and attention maps, from one pass through a timm model.

The model is afterwards as it was: hooks are removed, fused attention is on again, every part is in its own mode.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toco_lab.backbones.interfaces import Encoder, PlainViT, SelfAttention
from toco_lab.backbones.kinds import (
    any_encoder_of,
    blocks_of,
    encoder_of,
    fill_patches,
    final_norm,
    is_plain_vit,
    is_timm_attention,
    stage_maps,
)
from toco_lab.backbones.modes import evaluating
from toco_lab.backbones.own_model import OwnModel
from toco_lab.vocabulary import NO_NORM


@dataclass(frozen=True)
class Activations:
    """Tokens (B, P + N, D) of one pass: P prefix tokens (class, distillation, register; P may be 0), then the patches.

    Attributes:
        grid: Rows and columns (h, w) of the N final patch tokens.
        block_grids: The grid after each block. In a ViT all are alike; in a model in stages early grids are finer, and
            N and D are those of the block.
        num_prefix: P.
        patch_embedding: The patches alone, before positions, (B, N, D); None in a model in stages.
        embedding: What enters the first block: prefix tokens, then patches with their positions; None in a model in
            stages.
        after_block: The raw residual stream after each block, L of them.
        after_attention: The residual stream after the attention of each block, before its MLP; empty if not
            asked for.
        final: After the final norm.
        norm: Class of that norm; "none" where there is none.
        attention: (B, heads, P + N, P + N) of each block, rows sum to 1; empty if not asked for.
    """

    grid: tuple[int, int]
    block_grids: list[tuple[int, int]]
    num_prefix: int
    patch_embedding: Tensor | None
    embedding: Tensor | None
    after_block: list[Tensor]
    after_attention: list[Tensor]
    final: Tensor
    norm: str
    attention: list[Tensor]

    def patches(self, tokens: Tensor) -> Tensor:
        """The patch tokens among these tokens: (B, P + N, D) -> (B, N, D) in fp32."""
        return tokens[:, self.num_prefix :].float()

    def class_token(self, tokens: Tensor) -> Tensor:
        """The class token among these tokens, the first one: (B, P + N, D) -> (B, D) in fp32."""
        return tokens[:, 0].float()


@torch.no_grad()
def capture(model: nn.Module, image: Tensor, *, attention: bool = False, after_attention: bool = False) -> Activations:
    """Tokens at every site, in one pass in evaluation mode.

    Args:
        model: A timm ViT or DeiT, with or without register or distillation tokens, a Swin, ResNet or ConvNeXt, or a
            model that carries one as `.encoder` (ToCo).
        image: Normalised, (B, 3, H, W). It is moved to device and precision of the model, and made to fill whole tokens
            (`kinds.fill_patches`).
        attention: Keep the attention maps: L * B * heads * (P + N)^2 numbers, 0.35 GB for one image of 448 pixels in
            ViT-B.
        after_attention: Keep the residual stream after each attention as well.

    Raises:
        ValueError: If the model is of neither kind, if a model in stages is asked for attention, or if the image is too
            small or of a size that the model does not take.
    """
    encoder = encoder_of(model) if attention or after_attention else any_encoder_of(model)
    image, grid = fill_patches(encoder, image.to(next(encoder.parameters())))
    if not is_plain_vit(encoder):
        return _capture_stages(encoder, image, grid)
    return _capture_vit(encoder, image, grid, attention=attention, after_attention=after_attention)


def _capture_vit(
    encoder: PlainViT, image: Tensor, grid: tuple[int, int], *, attention: bool, after_attention: bool
) -> Activations:
    maps: list[Tensor] = []
    middle: list[Tensor] = []
    entering: list[Tensor] = []
    embedded: list[Tensor] = []
    prefixed = encoder.num_prefix_tokens > 0
    with ExitStack() as stack:
        stack.enter_context(evaluating(encoder))
        if attention:
            maps = stack.enter_context(attention_maps(encoder))
        if after_attention:
            middle = stack.enter_context(_residual_after_attention(encoder))
        first = encoder.blocks[0].register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
        stack.callback(first.remove)
        patches = encoder.patch_embed.register_forward_hook(lambda _, __, output: embedded.append(output))
        stack.callback(patches.remove)
        final, blocks = encoder.forward_intermediates(
            image, indices=None, norm=False, output_fmt="NLC", return_prefix_tokens=prefixed
        )
    return Activations(
        grid=grid,
        block_grids=[grid] * len(blocks),
        num_prefix=encoder.num_prefix_tokens,
        patch_embedding=embedded[0].flatten(1, -2).float(),  # timm gives (B, h, w, D) where sizes are free
        embedding=entering[0],
        after_block=[torch.cat([prefix, own], dim=1) for own, prefix in blocks] if prefixed else list(blocks),
        after_attention=middle,
        final=final,
        norm=type(encoder.norm).__name__,
        attention=maps,
    )


def _capture_stages(encoder: Encoder, image: Tensor, grid: tuple[int, int]) -> Activations:
    own = encoder if isinstance(encoder, OwnModel) else None
    prefixed: AbstractContextManager[list[Tensor]] = own.prefix_tokens() if own else nullcontext([])
    with evaluating(encoder), prefixed as prefixes:
        try:
            final, maps = stage_maps(encoder, image, range(len(blocks_of(encoder))))
        except (AssertionError, TypeError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            size = f"{image.shape[-2]} x {image.shape[-1]} pixels, which fill whole tokens"
            raise ValueError(f"{type(encoder).__name__} cannot be read with an image of {size}: {reason}") from error
    norm = final_norm(encoder)
    tokens = [one.flatten(2).mT for one in (*maps, final)]
    if prefixes:
        tokens = [torch.cat(pair, dim=1) for pair in zip(prefixes, tokens, strict=True)]
    return Activations(
        grid=grid,
        block_grids=[(one.shape[-2], one.shape[-1]) for one in maps],
        num_prefix=own.num_prefix_tokens if own else 0,
        patch_embedding=None,
        embedding=None,
        after_block=tokens[:-1],
        after_attention=[],
        final=tokens[-1],
        norm=NO_NORM if norm is None else type(norm).__name__,
        attention=[],
    )


@contextmanager
def attention_maps(
    model: nn.Module, read: Callable[[Tensor], Tensor] = lambda attention: attention
) -> Iterator[list[Tensor]]:
    """Collect the attention of every block in the passes made inside the `with`.

    Fused attention never forms these matrices, so it is switched off inside; outside, the model is as it was, also
    after an error.

    Args:
        model: A plain ViT, or a model that carries one as `.encoder`.
        read: What is kept of the attention of a block, (B, heads, T, T); the whole of it takes much memory.

    Yields:
        A list that each pass extends by what `read` gives, for each block; rows sum to 1 and carry autograd history.

    Raises:
        ValueError: If a block has no attention of timm's kind.
    """
    found: list[Tensor] = []
    parts: list[SelfAttention] = []
    for block in encoder_of(model).blocks:
        part = getattr(block, "attn", None)
        if not is_timm_attention(part):
            raise ValueError(f"attention of {type(part).__name__} cannot be read: it lacks fused_attn and attn_drop")
        parts.append(part)
    fused = [part.fused_attn for part in parts]
    # the input of the dropout behind the softmax is the map that is used, after AttnScale and relative positions
    hooks = [
        part.attn_drop.register_forward_pre_hook(lambda _, inputs: found.append(read(inputs[0]))) for part in parts
    ]
    try:
        for part in parts:
            part.fused_attn = False
        yield found
    finally:
        for part, value, hook in zip(parts, fused, hooks, strict=True):
            part.fused_attn = value
            hook.remove()


@contextmanager
def _residual_after_attention(encoder: PlainViT) -> Iterator[list[Tensor]]:
    """Collect the input of each block plus what its attention branch adds, (B, T, D) each."""
    found: list[Tensor] = []
    entering: list[Tensor] = []
    hooks = []
    try:
        for block in encoder.blocks:
            if not hasattr(block, "drop_path1"):
                raise ValueError(f"block {type(block).__name__} has no attention branch of its own (drop_path1)")
            hooks.append(block.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0])))
            hooks.append(
                block.drop_path1.register_forward_hook(lambda _, __, branch: found.append(entering[-1] + branch))
            )
        yield found
    finally:
        for hook in hooks:
            hook.remove()
