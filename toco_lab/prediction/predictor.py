"""A trained model that predicts: one image, or many in batches."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from toco_lab.backbones.pixels import normalise
from toco_lab.config import Config
from toco_lab.data.classes import DataError, class_names
from toco_lab.data.images import as_displayed, read_rgb, scaled_down
from toco_lab.evaluation.prediction import BATCH, NativeCams, native_cams
from toco_lab.files import require
from toco_lab.method.cam import at_evaluation_size, resize
from toco_lab.method.face import CamModel
from toco_lab.method.present import PresentClasses
from toco_lab.methods import has_cams
from toco_lab.prediction.recipe import PredictOptions, Recipe, recipe_of, why_no_decoder
from toco_lab.prediction.result import Prediction
from toco_lab.prediction.tiles import Tiled, strongest_above
from toco_lab.vocabulary import CAM_AUX, SEG

AnyImage = Path | str | bytes | Image.Image | np.ndarray


class Predictor:
    """A model with what its predictions depend on; `toco_lab.load` makes one.

    Attributes:
        model: In evaluation mode.
        cfg: The run's config.
        name: Of the run or the file.
        checkpoint: Hash of the weights.
        chosen: How it was chosen among several runs; "" where it was named.
        class_names: The C classes.
    """

    def __init__(
        self,
        model: CamModel,
        cfg: Config,
        *,
        name: str = "model",
        checkpoint: str = "",
        step: int | None = None,
        chosen: str = "",
    ) -> None:
        """`step`: how many optimiser steps made the weights; None takes all of `cfg.steps`."""
        require(model, CamModel, "model", ": load(run) makes a predictor of a run")
        require(cfg, Config, "cfg", ": it is that of the run, run.config()")
        self.model, self.cfg, self.name, self.checkpoint, self.chosen = model.eval(), cfg, name, checkpoint, chosen
        self.step = cfg.steps if step is None else step
        self.class_names = class_names(cfg)

    def __repr__(self) -> str:
        return f"Predictor({self.name!r}, {', '.join(self.class_names)})"

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def recipe(self, **options: Any) -> Recipe:
        """What the options of `predict` mean for this model; errors as in `PredictOptions` and `recipe_of`."""
        return recipe_of(self.cfg, PredictOptions.of(**options), decoder=why_no_decoder(self.cfg, self.step))

    def protocol(self, recipe: Recipe) -> dict[str, Any]:
        """Everything that defines a prediction by this model."""
        return {"checkpoint": self.checkpoint, "step": self.step, "config": self.cfg.digest()} | recipe.record()

    def predict(self, image: AnyImage, **options: Any) -> Prediction:
        """What the model says of one image.

        Args:
            image: A path, the bytes of a file, a PIL image, or an array (`read_image`).
            **options: `mask`, `crf`, `scales`, `flip`, `background_threshold`, `label_threshold`, `classes`,
                `longest_side`, `tiles`; see `PredictOptions`.

        Raises:
            DataError: If the image cannot be read, or is smaller than a patch.
            ValueError: For an option that is not known, or a value it cannot have.
        """
        return next(self.predict_many([image], **options))

    def predict_many(
        self, images: Iterable[AnyImage], *, batch_size: int = BATCH, **options: Any
    ) -> Iterator[Prediction]:
        """`predict` for many images, in their order; those of equal size that follow each other share a pass.

        Args:
            images: As in `predict`; read when they are needed.
            batch_size: Most images of a pass.
            **options: As in `predict`.
        """
        recipe = self.recipe(**options)
        check_batch_size(batch_size)
        return self._in_batches(images, batch_size, recipe)

    def _in_batches(self, images: Iterable[AnyImage], batch_size: int, recipe: Recipe) -> Iterator[Prediction]:
        group: list[tuple[str, np.ndarray]] = []
        for image in images:
            named = name_of(image), read_image(image)
            if group and (len(group) == batch_size or named[1].shape != group[0][1].shape):
                yield from self.predict_group(group, recipe)
                group = []
            group.append(named)
        if group:
            yield from self.predict_group(group, recipe)

    @torch.no_grad()
    def predict_group(self, group: Sequence[tuple[str, np.ndarray]], recipe: Recipe) -> Iterator[Prediction]:
        """Predictions of images of one size, (H, W, 3) uint8, with their names; one pass serves labels and CAMs.

        Raises:
            DataError: If they are smaller than a patch.
        """
        model, size = self.model, group[0][1].shape[:2]
        if min(size) < model.patch_size:
            raise DataError(
                f"{group[0][0]} has {size[1]} x {size[0]} pixels: a side is shorter than a patch of "
                f"{model.patch_size}, and the model would see nothing. Enlarge it"
            )
        if recipe.tiles:
            yield from (self._in_tiles(name, raw, recipe) for name, raw in group)
            return
        small = (torch.from_numpy(scaled_down(raw, recipe.longest_side)).permute(2, 0, 1) for _, raw in group)
        image = torch.stack([normalise(pixels.contiguous(), model.mean, model.std) for pixels in small])
        image = image.to(self.device)
        cams = self._cams(image, recipe)
        masks = recipe.masks(model, image, cams)
        scores = cams.logits.double().sigmoid()
        protocol = self.protocol(recipe)
        for place, (name, raw) in enumerate(group):
            there = cams.present.mask[place]
            present = [self.class_names[number] for number in cams.present.index[place][there].tolist()]
            mapped = there if has_cams(self.cfg) else there[:0]
            yield Prediction(
                name=name,
                image=raw,
                labels=dict(zip(self.class_names, scores[place].tolist(), strict=True)),
                present=tuple(present),
                cams=_maps_at(cams.cam[place][mapped], size),
                cams_aux=_maps_at(cams.cam_aux[place][mapped], size),
                mask=label_at(masks[place], size),
                class_names=self.class_names,
                protocol=protocol,
            )

    def _in_tiles(self, name: str, raw: np.ndarray, recipe: Recipe) -> Prediction:
        """The prediction of an image (H, W, 3) of any size: a class is present if it is in one window at least."""
        tiled = Tiled(self.model, recipe.cfg, raw, recipe.tiles, flip=recipe.flip)
        logits = tiled.logits()
        present = PresentClasses.of(recipe.image_label(logits))
        there = present.index[0][present.mask[0]].tolist()
        cams, cams_aux = tiled.cams(there if has_cams(self.cfg) else [])
        if recipe.mask == SEG:
            mask = tiled.segmentation()
        else:
            maps = cams_aux if recipe.mask == CAM_AUX else cams
            mask = strongest_above(maps, there, recipe.cfg.background_threshold)
        scores = logits[0].double().sigmoid().tolist()
        return Prediction(
            name=name,
            image=raw,
            labels=dict(zip(self.class_names, scores, strict=True)),
            present=tuple(self.class_names[number] for number in there),
            cams=cams,
            cams_aux=cams_aux,
            mask=mask,
            class_names=self.class_names,
            protocol=self.protocol(recipe),
        )

    def _cams(self, image: Tensor, recipe: Recipe) -> NativeCams:
        """`native_cams`; of a method without CAMs the logits and the present classes alone, with maps of no class."""
        if has_cams(self.cfg):
            return native_cams(self.model, recipe.cfg, image, recipe.image_label, flip=recipe.flip)
        logits = self.model(at_evaluation_size(image, recipe.cfg.eval_cam_size)).logits
        none = image.new_zeros(len(image), 0, *image.shape[-2:])
        return NativeCams(none, none, PresentClasses.of(recipe.image_label(logits)), logits)


def read_image(image: AnyImage) -> np.ndarray:
    """An image as it is displayed, uint8 RGB (H, W, 3), by the rules of `toco_lab.data.images`, as in training.

    Args:
        image: A path, the bytes of a file, a PIL image, or an array: (H, W), (H, W, 3) or (H, W, 4); uint8, or of the
            kinds of numbers that files may hold.

    Raises:
        DataError: If it cannot be decoded, or its numbers are no colours.
        ValueError: If it is none of these.
    """
    if isinstance(image, str | Path):
        return read_rgb(Path(image))
    if isinstance(image, bytes):
        return read_rgb(image, "the image")
    if isinstance(image, Image.Image):
        try:
            image.load()
        except Exception as error:  # decoders of damaged files raise whatever they like
            raise DataError(f"cannot decode the image: {error}. Copy its file again") from error
        return as_displayed(image, "the image")
    if not isinstance(image, np.ndarray):
        raise ValueError(f"image must be a path, bytes, a PIL image or an array, got {type(image).__name__}")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)) or not image.size:
        raise ValueError(f"an array must be (H, W), (H, W, 3) or (H, W, 4), got {image.shape}")
    if image.dtype == np.uint8:
        return as_displayed(Image.fromarray(image), "the array")
    if image.ndim == 3:  # PIL knows no colours of more than 8 bits: one by one, all by the range of all
        return _colours(image)
    return as_displayed(Image.fromarray(_as_in_files(image)), "the array")


def _colours(image: np.ndarray) -> np.ndarray:
    """Colours that are no uint8: the rule for grey of the same numbers, laid side by side."""
    grey = read_image(np.concatenate(list(np.moveaxis(image, 2, 0)), axis=1))[..., 0]  # (H, 3 W)
    return read_image(np.stack(np.split(grey, image.shape[2], axis=1), axis=2))


def _as_in_files(image: np.ndarray) -> np.ndarray:
    """Numbers of a type that PIL has: float32, int32 or uint16."""
    if image.dtype == bool:
        return image.astype(np.float32)
    kinds = {"f": np.float32, "i": np.int32, "u": np.uint16 if image.dtype == np.uint16 else np.int32}
    if image.dtype.kind not in kinds:
        raise ValueError(f"an array must hold numbers, got {image.dtype}")
    return image.astype(kinds[image.dtype.kind])


def name_of(image: AnyImage) -> str:
    """The name of an image: that of its file without extension, or "image"."""
    path = getattr(image, "filename", "") if isinstance(image, Image.Image) else image
    return Path(path).stem if isinstance(path, str | Path) and str(path) else "image"


def check_batch_size(batch_size: int) -> None:
    """ValueError for less than one image."""
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 image, got {batch_size!r}")


def _maps_at(maps: Tensor, size: Sequence[int]) -> np.ndarray:
    """Maps (P, h, w) at the size of the image, (P, H, W) float32."""
    if maps.shape[-2:] != tuple(size) and len(maps):
        maps = resize(maps[:, None], size)[:, 0]
    return maps.new_zeros(0, *size).cpu().numpy() if not len(maps) else maps.float().cpu().numpy()


def label_at(label: Tensor, size: Sequence[int]) -> np.ndarray:
    """A label map (h, w) at the size of the image, (H, W) uint8; labels cannot be averaged."""
    found = label.to(torch.uint8).cpu().numpy()
    if found.shape == tuple(size):
        return found
    return np.array(Image.fromarray(found).resize((size[1], size[0]), Image.Resampling.NEAREST))
