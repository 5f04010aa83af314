"""The losses of one training step, with each encoder pass made once: steps 1 to 7 of `toco_lab.method`."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.backbones.pixels import denormalise
from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.method.batch import Batch
from toco_lab.method.cam import Cams, multi_scale_cam, resize
from toco_lab.method.crops import IGNORED, cut_local_views, local_crops
from toco_lab.method.face import BringsLosses, CamModel
from toco_lab.method.falling_threshold import high_threshold
from toco_lab.method.labels import (
    confident_label,
    inside_box,
    region_mask,
    region_of_mask,
    token_box,
    token_labels,
    token_labels_of_mask,
    where_known,
)
from toco_lab.method.losses import (
    CtcTerms,
    PtcTerms,
    affinity_mask,
    classification_loss,
    ctc_terms,
    distil_loss,
    ptc_terms,
    reg_loss,
    seg_loss,
    temporal_loss,
)
from toco_lab.method.model import ToCo
from toco_lab.method.noise import foreground, ignore_noise
from toco_lab.method.present import PresentClasses
from toco_lab.method.refine import refine_cam

LOSSES = ("cls", "cls_aux", "ptc", "ctc", "distil", "seg", "reg")
# terms of other methods and of training on clips; metrics.csv has a column for them only in runs of these
PEER_LOSSES = ("patch_cls", "cct", "map_cls", "aff", "soft", "consistency", "temporal")


@dataclass(frozen=True)
class LossTerms:
    """The unweighted terms of one step and their weighted total, scalars. A term of weight 0 is 0: it is not computed.

    `positive_cosine` and `negative_cosine` are the mean |cos| of PTC's pairs, NaN while PTC is off. PTC itself is 0.5
    both when all tokens are equal and when all are orthogonal, so it must never be read without them.

    `ctc_positive_cosine` to `ctc_ignored_share` are those of `losses.CtcTerms`, NaN while CTC is off: whether positive
    and negative crops part, and how many there are of each kind.

    `noise_share` is the share of the pseudo label's foreground that the noise filter took away, in [0, 1]; NaN while
    the filter is off or there is no foreground.

    The terms of other methods and of clips (`PEER_LOSSES`) are None where a run has none. So is `certain_share`, which
    belongs to `consistency`: the share of pixels of images without a mask whose prediction is sure enough to teach; NaN
    if there are none.
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
    ctc_positive_cosine: Tensor
    ctc_negative_cosine: Tensor
    ctc_positive_share: Tensor
    ctc_negative_share: Tensor
    ctc_ignored_share: Tensor
    noise_share: Tensor
    patch_cls: Tensor | None = None
    cct: Tensor | None = None
    map_cls: Tensor | None = None
    aff: Tensor | None = None
    soft: Tensor | None = None
    consistency: Tensor | None = None
    certain_share: Tensor | None = None
    temporal: Tensor | None = None

    def named(self) -> dict[str, Tensor]:
        """The terms that this method has, by name."""
        return {name: term for name, term in vars(self).items() if term is not None}


@dataclass(frozen=True)
class LocalViews:
    """Local views: image (n*B, 3, c, c), view-major; flags (B, 2 + n), see `LocalCrops.flags`."""

    image: Tensor
    flags: Tensor


@dataclass(frozen=True)
class StepOutput:
    """The losses of a step and what they were made from (to look at, and to test).

    Attributes:
        terms: The losses.
        cams: Multi-scale CAMs of the present classes; ToCo's have final maps only where these make the pseudo label.
            None if no term needs them.
        pseudo_label: (B, H, W) for the segmentation losses, after the noise filter, the true mask of an image that has
            one; None while they are off.
        token_label: (B, h, w) for PTC; None while it is off.
        region: (B, H, W) region mask around which local crops are cut; None while CTC is off.
        views: The local views; None while CTC is off.
    """

    terms: LossTerms
    cams: Cams | None = None
    pseudo_label: Tensor | None = None
    token_label: Tensor | None = None
    region: Tensor | None = None
    views: LocalViews | None = None


def loss_weights(cfg: Config, step: int) -> dict[str, float]:
    """Weight of each term at a step (0-based): CTC and PTC, and segmentation, join at their start steps; CTC may leave
    again at `cfg.ctc_stop_step`.
    """
    contrast, segment = step >= cfg.contrast_start_step, step >= cfg.seg_start_step + cfg.late_segmentation
    class_tokens = contrast and step >= cfg.ctc_start_step and (step < cfg.ctc_stop_step or cfg.ctc_stop_step == 0)
    return {
        "cls": cfg.w_cls,
        "cls_aux": cfg.w_cls_aux,
        "ptc": cfg.w_ptc * contrast,
        "ctc": cfg.w_ctc * class_tokens,
        "distil": cfg.w_distil * contrast,
        "seg": cfg.w_seg * segment,
        "reg": cfg.w_reg * segment,
    } | ({"temporal": cfg.w_temporal * segment} if cfg.w_temporal > 0 else {})


