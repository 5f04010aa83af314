"""Pseudo labels as a folder in VOC's layout: written image by image, checked before and continued after a kill.

    OUT/<kind>/SegmentationClass/<image>.png            palette PNGs: 0 background, 1..C classes, 255 ignored
    OUT/<kind>/ImageSets/Segmentation/<split>.txt       the images
    OUT/<kind>/labels.csv, classes.txt                  their true image labels, the names of the numbers
    OUT/<kind>/protocol.json                            everything that defines these labels
    OUT/<kind>/JPEGImages -> OUT/JPEGImages             on request: links to the images, or copies
    OUT/<kind>/scores/<image>.npz                       on request, of `seed` and `aux`: see `save_scores`

The folder of a kind is complete by itself: a trainer written for VOC is pointed at its SegmentationClass, and with the
images beside it, it is the `data_root` of the preset `folder`.
"""

import json
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from toco_lab.config import Config
from toco_lab.data.classes import save_mask
from toco_lab.data.images import load
from toco_lab.data.label_tables import write_labels
from toco_lab.data.layouts import LAYOUTS, locate
from toco_lab.data.loader import EvalSample
from toco_lab.files import atomic_write
from toco_lab.runs.small_files import read_json_file
from toco_lab.vocabulary import ADDED_LATER

MASKS, IMAGES, LISTS = "SegmentationClass", "JPEGImages", "ImageSets/Segmentation"


@dataclass(frozen=True)
class LabelFolder:
    """The folder of one kind of pseudo labels.

    Attributes:
        path: OUT/<kind>.
        scored: Whether soft scores belong to it.
    """

    path: Path
    scored: bool = False

    def holds(self, name: str) -> bool:
        """Whether everything of an image has been written."""
        return self._mask(name).is_file() and (not self.scored or self._scores(name).is_file())

    def read(self, name: str) -> np.ndarray:
        """The label of an image, (H, W) uint8.

        Raises:
            DataError: If the file is damaged.
        """
        return np.array(load(self._mask(name), remedy="Delete it: the same command makes it again"))

    def write(self, name: str, label: np.ndarray) -> None:
        """Write the label of an image, (H, W) uint8."""
        save_mask(self._mask(name), label)

    def write_scores(self, name: str, image_label: Tensor, scores: Tensor) -> None:
        """Write the soft scores of an image; arguments as in `save_scores`."""
        save_scores(self._scores(name), image_label, scores)

    def write_protocol(self, record: Mapping[str, Any]) -> None:
        """`write_protocol` of this folder."""
        write_protocol(self.path, record)

    def check_protocol(self, record: Mapping[str, Any]) -> None:
        """`check_protocol` of this folder."""
        check_protocol(self.path, record, "pseudo labels")

    def finish(
        self, split: str, classes: Sequence[str], image_labels: Mapping[str, np.ndarray], *, with_images: bool
    ) -> None:
        """Write list, image labels and class names in the form of `data/README.md`, and link to the images.

        A folder without a list was not finished, and nobody takes it for a data set.

        Args:
            split: Name of the list.
            classes: Names of the numbers 1..C.
            image_labels: (C,) in {0, 1} by image name.
            with_images: Whether OUT/JPEGImages holds the images.
        """
        for path, lines in ((self.path / LISTS / f"{split}.txt", image_labels), (self.path / "classes.txt", classes)):
            with atomic_write(path, "w") as file:
                file.write("".join(f"{line}\n" for line in lines))
        table = self.path / "labels.csv"
        table.unlink(missing_ok=True)  # `write_labels` overwrites nothing; this one is of an earlier call
        names = {name: [classes[int(i)] for i in np.flatnonzero(label)] for name, label in image_labels.items()}
        write_labels(table, names)
        for left in self.path.rglob(".*.tmp"):  # by a killed command
            left.unlink(missing_ok=True)
        if with_images:
            _link(self.path / IMAGES, Path("..") / IMAGES)

    def _mask(self, name: str) -> Path:
        return self.path / MASKS / f"{name}.png"

    def _scores(self, name: str) -> Path:
        return self.path / "scores" / f"{name}.npz"


def write_protocol(folder: Path, record: Mapping[str, Any]) -> None:
    """Write what defines the files of a folder; `check_protocol` compares with it when the command runs again.

    One that is there stays: it says by which version the work was begun.
    """
    path = folder / "protocol.json"
    if path.is_file():
        return
    with atomic_write(path, "w") as file:
        json.dump(record, file, indent=1)


