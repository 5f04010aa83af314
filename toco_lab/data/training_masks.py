"""The masks that a run learns from: those of the data set, of all images or of a few, or pseudo labels of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from toco_lab.config import Config
from toco_lab.data.classes import DataError, class_names
from toco_lab.data.layouts import LAYOUTS, find_list
from toco_lab.data.masks import read_mask
from toco_lab.data.readers import Reader
from toco_lab.data.stratified import class_by_class
from toco_lab.files import read_text
from toco_lab.words import counted


@dataclass(frozen=True)
class TrainingMasks:
    """The masks of images of the training split.

    Attributes:
        reader: Of the split.
        folder: That holds a PNG for each image; None takes the true masks.
        images: That give their mask, in the order of the split; None: all.
    """

    reader: Reader
    folder: Path | None
    images: tuple[int, ...] | None = None

    @classmethod
    def of(cls, cfg: Config, reader: Reader) -> Self:
        """The masks of `cfg.mask_source`, or true ones of `cfg.masks_for` images; no mask is read for its own sake yet.

        Args:
            cfg: Of the run.
            reader: Of its training split.

        Raises:
            DataError: If an image has no mask, or fewer than `cfg.masks_for` have one, or the folder is none that
                `pseudo_labels` has finished, or is of another split or other classes.
        """
        if cfg.masks_for:
            return cls(reader, None, _drawn(cfg, reader))
        if not cfg.mask_source:
            missing = [name for name, there in zip(reader.names, reader.has_masks(), strict=True) if not there]
            if missing:
                raise DataError(
                    f"{_of(len(missing), reader, cfg)} no mask in {reader.root}, the first is {missing[0]}: a "
                    "supervised method learns from masks. Put them there, or give pseudo labels as mask_source"
                )
            return cls(reader, None)
        return cls(reader, _checked_folder(cfg, reader))

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 (H, W): 0 background, 1..C classes, 255 not counted; DataError if it cannot be the image's mask."""
        if self.folder is None:
            mask = self.reader.mask(index)
            assert mask is not None  # `of` has looked
            return mask
        path = self.folder / f"{self.reader.names[index]}.png"
        image = self.reader.image_path(index)
        mask = read_mask(path, image, len(self.reader.classes))
        if image is None and mask.shape != (size := self.reader.image(index).shape[:2]):
            raise DataError(
                f"mask {path} is {mask.shape[1]}x{mask.shape[0]}, its scene is {size[1]}x{size[0]}: the labels are of "
                "scenes of another crop_size. Write them again"
            )
        return mask


def _drawn(cfg: Config, reader: Reader) -> tuple[int, ...]:
    """The `cfg.masks_for` images that give their mask, in the order of the split."""
    there = [index for index, has_mask in enumerate(reader.has_masks()) if has_mask]
    if len(there) < cfg.masks_for:
        raise DataError(
            f"masks_for {cfg.masks_for} asks for more masks than there are: {_of(len(there), reader, cfg)} a mask. Set "
            f"masks_for to {len(there)} at most"
        )
    if len(there) == cfg.masks_for:
        return tuple(there)
    return tuple(sorted(class_by_class(there, reader.image_label, cfg.masks_for, cfg.seed)))


def _checked_folder(cfg: Config, reader: Reader) -> Path:
    """The folder of the masks below `cfg.mask_source`."""
    root, layout = Path(cfg.mask_source), LAYOUTS["voc"]
    folder = root / layout.masks[0]
    if not folder.is_dir():
        raise DataError(
            f"mask_source {root} is no folder of pseudo labels: {folder} is not there. Give OUT/<kind> as "
            "`pseudo_labels` writes it, or leave it empty for the true masks"
        )
    if find_list(root, layout, cfg.train_split) is None:
        raise DataError(
            f"mask_source {root} has no list {cfg.train_split}.txt: its labels are of another split, or not finished. "
            f"Let `pseudo_labels` write those of {cfg.train_split!r}"
        )
    classes = root / "classes.txt"
    named = tuple(read_text(classes, error=DataError).splitlines()) if classes.is_file() else ()
    if named and named != class_names(cfg):
        raise DataError(
            f"mask_source {root} has labels of {counted(len(named), 'class')} ({', '.join(named[:3])}, ...), and this "
            f"data set {counted(cfg.num_classes, 'class')} ({', '.join(class_names(cfg)[:3])}, ...): the numbers would "
            "mean something else. Take labels of this data set"
        )
    there = {path.stem for path in folder.glob("*.png")}
    if missing := [name for name in reader.names if name not in there]:
        raise DataError(
            f"{_of(len(missing), reader, cfg)} no label in {folder}, the first is {missing[0]}: the labels are of "
            "another data set or of fewer images. Write them again for this one"
        )
    return folder


def _of(missing: int, reader: Reader, cfg: Config) -> str:
    where = f"of {counted(len(reader), 'image')} of {cfg.train_split!r}"
    return counted(missing, f"{where} has", f"{where} have")