def compute_losses(
    model: CamModel,
    batch: Batch,
    cfg: Config,
    step: int,
    *,
    views: LocalViews | None = None,
    generator: torch.Generator | None = None,
) -> StepOutput:
    """All losses of one training step, steps 1 to 7 of `toco_lab.method`, with each encoder pass made once.

    The pass over the main view serves the classifiers, both heads of CTC, PTC, the decoder and the CAM at scale 1.
    Nothing of the model changes here: the caller moves the teacher before (`ToCo.update_teacher`). A model of another
    method brings its own losses, `BringsLosses.losses`.

    Args:
        model: In training mode.
        batch: Normalised views, labels, boxes.
        cfg: Thresholds, weights and quirks.
        step: 0-based; decides which terms are on and where the pseudo label comes from.
        views: Local views to use; None cuts them from `batch.local_source` around uncertain regions.
        generator: For the positions of the local crops.
    """
    if isinstance(model, BringsLosses):
        return model.losses(batch, cfg, step, generator=generator)
    return toco_losses(cast(ToCo, model), batch, cfg, step, views=views, generator=generator)


def toco_losses(
    model: ToCo,
    batch: Batch,
    cfg: Config,
    step: int,
    *,
    views: LocalViews | None = None,
    generator: torch.Generator | None = None,
) -> StepOutput:
    """`compute_losses` of ToCo alone, without what another class adds to it."""
    weights = loss_weights(cfg, step)
    on = {name for name, weight in weights.items() if weight > 0}
    output = model(batch.image, segment=not on.isdisjoint({"seg", "reg"}))
    features = output.features
    losses = {
        "cls": classification_loss(output.logits, batch.image_label),
        "cls_aux": classification_loss(output.aux_logits, batch.image_label),
    }
    if on <= {"cls", "cls_aux"}:
        return StepOutput(weighted_terms(losses, weights))

    # step 1: multi-scale CAM
    present = PresentClasses.of(batch.image_label, batch.max_present)
    aux_only = output.seg_logits is None or step < cfg.aux_label_steps  # the final CAM serves the pseudo label alone
    cams = multi_scale_cam(
        model, batch.image, cfg.cam_scales, present=present, plain=features.detach(), relu=cfg.cam_relu,
        aux_only=aux_only,
    )  # fmt: skip
    supervised, token_label, region, pairs, crops = Supervised(), None, None, None, None
    # steps 5 and 6: pseudo label and segmentation. After step 3, the memory that refinement and energy need for a
    # moment would come on top of what the graph of the views keeps
    if output.seg_logits is not None:
        supervised = supervise(model, output.seg_logits, cams, batch, cfg, step, on)
        losses |= supervised.losses
        if "temporal" in on:
            losses["temporal"] = temporal_consistency(output.seg_logits, batch)
    # step 4: patch token contrast
    if "ptc" in on:
        pairs, token_label = patch_token_contrast(model, features.patch_tokens, cams, batch, cfg, step)
        losses["ptc"] = pairs.loss
    if "distil" in on:
        losses["distil"] = auxiliary_regression(model, features.patch_tokens, cams, batch)
    # steps 2 and 3: local crops and class token contrast
    if "ctc" in on:
        region = region_mask(cams.cam_aux, present, low=cfg.low_threshold, high=cfg.high_threshold)
        if batch.mask is not None:
            region = region_of_mask(batch.mask, region)  # 255 everywhere, where an image has none, changes nothing
        views = views or local_views(batch, region, cfg, generator)
        crops = class_token_contrast(model, features.class_token, batch.view2, views, cfg)
        losses["ctc"] = crops.loss
    # step 7: the sum
    terms = weighted_terms(losses, weights, pairs, crops, supervised.noise)
    return StepOutput(terms, cams, supervised.label, token_label, region, views if "ctc" in on else None)


# --- step 2: local crops ----------------------------------------------------------------------------------------------


def local_views(batch: Batch, region: Tensor, cfg: Config, generator: torch.Generator | None = None) -> LocalViews:
    """Cut the local views of a batch around positions of its region mask (B, H, W).

    An image without any class has no positive: its global views show background as well, so that its crops are no
    negatives of them either. All its views are ignored.
    """
    crops = local_crops(region, cfg, valid_box=batch.valid_box, generator=generator)
    shows = batch.image_label.any(1, keepdim=True)
    flags = torch.where(shows, crops.flags, IGNORED)
    return LocalViews(cut_local_views(batch.local_source, crops), flags)


