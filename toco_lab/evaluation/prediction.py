"""What a model says of an image: its CAMs at native size, its segmentation, and the label maps made from them."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toco_lab.backbones.pixels import check_images, check_normalised, denormalise
from toco_lab.config import Config
from toco_lab.data.loader import EvalSample
from toco_lab.files import require
from toco_lab.method.cam import Cams, at_evaluation_size, multi_scale_cam, resize, scaled_size
from toco_lab.method.crf import dense_crf
from toco_lab.method.face import CamModel
from toco_lab.method.labels import mask_by_label
from toco_lab.method.present import PresentClasses
from toco_lab.methods import has_cams, has_decoder, learns_segmentation
from toco_lab.peers.refinement import refine
from toco_lab.vocabulary import CAM, CAM_AUX, CAM_REFINED, LABELS, SEG, SEG_CRF, TUNED

FUSIONS = {"voc": "sum over flip, maximum over scales", "coco": "maximum over flip, sum over scales"}
CAM_TARGETS = frozenset({CAM, CAM_AUX, CAM_REFINED, LABELS})  # targets that need the CAM passes
BATCH = 8  # images of one size that are evaluated together
LabelRule = Callable[[Tensor], Tensor]  # image logits (B, C) -> image labels (B, C) in {0, 1}


@torch.no_grad()
def multi_scale_segmentation(
    model: CamModel, image: Tensor, scales: Sequence[float] = (1.0,), *, fusion: str = "voc", flip: bool = True
) -> Tensor:
    """Segmentation logits (B, C + 1, H, W) fused over scales and flip.

    Args:
        model: In evaluation mode.
        image: Normalised, (B, 3, H, W).
        scales: Each runs as it is and, with `flip`, mirrored.
        fusion: `voc` sums the flip pair and takes the maximum over scales; `coco` takes the maximum of the flip pair
            and sums over scales.
        flip: False leaves the mirror image out.
    """
    size = image.shape[-2:]
    per_scale = []
    for scale in scales:
        scaled = image if scale == 1 else resize(image, scaled_size(image, scale))
        views = torch.cat([scaled, scaled.flip(-1)]) if flip else scaled
        logits = resize(_seg_logits(model, views), size)
        if flip:
            straight, mirrored = logits.chunk(2)
            pair = torch.stack([straight, mirrored.flip(-1)])
            logits = pair.sum(0) if fusion == "voc" else pair.amax(0)
        per_scale.append(logits)
    stacked = torch.stack(per_scale)
    return stacked.amax(0) if fusion == "voc" else stacked.sum(0)


def _seg_logits(model: CamModel, image: Tensor) -> Tensor:
    logits = model(image).seg_logits
    if logits is None:
        raise ValueError(f"{type(model).__name__} has no decoder: it gives no segmentation")
    return logits


@dataclass(frozen=True)
class NativeCams(Cams):
    """Multi-scale CAMs of the present classes at the size of the images.

    Attributes:
        logits: Image logits of the plain pass, (B, C).
    """

    logits: Tensor


@torch.no_grad()
def native_cams(
    model: CamModel, cfg: Config, image: Tensor, image_label: Tensor | LabelRule, *, flip: bool = True
) -> NativeCams:
    """The CAMs that are evaluated and that pseudo labels are made from.

    Args:
        model: In evaluation mode.
        cfg: Gives `eval_cam_size` and `cam_scales`.
        image: Normalised, native size, (B, 3, H, W).
        image_label: TRUE image labels, (B, C) in {0, 1}; where nobody knows them, a rule that makes labels from the
            logits of the plain pass.
        flip: As in `multi_scale_cam`.

    Raises:
        ValueError: If the model, or a part of it, is in training mode, `image` is no batch of images, or `image_label`
            does not fit.
    """
    require(model, CamModel, "model", ": load_run_model(run) loads one")
    require(cfg, Config, "cfg", ": it is that of the run, run.config()")
    training = [name for name, part in model.named_modules() if part.training]
    if training:
        raise ValueError(
            f"the model is in training mode ({training[0] or 'all of it'}): its CAMs would not be those that are "
            "evaluated. Call model.eval() first; load_run_model does"
        )
    check_images(image)
    check_normalised(image)
    num_classes = model.num_classes
    if not callable(image_label):
        check_image_label(image_label, len(image), num_classes)  # before the encoder runs
    resized = at_evaluation_size(image, cfg.eval_cam_size)
    plain = model(resized, segment=False)
    if callable(image_label):
        image_label = image_label(plain.logits)
        check_image_label(image_label, len(image), num_classes)
    cams = multi_scale_cam(
        model, resized, cfg.cam_scales, present=PresentClasses.of(image_label), plain=plain.features,
        size=image.shape[-2:], flip=flip, relu=cfg.cam_relu,
    )  # fmt: skip
    return NativeCams(cams.cam, cams.cam_aux, cams.present, plain.logits)


def check_image_label(label: Tensor, images: int, num_classes: int) -> None:
    """ValueError if `label` is not (images, num_classes) of 0 and 1."""
    if not isinstance(label, Tensor) or label.shape != (images, num_classes):
        found = tuple(label.shape) if isinstance(label, Tensor) else type(label).__name__
        raise ValueError(f"image_label must be a tensor of shape {(images, num_classes)}, got {found}")
    if not ((label == 0) | (label == 1)).all():
        raise ValueError("image_label must hold 0 and 1 alone, 1 where a class is present")


def predict(
    model: CamModel,
    cfg: Config,
    image: Tensor,
    image_label: Tensor,
    targets: Iterable[str],
    *,
    tuned: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """Label maps (B, H, W) of the asked targets for images of one size.

    With the CAMs come `labels`: (B, C) predicted image labels; `cam_scores`, `cam_aux_scores`: (B, H, W), the score of
    the strongest present class; and `cam_winners`, `cam_aux_winners`: (B, H, W), that class, 1..C. A method without
    CAMs gives `labels` where they are asked for.

    Args:
        model: In evaluation mode.
        cfg: The protocol: sizes, scales, thresholds.
        image: Normalised, native size, (B, 3, H, W).
        image_label: TRUE image labels, which mask the CAMs (not the segmentation).
        targets: Names of `TARGETS` or `seg_crf`, or `labels`.
        tuned: A second background threshold for each CAM target, which gives a second label map: `cam_tuned` for `cam`.

    Raises:
        ValueError: If `image` is no batch of normalised images, `image_label` does not fit, or a target is unknown.
    """
    require(model, CamModel, "model", ": load_run_model(run) loads one")
    require(cfg, Config, "cfg", ": it is that of the run, run.config()")
    check_images(image)
    targets = {targets} if isinstance(targets, str) else set(targets)
    if unknown := sorted(targets - CAM_TARGETS - {SEG, SEG_CRF}):
        raise ValueError(f"unknown target {unknown[0]!r}; there are: {', '.join(sorted(CAM_TARGETS | {SEG, SEG_CRF}))}")
    predicted: dict[str, Tensor] = {}
    if targets & CAM_TARGETS and (has_cams(cfg) or targets & CAM_TARGETS != {LABELS}):
        predicted = _predict_cams(model, cfg, image, image_label, targets, tuned or {})
    elif LABELS in targets:
        predicted = {LABELS: (model(at_evaluation_size(image, cfg.eval_cam_size)).logits > 0).int()}
    if targets & {SEG, SEG_CRF}:
        check_normalised(image)
        logits = multi_scale_segmentation(
            model, image, cfg.eval_seg_scales, fusion=cfg.eval_fusion, flip=cfg.eval_seg_flip
        )
        predicted[SEG] = logits.max(1).indices  # argmax(1) is many times slower on a CPU
        if SEG_CRF in targets:
            predicted[SEG_CRF] = dense_crf(_pixels(model, image).round(), logits.softmax(1)).argmax(1)
    return predicted


def _predict_cams(
    model: CamModel,
    cfg: Config,
    image: Tensor,
    image_label: Tensor,
    targets: Collection[str],
    tuned: Mapping[str, float],
) -> dict[str, Tensor]:
    """What `predict` makes from the CAMs."""
    cams, own = native_cams(model, cfg, image, image_label), cfg.background_threshold
    predicted = {LABELS: (cams.logits > 0).int()}
    for name, maps in ((CAM, cams.cam), (CAM_AUX, cams.cam_aux)):
        score, winner = strongest_class(maps, cams.present)
        predicted |= {f"{name}_scores": score, f"{name}_winners": winner, name: label_above(score, winner, own)}
        if name in tuned:
            predicted[TUNED[name]] = label_above(score, winner, tuned[name])
    if CAM_REFINED in targets:
        names = [CAM_REFINED, *([TUNED[CAM_REFINED]] if CAM_REFINED in tuned else [])]
        labels = refine(model, cfg, image, cams, (own, tuned.get(CAM_REFINED, own))[: len(names)])
        predicted |= zip(names, labels, strict=True)
    return predicted


def given_targets(cfg: Config, targets: Iterable[str]) -> tuple[str, ...]:
    """Those of the targets that a model of this config can give.

    Without a decoder there is no segmentation, and a method that learns from masks has no CAM.
    """
    absent = set() if has_decoder(cfg) else {SEG, SEG_CRF}
    absent |= set() if has_cams(cfg) else CAM_TARGETS - {LABELS}
    return tuple(one for one in targets if one not in absent)


def learnt_targets(cfg: Config, targets: Iterable[str]) -> tuple[str, ...]:
    """Those of the targets that a run of this config learns to give: no segmentation of a decoder left as it began."""
    untrained = set() if learns_segmentation(cfg) else {SEG, SEG_CRF}
    return tuple(one for one in given_targets(cfg, targets) if one not in untrained)


def strongest_class(cam: Tensor, present: PresentClasses) -> tuple[Tensor, Tensor]:
    """Score of the strongest present class and that class, 1..C, both (B, H, W), of a CAM (B, S, H, W)."""
    score, place = mask_by_label(cam, present.mask).max(dim=1)
    return score, present.class_label(place + 1)


def label_above(score: Tensor, winner: Tensor, threshold: float) -> Tensor:
    """Label (B, H, W): `winner` where its `score` exceeds the threshold, else 0. It is `confident_label` with one
    threshold for low and high.
    """
    return torch.where(score <= threshold, 0, winner)


def _pixels(model: CamModel, image: Tensor) -> Tensor:
    """Normalised images as grey levels, (B, 3, H, W) in [0, 255]."""
    return denormalise(image, model.mean, model.std).clamp(0, 255)


def grouped_by_size(samples: Iterable[EvalSample], most: int) -> Iterator[list[EvalSample]]:
    """Consecutive samples of equal size together, at most `most` of them: batches for the encoder without padding."""
    group: list[EvalSample] = []
    for sample in samples:
        if group and (len(group) == most or sample.image.shape != group[0].image.shape):
            yield group
            group = []
        group.append(sample)
    if group:
        yield group
