"""One model, one image, many questions: the encoder runs when the image is set, everything behind it is cheap.

This is the pattern of Segment Anything's predictor: call `set_image` once, then ask for maps and labels as often as a
slider moves. Nothing here draws, and nothing here knows a widget.
"""

import functools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from toco_lab.attribution.catalogue import ATTRIBUTIONS
from toco_lab.attribution.faithfulness import MapScores, map_scores
from toco_lab.backbones.pixels import normalise
from toco_lab.config import Config
from toco_lab.data.loader import EvalSample
from toco_lab.evaluation.scores import pseudo_label_iou, pseudo_label_matrix
from toco_lab.explorers.session_image import SessionImage, encode_image
from toco_lab.explorers.uploads import LONGEST_SIDE
from toco_lab.files import require
from toco_lab.method.cam import Cams, fuse_flip, normalised, resize
from toco_lab.method.crf import crf_label
from toco_lab.method.crops import LocalCrops, local_crops
from toco_lab.method.face import CamModel
from toco_lab.method.labels import confident_label, mask_by_label, region_mask
from toco_lab.method.present import PresentClasses
from toco_lab.method.refine import refine_cam
from toco_lab.methods import has_cams
from toco_lab.peers.refinement import WORDS, refine_between
from toco_lab.vocabulary import CAM, CAM_AUX, SEG

SOURCES = (CAM, CAM_AUX)


@dataclass(frozen=True)
class ImageIou:
    """IoU of one label map with the mask of its image.

    Attributes:
        iou: (C + 1,) in [0, 1], NaN where a class is in neither.
        miou: Mean over the classes of the mask; NaN if the mask is 255 throughout.
        left_open: Share of the mask's pixels where the label is 255; see `scores.pseudo_label_iou`.
    """

    iou: Tensor
    miou: float
    left_open: float


