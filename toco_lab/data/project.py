"""A folder of images as a project begins with it: what is there, labels from subfolders, lists with every class."""

import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toco_lab.config import Config
from toco_lab.data import images
from toco_lab.data.classes import DataError
from toco_lab.data.label_tables import write_labels
from toco_lab.data.layouts import LAYOUTS, files_below, find_list, find_root, write_list
from toco_lab.data.own_folder import LABEL_FILES, VAL_SHARE, complete_config, labelled_images, mask_files, xml_files
from toco_lab.data.readers import FolderReader, open_dataset
from toco_lab.data.stratified import stratified_validation
from toco_lab.files import entries
from toco_lab.words import counted, program

_LAYOUT = LAYOUTS["folder"]


@dataclass
class Folder:
    """A folder of images, as far as a plan needs to know it.

    Attributes:
        cfg: Of the preset `folder`, with the classes and the source of the labels.
        names: Of the images that have a label.
        labels: Which classes each shows, (N, C) in {0, 1}.
        masked: Whether each has a mask, (N,) bool.
        sides: Width and height of each in pixels, as displayed, (N, 2).
        validation: Whether each is in the validation list, (N,) bool.
        drawn: Whether these lists are new.
        classes: Names.
    """

    cfg: Config
    names: list[str]
    labels: np.ndarray
    masked: np.ndarray
    sides: np.ndarray
    validation: np.ndarray
    drawn: bool

    @property
    def classes(self) -> tuple[str, ...]:
        return self.cfg.classes or ()

    @property
    def short_side(self) -> int:
        """Median of the shorter sides, in pixels."""
        return int(np.median(self.sides.min(1)))

    @property
    def num_train(self) -> int:
        return int((~self.validation).sum())

    def about(self) -> str:
        """What is there, in one line."""
        counts = ", ".join(f"{name} {n}" for name, n in zip(self.classes, self.labels.sum(0).astype(int), strict=True))
        shown = counts if len(self.classes) <= 20 else ", ".join(self.classes[:20]) + ", ..."
        masks = counted(int(self.masked.sum()), "mask") if self.masked.any() else "no masks"
        return (
            f"{self.cfg.data_root}: {counted(len(self.names), 'image')}, {counted(len(self.classes), 'class')} "
            f"({shown}), labels from {self.cfg.label_source}, {masks}"
        )

    def warnings(self) -> list[str]:
        """What the numbers of images forbid to expect."""
        rare = [name for name, n in zip(self.classes, self.labels[~self.validation].sum(0), strict=True) if n < 5]
        lines = []
        if rare:
            lines.append(f"warning: fewer than 5 training images of {', '.join(rare)}: expect little of them")
        if not self.masked[self.validation].all():
            lines.append("note: validation images without masks: labels are scored, CAMs are shown but not scored")
        return lines


def read_folder(folder: Path) -> Folder:
    """What lies in a folder of images.

    Raises:
        DataError: If its layout is not understood, a label or list is wrong, or fewer than two images have a label.
    """
    cfg = complete_config(Config.preset("folder").replace(data_root=str(folder.resolve())))
    reader = FolderReader(cfg, None)
    listed, used = _listed(cfg), set(labelled_images(reader.root, cfg.label_source))
    used &= used if listed is None else listed[0] | listed[1]
    places = [place for place, name in enumerate(reader.names) if name in used]
    if len(places) < 2:
        raise DataError(
            f"{folder} has {counted(len(reader), 'image')}, {len(places)} of them with a label: too few to train and "
            f"to validate. `{program()} data check {folder}` says which are not used, and why"
        )
    names = [reader.names[place] for place in places]
    labels = np.stack([reader.image_label(place) for place in places])
    masked = np.array(reader.has_masks())[places]
    sides = np.array([images.sizes(images.header(reader.image_path(place)))[0] for place in places])
    if listed is None:
        validation = stratified_validation(labels, VAL_SHARE, masked if masked.any() else None)
    else:
        validation = np.array([name not in listed[0] for name in names])
    return Folder(cfg, names, labels, masked, sides, validation, listed is None)


def _listed(cfg: Config) -> tuple[set[str], set[str]] | None:
    """The names in the lists of a folder, to train and to validate on; None if it has no list."""
    root, splits = find_root(cfg.data_root, _LAYOUT), (cfg.train_split, cfg.val_split)
    if not any(find_list(root, _LAYOUT, split) for split in splits):
        return None
    train, val = (set(open_dataset(cfg, split).names) for split in splits)
    return train, val


def label_subfolders(folder: Path) -> list[str]:
    """Write labels.csv where the subfolders alone say what is in the images; what was done, in words.

    Raises:
        DataError: If there is no images/, or two subfolders hold files of one name.
    """
    try:
        root = find_root(str(folder), _LAYOUT)
    except DataError as error:
        there = [path.name for path in entries(folder) if path.is_dir() and not path.name.startswith(".")]
        inside = [name for name in there if any(_is_image(path) for path in files_below(folder / name, nested=True))]
        if not inside and not any(map(_is_image, entries(folder))):
            raise
        what = " ".join(map(shlex.quote, inside[:4])) + (" ..." if len(inside) > 4 else "") if inside else "*.*"
        raise DataError(
            f"{folder} has images, but no folder images/, where they belong (its subfolders may be the classes): "
            f"`cd {shlex.quote(str(folder))} && mkdir images && mv {what} ./images`"
        ) from error
    if any((root / name).is_file() for name in LABEL_FILES) or mask_files(root) or xml_files(root):
        return []
    base = next(root / name for name in _LAYOUT.images if (root / name).is_dir())
    table: dict[str, list[str]] = {}
    where: dict[str, Path] = {}
    for path in filter(_is_image, files_below(base, nested=True)):
        if path.parent == base:
            return []  # an image of no subfolder: they are no classes
        if path.stem in where:
            raise DataError(
                f"{where[path.stem]} and {path} have one name: an image is known by its name alone. Rename one of them"
            )
        where[path.stem] = path
        table[path.stem] = [path.relative_to(base).parts[0]]
    if len({*map(tuple, table.values())}) < 2:
        return []
    write_labels(root / "labels.csv", table)
    return [f"labels     from the subfolders of {base}: wrote {root / 'labels.csv'}"]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _LAYOUT.suffixes


def write_lists(found: Folder) -> list[str]:
    """Write train.txt and val.txt where the folder had no lists; what they hold, in words."""
    cfg, root = found.cfg, Path(found.cfg.data_root)
    parts = {cfg.train_split: ~found.validation, cfg.val_split: found.validation}
    counts = f"{counted(found.num_train, 'image')} to train on, {int(found.validation.sum())} to validate on"
    if not found.drawn:
        return [f"split      {counts}: as the lists say that are there"]
    for split, mine in parts.items():
        write_list(root / f"{split}.txt", [name for name, is_mine in zip(found.names, mine, strict=True) if is_mine])
    return [f"split      {counts}, every class with its share as far as can be: wrote train.txt and val.txt"]
