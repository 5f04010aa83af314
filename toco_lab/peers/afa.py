"""AFA: a CAM walks along a learned affinity before it teaches the segmentation; and ToCo with that affinity.

Ru, Zhan, Yu, Du: "Learning Affinity from Attention" (CVPR 2022); the parts are in `learned_affinity`. The CAM refined
by PAR alone supervises the affinity, and at first the segmentation too; from `afa_walk_start_step` on the segmentation
is taught by the CAM that walked.

Two habits of the released code are not kept: it does not train the layers of norm, and from COCO's walk on the walked
label also supervises the affinity.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from toco_lab.backbones.kinds import encoder_of, fill_patches
from toco_lab.backbones.pixels import check_images, denormalise
from toco_lab.config import Config
from toco_lab.method.batch import Batch
from toco_lab.method.cam import Cams, multi_scale_cam, resize, scaled_size
from toco_lab.method.face import BringsLosses, Output
from toco_lab.method.falling_threshold import high_threshold
from toco_lab.method.losses import classification_loss
from toco_lab.method.model import LargeFOVDecoder, ToCo
from toco_lab.method.present import PresentClasses
from toco_lab.method.step import StepOutput, loss_weights, pseudo_label, supervise, toco_losses, weighted_terms
from toco_lab.peers.learned_affinity import (
    BLOCKS,
    AffinityHead,
    affinity_label,
    affinity_loss,
    attention_scores,
    walk,
    walked_label,
)

CAM_EPSILON = 1e-4  # of the walk of a bare CAM, where that of scores beside a background has `WALK_EPSILON`


def affinity_weights(cfg: Config, step: int) -> dict[str, float]:
    """The weights of AFA's losses at a step: affinity and segmentation join together."""
    weights = loss_weights(cfg, step)
    on = {name: weights[name] for name in ("cls", "cls_aux", "seg", "reg")}
    return on | {"aff": cfg.w_aff * (step >= cfg.seg_start_step + cfg.late_segmentation)}


def radius_of(cfg: Config, patch_size: int) -> int:
    """How far apart two tokens may be that are compared: `afa_radius`, or a quarter of the crop's tokens, at least 1.

    The released radius is 8 on 32 x 32 tokens.
    """
    return max(1, round(cfg.crop_size / patch_size / 4)) if cfg.afa_radius is None else cfg.afa_radius