class CamSession:
    """CAMs, labels, regions, crops, attributions and IoU of one image at a time.

    `set_image` costs one encoder pass per scale and flip; a scale that is asked for later runs then, once. Maps and
    labels have the image's native size, (H, W), and are on the model's device. Methods that read a CAM take

    * `source`: `cam` or `cam_aux`;
    * `scales`, `flip`: what the multi-scale CAM is summed over; None takes `cfg.cam_scales`.

    Raises:
        RuntimeError: From everything but `set_image` and `set_sample`, while no image is set.
    """

    def __init__(self, model: CamModel, cfg: Config, *, scales: Sequence[float] | None = None) -> None:
        """`model` is put into evaluation mode. `scales` run in `set_image`; None takes `cfg.cam_scales`."""
        require(model, CamModel, "model", ": load_run_model(run) loads one")
        require(cfg, Config, "cfg", ": it is that of the run, run.config()")
        if not has_cams(cfg):
            raise ValueError(
                f"method {cfg.method!r} learns from masks and has no CAM to explore. `gallery_rows` and `predict` show "
                "its segmentation, TokenExplorer its tokens"
            )
        self.model, self.cfg = model.eval(), cfg
        self.scales = self._scales(scales or None)
        self._image: SessionImage | None = None

    @property
    def image(self) -> SessionImage:
        """The image that is set."""
        if self._image is None:
            raise RuntimeError("no image yet: call set_image or set_sample first")
        return self._image

    @property
    def longest_side(self) -> int:
        """Longest side an uploaded image should have: `LONGEST_SIDE`, or where the encoder sees native sizes (its cost
        grows with the fourth power of the side) twice the training crop.
        """
        return LONGEST_SIDE if self.cfg.eval_cam_size else min(LONGEST_SIDE, 2 * self.cfg.crop_size)

    def set_image(
        self,
        raw: np.ndarray,
        *,
        image_label: np.ndarray | Tensor | None = None,
        mask: np.ndarray | Tensor | None = None,
        name: str = "",
    ) -> None:
        """Run the encoder and keep its maps. If anything fails, the previous image stays set.

        Args:
            raw: (H, W, 3) uint8.
            image_label: (C,) in {0, 1}; None predicts it, see `session_image.predicted_label`.
            mask: (H, W) labels, 255 is not counted; None if unknown.
            name: For tables and titles.

        Raises:
            ValueError: If a shape or type does not fit, or the image is smaller than a patch at some scale.
        """
        self._image = encode_image(
            self.model, self.cfg, raw, image_label=image_label, mask=mask, name=name, scales=self.scales
        )

    def set_sample(self, sample: EvalSample) -> None:
        """`set_image` with all that a sample of a data set knows."""
        self.set_image(sample.raw, image_label=sample.image_label, mask=sample.mask, name=sample.name)

    # --- maps ---------------------------------------------------------------------------------------------------

    def cams(
        self, scales: Sequence[float] | None = None, flip: bool = True, *, classes: Sequence[int] | None = None
    ) -> Cams:
        """Multi-scale CAMs, (1, S, H, W): those of `cam.multi_scale_cam` at `cfg.eval_cam_size`, at native size.

        `classes` are S class indices in the order wanted (every map is normalised by itself); None takes all C.
        """
        image = self.image
        for number in classes or ():
            if not isinstance(number, int | np.integer) or not 0 <= number < self.cfg.num_classes:
                raise ValueError(f"class {number!r} is not one of the model's {self.cfg.num_classes} classes, from 0")
        index = torch.tensor([range(self.cfg.num_classes) if classes is None else classes], device=image.pixels.device)
        present = PresentClasses(index, torch.ones_like(index, dtype=torch.bool), self.cfg.num_classes)
        fused = []  # of each scale (2 heads, 1, S, h, w)
        for scale in self._scales(scales):
            image.run_scale(self.model, scale)
            raw, side = present.gather(image.raw_cams[scale]), image.pixels.shape[-2:]
            fused.append(fuse_flip(raw, side, flip=flip, relu=self.cfg.cam_relu))
        summed = normalised(self.model, functools.reduce(torch.add, fused))
        cam, cam_aux = (resize(maps, image.size) for maps in summed)
        return Cams(cam, cam_aux, present)

    def score(
        self,
        source: str = CAM,
        class_index: int | None = None,
        *,
        scales: Sequence[float] | None = None,
        flip: bool = True,
    ) -> Tensor:
        """One CAM, (H, W) in [0, 1]: of a class, or with None of the strongest present class at each pixel."""
        if class_index is None:
            return self._strongest(source, scales, flip)[0]
        key = ("class", class_index, self._scales(scales), flip)
        maps = self.image.keep(key, lambda: self.cams(scales, flip, classes=[class_index]))
        return getattr(maps, _checked(source))[0, 0]

    def segmentation(self) -> Tensor:
        """(H, W) int64: the decoder's label in one pass (`prediction.predict` may fuse several scales)."""
        image, logits = self.image, self.image.output.seg_logits
        if logits is None:
            raise RuntimeError(f"method {self.cfg.method!r} has no decoder: there is no segmentation")
        return image.keep(SEG, lambda: resize(logits, image.size).max(1).indices[0])

    def attribution(self, name: str, class_index: int, block: int | None = None) -> Tensor:
        """(H, W) in [0, 1]: one of `attribution.ATTRIBUTIONS` for a class index, computed once and kept.

        `block` counts from 1; None takes the usual one.

        Raises:
            ValueError: For an unknown name or block.
        """
        if name not in ATTRIBUTIONS:
            raise ValueError(f"unknown attribution {name!r}; there are: {', '.join(ATTRIBUTIONS)}")
        image = self.image

        def make() -> Tensor:
            maps = ATTRIBUTIONS[name](self.model, image.pixels, class_index, block=block).detach()
            return resize(maps[:, None], image.size)[0, 0]

        of_class = class_index if ATTRIBUTIONS[name].knows_class else None
        return image.keep(("attribution", name, of_class, block), make)

    def faithfulness(self, score: Tensor, class_index: int, key: Hashable, *, measure: bool = True) -> MapScores | None:
        """Insertion, deletion and pointing game of a map (H, W), computed once and kept by what the map depends on.

        Slow: 30 passes of the encoder. The pointing game needs a mask, and counts in pixels of it.

        Args:
            score: The map.
            class_index: Of the class that is scored.
            key: What the map depends on beside the class.
            measure: False only looks up what was measured, and returns None where nothing was.
        """
        image = self.image
        place = ("faithfulness", key, class_index)
        if not measure:
            return image.kept.get(place)
        where = None if image.truth is None else image.truth == class_index + 1
        return image.keep(
            place, lambda: map_scores(self.model, image.pixels, score[None], class_index, on_class=where)[0]
        )

    # --- labels -------------------------------------------------------------------------------------------------

    def label(
        self,
        source: str = CAM,
        threshold: float | None = None,
        *,
        scales: Sequence[float] | None = None,
        flip: bool = True,
    ) -> Tensor:
        """(H, W) int64: `confident_label` with one threshold; None takes `cfg.background_threshold`."""
        score, winner = self._strongest(source, scales, flip)
        threshold = self.cfg.background_threshold if threshold is None else threshold
        if not isinstance(threshold, Real) or not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {threshold!r}")
        return _named(confident_label(*_one_class(score), low=threshold, high=threshold), winner)

    def pseudo_label(
        self,
        low: float | None = None,
        high: float | None = None,
        source: str = CAM,
        *,
        scales: Sequence[float] | None = None,
        flip: bool = True,
    ) -> Tensor:
        """(H, W) int64, 255 where unsure: `confident_label`; None takes the thresholds of the config."""
        score, winner = self._strongest(source, scales, flip)
        low, high = self._thresholds(low, high)
        return _named(confident_label(*_one_class(score), low=low, high=high), winner)

    def refined_label(
        self,
        low: float | None = None,
        high: float | None = None,
        source: str = CAM,
        method: str = "par",
        *,
        scales: Sequence[float] | None = None,
        flip: bool = True,
    ) -> Tensor:
        """(H, W) int64, 255 where unsure: the pseudo label after looking at the image. Slow: seconds.

        Args:
            low, high: Background scores of the loose and of the strict run; see `refine_cam`.
            source, scales, flip: See the class.
            method: `par`, as in training, or another word of `peers.refinement.WORDS`: the same two runs, by another
                refinement.

        Raises:
            ValueError: For a method that is none, or none for this model.
        """
        if method not in WORDS:
            raise ValueError(f"method must be one of {', '.join(WORDS)}, got {method!r}")
        cfg = self.cfg.replace(eval_refine=method)
        image, (low, high) = self.image, self._thresholds(low, high)
        present = PresentClasses.of(image.image_label[None])
        maps = getattr(self.cams(scales, flip, classes=present.index[0].tolist()), _checked(source))  # (1, S, H, W)
        pixels = torch.tensor(image.raw, device=maps.device).permute(2, 0, 1)[None].float()
        if method == "crf":
            return crf_label(pixels, maps, present, low=low, high=high)[0]
        if method != "par":
            whole = normalise(pixels, self.model.mean, self.model.std)
            return refine_between(self.model, cfg, whole, Cams(maps, maps, present), low=low, high=high)[0]
        return refine_cam(
            pixels / 255, maps, present, low=low, high=high,
            dilations=self.cfg.par_dilations, num_iter=self.cfg.par_iterations,
        )[0]  # fmt: skip

    def iou(self, label: Tensor) -> ImageIou:
        """IoU of a label map (H, W) with the mask.

        Raises:
            ValueError: If the image has no mask.
        """
        truth = self.image.truth
        if truth is None:
            raise ValueError(f"image {self.image.name!r} has no mask: there is nothing to compare a label with")
        label = torch.as_tensor(label, device=truth.device)
        matrix = pseudo_label_matrix(label, truth, self.cfg.num_classes + 1)
        iou = pseudo_label_iou(matrix)
        return ImageIou(iou, iou[matrix.sum(1) > 0].mean().item(), (matrix[:, -1].sum() / matrix.sum()).item())

    # --- what token contrast sees ---------------------------------------------------------------------------------

    def region(
        self,
        low: float | None = None,
        high: float | None = None,
        *,
        scales: Sequence[float] | None = None,
        flip: bool = True,
    ) -> Tensor:
        """(H, W) int64: `region_mask` of the auxiliary CAM (background, uncertain, foreground)."""
        score, _ = self._strongest(CAM_AUX, scales, flip)
        low, high = self._thresholds(low, high)
        return region_mask(*_one_class(score), low=low, high=high)[0]

    def local_crops(
        self,
        low: float | None = None,
        high: float | None = None,
        seed: int = 0,
        *,
        scales: Sequence[float] | None = None,
        flip: bool = True,
    ) -> LocalCrops:
        """The local crops class token contrast could draw here, (1, n), in native pixels.

        Training draws them on a scaled and cropped image; the native size is in the middle of that range of scales.

        Raises:
            ValueError: If the image is not larger than a crop.
        """
        region = self.region(low, high, scales=scales, flip=flip)
        return local_crops(region[None], self.cfg, generator=torch.Generator().manual_seed(seed))

    # --- inside ---------------------------------------------------------------------------------------------------

    def _strongest(self, source: str, scales: Sequence[float] | None, flip: bool) -> tuple[Tensor, Tensor]:
        """Score and label 1..C, (H, W) each, of the strongest present class; without one the score is 0."""
        image = self.image

        def make() -> dict[str, tuple[Tensor, Tensor]]:
            present = PresentClasses.of(image.image_label[None])
            maps = self.cams(scales, flip, classes=present.index[0].tolist())
            strongest = {}
            for name in SOURCES:
                score, place = mask_by_label(getattr(maps, name), present.mask).max(1)
                strongest[name] = score[0], present.class_label(place + 1)[0]
            return strongest

        return image.keep(("strongest", self._scales(scales), flip), make)[_checked(source)]

    def _scales(self, scales: Sequence[float] | None) -> tuple[float, ...]:
        chosen = tuple(self.cfg.cam_scales if scales is None else scales)
        if not chosen or not all(isinstance(scale, int | float) and 0 < scale < math.inf for scale in chosen):
            raise ValueError(f"scales must be positive numbers, at least one, got {chosen}")
        return chosen

    def _thresholds(self, low: float | None, high: float | None) -> tuple[float, float]:
        low = self.cfg.low_threshold if low is None else low
        high = self.cfg.high_threshold if high is None else high
        if not 0 <= low < high <= 1:
            raise ValueError(f"need 0 <= low < high <= 1, got {low} and {high}")
        return low, high


def _one_class(score: Tensor) -> tuple[Tensor, PresentClasses]:
    """A score (H, W) as the CAM (1, 1, H, W) of the only class of an image: thresholds need no more."""
    return score[None, None], PresentClasses.of(score.new_ones(1, 1), 1)


def _named(label: Tensor, winner: Tensor) -> Tensor:
    """A label map (1, H, W) in which 1 is replaced by the labels (H, W) of the winning classes."""
    return torch.where(label[0] == 1, winner, label[0])


def _checked(source: str) -> str:
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    return source