# --- step 3: class token contrast -------------------------------------------------------------------------------------


def class_token_contrast(model: ToCo, class_token: Tensor, view2: Tensor, views: LocalViews, cfg: Config) -> CtcTerms:
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
    return ctc_terms(
        student, teacher, views.flags, temperature=cfg.ctc_temperature, negative_only_term=cfg.ctc_negative_only_term
    )


# --- step 4: patch token contrast, and what it is compared with -------------------------------------------------------


def patch_token_contrast(
    model: ToCo, patch_tokens: Tensor, cams: Cams, batch: Batch, cfg: Config, step: int
) -> tuple[PtcTerms, Tensor]:
    """PTC of a batch with final patch tokens (B, D, h, w), and the labels of the tokens it contrasts, (B, h, w).

    These come from an image's true mask where the batch has one, as do `region_mask` and `pseudo_label`. With
    `cfg.ptc_across_frames` the tokens of both frames of a pair are compared with each other as well.
    """
    label = token_labels(
        cams.cam_aux, cams.present, patch_tokens.shape[-2:], batch.valid_box, low=cfg.low_threshold,
        high=high_threshold(cfg, step, cams.present), patch_size=model.patch_size, box_units=cfg.ptc_box_units,
    )  # fmt: skip
    if batch.mask is not None:
        label = where_known(label, token_labels_of_mask(batch.mask, label.shape[-2:]), batch.known)
    tokens, compared = patch_tokens, label
    if cfg.ptc_across_frames:  # images 2i and 2i + 1 become one of twice the height
        tokens = tokens.unflatten(0, (-1, 2)).transpose(1, 2).flatten(2, 3)
        compared = compared.unflatten(0, (-1, 2)).flatten(1, 2)
    return ptc_terms(tokens, affinity_mask(compared), similarity=cfg.ptc_similarity), label


def auxiliary_regression(model: ToCo, patch_tokens: Tensor, cams: Cams, batch: Batch) -> Tensor:
    """`distil_loss` of a batch: the CAM of the final tokens is pulled towards the auxiliary CAM at token resolution."""
    grid = patch_tokens.shape[-2:]
    cam = cams.present.gather(model.classifier(patch_tokens))
    inside = inside_box(token_box(batch.valid_box, model.patch_size), *grid)
    return distil_loss(cam, resize(cams.cam_aux, grid), cams.present.mask, inside)


# --- step 5: pseudo label ---------------------------------------------------------------------------------------------


def pseudo_label(cams: Cams, pixels: Tensor, batch: Batch, cfg: Config, step: int) -> Tensor:
    """The label of the segmentation loss, (B, H, W), 255 where unsure.

    Args:
        cams: The auxiliary CAM counts before `cfg.aux_label_steps`, then the final one.
        pixels: Denormalised images, (B, 3, H, W) in 0..255; PAR sees whole grey levels, as in the released code.
        batch: For the valid boxes.
        cfg: Thresholds and the settings of PAR; without `cfg.refine` the thresholds alone decide.
        step: 0-based; decides how far the upper threshold has fallen.
    """
    cam = cams.cam_aux if step < cfg.aux_label_steps else cams.cam
    low, high, box = cfg.low_threshold, high_threshold(cfg, step, cams.present), batch.valid_box
    if not cfg.refine:
        return confident_label(cam, cams.present, low=low, high=high, valid_box=box)
    return refine_cam(
        pixels.clamp(0, 255).byte().float() / 255, cam, cams.present, low=low, high=high, valid_box=box,
        dilations=cfg.par_dilations, num_iter=cfg.par_iterations,
    )  # fmt: skip


@torch.no_grad()
def without_noise(label: Tensor, logits: Tensor, cfg: Config) -> Tensor:
    """The pseudo label (B, H, W) after the noise filter, which judges it by the losses of logits (B, C + 1, H, W)."""
    loss = F.cross_entropy(logits.float(), label, ignore_index=IGNORE_INDEX, reduction="none")
    return ignore_noise(label, loss, posterior=cfg.noise_posterior, gap=cfg.noise_gap, min_pixels=cfg.noise_min_pixels)


@dataclass(frozen=True)
class Supervised:
    """What the segmentation is taught in a step.

    Attributes:
        losses: Those of "seg" and "reg" that are on.
        label: The pseudo label after the noise filter, (B, H, W); None while both are off.
        noise: Share of its foreground that the filter took away; None while that is off.
    """

    losses: Mapping[str, Tensor] = field(default_factory=dict)
    label: Tensor | None = None
    noise: Tensor | None = None


