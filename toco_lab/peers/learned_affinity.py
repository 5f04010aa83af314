"""Affinity between patches, learned from their attention, and the walk that spreads a CAM along it: AFA's parts.

Ru, Zhan, Yu, Du: "Learning Affinity from Attention" (CVPR 2022). The scores q k^T of the last two blocks are a raw
affinity between patches. One 1x1 convolution reads it (`AffinityHead`), confident pairs of the pseudo label supervise
it (`affinity_label`, `affinity_loss`), and a random walk of one step spreads the CAM along it (`walk`).

In the paper the encoder is a MiT-B1, whose last stage has two blocks; here it is any plain ViT, and the scores are
those between its patches alone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toco_lab.backbones.interfaces import SelfAttention
from toco_lab.backbones.kinds import encoder_of, is_timm_attention
from toco_lab.config import IGNORE_INDEX
from toco_lab.method.cam import resize
from toco_lab.method.labels import outside_to_ignore
from toco_lab.method.present import PresentClasses
from toco_lab.method.refine import DILATIONS, beside_background, par

BLOCKS = 2  # the last so many blocks give their scores
WALK_EPSILON = 0.1  # added to each column's sum before the walk divides by it


# --- affinity ---------------------------------------------------------------------------------------------------------


class AffinityHead(nn.Module):
    """Affinity of every pair of patches from the attention scores of some blocks: one weight per head, and a bias.

    The weights begin with a standard deviation of 0.58 and the scores are not scaled, as in the released code, so the
    sigmoid begins saturated.

    Args:
        num_heads: Heads of all blocks together.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.read = nn.Conv2d(num_heads, 1, 1)
        nn.init.kaiming_normal_(self.read.weight, a=math.sqrt(5), mode="fan_out")

    def forward(self, scores: Sequence[Tensor]) -> Tensor:
        """Scores (B, H, N, N) of each block, in their order, -> symmetric affinity (B, N, N) in (0, 1)."""
        stacked = torch.cat([one.float() for one in scores], dim=1)
        with torch.autocast(stacked.device.type, enabled=False):
            return self.read(stacked + stacked.mT).sigmoid().squeeze(1)


def patch_scores(part: SelfAttention, qkv: Tensor, num_prefix: int, *, scaled: bool = False) -> Tensor:
    """Attention scores q k^T between the patches, before softmax.

    Args:
        part: An attention of timm, whose norms of q and k are applied where it has them.
        qkv: What its layer `qkv` gave, (B, P + N, 3 D).
        num_prefix: P.
        scaled: Divide by the square root of the channels of a head, as attention does; the released code does not.

    Returns:
        (B, H, N, N).
    """
    heads = qkv[:, num_prefix:].unflatten(2, (3, part.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, H, N, d)
    query, key = part.q_norm(heads[0]), part.k_norm(heads[1])
    scores = query @ key.mT
    return scores / math.sqrt(query.shape[-1]) if scaled else scores


@contextmanager
def attention_scores(
    model: nn.Module, *, blocks: int = BLOCKS, scaled: bool = False
) -> Iterator[Callable[[], list[Tensor]]]:
    """See `patch_scores` of the last blocks in the first pass made inside the `with`.

    Yields:
        A function that gives one (B, H, N, N) per block after that pass, first block first, with autograd history. It
        computes them when it is called, so that blocks may be recomputed in the backward pass.

    Raises:
        ValueError: If the model is no plain ViT, has fewer blocks, or a block has no attention of timm's kind.
    """
    encoder = encoder_of(model)
    if len(encoder.blocks) < blocks:
        raise ValueError(f"the affinity reads the last {blocks} blocks, and {type(encoder).__name__} has fewer")
    parts: list[SelfAttention] = []
    for block in list(encoder.blocks)[-blocks:]:
        part = getattr(block, "attn", None)
        if not is_timm_attention(part) or not hasattr(part, "qkv"):
            raise ValueError(f"attention scores of {type(part).__name__} cannot be read: it lacks the layer qkv")
        parts.append(part)
    found: dict[int, Tensor] = {}
    hooks = []
    try:
        for place, part in enumerate(parts):

            def keep(_: nn.Module, __: object, qkv: Tensor, place: int = place) -> None:
                found.setdefault(place, qkv)

            hooks.append(part.qkv.register_forward_hook(keep))
        prefix = encoder.num_prefix_tokens
        yield lambda: [patch_scores(part, found[place], prefix, scaled=scaled) for place, part in enumerate(parts)]
    finally:
        for hook in hooks:
            hook.remove()


# --- its supervision --------------------------------------------------------------------------------------------------


def radius_mask(grid: Sequence[int], radius: int, device: torch.device | None = None) -> Tensor:
    """(N, N) bool: True where rows and columns of two tokens differ by at most `radius` each, N = h * w row-major."""
    height, width = grid
    row = torch.arange(height * width, device=device) // width
    column = torch.arange(height * width, device=device) % width
    return torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs()) <= radius


