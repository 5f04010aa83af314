"""One image and one model to play with: the encoder runs when the image is set, everything behind it is cheap.

After the pattern of Segment Anything's predictor: `set_image` once, then ask for maps and labels as often as sliders
move. Nothing here draws and nothing here knows a widget.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from toco_lab.backbones.pixels import normalise
from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.data.classes import DataError
from toco_lab.data.loader import EvalSample
from toco_lab.evaluation.scores import confusion_matrix, iou_scores
from toco_lab.explorers.attribution import ATTRIBUTIONS
from toco_lab.method.cam import Cams, at_evaluation_size, fuse_flip, min_max, raw_cams, resize
from toco_lab.method.crf import crf_label
from toco_lab.method.crops import LocalCrops, sample_local_crops
from toco_lab.method.labels import confident_label, mask_by_label, region_mask
from toco_lab.method.model import ToCo, ToCoOutput
from toco_lab.method.present import PresentClasses
from toco_lab.method.refine import refine_cam
from toco_lab.vocabulary import CAM, CAM_AUX

LONGEST_SIDE = 1024  # pixels; a larger uploaded image is scaled down to it
SOURCES = (CAM, CAM_AUX)


@dataclass(frozen=True)
class ImageIou:
    """IoU of one label map with the mask of its image.

    Attributes:
        iou: (C + 1,) in [0, 1], NaN where a class is in neither.
        miou: Mean over the classes of the mask; NaN if that is ignored throughout.
        left_open: Share of the mask's pixels where the label is 255. They count neither as hit nor as miss; a class of
            the mask of which nothing is decided has IoU 0, or leaving it all open would improve the mean.
    """

    iou: Tensor
    miou: float
    left_open: float


@dataclass(frozen=True)
class SessionImage:
    """What is kept of the image of a session.

    Attributes:
        name: Of the image.
        raw: (H, W, 3) uint8 at native size.
        truth: (H, W) int64 mask; None if unknown.
        image_label: (C,) float in {0, 1}.
        label_source: `true`, or `predicted` by the final classifier.
        pixels: (1, 3, h, w) normalised, at the size the CAMs are made at.
        output: All of the plain pass over `pixels`.
        raw_cams: For each scale that has run (2, 2, 1, C, h, w), see `cam.raw_cams`.
        kept: Results worth keeping, by what they depend on.
    """

    name: str
    raw: np.ndarray
    truth: Tensor | None
    image_label: Tensor
    label_source: str
    pixels: Tensor
    output: ToCoOutput
    raw_cams: dict[float, Tensor] = field(default_factory=dict, repr=False)
    kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W), native."""
        return self.raw.shape[:2]

    @property
    def present(self) -> tuple[int, ...]:
        """Indices 0..C-1 of the classes in the image label."""
        return tuple(self.image_label.nonzero().flatten().tolist())

    @property
    def strongest_class(self) -> int:
        """The present class with the largest logit; of all classes if none is present."""
        allowed = self.image_label if self.image_label.any() else torch.ones_like(self.image_label)
        return int(self.output.logits[0].masked_fill(allowed == 0, -torch.inf).argmax())