def supervise(
    model: CamModel,
    seg_logits: Tensor,
    cams: Cams,
    batch: Batch,
    cfg: Config,
    step: int,
    on: Collection[str],
    *,
    label: Tensor | None = None,
) -> Supervised:
    """Steps 5 and 6: pseudo labels from CAMs, and the losses of segmentation logits (B, C + 1, h, w) with them.

    `on` has the names of the terms that are on; `label` is a pseudo label to take in place of `pseudo_label`. An image
    that has a true mask is taught by it; the noise filter does not look at that one.
    """
    pixels, noise = denormalise(batch.image, model.mean, model.std), None
    label = pseudo_label(cams, pixels, batch, cfg, step) if label is None else label
    logits = enlarge(seg_logits, label.shape[-2:])
    if cfg.noise_start_step is not None and step >= cfg.noise_start_step:
        if batch.mask is not None:
            label = where_known(label, torch.full_like(label, IGNORE_INDEX), batch.known)
        whole, label = label, without_noise(label, logits, cfg)
        noise = 1 - foreground(label).sum() / foreground(whole).sum()
    if batch.mask is not None:
        label = where_known(label, batch.mask, batch.known)
    return Supervised(segmentation_losses(logits, label, pixels, batch, cfg, on), label, noise)


# --- step 6: segmentation ---------------------------------------------------------------------------------------------


def segmentation_losses(
    logits: Tensor, label: Tensor, pixels: Tensor, batch: Batch, cfg: Config, on: Collection[str]
) -> dict[str, Tensor]:
    """Those of "seg" and "reg" that are on.

    Args:
        logits: Of the decoder at the size of the image, (B, C + 1, H, W).
        label: (B, H, W), 255 ignored.
        pixels: Denormalised images, (B, 3, H, W) in 0..255.
        batch: For the valid boxes.
        cfg: Settings of the energy.
        on: Names of the terms that are on.
    """
    losses = {}
    if "seg" in on:
        losses["seg"] = seg_loss(logits, label)
    if "reg" in on:
        losses["reg"] = reg_loss(
            logits, pixels, label, batch.valid_box, weight=cfg.reg_scale_factor, sigma_rgb=cfg.reg_sigma_rgb,
            sigma_xy=cfg.reg_sigma_xy, scale=cfg.reg_scale, gate=cfg.reg_gate,
        )  # fmt: skip
    return losses


def temporal_consistency(seg_logits: Tensor, batch: Batch) -> Tensor:
    """`temporal_loss` of the decoder's logits (B, C + 1, h, w), at the size of the image."""
    if batch.flow is None or batch.holds is None:
        raise ValueError("the batch has no flow between frames: make it with train_loader, by the config of the run")
    return temporal_loss(enlarge(seg_logits, batch.image.shape[-2:]), batch.flow, batch.holds)


def enlarge(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, K, h, w) at a larger size, bilinear, corners not aligned: what `F.interpolate` gives.

    Two products with small matrices do it. Their gradient takes a quarter of the time of interpolation's, and it is the
    same in every run on a GPU. They are as exact as torch's matrix products are set to be
    (`torch.set_float32_matmul_precision`).
    """
    rows, columns = (
        F.interpolate(torch.eye(old, device=maps.device, dtype=maps.dtype)[None], new, mode="linear")[0]  # (old, new)
        for old, new in zip(maps.shape[-2:], size, strict=True)
    )
    return rows.T @ (maps @ columns)


# --- step 7: the sum --------------------------------------------------------------------------------------------------


def weighted_terms(
    losses: Mapping[str, Tensor],
    weights: Mapping[str, float],
    pairs: PtcTerms | None = None,
    crops: CtcTerms | None = None,
    noise: Tensor | None = None,
) -> LossTerms:
    """The terms of a step and their weighted total; terms that are not among `losses` are 0.

    Of `PEER_LOSSES` the run has those that have a weight, be it 0.
    """
    zero = next(iter(losses.values())).new_zeros(())
    names = [*LOSSES, *(name for name in PEER_LOSSES if name in weights)]
    losses = dict.fromkeys(names, zero) | dict(losses)
    nan = zero * torch.nan
    return LossTerms(
        **losses,
        total=sum((weights.get(name, 0.0) * losses[name] for name in names), start=zero),
        positive_cosine=pairs.positive_cosine if pairs else nan,
        negative_cosine=pairs.negative_cosine if pairs else nan,
        **{f"ctc_{field.name}": getattr(crops, field.name) if crops else nan for field in fields(CtcTerms)[1:]},
        noise_share=nan if noise is None else noise,
    )
