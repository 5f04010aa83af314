"""GETAM: attention, entry by entry, times its gradient, and once more by the positive gradient.

Source: Sun et al., "GETAM: Gradient-weighted Element-wise Transformer Attention Map for Weakly-supervised Semantic
segmentation" (arXiv 2112.02841). Attention says where tokens look, its gradient which of it matters for a class. Layers
are added; in Chefer's rule (`attribution.gradient_attention`) and in rollout they are multiplied.

The authors use saliency maps of a network that was trained with masks. Here image labels are all there is: maps become
pseudo labels as ToCo's do, by PAR and two thresholds. So their published scores are not what a run of this can reach.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toco_lab.backbones.activations import attention_maps
from toco_lab.backbones.kinds import fill_patches
from toco_lab.backbones.pixels import check_images
from toco_lab.config import Config
from toco_lab.method.batch import Batch
from toco_lab.method.cam import multi_scale_cam
from toco_lab.method.face import BringsLosses, Output
from toco_lab.method.losses import classification_loss
from toco_lab.method.model import LargeFOVDecoder
from toco_lab.method.present import PresentClasses
from toco_lab.method.step import StepOutput, loss_weights, supervise, weighted_terms
from toco_lab.peers.vit import vit_with_class_token
from toco_lab.words import counted


def weighted_attention(attention: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The map of one block, and the same without its second factor.

    Args:
        attention: After softmax, (B, H, R, T): all rows, or some of them.
        gradient: Of a class logit with respect to it.

    Returns:
        mean over heads of ReLU(attention * gradient), times mean over heads of ReLU(gradient); and the former alone:
        (B, R, T) each.
    """
    relevant = (attention * gradient).float().relu().mean(1)
    return relevant * gradient.float().relu().mean(1), relevant


@dataclass(frozen=True)
class RawTokens:
    """Tokens of one pass: behind the last block, and the patches after the final norm as well.

    Attributes:
        class_token: (B, D), not normalised.
        patches: (B, D, h, w), not normalised.
        normed: (B, D, h, w), what the decoder reads.
    """

    class_token: Tensor
    patches: Tensor
    normed: Tensor


