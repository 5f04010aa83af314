"""The losses of one training step, with every encoder pass made once (method: one training step, 1 to 7)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.backbones.pixels import denormalise
from toco_lab.config import Config
from toco_lab.method.batch import Batch
from toco_lab.method.cam import Cams, resize, slot_cams
from toco_lab.method.crops import cut_local_views, sample_local_crops
from toco_lab.method.labels import confident_label, inside_box, region_mask, token_box, token_labels
from toco_lab.method.losses import (
    affinity_mask,
    classification_loss,
    ctc_loss,
    distil_loss,
    ptc_terms,
    reg_loss,
    seg_loss,
)
from toco_lab.method.model import ToCo
from toco_lab.method.present import Slots
from toco_lab.method.refine import refine_slots

LOSSES = ("cls", "cls_aux", "ptc", "ctc", "distil", "seg", "reg")


@dataclass(frozen=True)
class LossTerms:
    """The terms of one step, unweighted scalars, and their weighted total. Terms of weight 0 are 0: not computed.

    `positive_cosine` and `negative_cosine` are the mean |cos| of PTC's pairs, NaN where PTC is off: PTC itself is 0.5
    both when all tokens are equal and when all are orthogonal, so it must never be read without them.
    """

    cls: Tensor
    cls_aux: Tensor
    ptc: Tensor
    ctc: Tensor
    distil: Tensor
    seg: Tensor
    reg: Tensor
    total: Tensor
    positive_cosine: Tensor
    negative_cosine: Tensor


@dataclass(frozen=True)
class LocalViews:
    """Local views: image (n*B, 3, c, c) view-major; flags (B, 2 + n), 1 = positive, the two global views first."""

    image: Tensor
    flags: Tensor


@dataclass(frozen=True)
class StepOutput:
    """Losses of a step and what they were made from (to look at, and to test).

    Attributes:
        terms: The losses.
        maps: Multi-scale CAMs of the classes in slots, (B, S, H, W); None where no term needs them.
        slots: Which classes these are.
        pseudo_label: (B, H, W) for the segmentation loss; None while that is off.
        token_label: (B, h, w) for PTC; None while that is off.
        region: (B, H, W) region mask the local crops come from; None while CTC is off.
        views: The local views; None while CTC is off.
    """

    terms: LossTerms
    maps: Cams | None = None
    slots: Slots | None = None
    pseudo_label: Tensor | None = None
    token_label: Tensor | None = None
    region: Tensor | None = None
    views: LocalViews | None = None

    @property
    def cams(self) -> Cams | None:
        """The multi-scale CAMs, (B, C, H, W), 0 for absent classes."""
        return self.maps and Cams(self.slots.spread(self.maps.cam), self.slots.spread(self.maps.cam_aux))


def loss_weights(cfg: Config, step: int) -> dict[str, float]:
    """Weight of each term at a step (0-based): CTC and PTC, and segmentation, join at their start steps."""
    contrast, segment = step >= cfg.contrast_start_step, step >= cfg.seg_start_step + cfg.late_segmentation
    return {
        "cls": cfg.w_cls,
        "cls_aux": cfg.w_cls_aux,
        "ptc": cfg.w_ptc * contrast,
        "ctc": cfg.w_ctc * contrast,
        "distil": cfg.w_distil * contrast,
        "seg": cfg.w_seg * segment,
        "reg": cfg.w_reg * segment,
    }


def compute_losses(
    model: ToCo,
    batch: Batch,
    cfg: Config,
    step: int,
    *,
    views: LocalViews | None = None,
    generator: torch.Generator | None = None,
) -> StepOutput:
    """All losses of one training step (method: one training step, 1 to 7), with each encoder pass made once.

    The pass over the main view serves the classifiers, both heads of CTC, PTC, the decoder and the CAM at scale 1. The
    teacher must have been moved before (`ToCo.update_teacher`): here nothing of the model changes.

    Args:
        model: In training mode.
        batch: Normalised views, labels, boxes.
        cfg: Thresholds, weights and quirks.
        step: 0-based; decides which terms are on and where the pseudo label comes from.
        views: Local views to use; None cuts them from `batch.local_source` around uncertain regions.
        generator: For the positions of the local crops.
    """
    weights = loss_weights(cfg, step)
    segment = weights["seg"] > 0 or weights["reg"] > 0
    contrast = any(weights[name] > 0 for name in ("ptc", "ctc", "distil"))
    output = model(batch.image, segment=segment)
    zero = output.logits.new_zeros(())
    terms = dict.fromkeys(LOSSES, zero) | {
        "cls": classification_loss(output.logits, batch.image_label),
        "cls_aux": classification_loss(output.aux_logits, batch.image_label),
    }
    made, cosines = {}, (zero * torch.nan, zero * torch.nan)
    if contrast or segment:
        slots = Slots.of(batch.image_label, batch.max_present)
        maps = slot_cams(model, batch.image, slots, cfg.cam_scales, plain=output.features.detach())
        made |= {"maps": maps, "slots": slots}

    # before CTC encodes its views: what refinement and energy need for a moment does not add to what those keep
    if segment:
        pixels = denormalise(batch.image, model.mean, model.std)
        label = made["pseudo_label"] = pseudo_label(maps, slots, pixels, batch, cfg, step)
        logits = enlarge(output.seg_logits, pixels.shape[-2:])
        if weights["seg"] > 0:
            terms["seg"] = seg_loss(logits, label)
        if weights["reg"] > 0:
            terms["reg"] = reg_loss(
                logits, pixels, label, batch.valid_box, weight=cfg.reg_scale_factor, sigma_rgb=cfg.reg_sigma_rgb,
                sigma_xy=cfg.reg_sigma_xy, scale=cfg.reg_scale, gate=cfg.reg_gate,
            )  # fmt: skip

    if weights["ptc"] > 0:
        tokens = output.features.patch_tokens
        token_label = token_labels(
            maps.cam_aux, slots.present, tokens.shape[-2:], batch.valid_box, low=cfg.low_threshold,
            high=cfg.high_threshold, patch_size=model.patch_size, box_units=cfg.ptc_box_units,
        )  # fmt: skip
        made["token_label"] = slots.class_label(token_label)
        pairs = ptc_terms(tokens, affinity_mask(made["token_label"]), similarity=cfg.ptc_similarity)
        terms["ptc"], cosines = pairs.loss, (pairs.positive_cosine, pairs.negative_cosine)

    if weights["distil"] > 0:
        tokens = output.features.patch_tokens
        inside = inside_box(token_box(batch.valid_box, model.patch_size), *tokens.shape[-2:])
        target = resize(maps.cam_aux, tokens.shape[-2:])
        terms["distil"] = distil_loss(slots.take(model.classifier(tokens)), target, slots.present, inside)

    if weights["ctc"] > 0:
        made["region"] = region_mask(maps.cam_aux, slots.present, low=cfg.low_threshold, high=cfg.high_threshold)
        made["views"] = views or local_views(batch, made["region"], cfg, generator)
        terms["ctc"] = class_token_contrast(model, output.features.class_token, batch.view2, made["views"], cfg)

    total = sum(weights[name] * terms[name] for name in LOSSES)
    losses = LossTerms(**terms, total=total, positive_cosine=cosines[0], negative_cosine=cosines[1])
    return StepOutput(losses, **made)


def enlarge(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, K, h, w) at a larger size, bilinear, corners not aligned: what `F.interpolate` gives, as two products with
    small matrices. Their gradient takes a quarter of the time of its own, and is the same in every run on a GPU.
    As exact as torch's matrix products are set to be (`torch.set_float32_matmul_precision`).
    """
    rows, columns = (
        F.interpolate(torch.eye(old, device=maps.device, dtype=maps.dtype)[None], new, mode="linear")[0]  # (old, new)
        for old, new in zip(maps.shape[-2:], size, strict=True)
    )
    return rows.T @ (maps @ columns)


