"""Scenes of a toy world as files: a folder like those that people have, to try a recipe on before one's own images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toco_lab.config import Config
from toco_lab.data.classes import TOY_WORLDS, DataError, save_mask
from toco_lab.data.image_labels import label_of_mask
from toco_lab.data.label_tables import write_labels
from toco_lab.data.readers import open_dataset
from toco_lab.files import atomic_write, did_you_mean
from toco_lab.progress import progress_bar
from toco_lab.words import counted

BITS = 12  # of a scan, in numbers of 16
_UINT8 = 255


@dataclass(frozen=True)
class Painted:
    """What `paint_folder` wrote.

    Attributes:
        folder: Holds images/, masks/, labels.csv and classes.txt.
        images: How many.
        without_class: Of these, how many show no class.
        side: Of an image, in pixels.
    """

    folder: Path
    images: int
    without_class: int
    side: int

    def __str__(self) -> str:
        """In one line."""
        return (
            f"{self.folder}: {counted(self.images, 'image')} of {self.side} x {self.side} pixels, {self.without_class} "
            "without a class"
        )


def paint_folder(
    folder: Path | str,
    *,
    world: str = "tissue",
    images: int = 24,
    across: int = 4,
    side: int = 96,
    first: int = 0,
    progress: bool = True,
) -> Painted:
    """Write scenes of a toy world as scans: arrays .npy of 12 bits and three bands, with masks and labels.

    An image is a square of scenes, `across` x `across`, so that it is larger than what a network looks at.

    Args:
        folder: A new folder.
        world: One of `Config.toy_world`.
        images: How many to write.
        across: Scenes in a row and in a column of an image.
        side: Of a scene, in pixels.
        first: Number of the first scene; another one gives other images.
        progress: Show a progress bar.

    Raises:
        DataError: If `folder` is not empty.
        ValueError: For an unknown world, or a number that is too small.
    """
    folder = Path(folder)
    if world not in TOY_WORLDS:
        raise ValueError(f"unknown world {world!r}{did_you_mean(world, TOY_WORLDS) or ': ' + ', '.join(TOY_WORLDS)}")
    for name, value, lowest in (("images", images, 1), ("across", across, 1), ("first", first, 0)):
        if value < lowest:
            raise ValueError(f"{name} must be at least {lowest}, got {value}")
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty. Give a new folder, or empty it")
    classes, scenes = TOY_WORLDS[world], across**2
    cfg = Config.preset("toy").replace(
        toy_world=world, num_classes=len(classes), crop_size=side, train_images=first + images * scenes
    )
    reader = open_dataset(cfg, cfg.train_split)
    table: dict[str, list[str]] = {}
    for number in progress_bar(range(images), "paint", shown=progress):
        places = range(first + number * scenes, first + (number + 1) * scenes)
        image = _square([reader.image(place) for place in places], across)
        masks = [reader.mask(place) for place in places]
        mask = _square([one for one in masks if one is not None], across)  # every toy scene has one
        name = f"scan_{first + number:04d}"
        scan = np.rint(image.astype(np.float32) * ((2**BITS - 1) / _UINT8)).astype(np.uint16)
        with atomic_write(folder / "images" / f"{name}.npy") as file:
            np.save(file, scan)
        save_mask(folder / "masks" / f"{name}.png", mask)
        there = label_of_mask(mask, len(classes))
        table[name] = [one for one, is_there in zip(classes, there, strict=True) if is_there]
    write_labels(folder / "labels.csv", table)
    with atomic_write(folder / "classes.txt", "w") as file:
        file.write("\n".join(classes) + "\n")
    return Painted(folder, images, sum(not shown for shown in table.values()), across * side)


def _square(pictures: list[np.ndarray], across: int) -> np.ndarray:
    """Pictures (h, w, ...) of one size as one, `across` in each row."""
    rows = [np.concatenate(pictures[i : i + across], axis=1) for i in range(0, len(pictures), across)]
    return np.ascontiguousarray(np.concatenate(rows))