class Readout(nn.Module):
    """The authors' classifier: each patch beside the class token, two convolutions, mean, a linear map.

    Through it the logits depend on the class token, so that its attention has a gradient in the last block too.
    """

    def __init__(self, embed_dim: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.readout = nn.Linear(2 * embed_dim, embed_dim)
        self.reduce = nn.Conv2d(embed_dim, channels, 1)
        self.stride2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.cls_head = nn.Linear(channels, num_classes)

    def forward(self, tokens: RawTokens) -> Tensor:
        """Image logits, (B, C)."""
        beside = tokens.class_token[:, :, None, None].expand_as(tokens.patches)
        pairs = torch.cat([tokens.patches, beside], dim=1).movedim(1, 3)  # (B, h, w, 2D)
        maps = F.gelu(self.readout(pairs)).movedim(3, 1)
        return self.cls_head(self.stride2(self.reduce(maps)).mean((2, 3)))


class GETAM(BringsLosses):
    """A ViT with the authors' readout, and ToCo's decoder.

    `cam` is the gradient map of the class token's row, summed over blocks from `Config.getam_start` on; `cam_aux` is
    the same without the second factor. A map takes a pass with gradient, and a backward pass for each class an image
    shows. Positions are resampled bilinearly, as the authors do.

    Args:
        cfg: The run's config.
        channels: Width of the readout's convolutions; None takes that of the tokens.

    Raises:
        ValueError: If the encoder is no plain ViT with a class token, or has no block `getam_start`.
    """

    decoder: LargeFOVDecoder
    maps_of_any_scale = True
    reads_final_norm = False

    def __init__(self, cfg: Config, *, channels: int | None = None) -> None:
        super().__init__(cfg)
        vit = vit_with_class_token(self.encoder, cfg.method)
        vit.pos_embed_mode = "bilinear"
        blocks, width = len(vit.blocks), self.encoder.num_features
        self.start = blocks // 2 if cfg.getam_start is None else cfg.getam_start
        if self.start >= blocks:
            raise ValueError(
                f"getam_start {self.start} is not one of the {counted(blocks, 'block')} of {cfg.backbone}, from 0"
            )
        self.classifier = Readout(width, width if channels is None else channels, cfg.num_classes)
        self.decoder = LargeFOVDecoder(width, cfg.decoder_width, cfg.num_classes + 1, cfg.decoder_dilation)
        self.train()

    def encode(self, image: Tensor) -> RawTokens:
        """One pass."""
        check_images(image)
        self.check_input(image)
        image, grid = fill_patches(self.encoder, image)
        vit = vit_with_class_token(self.encoder, "getam")
        with self.autocast(image.device):
            normed, [(patches, prefix)] = vit.forward_intermediates(
                image, indices=1, norm=False, output_fmt="NLC", return_prefix_tokens=True
            )
        patches, normed = patches.float(), normed.float()[:, self.num_prefix_tokens :]
        return RawTokens(prefix[:, 0].float(), patches.mT.unflatten(2, grid), normed.mT.unflatten(2, grid))

    def raw_maps(self, image: Tensor, wanted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Both maps (B, C, h, w) of the wanted classes; others are 0. Works inside `torch.no_grad()`."""
        if wanted is None:
            wanted = torch.ones(len(image), self.num_classes, device=image.device)
        present = PresentClasses.of(wanted)
        with torch.enable_grad(), self._whole_blocks(), attention_maps(self.encoder) as seen:
            tokens = self.encode(image.detach().requires_grad_())  # so that a frozen encoder has gradients too
            logits = self.classifier(tokens).gather(1, present.index)  # (B, S)
            blocks, maps = seen[self.start :], []
            for slot, logit in enumerate(logits.sum(0)):  # images do not see each other: one backward pass serves all
                gradients = torch.autograd.grad(logit, blocks, retain_graph=slot + 1 < logits.shape[1])
                maps.append(self._class_token_maps(blocks, gradients))
        found = torch.stack(maps, dim=2).unflatten(3, tokens.patches.shape[-2:])  # (2, B, S, h, w)
        cam, cam_aux = present.scatter(found)
        return cam, cam_aux

    def _class_token_maps(self, blocks: list[Tensor], gradients: tuple[Tensor, ...]) -> Tensor:
        """Sums over blocks of `weighted_attention`, class token to patches: (2, B, N)."""
        parts = [
            torch.stack(weighted_attention(attention.detach()[:, :, :1], gradient[:, :, :1]))
            for attention, gradient in zip(blocks, gradients, strict=True)
        ]
        return torch.stack(parts).sum(0)[:, :, 0, self.num_prefix_tokens :]

    @contextmanager
    def _whole_blocks(self) -> Iterator[None]:
        """Blocks keep their activations inside: of recomputed ones the hooks would see two passes."""
        vit = vit_with_class_token(self.encoder, "getam")
        checkpointing = vit.grad_checkpointing
        vit.set_grad_checkpointing(False)
        try:
            yield
        finally:
            vit.set_grad_checkpointing(checkpointing)

    def forward(self, image: Tensor, *, segment: bool = True) -> Output:
        """Image logits and segmentation; maps need a pass of their own."""
        tokens = self.encode(image)
        return Output(logits=self.classifier(tokens), seg_logits=self.decoder(tokens.normed) if segment else None)

    def losses(self, batch: Batch, cfg: Config, step: int, *, generator: torch.Generator | None = None) -> StepOutput:
        """Classification; from `cfg.seg_start_step` on ToCo's segmentation losses too, with labels of these maps."""
        weights = {name: weight for name, weight in loss_weights(cfg, step).items() if name in ("cls", "seg", "reg")}
        on = {name for name, weight in weights.items() if weight > 0}
        segment = not on.isdisjoint({"seg", "reg"})
        output = self(batch.image, segment=segment)
        losses = {"cls": classification_loss(output.logits, batch.image_label)}
        if output.seg_logits is None:
            return StepOutput(weighted_terms(losses, weights))
        present = PresentClasses.of(batch.image_label, batch.max_present)
        cams = multi_scale_cam(self, batch.image, cfg.cam_scales, present=present, relu=cfg.cam_relu)
        found = supervise(self, output.seg_logits, cams, batch, cfg, step, on)
        terms = weighted_terms({**losses, **found.losses}, weights, noise=found.noise)
        return StepOutput(terms, cams, found.label)
