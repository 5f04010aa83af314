"""What an encoder computes on its way: tokens at every site and attention maps, from one pass through a timm model.

Nothing is left behind: hooks are removed, fused attention is switched on again, every part has its own mode back.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toco_lab.backbones.kinds import (
    any_encoder_of,
    blocks_of,
    encoder_of,
    fill_patches,
    final_norm,
    is_plain_vit,
    stage_maps,
)
from toco_lab.vocabulary import NO_NORM


@dataclass(frozen=True)
class Activations:
    """Tokens (B, P + N, D) of one pass, prefix tokens first: P class, distillation and register tokens, maybe none.

    Attributes:
        grid: Rows and columns (h, w) of the N final patch tokens.
        block_grids: The same of the tokens after each block: all alike in a ViT, finer before in a model in stages,
            where N and D are those of the block.
        num_prefix: P.
        patch_embedding: The patches alone, before positions, (B, N, D); None in a model in stages.
        embedding: What enters the first block: patches with their positions, behind the prefix tokens; None likewise.
        after_block: The raw residual stream after each block, L of them.
        after_attention: The residual stream after the attention of each block, before its MLP; empty if not asked for.
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
        """The patch tokens of one of the above, (B, N, D) in fp32."""
        return tokens[:, self.num_prefix :].float()

    def class_token(self, tokens: Tensor) -> Tensor:
        """The class token of one of the above, (B, D) in fp32."""
        return tokens[:, 0].float()


@torch.no_grad()
def capture(model: nn.Module, image: Tensor, *, attention: bool = False, after_attention: bool = False) -> Activations:
    """Tokens at every site, in one pass in evaluation mode.

    Args:
        model: A timm ViT or DeiT, with or without register or distillation tokens, a Swin, ResNet or ConvNeXt, or a
            model that carries one as `.encoder` (ToCo).
        image: Normalised, (B, 3, H, W), brought to device and precision of the model, and to whole tokens as in ToCo.
        attention: Keep the attention maps: L * B * heads * (P + N)^2 numbers, 0.35 GB for one image of 448 pixels in
            ViT-B.
        after_attention: Keep the residual stream after each attention as well.

    Raises:
        ValueError: If the model is of neither kind, a model in stages is asked for attention, or the image is too
            small, or of a size the model does not take.
    """
    encoder = encoder_of(model) if attention or after_attention else any_encoder_of(model)
    image, grid = fill_patches(encoder, image.to(next(encoder.parameters())))
    if not is_plain_vit(encoder):
        return _capture_stages(encoder, image, grid)
    maps, middle, entering, embedded = [], [], [], []
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


def _capture_stages(encoder: nn.Module, image: Tensor, grid: tuple[int, int]) -> Activations:
    with evaluating(encoder):
        final, maps = stage_maps(encoder, image, range(len(blocks_of(encoder))))
    norm = final_norm(encoder)
    return Activations(
        grid=grid,
        block_grids=[tuple(one.shape[-2:]) for one in maps],
        num_prefix=0,
        patch_embedding=None,
        embedding=None,
        after_block=[one.flatten(2).mT for one in maps],
        after_attention=[],
        final=final.flatten(2).mT,
        norm=NO_NORM if norm is None else type(norm).__name__,
        attention=[],
    )


@contextmanager
def attention_maps(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the attention of every block in the passes made inside: a list that fills with (B, heads, T, T).

    Rows sum to 1 and carry autograd history. Fused attention never forms these matrices, so it is switched off inside;
    outside, the model is as it was, also after an error.

    Raises:
        ValueError: If a block has no attention of timm's kind.
    """
    found: list[Tensor] = []
    parts = [getattr(block, "attn", None) for block in encoder_of(model).blocks]
    for part in parts:
        if not (hasattr(part, "fused_attn") and isinstance(getattr(part, "attn_drop", None), nn.Module)):
            raise ValueError(f"attention of {type(part).__name__} can not be read: it lacks fused_attn and attn_drop")
    fused = [part.fused_attn for part in parts]
    # the dropout behind the softmax sees the maps, whatever the attention does before (AttnScale, relative positions)
    hooks = [part.attn_drop.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0])) for part in parts]
    try:
        for part in parts:
            part.fused_attn = False
        yield found
    finally:
        for part, value, hook in zip(parts, fused, hooks, strict=True):
            part.fused_attn = value
            hook.remove()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every submodule has its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def _residual_after_attention(encoder: nn.Module) -> Iterator[list[Tensor]]:
    """Collect, block by block, its input plus what its attention branch adds."""
    found: list[Tensor] = []
    entering: list[Tensor] = []
    hooks = []
    try:
        for block in encoder.blocks:
            if not hasattr(block, "drop_path1"):
                raise ValueError(f"block {type(block).__name__} has no attention branch of its own to look behind")
            hooks.append(block.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0])))
            hooks.append(
                block.drop_path1.register_forward_hook(lambda _, __, branch: found.append(entering[-1] + branch))
            )
        yield found
    finally:
        for hook in hooks:
            hook.remove()
