"""What a model says of an image: its CAMs at native size, its segmentation, and the label maps made of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.backbones.pixels import denormalise
from toco_lab.config import Config
from toco_lab.data.loader import EvalSample
from toco_lab.method.cam import Cams, multi_scale_cam, resize
from toco_lab.method.crf import dense_crf
from toco_lab.method.labels import cam_to_label
from toco_lab.method.model import ToCo
from toco_lab.method.refine import refine_cam
from toco_lab.vocabulary import CAM, CAM_AUX, CAM_REFINED, LABELS, SEG, SEG_CRF

FUSIONS = {"voc": "sum over flip, maximum over scales", "coco": "maximum over flip, sum over scales"}


BATCH = 8  # images of one size that are evaluated together


@torch.no_grad()
def multi_scale_segmentation(
    model: ToCo, image: Tensor, scales: Sequence[float] = (1.0,), *, fusion: str = "voc", flip: bool = True
) -> Tensor:
    """Segmentation logits (B, C + 1, H, W) fused over scales and flip.

    Args:
        image: Normalised, (B, 3, H, W).
        scales: Each runs as it is and, with `flip`, mirrored.
        fusion: `voc` sums the flip pair and takes the maximum over scales; `coco` does it the other way round.
    """
    height, width = image.shape[-2:]
    per_scale = []
    for scale in scales:
        scaled = (
            image
            if scale == 1
            else F.interpolate(image, (int(scale * height), int(scale * width)), mode="bilinear", align_corners=False)
        )
        views = torch.cat([scaled, scaled.flip(-1)]) if flip else scaled
        logits = F.interpolate(
            model.decoder(model.encode(views).patch_tokens), (height, width), mode="bilinear", align_corners=False
        )
        if flip:
            straight, mirrored = logits.chunk(2)
            pair = torch.stack([straight, mirrored.flip(-1)])
            logits = pair.sum(0) if fusion == "voc" else pair.amax(0)
        per_scale.append(logits)
    stacked = torch.stack(per_scale)
    return stacked.amax(0) if fusion == "voc" else stacked.sum(0)


@dataclass(frozen=True)
class NativeCams(Cams):
    """Multi-scale CAMs at the size of the images, 0 for absent classes.

    Attributes:
        logits: Of the plain pass, (B, C).
    """

    logits: Tensor


@torch.no_grad()
def native_cams(model: ToCo, cfg: Config, image: Tensor, image_label: Tensor) -> NativeCams:
    """The CAMs that are evaluated and that pseudo labels are made of.

    Args:
        model: In evaluation mode.
        cfg: Gives `eval_cam_size` and `cam_scales`.
        image: Normalised, native size, (B, 3, H, W).
        image_label: TRUE image labels, (B, C) in {0, 1}.

    Raises:
        ValueError: If the model, or a part of it, is in training mode.
    """
    training = [name for name, part in model.named_modules() if part.training]
    if training:
        raise ValueError(
            f"the model is in training mode ({training[0] or 'all of it'}): its CAMs would not be those that are "
            "evaluated. Call model.eval() first; load_run_model does"
        )
    edge = cfg.eval_cam_size
    resized = resize(image, (edge, edge)) if edge else image
    plain = model(resized, segment=False)
    maps = multi_scale_cam(
        model, resized, cfg.cam_scales, plain=plain.features, image_label=image_label, size=image.shape[-2:]
    )
    return NativeCams(maps.cam, maps.cam_aux, plain.logits)


def predict(model: ToCo, cfg: Config, image: Tensor, image_label: Tensor, targets: Iterable[str]) -> dict[str, Tensor]:
    """Label maps (B, H, W) of the asked targets for images of one size.

    With the CAMs come `labels`: (B, C) predicted image labels, and `cam_scores`, `cam_aux_scores`: (B, H, W), of the
    strongest class that is there.

    Args:
        image: Normalised, native size, (B, 3, H, W).
        image_label: TRUE image labels, which mask the CAMs (not the segmentation).
        targets: Names of `TARGETS` or `seg_crf`.
    """
    targets, out = set(targets), {}
    if targets & {CAM, CAM_AUX, CAM_REFINED, LABELS}:
        maps = native_cams(model, cfg, image, image_label)
        out[LABELS] = (maps.logits > 0).int()
        for name, scores in ((CAM, maps.cam), (CAM_AUX, maps.cam_aux)):
            out[name] = cam_to_label(scores, image_label, threshold=cfg.background_threshold)
            out[f"{name}_scores"] = scores.amax(1)
    if CAM_REFINED in targets:
        pixels = denormalise(image, model.mean, model.std).clamp(0, 255)
        height, width = image.shape[-2:]
        box = torch.tensor([[0, height, 0, width]], device=image.device).expand(len(image), -1)
        one = cfg.background_threshold  # one threshold: nothing is left uncertain
        out[CAM_REFINED] = refine_cam(
            pixels / 255,
            maps.cam,
            image_label,
            box,
            low_threshold=one,
            high_threshold=one,
            dilations=cfg.par_dilations,
            num_iter=cfg.par_iterations,
        )
    if targets & {SEG, SEG_CRF}:
        logits = multi_scale_segmentation(
            model, image, cfg.eval_seg_scales, fusion=cfg.eval_fusion, flip=cfg.eval_seg_flip
        )
        out[SEG] = logits.max(1).indices  # argmax(1) is many times slower on a CPU
        if SEG_CRF in targets:
            pixels = denormalise(image, model.mean, model.std).clamp(0, 255).round()
            out[SEG_CRF] = dense_crf(pixels, logits.softmax(1)).argmax(1)
    return out


def grouped_by_size(samples: Iterable[EvalSample], most: int) -> Iterator[list[EvalSample]]:
    """Neighbours of equal size together, at most `most` of them: batches for the encoder without padding."""
    group: list[EvalSample] = []
    for sample in samples:
        if group and (len(group) == most or sample.image.shape != group[0].image.shape):
            yield group
            group = []
        group.append(sample)
    if group:
        yield group
