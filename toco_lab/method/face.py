"""What every model that is trained here offers, whatever its method: maps of an image, image logits, losses of a step.

`model.ToCo` is one, and `toco_lab.peers` has those of other methods. All that lies above (checkpoints, evaluation,
pseudo labels, explorers, reports) knows no more of a model than this.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from toco_lab.backbones.build import build_encoder, image_statistics
from toco_lab.backbones.interfaces import Encoder
from toco_lab.backbones.kinds import token_side
from toco_lab.config import Config

if TYPE_CHECKING:
    from toco_lab.method.batch import Batch
    from toco_lab.method.step import StepOutput

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Output:
    """What one forward pass of any model gives.

    Attributes:
        logits: Image logits, (B, C).
        seg_logits: Segmentation logits, (B, C + 1, h, w), channel 0 is background; None if not asked for, or if the
            model has no decoder.
        features: What `CamModel.cams` makes the maps of this image from, so that the pass is not made twice; None
            where maps need a pass of their own.
    """

    logits: Tensor
    seg_logits: Tensor | None = None
    features: Any = None


@runtime_checkable
class HasLinearHeads(Protocol):
    """A model whose image logits are linear in pooled tokens: a linear probe can give its heads their weights."""

    def linear_heads(self, image: Tensor) -> list[tuple[nn.Conv2d, Tensor]]:
        """Each classifier (1x1, no bias), and what it reads of normalised images (B, 3, H, W): (B, D, 1, 1)."""


class CamModel(nn.Module, ABC):
    """A network that learns from image labels and gives two kinds of maps, made from a Config alone.

    A method writes `encode`, `cams` and `forward` (and `raw_maps`, where its maps need more than a pass).
    Weights are random; `initial_model` in training loads pretrained ones into the encoder.

    Attributes:
        encoder: Made by timm (or a network of your own, see `backbones.adapt`).
        decoder: Gives the segmentation logits; None in a method without one.
        num_classes: C, without background.
        patch_size: Side of a final token in pixels.
        mean, std: How images are normalised.
        maps_of_any_scale: Whether only the proportions within a map mean something, and its values may be tiny: its
            multi-scale sum is divided by its maximum before it is normalised.
        reads_final_norm: Whether the image logits read tokens after the encoder's final norm, or those before it.
    """

    encoder: Encoder
    decoder: nn.Module | None
    maps_of_any_scale = False
    reads_final_norm = True

    def __init__(self, cfg: Config, encoder: Encoder | None = None) -> None:
        super().__init__()
        self.encoder = build_encoder(cfg) if encoder is None else encoder
        self.decoder = None
        self.num_classes = cfg.num_classes
        self.patch_size: int = token_side(self.encoder)
        self.precision, self.checkpoint_blocks = cfg.precision, cfg.checkpoint_blocks
        self.mean, self.std = image_statistics(self.encoder, cfg.normalisation)

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patches: class, distillation, registers."""
        return getattr(self.encoder, "num_prefix_tokens", 0)

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode; batch norms stay in evaluation mode, as is usual for CAMs and segmentation.

        A batch has few images, and a step passes views of several sizes and mirror images through the encoder. Their
        statistics would be noise, and the CAMs of training would differ from those that are evaluated.
        """
        super().train(mode)
        self.encoder.set_grad_checkpointing(mode and self.checkpoint_blocks)  # not in evaluation: blocks may have hooks
        for part in self.encoder.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()
        return self

    @abstractmethod
    def encode(self, image: Tensor) -> Any:
        """One encoder pass over normalised images (B, 3, H, W); what it gives is for `cams` to read."""

    def cams(self, features: Any) -> tuple[Tensor, Tensor]:
        """The two kinds of raw maps from what `encode` gave, no ReLU, not normalised, detached.

        The first is the method's own map (target `cam`), the second its most telling part (`cam_aux`): (B, C, h, w),
        and another grid where the two have different ones.

        Raises:
            ValueError: If the maps of this method need more than a pass: `raw_maps` makes it.
        """
        raise ValueError(f"maps of a {type(self).__name__} need more than one pass: raw_maps(image) has them")

    def raw_maps(self, image: Tensor, wanted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`cams` of normalised images (B, 3, H, W).

        Args:
            image: The images.
            wanted: (B, C) bool, the classes whose maps are looked at; a method may leave the others 0 where a class
                costs a pass. None wants all.
        """
        return self.cams(self.encode(image))

    def aux_maps(self, image: Tensor, wanted: Tensor | None = None) -> tuple[Tensor]:
        """The second map of `raw_maps` alone; a model whose pass can end earlier for it ends it there."""
        return (self.raw_maps(image, wanted)[1],)

    @abstractmethod
    def forward(self, image: Tensor, *, segment: bool = True) -> Output:
        """Normalised images (B, 3, H, W) -> `Output`, which has no `seg_logits` without `segment`."""

    def load_pretrained(self, load: Callable[[Encoder], None]) -> None:
        """Start from pretrained weights, which `load` puts into an encoder as `build_encoder` makes it."""
        load(self.encoder)

    def update_teacher(self) -> None:
        """Move what follows the model from step to step; called before each step. Most methods have nothing to move."""

    def head_parameters(self) -> list[nn.Parameter]:
        """What learns `head_lr_factor` times as fast as the encoder, the decoder left out, in the optimiser's order."""
        apart = {id(p) for part in (self.encoder, self.decoder) if part is not None for p in part.parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in apart]

    def check_input(self, image: Tensor) -> None:
        """ValueError for images in double precision, unless the model computes in it too."""
        if image.dtype == torch.float64 != next(self.parameters()).dtype:
            raise ValueError("image is of torch.float64, and the model is not: give image.float()")

    def autocast(self, device: torch.device) -> torch.autocast:
        """The arithmetic of the encoder, `Config.precision`; heads and losses stay in fp32."""
        return torch.autocast(device.type, dtype=DTYPES[self.precision], enabled=self.precision != "fp32")


class BringsLosses(CamModel):
    """A model of another method than ToCo's, or ToCo with an addition: `step.compute_losses` asks it for its losses."""

    @abstractmethod
    def losses(
        self, batch: "Batch", cfg: Config, step: int, *, generator: torch.Generator | None = None
    ) -> "StepOutput":
        """All losses of one training step, with the encoder passes they need.

        Args:
            batch: Normalised views, labels, boxes.
            cfg: Thresholds and weights.
            step: 0-based; decides which terms are on.
            generator: Where a step draws random numbers, it draws them from it.
        """