class WithAffinity(BringsLosses):
    """What a model offers that has an affinity head: the affinity of an image.

    Attributes:
        radius: How far apart two tokens may be that are compared.
    """

    radius: int
    affinity_head: AffinityHead
    scaled: bool

    def make_affinity_head(self, cfg: Config) -> None:
        """Add the head; ValueError if the encoder's attention cannot be read."""
        with attention_scores(self.encoder):  # refuses, and reads nothing
            heads = sum(block.attn.num_heads for block in list(encoder_of(self.encoder).blocks)[-BLOCKS:])
        self.affinity_head, self.scaled = AffinityHead(heads), cfg.afa_scaled
        self.radius = radius_of(cfg, self.patch_size)

    @torch.no_grad()
    def affinity(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Affinity (B, N, N) of normalised images (B, 3, H, W), and the grid (h, w) of its tokens."""
        _, grid = fill_patches(self.encoder, image)
        with attention_scores(self.encoder, scaled=self.scaled) as scores:
            self.encode(image)
        return self.affinity_head(scores()), grid


@dataclass(frozen=True)
class AfaFeatures:
    """What one pass gives.

    Attributes:
        patch_tokens: (B, D, h, w) after the final norm.
        labelled_tokens: The tokens whose CAM makes the labels, (B, D, h, w): these, or the raw ones of block
            `aux_layer`.
        affinity: (B, N, N) in (0, 1).
    """

    patch_tokens: Tensor
    labelled_tokens: Tensor
    affinity: Tensor


class AFA(WithAffinity):
    """A ViT with a classifier, a decoder and an affinity head.

    `cam` is the CAM that makes the labels: of the final tokens, or with `afa_labels` "aux" of block `aux_layer`, which
    then has a classifier of its own. `cam_aux` is the same CAM after the walk.

    Raises:
        ValueError: If the encoder is no plain ViT whose attention can be read, or `aux_layer` names no block.
    """

    decoder: LargeFOVDecoder

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        blocks, width = len(encoder_of(self.encoder).blocks), self.encoder.num_features
        if not -blocks <= cfg.aux_layer < blocks:
            raise ValueError(f"aux_layer {cfg.aux_layer} is not one of the {blocks} blocks of {cfg.backbone}")
        self.aux_index = cfg.aux_layer % blocks
        self.classifier = nn.Conv2d(width, cfg.num_classes, 1, bias=False)
        self.aux_classifier = nn.Conv2d(width, cfg.num_classes, 1, bias=False) if cfg.afa_labels == "aux" else None
        self.decoder = LargeFOVDecoder(width, cfg.decoder_width, cfg.num_classes + 1, cfg.decoder_dilation)
        self.make_affinity_head(cfg)
        self.train()

    def encode(self, image: Tensor) -> AfaFeatures:
        """One pass over normalised images (B, 3, H, W), with the affinity of their patches."""
        check_images(image)
        self.check_input(image)
        image, grid = fill_patches(self.encoder, image)
        with attention_scores(self.encoder, scaled=self.scaled) as scores, self.autocast(image.device):
            tokens, (aux,) = encoder_of(self.encoder).forward_intermediates(
                image, indices=[self.aux_index], norm=False, output_fmt="NCHW"
            )
        final = tokens.float()[:, self.num_prefix_tokens :].mT.unflatten(2, grid)
        return AfaFeatures(final, final if self.aux_classifier is None else aux.float(), self.affinity_head(scores()))

    def cams(self, features: AfaFeatures) -> tuple[Tensor, Tensor]:
        """The CAM that makes the labels, and what of it is positive after the walk, (B, C, h, w) each, detached."""
        with torch.no_grad():
            cam = (self.aux_classifier or self.classifier)(features.labelled_tokens)
            return cam, walk(cam.relu(), features.affinity, radius=self.radius, epsilon=CAM_EPSILON)

    def forward(self, image: Tensor, *, segment: bool = True) -> Output:
        """Image logits of the final tokens (maximum over positions), segmentation, and the features of the maps."""
        features = self.encode(image)
        return Output(
            logits=_logits(self.classifier, features.patch_tokens),
            seg_logits=self.decoder(features.patch_tokens) if segment else None,
            features=features,
        )

    def linear_heads(self, image: Tensor) -> list[tuple[nn.Conv2d, Tensor]]:
        """The classifier, and with `afa_labels` "aux" that of the labels, and what they read of (B, 3, H, W)."""
        features = self.encode(image)
        heads = [(self.classifier, _pooled(features.patch_tokens))]
        if self.aux_classifier is not None:
            heads.append((self.aux_classifier, _pooled(features.labelled_tokens)))
        return heads

    def losses(self, batch: Batch, cfg: Config, step: int, *, generator: torch.Generator | None = None) -> StepOutput:
        """Classification; from `cfg.seg_start_step` on the affinity and the segmentation."""
        weights = affinity_weights(cfg, step)
        on = {name for name, weight in weights.items() if weight > 0}
        output = self(batch.image, segment=not on.isdisjoint({"seg", "reg"}))
        features: AfaFeatures = output.features
        losses = {"cls": classification_loss(output.logits, batch.image_label)}
        if self.aux_classifier is not None:
            aux_logits = _logits(self.aux_classifier, features.labelled_tokens)
            losses["cls_aux"] = classification_loss(aux_logits, batch.image_label)
        if on.isdisjoint({"seg", "reg", "aff"}):
            return StepOutput(weighted_terms(losses, weights))
        present = PresentClasses.of(batch.image_label, batch.max_present)
        cams = multi_scale_cam(self, batch.image, cfg.cam_scales, present=present, plain=features, relu=cfg.cam_relu)
        pixels = denormalise(batch.image, self.mean, self.std).clamp(0, 255)
        label = pseudo_label(cams, pixels, batch, cfg, step)
        if "aff" in on:
            pairs = affinity_label(label, features.patch_tokens.shape[-2:], radius=self.radius)
            losses["aff"] = affinity_loss(features.affinity, pairs).loss
        if output.seg_logits is not None:
            starts = 3 * cfg.seg_start_step if cfg.afa_walk_start_step is None else cfg.afa_walk_start_step
            if step >= starts:
                label = self._walked_label(batch, cams, pixels, cfg, step)
            found = supervise(self, output.seg_logits, cams, batch, cfg, step, on, label=label)
            terms = weighted_terms({**losses, **found.losses}, weights, noise=found.noise)
            return StepOutput(terms, cams, found.label)
        return StepOutput(weighted_terms(losses, weights), cams, label)

    def _walked_label(self, batch: Batch, cams: Cams, pixels: Tensor, cfg: Config, step: int) -> Tensor:
        """The label of the segmentation after the walk, along the affinity at the largest scale of the CAM."""
        size = scaled_size(batch.image, max(cfg.cam_scales))
        affinity, grid = self.affinity(resize(batch.image, size))
        return walked_label(
            pixels.byte().float() / 255, cams.cam, cams.present, affinity, grid, low=cfg.low_threshold,
            high=high_threshold(cfg, step, cams.present), radius=self.radius, valid_box=batch.valid_box,
            dilations=cfg.par_dilations, num_iter=cfg.par_iterations,
        )  # fmt: skip


class ToCoWithAffinity(WithAffinity, ToCo):
    """ToCo with AFA's affinity head and loss (`w_aff` above 0), an addition that no paper has.

    The pairs come from the pseudo label of ToCo's segmentation. Its maps are ToCo's; the affinity shapes attention, and
    the refinement `walk` of an evaluation may use it.
    """

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.make_affinity_head(cfg)
        self.train()

    def head_parameters(self) -> list[nn.Parameter]:
        """Those of ToCo, and the affinity head."""
        return [*super().head_parameters(), *self.affinity_head.parameters()]

    def losses(self, batch: Batch, cfg: Config, step: int, *, generator: torch.Generator | None = None) -> StepOutput:
        """ToCo's losses, and the affinity loss while there is a pseudo label of segmentation."""
        with attention_scores(self.encoder, scaled=self.scaled) as scores:  # of the first pass, over `batch.image`
            made = toco_losses(self, batch, cfg, step, generator=generator)
        terms = made.terms
        if made.pseudo_label is None:
            return replace(made, terms=replace(terms, aff=torch.zeros_like(terms.total)))
        grid = [length // self.patch_size for length in batch.image.shape[-2:]]
        pairs = affinity_label(made.pseudo_label, grid, radius=self.radius)
        aff = affinity_loss(self.affinity_head(scores()), pairs).loss
        return replace(made, terms=replace(terms, aff=aff, total=terms.total + cfg.w_aff * aff))


def _logits(classifier: nn.Conv2d, tokens: Tensor) -> Tensor:
    """Image logits (B, C) of tokens (B, D, h, w)."""
    return classifier(_pooled(tokens)).flatten(1)


def _pooled(tokens: Tensor) -> Tensor:
    """Maximum over positions, channel by channel: (B, D, h, w) -> (B, D, 1, 1)."""
    return tokens.amax((2, 3), keepdim=True)
