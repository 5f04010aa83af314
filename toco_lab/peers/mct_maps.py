"""MCTformer's formulas: logits, maps and the contrast between class tokens, from what a pass gives.

`mct` says what they are for. C classes, h x w patches, N = h w, D channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.method.cam import resize
from toco_lab.peers.affinity import spread


@dataclass(frozen=True)
class MctMaps:
    """The four maps of MCTformer, (B, C, h, w) each, and what joins the last two. No map is normalised.

    Attributes:
        attention: Where the token of each class looks.
        patch_cam: Positive part of the class map of the patch tokens.
        fused: The two together.
        affinity: Between patches, (B, N, N), see `affinity.patch_affinity`.
        refined: `fused`, spread along `affinity`.
    """

    attention: Tensor
    patch_cam: Tensor
    fused: Tensor
    affinity: Tensor
    refined: Tensor

    @classmethod
    def of(cls, attention: Tensor, head_map: Tensor, affinity: Tensor, *, geometric: bool) -> "MctMaps":
        """From class-token attention and class map (B, C, h, w) and affinity (B, N, N); see `fuse` for `geometric`."""
        patch_cam = head_map.relu()
        fused = fuse(attention, patch_cam, geometric=geometric)
        return cls(attention, patch_cam, fused, affinity, spread(fused, affinity))


def class_attention(rows: Sequence[Tensor], grid: tuple[int, int], *, last: int, mean: bool) -> Tensor:
    """Where class tokens look: their rows of the last blocks, added up (V2) or averaged (MCTformer+).

    Args:
        rows: Of each block the mean over heads, class tokens by patches, (B, C, N).
        grid: (h, w).
        last: How many blocks count, from the last one back.
        mean: The mean in place of the sum.

    Returns:
        (B, C, h, w).

    Raises:
        ValueError: If there are fewer blocks than `last`, or `last` is below 1.
    """
    if not 1 <= last <= len(rows):
        raise ValueError(f"mct_layers must lie in [1, {len(rows)}], the number of blocks, got {last}")
    blocks = torch.stack(list(rows[-last:]))
    return (blocks.mean(0) if mean else blocks.sum(0)).unflatten(2, grid)


def fuse(attention: Tensor, patch_cam: Tensor, *, geometric: bool) -> Tensor:
    """Class-token attention times patch CAM, both not negative (V2); or the square root of it (MCTformer+)."""
    product = attention * patch_cam
    return product.sqrt() if geometric else product


def class_logits(class_tokens: Tensor) -> Tensor:
    """(..., C, D) -> (..., C): the logit of a class is the mean of its token's channels."""
    return class_tokens.mean(-1)


def ranked_pooling(maps: Tensor, decay: float) -> Tensor:
    """Weighted mean of each map's values: the k-th largest (from 0) weighs decay^k. 1 gives the mean, 0 the maximum.

    Args:
        maps: (B, C, h, w).
        decay: In [0, 1].

    Returns:
        (B, C).
    """
    values = maps.flatten(2).sort(dim=2, descending=True).values
    weights = decay ** torch.arange(values.shape[2], device=maps.device, dtype=values.dtype)
    return values @ (weights / weights.sum())


def class_contrast(embeddings: Tensor, image_label: Tensor) -> Tensor:
    """MCTformer+'s contrast: the token of a present class should be more like itself than like those of other classes.

    After each block: softmax over classes of the cosines between the tokens (no temperature); minus the logarithm of
    its diagonal, averaged over the present classes (with 1e-8 in the denominator, as released), blocks and images.

    Args:
        embeddings: Class tokens after each block that counts, (K, B, C, D).
        image_label: (B, C) in {0, 1}.

    Returns:
        Scalar >= 0.
    """
    tokens = F.normalize(embeddings.float(), dim=-1)
    own = -(tokens @ tokens.mT).log_softmax(-1).diagonal(dim1=-2, dim2=-1).mean(0)  # (B, C)
    present = image_label.to(own.dtype)
    return ((own * present).sum(1) / (present.sum(1) + 1e-8)).mean()


def summed_map(maps: Sequence[Tensor], size: Sequence[int], image_label: Tensor) -> Tensor:
    """The released inference: maps at several scales, each followed by that of the mirror image, become one map.

    Each is resized, mirrored back and added; then each class is shifted and scaled to [0, 1). It differs from
    `cam.multi_scale_cam` (the maximum with the mirror image, ReLU, 1e-5), by which all methods are compared here.

    Args:
        maps: In the order plain, mirrored, plain, mirrored and so on, (B, C, h, w) each, of any grids.
        size: (H, W) of the result.
        image_label: (B, C) in {0, 1}.

    Returns:
        (B, C, H, W), 0 where a class is absent.
    """
    resized = [resize(one, size) for one in maps]
    total = torch.stack([one.flip(-1) if index % 2 else one for index, one in enumerate(resized)]).sum(0)
    total = total * image_label[:, :, None, None]
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    return (total - low) / (high - low + 1e-8)
