"""Is a map right? Insertion and deletion ask the model, the pointing game asks the mask.

Nothing here knows how a map was made.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toco_lab.attribution.reading import check_image, checked_classes, logits_of, number_of_classes
from toco_lab.backbones.interfaces import Encoder
from toco_lab.backbones.kinds import any_encoder_of, token_side
from toco_lab.backbones.modes import evaluating
from toco_lab.backbones.own_model import OwnModel
from toco_lab.backbones.pixels import pieces_of
from toco_lab.method.face import CamModel

Baseline = Literal["mean", "blur"]
BASELINES: tuple[Baseline, ...] = ("mean", "blur")
INSERTION_BASELINE: Baseline = "blur"
DELETION_BASELINE: Baseline = "mean"
STEPS = 16  # shares of the pixels at which the score is read, beside none
BLUR = 0.1  # sigma in shorter sides of the image; the paper's 5 of 224 pixels leave large objects recognisable
MOST_COPIES = 64  # masked copies of an image that go through an encoder on a GPU together
_SEED = 0  # of the order of equal pixels

Score = Callable[[Tensor], Tensor]  # images (B, 3, H, W) -> (B,)


@dataclass(frozen=True)
class MapScores:
    """How faithful one map is.

    Attributes:
        insertion: The class score after each step of insertion, (steps + 1,): from nothing to the whole image.
        deletion: The class score after each step of deletion, (steps + 1,): from the whole image to nothing.
        distance: Pixels from the maximum of the map to the nearest pixel of the class: 0 on it; infinite where a map is
            the same everywhere, for it points nowhere; NaN where no mask is known, or the class has no pixel in it.
    """

    insertion: Tensor
    deletion: Tensor
    distance: float

    @property
    def insertion_area(self) -> float:
        """Area under the curve of insertion: high where the map finds what is enough for the class."""
        return area(self.insertion)

    @property
    def deletion_area(self) -> float:
        """Area under the curve of deletion: low where the map finds what the class cannot do without."""
        return area(self.deletion)


def score_name(model: nn.Module) -> str:
    """What `scorer` reads of a model, in words."""
    if not number_of_classes(model):
        return "cosine to the embedding of the whole image"
    return "sigmoid of the class logit" if isinstance(model, CamModel) else "softmax of the class logits"


def scorer(model: nn.Module, image: Tensor, class_index: int | None = None) -> Score:
    """The function that scores masked copies of an image.

    It is the probability of the class: the sigmoid of its logit in ToCo, whose classes do not exclude each other, and
    the softmax in a timm classifier. Of a model without a classifier it is the cosine between its embedding (what timm
    gives with num_classes=0, and the mean of the final patches of an own model) and that of the whole image.

    Args:
        model: ToCo, or any encoder that is read here.
        image: Normalised, (1, 3, H, W).
        class_index: From 0; of no importance without a classifier.

    Raises:
        ValueError: If the model has a classifier and not this class, or cannot be read.
    """
    classes = number_of_classes(model)
    if not classes:
        encoder = any_encoder_of(model)
        embed = _mean_token if isinstance(encoder, OwnModel) else nn.Module.__call__
        whole = embed(encoder, image).flatten(1)
        return lambda copies: F.cosine_similarity(embed(encoder, copies).flatten(1), whole)
    index = int(checked_classes(class_index, 1, classes))
    if isinstance(model, CamModel):
        return lambda copies: logits_of(model, copies)[:, index].sigmoid()
    return lambda copies: logits_of(model, copies).softmax(1)[:, index]


def _mean_token(encoder: Encoder, image: Tensor) -> Tensor:
    """The embedding of an own model without logits: the mean of its final patches, (B, D)."""
    return encoder.forward_features(image).mean((2, 3))


@torch.no_grad()
def map_scores(
    model: nn.Module,
    image: Tensor,
    maps: Tensor,
    class_index: int | None = None,
    *,
    steps: int = STEPS,
    insertion_baseline: Baseline = INSERTION_BASELINE,
    deletion_baseline: Baseline = DELETION_BASELINE,
    on_class: Tensor | None = None,
) -> list[MapScores]:
    """Insertion, deletion and the pointing game of some maps of one image.

    Source: Petsiuk et al., "RISE" (BMVC 2018), for insertion and deletion: pixels go in, or out, in the order of the
    map, k / steps of them after step k, and the class score is read after each. The masked copies of an image go
    through the encoder together. Equal pixels come in a random order, the same every time. Zhang et al., "Top-down
    Neural Attention by Excitation Backprop" (IJCV 2018), for the pointing game.

    Args:
        model: It is read in evaluation mode.
        image: Normalised, (1, 3, H, W), of the size that the model is to see.
        maps: (M, h, w), of the image's size or another, to which they are resized: larger is more important.
        class_index: As in `scorer`.
        steps: How many, at least 2.
        insertion_baseline: What insertion begins with: `mean`, the mean colour of the backbone's images (0 after
            normalisation), or `blur`, the image under a Gaussian of sigma `BLUR` shorter sides.
        deletion_baseline: What deletion ends with. The paper takes blur and mean, as the defaults do.
        on_class: (h', w'), where the class is, at the size that distances are in; None where no mask is known.

    Raises:
        ValueError: If a shape or an option does not fit, or a map holds NaN.
    """
    _check(image, maps, steps, insertion_baseline, deletion_baseline)
    with evaluating(model):
        score = scorer(model, image, class_index)
        side = token_side(any_encoder_of(model))
        empty = {name: baseline_of(image, name) for name in {insertion_baseline, deletion_baseline}}
        whole = score(image)
        ends = {name: score(blank) for name, blank in empty.items()}
        scores = []
        for one in maps.to(image):
            rank = removal_order(_resized(one, image.shape[-2:]))
            first, last = empty[insertion_baseline], empty[deletion_baseline]
            put_in = _between(score, first, image, rank, steps, side)
            taken = _between(score, image, last, rank, steps, side)
            scores.append(
                MapScores(
                    torch.cat([ends[insertion_baseline], put_in, whole]).cpu(),
                    torch.cat([whole, taken, ends[deletion_baseline]]).cpu(),
                    math.nan if on_class is None else pointing_distance(one, on_class),
                )
            )
    return scores


def _check(image: Tensor, maps: Tensor, steps: int, *baselines: str) -> None:
    check_image(image)
    if len(image) != 1:
        raise ValueError(f"image must be one image, (1, 3, H, W), got {tuple(image.shape)}")
    if maps.ndim != 3:
        raise ValueError(f"maps must be of shape (M, h, w), got {tuple(maps.shape)}")
    if maps.isnan().any():
        raise ValueError("maps hold NaN: there is no order of their pixels")
    if not isinstance(steps, int) or not 2 <= steps <= image.shape[-2] * image.shape[-1]:
        raise ValueError(f"steps must be a whole number from 2 to the pixels of the image, got {steps!r}")
    if unknown := set(baselines) - set(BASELINES):
        raise ValueError(f"a baseline must be one of {', '.join(BASELINES)}, got {sorted(unknown)[0]!r}")


def removal_order(score_map: Tensor) -> Tensor:
    """The place of each pixel of a map (H, W) in the order from most to least important, (H, W) in 0..H*W - 1."""
    flat = score_map.flatten()
    mixed = torch.randperm(len(flat), generator=torch.Generator().manual_seed(_SEED)).to(flat.device)
    order = mixed[flat[mixed].argsort(descending=True, stable=True)]
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device)).view_as(score_map)


def _between(score: Score, before: Tensor, after: Tensor, rank: Tensor, steps: int, side: int) -> Tensor:
    """Scores (steps - 1,) of the copies in which the first k / steps pixels by rank are those of `after`."""
    counts = torch.arange(1, steps, device=rank.device) * rank.numel() // steps
    found = []
    for part in counts.split(MOST_COPIES):
        copies = torch.where(rank < part[:, None, None, None], after, before)
        found += [score(piece).float() for piece in pieces_of(copies, side)]
    return torch.cat([before.new_zeros(0), *found])


def baseline_of(image: Tensor, name: Baseline) -> Tensor:
    """An image (1, 3, H, W) in which the class is not to be seen: all of mean colour, or blurred."""
    if name == "mean":
        return torch.zeros_like(image)
    return gaussian_blur(image, BLUR * min(image.shape[-2:]))


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """(B, C, H, W) under a Gaussian of `sigma` pixels, cut off at 3 sigma; the rim is the mirror image.

    One axis after the other: torchvision's function takes the whole square of weights, which at a sigma of 45 pixels
    costs seconds.
    """
    for axis in (2, 3):
        reach = min(math.ceil(3 * sigma), image.shape[axis] - 1)
        at = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
        weights = (-(at**2) / (2 * sigma**2)).exp()
        kernel = (weights / weights.sum()).view(1, 1, *((-1, 1) if axis == 2 else (1, -1)))
        padding = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        padded = F.pad(image, padding, mode="reflect")
        image = F.conv2d(padded, kernel.expand(image.shape[1], -1, -1, -1), groups=image.shape[1])
    return image


def area(curve: Tensor) -> float:
    """Area under scores (steps + 1,) at equal distances between 0 and 1, by trapezoids."""
    return torch.trapezoid(curve.double(), dx=1 / (len(curve) - 1)).item()


def pointing_distance(score_map: Tensor, on_class: Tensor) -> float:
    """Pixels from the maximum of a map to the nearest pixel of a class; see `MapScores.distance`.

    Args:
        score_map: (h, w); it is resized to the size of `on_class`. Of several maxima the first one counts, in reading
            order.
        on_class: (H, W) bool.
    """
    if not on_class.any():
        return math.nan
    full = _resized(score_map, on_class.shape[-2:])
    if full.max() == full.min():
        return math.inf
    row, column = divmod(int(full.argmax()), full.shape[1])
    rows, columns = on_class.nonzero(as_tuple=True)
    return ((rows - row) ** 2 + (columns - column) ** 2).min().sqrt().item()


def _resized(score_map: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """A map (h, w) at another size, bilinear."""
    if score_map.shape == tuple(size):
        return score_map
    return F.interpolate(score_map[None, None], tuple(size), mode="bilinear", align_corners=False)[0, 0]
