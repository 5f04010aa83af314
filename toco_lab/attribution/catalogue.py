"""Every attribution by its name, with what it needs of a model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toco_lab.attribution.attention import class_token_attention, gradient_attention, rollout
from toco_lab.attribution.classifier_maps import block_cam, linear_heads
from toco_lab.attribution.directions import token_similarity
from toco_lab.attribution.gradients import direction_grad_cam, grad_cam
from toco_lab.attribution.peer_maps import coupled_attention, getam
from toco_lab.attribution.reading import checked_classes, number_of_classes
from toco_lab.backbones.kinds import any_encoder_of, has_class_token, is_plain_vit, is_timm_attention
from toco_lab.method.cam import min_max

CLASSIFIER, ATTENTION, CLASS_TOKEN = "a classifier", "attention that can be read", "a class token"
LINEAR = "a classifier that is one linear map of the final tokens"


@dataclass(frozen=True)
class Attribution:
    """One way to say where in an image something came from.

    Attributes:
        make: (model, image, class_index, block=) -> (B, h, w), >= 0, any scale; the class is left out where it is of no
            importance.
        about: What it shows, and what `block` means, for a reader.
        needs: Among `CLASSIFIER`, `LINEAR`, `ATTENTION`, `CLASS_TOKEN`.
        knows_class: Whether the map depends on the class.
    """

    make: Callable[..., Tensor]
    about: str
    needs: frozenset[str] = frozenset()
    knows_class: bool = True

    def __call__(
        self, model: nn.Module, image: Tensor, class_index: int | Tensor | None = None, *, block: int | None = None
    ) -> Tensor:
        """The map at the size of the image, (B, H, W) in [0, 1), min-max normalised as a CAM is.

        Args:
            model: One that has what `needs` says (`methods_of`).
            image: Normalised, (B, 3, H, W).
            class_index: One for all images or (B,). A class that the model does not have is refused also where the map
                does not depend on it.
            block: From 1, as `about` says; None takes what is usual.

        Raises:
            ValueError: If the model lacks what is needed, or has no such class or block.
        """
        asked: dict[str, Any] = {} if block is None else {"block": block}
        maps = self.make(model, image, class_index, **asked) if self.knows_class else self.make(model, image, **asked)
        if class_index is not None and (classes := number_of_classes(model)):
            checked_classes(class_index, len(maps), classes)
        maps = maps / maps.amax((1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)  # gradients may be tiny
        return min_max(F.interpolate(maps[:, None], image.shape[-2:], mode="bilinear", align_corners=False)[:, 0])


def _similarity(model: nn.Module, image: Tensor, **asked: Any) -> Tensor:
    """The cosine to the class token as a share, (1 + cos) / 2."""
    return (1 + token_similarity(model, image, **asked)) / 2


ATTRIBUTIONS: dict[str, Attribution] = {
    "attention rollout": Attribution(
        rollout,
        "what reaches the class token through the attention of all blocks up to this one",
        frozenset({ATTENTION, CLASS_TOKEN}),
        knows_class=False,
    ),
    "Grad-CAM": Attribution(
        grad_cam,
        "features that enter this block (the last one), weighted by the gradient of the class logit",
        frozenset({CLASSIFIER}),
    ),
    "gradient x attention": Attribution(
        gradient_attention,
        "attention that the class logit depends on, from this block (the first one) to the last",
        frozenset({CLASSIFIER, ATTENTION}),
    ),
    "GETAM": Attribution(
        getam,
        "attention x gradient x positive gradient of the class logit, summed from this block (the upper half) on",
        frozenset({CLASSIFIER, ATTENTION}),
    ),
    "TS-CAM coupling": Attribution(
        coupled_attention,
        "the CAM at one scale, times what the class token attends to in all blocks up to this one (the last)",
        frozenset({LINEAR, ATTENTION, CLASS_TOKEN}),
    ),
    "CAM of one block": Attribution(
        block_cam,
        "the classifier applied to the tokens behind this block (the last one), at one scale",
        frozenset({LINEAR}),
    ),
    "class token attention": Attribution(
        class_token_attention,
        "what the class token attends to in this block (the last one), mean over heads",
        frozenset({ATTENTION, CLASS_TOKEN}),
        knows_class=False,
    ),
    "class token similarity": Attribution(
        _similarity,
        "cosine of each patch to the class token behind this block (the final norm)",
        knows_class=False,
    ),
    "class token Grad-CAM": Attribution(
        direction_grad_cam,
        "features that enter this block (the last one), weighted by what they add to the class token",
        knows_class=False,
    ),
}


def methods_of(model: nn.Module) -> list[str]:
    """The names in `ATTRIBUTIONS` of what this model can give, in their order.

    Raises:
        ValueError: If the model cannot be read at all.
    """
    has = _properties(model)
    return [name for name, attribution in ATTRIBUTIONS.items() if attribution.needs <= has]


def _properties(model: nn.Module) -> set[str]:
    encoder = any_encoder_of(model)
    has = {CLASSIFIER} if number_of_classes(model) else set()
    if linear_heads(model):
        has.add(LINEAR)
    if has_class_token(encoder):
        has.add(CLASS_TOKEN)
    if is_plain_vit(encoder) and all(is_timm_attention(getattr(block, "attn", None)) for block in encoder.blocks):
        has.add(ATTENTION)
    return has
