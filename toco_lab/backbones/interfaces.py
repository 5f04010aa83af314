"""The attributes of timm's modules that this package reads, as types for the reader and the type checker.

No module is ever made of these classes: timm makes its own, and `kinds.is_plain_vit` tells which of them fit.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import Tensor, nn


class SelfAttention(nn.Module):
    """The attention of a block of a plain ViT."""

    num_heads: int
    num_prefix_tokens: int  # EVA's alone: tokens without rotary positions
    fused_attn: bool  # False: the attention matrix is formed, and `attn_drop` sees it
    qkv: nn.Linear
    q_norm: nn.Module
    k_norm: nn.Module
    attn_drop: nn.Dropout
    proj: nn.Linear
    proj_drop: nn.Module


class ViTBlock(nn.Module):
    """A block of a plain ViT."""

    norm1: nn.Module
    attn: SelfAttention
    ls1: nn.Module
    drop_path1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    ls2: nn.Module
    drop_path2: nn.Module


class Blocks(Protocol):
    """The blocks of a ViT in an `nn.Sequential` or an `nn.ModuleList`."""

    def __len__(self) -> int:
        """Number of blocks."""

    def __getitem__(self, index: int, /) -> ViTBlock:
        """One block; negative indices count from the last."""

    def __iter__(self) -> Iterator[ViTBlock]:
        """The blocks, first one first."""


class PatchEmbedding(nn.Module):
    """The part of a ViT that turns pixels into tokens."""

    patch_size: tuple[int, int]
    grid_size: tuple[int, int]
    img_size: tuple[int, int]


class Encoder(nn.Module):
    """Any model of timm that `kinds` can read: a plain ViT, or a model in stages."""

    pretrained_cfg: dict[str, Any]
    num_features: int  # channels of a final token
    forward_features: Callable[[Tensor], Tensor]
    set_grad_checkpointing: Callable[[bool], None]


class PlainViT(Encoder):
    """A ViT, DeiT, BEiT or EVA: one grid of tokens from the first block to the last."""

    blocks: Blocks
    patch_embed: PatchEmbedding
    pos_embed: nn.Parameter | None
    norm: nn.Module
    embed_dim: int
    num_prefix_tokens: int
    grad_checkpointing: bool
    no_embed_class: bool  # prefix tokens have no position
    pos_drop: nn.Module
    pos_embed_antialias: bool  # set by `build.build_encoder`, not by timm
    pos_embed_mode: str  # of resampling, set by a method that does it otherwise than bicubically
    pos_embed_excess: float  # added to the new sides before the scale is taken, set by `peers.mct` alone
    cls_token: nn.Parameter | None
    _pos_embed: Callable[[Tensor], Tensor]
    forward_intermediates: Callable[..., Any]
