"""How a prediction is made: which mask, which classes count as present, at which scales; and its protocol.

Nobody knows the labels of these images. In place of true labels the classifier's own score decides which classes are
present, or the user tells them; everything else is as `evaluation` has it.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from toco_lab.backbones.pixels import denormalise
from toco_lab.config import Config
from toco_lab.data.classes import class_names
from toco_lab.data.images import RULE
from toco_lab.evaluation.prediction import FUSIONS, NativeCams, predict
from toco_lab.evaluation.pseudo_labels import Thresholds, config_refinement, crf_settings, label_maps, par_settings
from toco_lab.fields import shown
from toco_lab.files import did_you_mean
from toco_lab.method.face import CamModel
from toco_lab.methods import has_cams, has_decoder, learns_segmentation, unread
from toco_lab.prediction.tiles import TILES_FUSED, tile_step
from toco_lab.vocabulary import CAM, CAM_AUX, CAM_REFINED, SEG, SEG_CRF, TITLES
from toco_lab.words import counted

Mask = Literal["auto", "seg", "cam", "cam_refined", "cam_aux"]
MASKS: tuple[str, ...] = get_args(Mask)
LONGEST_SIDE = 1024  # pixels: the encoder's time grows with the fourth power of the side
SCORES_OF = {True: "score of the final classifier (sigmoid)", False: "margin in the segmentation (sigmoid)"}  # has CAMs
_KINDS = {CAM: "seed", CAM_REFINED: "refined", CAM_AUX: "aux"}  # mask -> kind of pseudo label, made by the same code


@dataclass(frozen=True)
class Recipe:
    """What is done to each image, with every default filled in; made by `recipe_of`.

    Attributes:
        cfg: The run's config with the scales and the background threshold that are used.
        mask: `seg`, `cam`, `cam_refined` or `cam_aux`.
        because: Why this mask, for the protocol.
        crf: Whether the dense CRF follows.
        flip: Whether each scale also runs mirrored.
        label_threshold: A class is present if its score exceeds it; in (0, 1).
        told: The present classes, 0..C-1, where the user told them; else None.
        longest_side: Images with a longer side are scaled down for the model; 0 = never.
        tiles: Side of the windows that an image is cut into, in pixels, see `tiles`; 0 = none.
    """

    cfg: Config
    mask: str
    because: str
    crf: bool
    flip: bool
    label_threshold: float
    told: tuple[int, ...] | None
    longest_side: int
    tiles: int = 0

    def image_label(self, logits: Tensor) -> Tensor:
        """Which classes are present, (B, C) in {0, 1}, of image logits (B, C).

        At a threshold of 0.5 this is the rule by which `evaluate` scores image labels.
        """
        if self.told is None:
            return (logits > math.log(self.label_threshold / (1 - self.label_threshold))).float()
        label = torch.zeros_like(logits)
        label[:, list(self.told)] = 1
        return label

    def masks(self, model: CamModel, image: Tensor, cams: NativeCams) -> Tensor:
        """Masks (B, H, W) of normalised images (B, 3, H, W) and their CAMs: 0 background, 1..C classes."""
        if self.mask == SEG:
            target = SEG_CRF if self.crf else SEG
            return predict(model, self.cfg, image, cams.logits.new_zeros(cams.logits.shape), [target])[target]
        cfg, kind = self.cfg, "crf" if self.crf else _KINDS[self.mask]
        pixels = denormalise(image, model.mean, model.std).clamp(0, 255)
        both = Thresholds(cfg.background_threshold, cfg.background_threshold)
        made = label_maps(
            cams, pixels, both, kinds=[kind], dilations=cfg.par_dilations, num_iter=cfg.par_iterations,
            refined=config_refinement(model, cfg, image, cams),
        )  # fmt: skip
        return made[kind]

    def record(self) -> dict[str, Any]:
        """What defines a prediction but for the weights, as JSON gives it back."""
        cfg, names = self.cfg, class_names(self.cfg)
        told = None if self.told is None else [names[number] for number in self.told]
        cam_size = f"{cfg.eval_cam_size} x {cfg.eval_cam_size}" if cfg.eval_cam_size else "native"
        record = {
            "mask": self.mask, "mask_because": self.because, "dataset": cfg.dataset, "seed": cfg.seed,
            "classes": names, "true_labels_mask_cam": False,
            "present_classes": "told by the user" if told is not None else SCORES_OF[has_cams(cfg)],
            "label_threshold": None if told is not None else self.label_threshold, "told_classes": told,
            "present_classes_limit": "the CAMs" if self.mask == SEG else "the CAMs and the mask",
            "image_size": cam_size, "scales": cfg.cam_scales, "flip": self.flip, "fusion": FUSIONS["coco"],
            "background_threshold": None if self.mask == SEG else cfg.background_threshold,
            "segmentation": None, "longest_side": self.longest_side, "decoder": RULE,
            "par": par_settings(cfg) if self.mask == CAM_REFINED and "par" in cfg.eval_refine else False,
            "crf": False,
        }  # fmt: skip
        if self.mask == SEG:
            record["segmentation"] = {
                "image_size": "native", "scales": cfg.eval_seg_scales, "flip": cfg.eval_seg_flip,
                "fusion": FUSIONS[cfg.eval_fusion],
            }  # fmt: skip
        if not cfg.cam_relu:
            record["cam_relu"] = False
        if self.mask == CAM_REFINED and cfg.eval_refine != "par":
            record["refinement"] = cfg.eval_refine
        if self.tiles:
            record["tiles"] = {"side": self.tiles, "step": tile_step(self.tiles), "fused": TILES_FUSED}
        if self.crf:
            record["crf"] = crf_settings(*(["softmax of the decoder's logits"] if self.mask == SEG else []))
        return json.loads(json.dumps(record))


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What a user may ask of a prediction.

    Attributes:
        mask: `seg` is the decoder's mask; `cam` the CAMs at the background threshold, `cam_refined` after PAR,
            `cam_aux` that of the auxiliary CAM. `auto` takes `seg` where the run trained a decoder, else `cam_refined`.
        crf: Let the dense CRF follow (`seg` and `cam`).
        scales: Of CAMs and decoder; none takes `cam_scales` and `eval_seg_scales` of the config.
        flip: Each scale also runs mirrored, in the decoder where the config says so.
        background_threshold: CAM score at or below this is background; None takes that of the config.
        label_threshold: A class is present if the classifier's score (sigmoid) exceeds it.
        classes: Names of the present classes, the same in all images; none lets the classifier decide.
        longest_side: Images with a longer side are scaled down for the model, and what it says is scaled up again; None
            takes twice the training crop, at most `LONGEST_SIDE`; 0 never does.
        tiles: Cut images that are larger than the training crop into windows of its side, each overlapping the next by
            half, in place of scaling them down: for sides of thousands of pixels. `auto` then takes `cam` where the run
            trained no decoder.

    Raises:
        ValueError: Naming the option, if it cannot have that value.
    """

    mask: Mask = "auto"
    crf: bool = False
    scales: Sequence[float] = ()
    flip: bool = True
    background_threshold: float | None = None
    label_threshold: float = 0.5
    classes: Sequence[str] = ()
    longest_side: int | None = None
    tiles: bool = False

    def __post_init__(self) -> None:
        """Checks what needs no model; the config checks scales and background threshold."""
        if self.mask not in MASKS:
            raise ValueError(f"mask must be one of {', '.join(MASKS)}, got {shown(self.mask)}")
        if not (isinstance(self.label_threshold, int | float) and 0 < self.label_threshold < 1):
            raise ValueError(f"label_threshold must lie between 0 and 1, got {shown(self.label_threshold)}")
        if self.longest_side is not None and (type(self.longest_side) is not int or self.longest_side < 0):
            raise ValueError(
                f"longest_side must be a whole number of pixels, 0 for none, got {shown(self.longest_side)}"
            )
        if not isinstance(self.tiles, bool):
            raise ValueError(f"tiles must be True or False, got {shown(self.tiles)}")
        if self.tiles and self.longest_side:
            raise ValueError(
                f"longest_side {self.longest_side} has no effect with tiles, which leave images at their size: leave "
                "one of them out"
            )
        if isinstance(self.classes, str):
            raise ValueError(f"classes must be a list of names, got {shown(self.classes)}")

    @classmethod
    def of(cls, **options: Any) -> Self:
        """Options by name; ValueError for one that there is not."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise ValueError(f"unknown option {name!r}{did_you_mean(name, known)}; there are: {', '.join(known)}")
        return cls(**options)


def recipe_of(cfg: Config, options: PredictOptions, *, decoder: str = "") -> Recipe:
    """What options mean for a model.

    Args:
        cfg: The run's config.
        options: What the user asks for.
        decoder: Why the decoder gives no mask, as from `why_no_decoder`; "" if it was trained.

    Raises:
        ValueError: If a value does not fit the config, or an option has no effect on this mask.
    """
    chosen, because = _mask_of(options.mask, decoder, tiles=options.tiles)
    if options.tiles and (chosen == CAM_REFINED or options.crf):
        what = "crf" if options.crf else f"mask {chosen!r}"
        raise ValueError(f"{what} compares pixels of the whole image, which tiles never hold: take seg, cam or cam_aux")
    if chosen != SEG and not has_cams(cfg):
        raise ValueError(f"mask {chosen!r} is of a CAM, and method {cfg.method!r} has none: take seg")
    if chosen == SEG and not has_decoder(cfg):
        raise ValueError(f"mask 'seg' is the decoder's, and method {cfg.method!r} has none: take cam or cam_refined")
    if options.crf and chosen not in (SEG, CAM):
        raise ValueError(
            f"the CRF follows the decoder's mask or the plain CAM, not {chosen!r} ({TITLES[chosen]}): take mask cam, "
            "or leave crf out"
        )
    if options.background_threshold is not None and chosen == SEG:
        raise ValueError(
            "background_threshold has no effect on the decoder's mask, whose background is a class: take mask cam or "
            "cam_refined, or leave it out"
        )
    changes: dict[str, Any] = {} if options.flip else {"eval_seg_flip": False}
    if len(options.scales):
        changes |= {"cam_scales": tuple(options.scales), "eval_seg_scales": tuple(options.scales)}
    if options.background_threshold is not None:
        changes["background_threshold"] = options.background_threshold
    return Recipe(
        cfg=cfg.replace(**changes),
        mask=chosen,
        because=because,
        crf=options.crf,
        flip=options.flip,
        label_threshold=float(options.label_threshold),
        told=_numbers_of(options.classes, class_names(cfg)) if len(options.classes) else None,
        longest_side=_longest_side(cfg, options),
        tiles=cfg.crop_size if options.tiles else 0,
    )


def _longest_side(cfg: Config, options: PredictOptions) -> int:
    if options.tiles:
        return 0
    return min(LONGEST_SIDE, 2 * cfg.crop_size) if options.longest_side is None else options.longest_side


def _mask_of(mask: str, decoder: str, *, tiles: bool) -> tuple[str, str]:
    """The mask that is made, and why."""
    if mask != "auto":
        return mask, "asked for"
    return (CAM if tiles else CAM_REFINED, decoder) if decoder else (SEG, "the run trained a decoder")


def why_no_decoder(cfg: Config, step: int) -> str:
    """Why the decoder of weights after `step` optimiser steps gives no mask; "" if it was trained."""
    first = 0 if "seg_start_step" in unread(cfg.method) else cfg.seg_start_step + cfg.late_segmentation
    if not has_decoder(cfg):
        return f"method {cfg.method!r} has no decoder"
    if not learns_segmentation(cfg):
        return "the run trained no decoder (w_seg is 0)"
    return "" if step > first else f"after {counted(step, 'step')} the decoder was not trained (from step {first} on)"


def _numbers_of(told: Sequence[str], known: Sequence[str]) -> tuple[int, ...]:
    for name in told:
        if name not in known:
            hint = did_you_mean(name, known) or f"; there are: {', '.join(known)}"
            raise ValueError(f"unknown class {shown(name)}{hint}")
    return tuple(sorted({known.index(name) for name in told}))