class CamSession:
    """CAMs, labels, regions, crops, attributions and IoU of one image at a time.

    `set_image` costs one encoder pass per scale and flip; scales that are asked for later run once, then. Maps and
    labels come back at the image's native size, (H, W), on the model's device. Methods that read a CAM take

    * `source`: `cam` or `cam_aux`;
    * `scales`, `flip`: what the multi-scale CAM is summed over; None takes `cfg.cam_scales`.

    Raises:
        RuntimeError: From everything but `set_image` and `set_sample`, while no image is set.
    """

    def __init__(self, model: ToCo, cfg: Config, *, scales: Sequence[float] | None = None) -> None:
        """`model` is put into evaluation mode. `scales` run in `set_image`; None takes `cfg.cam_scales`."""
        self.model, self.cfg = model.eval(), cfg
        self.scales = tuple(scales or cfg.cam_scales)
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

    @torch.no_grad()
    def set_image(
        self,
        raw: np.ndarray,
        *,
        image_label: np.ndarray | Tensor | None = None,
        mask: np.ndarray | Tensor | None = None,
        name: str = "",
    ) -> None:
        """Run the encoder and keep its maps. If anything fails, the image before stays set.

        Args:
            raw: (H, W, 3) uint8.
            image_label: (C,) in {0, 1}; None predicts it, see `predicted_label`.
            mask: (H, W) labels, 255 not counted; None if unknown.
            name: For tables and titles.

        Raises:
            ValueError: If a shape or type does not fit, or the image is smaller than a patch at some scale.
        """
        raw = np.asarray(raw)
        if raw.dtype != np.uint8 or raw.ndim != 3 or raw.shape[2] != 3:
            raise ValueError(f"the image must be uint8 (H, W, 3), got {raw.dtype} {raw.shape}; see decode_image")
        if mask is not None and tuple(mask.shape) != raw.shape[:2]:
            raise ValueError(f"mask {tuple(mask.shape)} does not fit the image {raw.shape[:2]}")
        if image_label is not None and tuple(image_label.shape) != (self.cfg.num_classes,):
            raise ValueError(f"image_label {tuple(image_label.shape)} must be ({self.cfg.num_classes},)")
        device = next(self.model.parameters()).device
        pixels = normalise(torch.tensor(raw).permute(2, 0, 1).contiguous(), self.model.mean, self.model.std)
        pixels = at_evaluation_size(pixels[None].to(device), self.cfg.eval_cam_size)
        output = self.model(pixels)
        label = predicted_label(output.logits[0]) if image_label is None else torch.as_tensor(image_label)
        image = SessionImage(
            name=name,
            raw=raw,
            truth=None if mask is None else torch.as_tensor(mask).long().to(device),
            image_label=label.float().to(device),
            label_source="predicted" if image_label is None else "true",
            pixels=pixels,
            output=output,
        )
        for scale in self.scales:
            self._run_scale(image, scale)
        self._image = image

    def set_sample(self, sample: EvalSample) -> None:
        """`set_image` with all that a sample of a data set knows."""
        self.set_image(sample.raw, image_label=sample.image_label, mask=sample.mask, name=sample.name)

    # --- maps ---------------------------------------------------------------------------------------------------

    def cams(
        self, scales: Sequence[float] | None = None, flip: bool = True, *, classes: Sequence[int] | None = None
    ) -> Cams:
        """Multi-scale CAMs, (1, C, H, W): what `cam.multi_scale_cam` gives at `cfg.eval_cam_size`, at native size.

        `classes` are class indices in the order wanted (every map is normalised alone); None takes all C.
        """
        image, total = self.image, 0
        wanted = list(range(self.cfg.num_classes) if classes is None else classes)
        index = torch.tensor([wanted], device=image.pixels.device)
        present = PresentClasses(index, torch.ones_like(index, dtype=torch.bool), self.cfg.num_classes)
        for scale in self._scales(scales):
            if scale not in image.raw_cams:
                self._run_scale(image, scale)
            raw = present.gather(image.raw_cams[scale])
            total = total + fuse_flip(raw, image.pixels.shape[-2:], flip=flip)  # (2 heads, 1, C, h, w)
        cam, cam_aux = (resize(maps, image.size) for maps in min_max(total))
        return Cams(cam, cam_aux, present)

    def score(
        self,
        source: str = CAM,
        class_index: int | None = None,
        *,
        scales: Sequence[float] | None = None,
        flip: bool = True,
    ) -> Tensor:
        """One CAM, (H, W) in [0, 1]: of a class, or (None) of the strongest present class at each pixel."""
        if class_index is None:
            return self._strongest(source, scales, flip)[0]
        key = ("class", class_index, self._scales(scales), flip)
        maps = self._keep(key, lambda: self.cams(scales, flip, classes=[class_index]))
        return getattr(maps, _checked(source))[0, 0]

    def segmentation(self) -> Tensor:
        """(H, W) int64: the decoder's label of the plain pass (`evaluate.predict` may fuse several scales)."""
        image = self.image
        return self._keep("segmentation", lambda: resize(image.output.seg_logits, image.size).max(1).indices[0])

    def attribution(self, name: str, class_index: int) -> Tensor:
        """(H, W) in [0, 1]: one of `attribution.ATTRIBUTIONS` for a class index, computed once and kept.

        Raises:
            ValueError: For an unknown name.
        """
        if name not in ATTRIBUTIONS:
            raise ValueError(f"unknown attribution {name!r}; there are: {', '.join(ATTRIBUTIONS)}")
        image = self.image

        def make() -> Tensor:
            maps = ATTRIBUTIONS[name](self.model, image.pixels, class_index).detach()
            return resize(maps[:, None], image.size)[0, 0]

        knows_class = name != "attention rollout"
        return self._keep(("attribution", name, class_index if knows_class else None), make)

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
            method: `par`, as in training; or `crf`: the same two runs, with dense CRF in place of PAR.

        Raises:
            ValueError: For an unknown method.
        """
        image = self.image
        low, high = self._thresholds(low, high)
        if method not in ("par", "crf"):
            raise ValueError(f"method must be 'par' or 'crf', got {method!r}")
        present = PresentClasses.of(image.image_label[None])
        maps = getattr(self.cams(scales, flip, classes=present.index[0].tolist()), _checked(source))  # (1, S, H, W)
        pixels = torch.tensor(image.raw, device=maps.device).permute(2, 0, 1)[None].float()
        if method == "crf":
            return crf_label(pixels, maps, present, low=low, high=high)[0]
        return refine_cam(
            pixels / 255, maps, present, low=low, high=high,
            dilations=self.cfg.par_dilations, num_iter=self.cfg.par_iterations,
        )[0]  # fmt: skip

    def iou(self, label: Tensor) -> ImageIou:
        """IoU of a label map (H, W) with the mask.

        Raises:
            ValueError: If the image has no mask.
        """
        truth, num_classes = self.image.truth, self.cfg.num_classes + 1
        if truth is None:
            raise ValueError(f"image {self.image.name!r} has no mask: there is nothing to compare a label with")
        left_open = (label == IGNORE_INDEX) & (truth != IGNORE_INDEX)
        iou = iou_scores(confusion_matrix(label, truth.masked_fill(left_open, IGNORE_INDEX), num_classes)).iou
        in_truth = torch.bincount(truth.flatten(), minlength=IGNORE_INDEX + 1)[:num_classes] > 0
        iou[in_truth] = iou[in_truth].nan_to_num(0)
        share = left_open.sum() / (truth != IGNORE_INDEX).sum()
        return ImageIou(iou, iou[in_truth].mean().item(), share.item())

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

        Training draws them on the scaled and cropped image; a native one is in the middle of its range of scales.

        Raises:
            ValueError: If the image is not larger than a crop.
        """
        cfg, region = self.cfg, self.region(low, high, scales=scales, flip=flip)
        return sample_local_crops(
            region[None], crop_size=cfg.local_crop_size, num_crops=cfg.num_local_crops,
            candidates=cfg.crop_candidates, content=cfg.crop_content, min_content=cfg.crop_min_content,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip

    # --- inside ---------------------------------------------------------------------------------------------------

    def _run_scale(self, image: SessionImage, scale: float) -> None:
        image.raw_cams[scale] = raw_cams(self.model, image.pixels, scale, plain=image.output.features)

    def _strongest(self, source: str, scales: Sequence[float] | None, flip: bool) -> tuple[Tensor, Tensor]:
        """Score (H, W) and label 1..C (H, W) of the strongest present class; 0 throughout where none is present."""
        image = self.image

        def make() -> dict[str, tuple[Tensor, Tensor]]:
            classes = list(image.present) or [0]
            maps = self.cams(scales, flip, classes=classes)
            labels = torch.tensor(classes, device=image.pixels.device) + 1
            strongest = {}
            for name in SOURCES:
                score, place = mask_by_label(getattr(maps, name), image.image_label[None, classes]).max(1)
                strongest[name] = score[0], labels[place[0]]
            return strongest

        return self._keep(("strongest", self._scales(scales), flip), make)[_checked(source)]

    def _keep(self, key: Any, make: Callable[[], Any]) -> Any:
        kept = self.image.kept
        if key not in kept:
            kept[key] = make()
        return kept[key]

    def _scales(self, scales: Sequence[float] | None) -> tuple[float, ...]:
        return tuple(self.cfg.cam_scales if scales is None else scales)

    def _thresholds(self, low: float | None, high: float | None) -> tuple[float, float]:
        low = self.cfg.low_threshold if low is None else low
        high = self.cfg.high_threshold if high is None else high
        if not 0 <= low < high <= 1:
            raise ValueError(f"need 0 <= low < high <= 1, got {low} and {high}")
        return low, high


def predicted_label(logits: Tensor) -> Tensor:
    """(C,) in {0, 1} of image logits (C,): the positive ones, the largest one if there is none."""
    label = (logits > 0).float()
    return label if label.any() else F.one_hot(logits.argmax(), len(logits)).float()


def decode_image(source: bytes | Path | str, *, longest_side: int | None = LONGEST_SIDE) -> np.ndarray:
    """An image somebody brings, as uint8 RGB (H, W, 3).

    Turned as its EXIF data say (unlike a data set's images, which lie on masks); transparent parts become white; 16-bit
    grey is scaled to 8 bits; of an animation the first picture counts; a side longer than `longest_side` is scaled
    down to it.

    Args:
        source: The file's bytes, or its path.
        longest_side: In pixels; None keeps the size.

    Raises:
        DataError: If the bytes are no image, are damaged or truncated, or hold something other than colours.
    """
    where = "the uploaded file" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            file.load()
            picture = ImageOps.exif_transpose(file)
    except Exception as error:  # decoders of damaged files raise whatever they like
        cause = "no format fits its bytes" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(
            f"cannot read {where} as an image: {cause}. It is damaged or of a format not known here: open it in an "
            "image viewer and save it again as PNG or JPEG"
        ) from error
    if picture.mode == "F":
        raise DataError(f"{where} holds floating point numbers, no colours: save it as an 8-bit PNG")
    if picture.mode.startswith("I"):  # Pillow would clip, not scale, 16 bits
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) / 257).round().astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    if longest_side is not None and max(picture.size) > longest_side:
        factor = longest_side / max(picture.size)
        width, height = (max(1, round(factor * side)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return np.array(picture)


def _one_class(score: Tensor) -> tuple[Tensor, PresentClasses]:
    """A score (H, W) as the CAM (1, 1, H, W) of the only class of an image: thresholds need no more."""
    return score[None, None], PresentClasses.of(score.new_ones(1, 1), 1)


def _named(label: Tensor, winner: Tensor) -> Tensor:
    """A label map (1, H, W) of one class with the labels (H, W) it stands for."""
    return torch.where(label[0] == 1, winner, label[0])


def _checked(source: str) -> str:
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    return source
