"""WeakTr's adaptive weights of attention heads: how much each head of each block counts for the map of an image.

Source: Zhu et al., "WeakTr: Exploring Plain Vision Transformer for Weakly-supervised Semantic Segmentation" (arXiv
2304.01184). In place of MCTformer's plain sums, attention is the mean of w A over all heads of all blocks, with w in
(0, 1) read from the features of the heads. A classification loss on the mean of the refined map teaches w, and nothing
else: attention, features and class map are detached.

The released code splits a block's features as (d, H) where they lie as (H, d), so that its "heads" are mixtures. Here
each head has its own features.

L blocks of H heads, K = L H in the order of the blocks; d = D / H channels of a head, C classes, N patches.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from toco_lab.backbones.interfaces import PlainViT

FEATURE_REDUCTION, HEAD_REDUCTION = 8, 4  # hidden widths of the two networks: d / 8 and K / 4 (WeakTr, section 3)


class HeadWeights(nn.Module):
    """Features of all heads to a weight of each: a linear bottleneck per head, then an MLP over all heads, sigmoid."""

    def __init__(self, num_heads: int, head_width: int) -> None:
        super().__init__()
        hidden, between = max(1, head_width // FEATURE_REDUCTION), max(1, num_heads // HEAD_REDUCTION)
        self.of_features = nn.Sequential(nn.Linear(head_width, hidden), nn.Linear(hidden, 1))
        self.of_heads = nn.Sequential(
            nn.Linear(num_heads, between, bias=False), nn.ReLU(), nn.Linear(between, num_heads, bias=False)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features of each head, averaged over the tokens, (B, K, d) -> weights in (0, 1), (B, K)."""
        return self.of_heads(self.of_features(features).squeeze(2)).sigmoid()


def weighted_mean(weights: Tensor, values: Tensor) -> Tensor:
    """Weights (B, K) and values (B, K, ...) of each head -> the mean of their products over all heads, (B, ...)."""
    return torch.einsum("bk,bk...->b...", weights, values) / weights.shape[1]


def map_logits(weights: Tensor, rows: Tensor, columns: Tensor, patch_cam: Tensor) -> Tensor:
    """The mean over positions of the refined map, without making the map.

    That mean is linear in the columns of the affinity: the mean over i of sum_j a_ij f_cj is sum_j (mean_i a_ij) f_cj.
    So a training step keeps K (C + 1) N numbers of the attention, not K N^2.

    Args:
        weights: (B, K).
        rows: Of each head, class tokens by patches, (B, K, C, N).
        columns: Of each head, the attention between patches averaged over the looking one, (B, K, N).
        patch_cam: Not negative, (B, C, N).

    Returns:
        (B, C).
    """
    fused = weighted_mean(weights, rows) * patch_cam
    return (fused @ weighted_mean(weights, columns)[:, :, None]).squeeze(2)


@contextmanager
def head_features(encoder: PlainViT) -> Iterator[list[Tensor]]:
    """Collect what each head gives in the passes made inside the `with`, averaged over all tokens.

    Yields:
        A list that each pass extends by one (B, H, d) per block, detached, fp32.
    """
    found: list[Tensor] = []
    hooks = [
        block.attn.proj.register_forward_pre_hook(
            lambda _, inputs, heads=block.attn.num_heads: found.append(
                inputs[0].detach().float().mean(1).unflatten(1, (heads, -1))
            )
        )
        for block in encoder.blocks
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def rows_and_columns(attention: Tensor, *, num_prefix: int, num_rows: int) -> Tensor:
    """What `map_logits` reads of the attention of a block.

    Args:
        attention: (B, H, T, T).
        num_prefix: Tokens before the patches.
        num_rows: C, how many of them are class tokens; they are the first.

    Returns:
        (B, H, C + 1, N), detached, fp32: the rows of the class tokens, then the mean row of the patches.
    """
    seen = attention.detach().float()[..., num_prefix:]
    return torch.cat([seen[:, :, :num_rows], seen[:, :, num_prefix:].mean(2, keepdim=True)], dim=2)