def affinity_label(label: Tensor, grid: Sequence[int], *, radius: int | None = None) -> Tensor:
    """What the affinity of every pair of tokens should be.

    `losses.affinity_mask`, which PTC reads, leaves the diagonal out and has no radius.

    Args:
        label: Pseudo label (B, H, W): 0 background, 1..C classes, 255 ignored; brought to the grid by nearest
            neighbour.
        grid: Rows and columns (h, w) of the tokens.
        radius: In tokens; None compares all pairs.

    Returns:
        (B, N, N) uint8, N = h * w row-major: 1 same label (background and the diagonal too), 0 different, 255 where
        either is ignored or the two are further apart than the radius in rows or in columns.
    """
    flat = F.interpolate(label[:, None].float(), tuple(grid), mode="nearest").flatten(1).long()  # (B, N)
    rows, columns = flat[:, :, None], flat[:, None, :]
    ignored = (rows == IGNORE_INDEX) | (columns == IGNORE_INDEX)
    if radius is not None:
        ignored = ignored | ~radius_mask(grid, radius, label.device)
    return (rows == columns).to(torch.uint8).masked_fill(ignored, IGNORE_INDEX)


@dataclass(frozen=True)
class AffinityTerms:
    """The affinity loss with the two means it must be read with.

    Attributes:
        loss: Scalar in [0, 1].
        positive, negative: Scalars, detached: mean affinity of the positive and of the negative pairs of the batch, in
            [0, 1]; NaN if there are none.
    """

    loss: Tensor
    positive: Tensor
    negative: Tensor


def affinity_loss(affinity: Tensor, label: Tensor) -> AffinityTerms:
    """Half the mean of 1 - a over positive pairs plus half the mean of a over negative pairs of the whole batch.

    As in the released code, 1 is added to each number of pairs, and the loss is 0 where all pairs are ignored.

    Args:
        affinity: (B, N, N) in [0, 1].
        label: (B, N, N): 1 same, 0 different, 255 ignored.

    Raises:
        ValueError: If the two do not fit.
    """
    if affinity.shape != label.shape:
        raise ValueError(f"affinity {tuple(affinity.shape)} does not fit label {tuple(label.shape)}")
    positive, negative = label == 1, label == 0
    num_positive, num_negative = positive.sum(), negative.sum()
    pull = ((1 - affinity) * positive).sum() / (num_positive + 1)
    push = (affinity * negative).sum() / (num_negative + 1)
    with torch.no_grad():
        means = [(affinity * pairs).sum() / number for pairs, number in
                 ((positive, num_positive), (negative, num_negative))]  # fmt: skip
    return AffinityTerms(0.5 * pull + 0.5 * push, *means)


# --- the walk ---------------------------------------------------------------------------------------------------------