def check_protocol(folder: Path, record: Mapping[str, Any], what: str, *, apart: Collection[str] = ()) -> None:
    """Refuse a folder that holds anything but what this protocol defines.

    Where an older version wrote no key of `ADDED_LATER`, that is no difference.

    Args:
        folder: It may be new or empty.
        record: The protocol, as JSON gives it back.
        what: Which files these are, for the error.
        apart: Keys that may differ.

    Raises:
        ValueError: Naming what differs.
    """
    mend = f"Delete {folder}, or choose another --out"
    if not (folder / "protocol.json").is_file():
        if folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise ValueError(f"{folder} holds files and no protocol.json: nobody knows what they are. {mend}")
        return
    there = read_json_file(folder / "protocol.json", {}, remedy=mend)
    differing = [
        f"{key} ({there.get(key)!r} there, {record.get(key)!r} wanted)"
        for key in sorted({*there, *record} - set(apart))
        if there.get(key) != record.get(key) and (key in there or key not in ADDED_LATER)
    ]
    if differing:
        raise ValueError(f"{folder} holds {what} of another protocol: {', '.join(differing)}. {mend}")


def save_scores(path: Path, image_label: Tensor, scores: Tensor) -> None:
    """Write the CAM of the P present classes as an .npz with two arrays in the same order.

    They are `classes`, (P,) uint8, numbers 1..C as in the masks, and `scores`, (P, H, W) float16 in [0, 1]. (The labels
    are made from the scores before rounding.)

    Args:
        path: The file.
        image_label: (C,) in {0, 1}.
        scores: (P, H, W) in [0, 1], in ascending order of the classes.
    """
    classes = image_label.nonzero().flatten() + 1
    with atomic_write(path) as file:
        np.savez_compressed(file, classes=classes.cpu().numpy().astype(np.uint8), scores=scores.half().cpu().numpy())


def check_output(out: Path, kinds: Iterable[str], cfg: Config, root: Path, *, images: bool = False) -> None:
    """Refuse a folder in which the run would read these labels as ground truth, or that would lie among its images.

    Args:
        out: Folder of the kinds.
        kinds: Their names.
        cfg: Says which layout the data set has.
        root: Folder of the data set.
        images: Whether images will be placed as well.

    Raises:
        ValueError: Naming both folders.
    """
    if cfg.dataset == "toy":
        return  # toy scenes are in no file
    layout = LAYOUTS[cfg.dataset]
    written = [out / kind / MASKS for kind in kinds] + [out / IMAGES] * images
    for ours in written:
        for read in (root / below for below in (*layout.masks, *layout.images)):
            if _overlap(ours.resolve(), read.resolve()):
                what = "ground truth" if read.relative_to(root).as_posix() in layout.masks else "images"
                raise ValueError(
                    f"the output would go to {ours}, but this run reads its {what} from {read}: predictions must not "
                    "pass for data. Choose another --out"
                )


def _overlap(one: Path, other: Path) -> bool:
    return one == other or one in other.parents or other in one.parents


# --- images -----------------------------------------------------------------------------------------------------------


def image_files(cfg: Config, root: Path) -> dict[str, Path]:
    """Image name -> file of a data set; empty for toy scenes."""
    layout = LAYOUTS.get(cfg.dataset)
    return locate(root, layout.images, layout.suffixes) if layout else {}


def place_image(out: Path, sample: EvalSample, original: Path | None, *, link: bool) -> None:
    """Put an image into OUT/JPEGImages, unless it is there already; a copy replaces a link.

    Args:
        out: Folder of the kinds.
        sample: The image.
        original: Its file; an image that is in no file is written as a PNG.
        link: Link to the file instead of copying it.
    """
    path = out / IMAGES / f"{sample.name}{original.suffix if original else '.png'}"
    if path.is_file() and (link or not path.is_symlink()):
        return
    if original is None:
        with atomic_write(path) as file:
            Image.fromarray(sample.raw).save(file, format="PNG")
    elif link:
        _link(path, original.resolve())
    else:
        with original.open("rb") as source, atomic_write(path) as file:
            shutil.copyfileobj(source, file)


def _link(path: Path, target: Path) -> None:
    if path.is_symlink():
        path.unlink()  # its target may be gone
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.symlink_to(target)
    except OSError as error:
        raise ValueError(
            f"cannot link {path} to {target}: {error}. Leave --images out and put the images there yourself"
        ) from error