def local_views(batch: Batch, region: Tensor, cfg: Config, generator: torch.Generator | None = None) -> LocalViews:
    """Cut the local views of a batch around uncertain positions of its region mask (B, H, W)."""
    crops = sample_local_crops(
        region, crop_size=cfg.local_crop_size, num_crops=cfg.num_local_crops, candidates=cfg.crop_candidates,
        content=cfg.crop_content, min_content=cfg.crop_min_content, generator=generator,
        valid_box=batch.valid_box if cfg.crops_in_valid_box else None,
    )  # fmt: skip
    return LocalViews(cut_local_views(batch.local_source, crops), crops.flags)


def class_token_contrast(model: ToCo, class_token: Tensor, view2: Tensor, views: LocalViews, cfg: Config) -> Tensor:
    """CTC of a batch: the teacher's two global views against the student's two global and n local views.

    Both heads read the same encoder: the teacher's tokens are the student's, and view 1 (`class_token`, (B, D), of
    the training image) is not encoded again. Without a teacher (`cfg.teacher` "none") the student's own projections of
    the global views take its place, and the gradient runs through both.
    """
    global_tokens = torch.cat([class_token, model.encode_class_token(view2)])
    student = model.projection_head(torch.cat([global_tokens, model.encode_class_token(views.image)]))
    if cfg.teacher == "none":
        teacher = student[: len(global_tokens)]
    else:
        with torch.no_grad():
            teacher = model.teacher_head(global_tokens)
    return ctc_loss(
        student, teacher, views.flags, temperature=cfg.ctc_temperature, negative_only_term=cfg.ctc_negative_only_term
    )


def pseudo_label(maps: Cams, slots: Slots, pixels: Tensor, batch: Batch, cfg: Config, step: int) -> Tensor:
    """The label of the segmentation loss, (B, H, W), 255 where unsure (method: training step, 5).

    Args:
        maps: Multi-scale CAMs of slots; the auxiliary one counts before `cfg.aux_label_steps`, then the final one.
        slots: Their classes.
        pixels: Denormalised images, (B, 3, H, W) in 0..255; PAR sees them cut to whole grey levels, as released.
        batch: For the valid boxes.
        cfg: Thresholds and the settings of PAR; without `cfg.refine` the thresholds alone decide.
        step: 0-based.
    """
    cam = maps.cam_aux if step < cfg.aux_label_steps else maps.cam
    if not cfg.refine:
        label = confident_label(
            cam, slots.present, low=cfg.low_threshold, high=cfg.high_threshold, valid_box=batch.valid_box
        )
        return slots.class_label(label)
    return refine_slots(
        pixels.clamp(0, 255).byte().float() / 255, cam, slots, batch.valid_box, low_threshold=cfg.low_threshold,
        high_threshold=cfg.high_threshold, dilations=cfg.par_dilations, num_iter=cfg.par_iterations,
    )  # fmt: skip