def walk(scores: Tensor, affinity: Tensor, *, radius: int | None = None, epsilon: float = WALK_EPSILON) -> Tensor:
    """Spread scores along the affinity: a random walk of one step.

    With a = (affinity within the radius)^2: out_j = sum_i scores_i a_ij / (sum_i a_ij + epsilon).

    Args:
        scores: (B, K, h, w).
        affinity: (B, N, N), N = h * w row-major, >= 0.
        radius: In tokens; pairs further apart do not exchange anything. None lets all.
        epsilon: Added to the sum of each column.

    Returns:
        (B, K, h, w), at most the range of `scores`.

    Raises:
        ValueError: If scores and affinity do not fit.
    """
    grid = scores.shape[-2:]
    number = grid[0] * grid[1]
    if affinity.shape != (len(scores), number, number):
        raise ValueError(
            f"affinity {tuple(affinity.shape)} does not fit scores {tuple(scores.shape)}: need (B, h * w, h * w)"
        )
    squared = affinity.square()
    if radius is not None:
        squared = squared * radius_mask(grid, radius, affinity.device)
    moves = squared / (squared.sum(1, keepdim=True) + epsilon)
    return (scores.flatten(2) @ moves).unflatten(2, grid)


@torch.no_grad()
def walked_scores(
    cam: Tensor,
    present: PresentClasses,
    affinity: Tensor,
    background: float | Tensor,
    *,
    radius: int | None,
    epsilon: float = WALK_EPSILON,
) -> Tensor:
    """Scores of background and present classes after the walk.

    Args:
        cam: (B, S, h, w) in [0, 1], on the grid of the affinity.
        present: Its classes; absent ones take no part and stay 0.
        affinity: (B, N, N).
        background: Constant score of the background, one or one for each image, (B,).
        radius, epsilon: As in `walk`.

    Returns:
        (B, 1 + S, h, w): softmax over background and present classes, walked.
    """
    absent = F.pad(~present.mask, (1, 0))[:, :, None, None]
    scores = beside_background(cam.float(), background).masked_fill(absent, -torch.inf).softmax(1)
    return walk(scores, affinity.float(), radius=radius, epsilon=epsilon)


@torch.no_grad()
def walked_label(
    image01: Tensor,
    cam: Tensor,
    present: PresentClasses,
    affinity: Tensor,
    grid: Sequence[int],
    *,
    low: float,
    high: float | Tensor,
    radius: int | None,
    valid_box: Tensor,
    scale: float = 0.5,
    dilations: Sequence[int] = DILATIONS,
    num_iter: int = 10,
) -> Tensor:
    """The pseudo label of AFA: the CAM walks beside a strict and a loose background, then PAR refines both runs.

    PAR sees the image cut to its valid box; in ToCo it sees the whole image (`refine.refine_cam`). Arguments and
    result are those of `refine_cam`, with

    Args:
        affinity: (B, N, N).
        grid: Rows and columns (h, w) of its tokens.
        radius: As in `walk`.
        valid_box: (B, 4) top, bottom, left, right in pixels, half-open; outside it the label is 255.
    """
    size = cam.shape[-2:]
    small, places = resize(cam, grid), []
    for background in dict.fromkeys((high, low)):  # equal ones take a single run
        maps = resize(walked_scores(small, present, affinity, background, radius=radius), size)
        place = torch.zeros(len(cam), *size, dtype=torch.int64, device=cam.device)
        for number, (top, bottom, left, right) in enumerate(valid_box.tolist()):
            inside = (slice(top, bottom), slice(left, right))
            kept = F.pad(present.mask[number], (1, 0), value=True)  # background, then the classes of this image
            cut = image01[number : number + 1, :, *inside]
            reduced = resize(cut, [max(1, int(length * scale)) for length in cut.shape[-2:]])
            refined = par(reduced, maps[number : number + 1, kept, *inside], dilations=dilations, num_iter=num_iter)
            winner = resize(refined, cut.shape[-2:]).max(1).indices[0]
            place[number, *inside] = kept.nonzero()[:, 0][winner]
        places.append(place)
    strict, loose = places[0], places[-1]
    label = present.class_label(strict).masked_fill((strict == 0) & (loose != 0), IGNORE_INDEX)
    return outside_to_ignore(label, valid_box)
