"""Patch affinity: how much each patch looks at each other one, and a map spread along it (MCTformer's refinement).

Source: Xu et al., "Multi-class Token Transformer for Weakly Supervised Semantic Segmentation" (CVPR 2022). The
attention between the patches, summed over all blocks, is a matrix of affinities that costs no training, and its product
with a map smooths the map within what belongs together. Any ViT has one.

Attention is reduced while a pass runs (`PatchAttention` in `activations.attention_maps`): L blocks of H heads over T
tokens would be L H T^2 numbers an image, and N^2 are kept.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from toco_lab.backbones.activations import attention_maps
from toco_lab.backbones.kinds import encoder_of, fill_patches
from toco_lab.backbones.modes import evaluating


def patch_affinity(attention: Iterable[Tensor], num_prefix: int, *, last: int = 0) -> Tensor:
    """The attention between the patches, summed over blocks: MCTformer's affinity.

    Args:
        attention: Of each block, in their order: (B, heads, T, T) after the softmax, or (B, T, T) its mean over heads;
            T = P + N tokens.
        num_prefix: P, tokens before the patches.
        last: How many blocks count, from the last one back; 0 counts all, as the released code does.

    Returns:
        (B, N, N) in fp32: row i is where patch i looks. Rows do not sum to 1: what a patch gives to prefix tokens is
        missing, and the blocks are added.

    Raises:
        ValueError: If there is no attention, it has no patches, or fewer blocks than `last`.
    """
    blocks = list(attention)
    if not 0 <= last <= len(blocks) or not blocks:
        raise ValueError(f"last must lie in [0, {len(blocks)}], the number of blocks with attention, got {last}")
    reader = PatchAttention(num_prefix)
    for one in blocks[-last:]:
        reader(one)
    return reader.affinity


def row_normalised(affinity: Tensor, *, squarings: int = 0) -> Tensor:
    """An affinity (B, N, N), not negative, as a random walk: rows that sum to 1, squared `squarings` times.

    With t squarings it is the walk of 2^t steps, as PSA (Ahn and Kwak, CVPR 2018) spreads CAMs. A row of zeros stays.
    """
    if squarings < 0:
        raise ValueError(f"squarings must not be negative, got {squarings}")
    walk = affinity / affinity.sum(2, keepdim=True).clamp(min=torch.finfo(affinity.dtype).tiny)
    for _ in range(squarings):
        walk = walk @ walk
    return walk


def spread(maps: Tensor, affinity: Tensor) -> Tensor:
    """Each map spread along an affinity: what patch i gets is the sum over j of affinity[i, j] maps[j].

    Args:
        maps: (B, C, h, w), N = h w.
        affinity: (B, N, N).

    Returns:
        (B, C, h, w).

    Raises:
        ValueError: If the affinity is of another grid or batch; both shapes are in the message.
    """
    batch, positions = len(maps), maps.shape[-2] * maps.shape[-1]
    if affinity.shape != (batch, positions, positions):
        raise ValueError(
            f"affinity must be {(batch, positions, positions)} for maps of {tuple(maps.shape)}, one row and column for "
            f"each position, got {tuple(affinity.shape)}"
        )
    return (maps.flatten(2) @ affinity.mT).view_as(maps)


@dataclass
class PatchAttention:
    """Reads the attention of one block after the other: adds up that between patches, gives the rows of prefix tokens.

    Made for `attention_maps(encoder, reader)`; a reader is for one pass.

    Attributes:
        num_prefix: P, tokens before the patches.
        num_rows: How many of the prefix tokens, from the first one, are read as rows.
        affinity: (B, N, N), the sum so far of the means over heads, in fp32; of no size before the first block.
    """

    num_prefix: int
    num_rows: int = 0
    affinity: Tensor = field(default_factory=lambda: torch.empty(0))

    def __call__(self, attention: Tensor) -> Tensor:
        """(B, heads, T, T) or (B, T, T) of a block -> the patch columns of its first rows, (B, num_rows, N), fp32.

        Raises:
            ValueError: If no patches are left behind the prefix tokens.
        """
        mean = attention.float().mean(1) if attention.ndim == 4 else attention.float()
        between = mean[:, self.num_prefix :, self.num_prefix :]
        if between.numel() == 0:
            raise ValueError(f"{mean.shape[-1]} tokens have no patches behind {self.num_prefix} prefix tokens")
        self.affinity = between.clone() if self.affinity.numel() == 0 else self.affinity + between
        return mean[:, : self.num_rows, self.num_prefix :].clone()  # a copy: a slice would keep all of it


@dataclass
class WeightedPatchAttention:
    """As `PatchAttention`, where each head of each block has its weight: the mean of their products.

    Attributes:
        num_prefix: P, tokens before the patches.
        weights: Of all heads in the order of the blocks, (B, L H).
        affinity: (B, N, N), what has been added so far, over L H; of no size before the first block.
        read: Heads that were read so far.
    """

    num_prefix: int
    weights: Tensor
    affinity: Tensor = field(default_factory=lambda: torch.empty(0))
    read: int = 0

    def __call__(self, attention: Tensor) -> Tensor:
        """(B, H, T, T) of a block; nothing of it is kept but the sum."""
        heads, total = attention.shape[1], self.weights.shape[1]
        own = self.weights[:, self.read : self.read + heads]
        between = attention[:, :, self.num_prefix :, self.num_prefix :].float()
        share = torch.einsum("bh,bhij->bij", own, between) / total
        self.affinity = share if self.read == 0 else self.affinity + share
        self.read += heads
        return own


@torch.no_grad()
def affinity_of_image(model: nn.Module, image: Tensor) -> Tensor:
    """The patch affinity of images in any plain ViT, in one pass in evaluation mode.

    Args:
        model: A timm ViT, or a model that carries one as `.encoder`.
        image: Normalised, (B, 3, H, W).

    Returns:
        (B, N, N), N = h w patches row-major; see `patch_affinity`.

    Raises:
        ValueError: If the model is no plain ViT with timm's attention, or the image is too small for it.
    """
    encoder = encoder_of(model)
    image, _ = fill_patches(encoder, image.to(next(encoder.parameters())))
    reader = PatchAttention(encoder.num_prefix_tokens)
    with evaluating(encoder), attention_maps(encoder, read=reader):
        encoder.forward_features(image)
    return reader.affinity
