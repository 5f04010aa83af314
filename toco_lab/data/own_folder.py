"""Any folder as a data set: its classes, the source of its labels and its lists are found out once, before a run.

`complete_config` puts them into the config, so that the run records what it was trained on and needs no folder to name
its classes later. data/README.md gives the layout and every rule.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.data.class_lists import named_classes, read_classes
from toco_lab.data.classes import MAX_CLASSES, DataError
from toco_lab.data.image_labels import find_label_file, labelled_names, read_label_names, read_xml_names
from toco_lab.data.layouts import LAYOUTS, Layout, files_below, find_list, find_root, locate, write_list
from toco_lab.data.names import MASK_ENDINGS, match_names
from toco_lab.files import require
from toco_lab.words import counted

LABEL_FILES = ("labels.csv", "labels.json")
VAL_SHARE = 0.2  # of the images, where the folder has no lists
_LAYOUT = LAYOUTS["folder"]


def complete_config(cfg: Config) -> Config:
    """The config with `label_source`, `classes` and `num_classes` of its folder, where it leaves them open.

    A config of another data set, or one that has all three, is returned as it is.

    Raises:
        DataError: If the folder does not say what its labels or classes are, or has more classes than a mask holds.
    """
    require(cfg, Config, "cfg", ": make one with Config.preset(name)")
    if cfg.dataset != "folder" or (cfg.label_source != "auto" and cfg.classes and cfg.num_classes):
        return cfg
    root = _root(cfg)
    source = _label_source(root) if cfg.label_source == "auto" else cfg.label_source
    classes = cfg.classes or _classes(root, source)
    if len(classes) > MAX_CLASSES:
        raise DataError(
            f"{root} has {counted(len(classes), 'class')} (classes.txt, or those that its labels name); a mask "
            f"of 8 bits holds {MAX_CLASSES} beside background and {IGNORE_INDEX}. Merge classes, or leave some out"
        )
    return cfg.replace(label_source=source, classes=classes, num_classes=cfg.num_classes or len(classes))


def folder_names(cfg: Config, split: str) -> list[str] | None:
    """Names of a split of a folder without lists, the same every time.

    The validation split is a fifth of the images, drawn by a generator of seed 0 whatever `cfg.seed`: a seed changes
    the run, not the data. Only images that have a label take part, and validation prefers those with masks.

    Returns:
        The names in alphabetical order; None if the folder has a list, or `split` is not one of the config's two.

    Raises:
        DataError: For fewer than two such images.
    """
    root, splits = _root(cfg), (cfg.train_split, cfg.val_split)
    if split not in splits or any(find_list(root, _LAYOUT, name) for name in splits):
        return None
    if cfg.train_split == cfg.val_split:
        raise DataError(
            f"{root} has no lists, and train_split and val_split are both {split!r}: it would be scored on the images "
            "it is trained on. Give two names"
        )
    names = labelled_images(root, cfg.label_source)
    masks = set(match_names(mask_files(root), names, _LAYOUT.suffixes, MASK_ENDINGS))
    if len(names) < 2:
        raise DataError(_too_few(cfg, root, len(names)))
    shuffled = [names[place] for place in np.random.default_rng(0).permutation(len(names))]
    candidates = [name for name in shuffled if name in masks] or shuffled
    val = set(candidates[: max(1, round(VAL_SHARE * len(names)))])
    return [name for name in names if (name in val) == (split == cfg.val_split)]


def _too_few(cfg: Config, root: Path, count: int) -> str:
    """The error for a folder of which fewer than two images have a label; it shows names that do not fit."""
    images = image_files(root)
    entries = matched_entries(root, cfg.label_source, images)
    lost, bare = sorted(entries.keys() - images.keys()), sorted(images.keys() - set(entries.values()))
    apart = ""
    if lost and bare:
        apart = f". {cfg.label_source} names {lost[0]!r}, an image is called {bare[0]!r}: do the names fit?"
    return (
        f"{root} has {counted(len(images), 'image')}, {count} of them with a label: too few to split. Add images and "
        f"labels, or lists {cfg.train_split}.txt and {cfg.val_split}.txt{apart}"
    )


def write_split(cfg: Config) -> str:
    """Write the two lists of a folder that has none, so that images added later do not move the others.

    Returns:
        What was written, in words; "" where there was nothing to do.
    """
    if cfg.dataset != "folder" or cfg.train_split == cfg.val_split:
        return ""
    drawn = {split: names for split in (cfg.train_split, cfg.val_split) if (names := folder_names(cfg, split))}
    for split, names in drawn.items():
        try:
            write_list(_root(cfg) / f"{split}.txt", names)
        except OSError as error:
            raise DataError(
                f"cannot write {split}.txt: {error}. Make {cfg.data_root} writable, or put {' and '.join(drawn)}.txt "
                "there yourself, one file name a line without extension"
            ) from error
    counts = " and ".join(f"{split}.txt with {counted(len(names), 'image')}" for split, names in drawn.items())
    return f"{cfg.data_root} had no lists: wrote {counts}, drawn at random" if drawn else ""


def _root(cfg: Config) -> Path:
    if not cfg.data_root:
        raise DataError("no folder given: data_root says where your images are, as in `--data-root my/folder`")
    return find_root(cfg.data_root, _LAYOUT)


def _label_source(root: Path) -> str:
    for name in LABEL_FILES:
        if (root / name).is_file():
            return name
    if mask_files(root):
        return "masks"
    if xml_files(root):
        return "xml"
    raise DataError(
        f"{root} does not say what is in its images{_unread_labels(root)}: put labels.csv there (header `name,labels`, "
        f"class names separated by `;`) or labels.json, or masks into masks/, or XML files into {_LAYOUT.objects}/"
    )


def _unread_labels(root: Path) -> str:
    """What lies where labels are looked for and is none."""
    places = ((_LAYOUT.masks, "masks are PNGs"), ((_LAYOUT.objects,), "annotations are .xml files"))
    for folders, rule in places:
        other = [path for folder in folders for path in files_below(root / folder, nested=True)]
        if other and other[0].is_dir():
            return f" ({other[0].relative_to(root)} is a link to a folder, which is not followed)"
        if other:
            return f" (files like {other[0].relative_to(root)} do not: {rule}, not {other[0].suffix})"
    tables = sorted(path.name for path in root.iterdir() if path.suffix.lower() in (".csv", ".json", ".npy"))
    return f" ({tables[0]} is read if it is given as label_source)" if tables else ""


def _classes(root: Path, source: str) -> tuple[str, ...]:
    """Class names from classes.txt, else those that the labels name, in alphabetical order."""
    path = root / "classes.txt"
    if path.is_file():
        return read_classes(path)
    named: set[str] = set()
    if source == "xml":
        named = {name for file in xml_files(root).values() for name in read_xml_names(file)}
    elif source != "masks" and not source.lower().endswith(".npy"):
        named = set().union(*read_label_names(find_label_file(source, root)).values())
    if mask_files(root) or not named:
        known = (
            f" The labels name, in the order of the alphabet and not of the numbers: {', '.join(sorted(named))}."
            if named
            else ""
        )
        raise DataError(
            f"{path} is missing: numbers in masks and label vectors have no names of their own. Write one class a "
            f"line: line k is number k of the masks, background is not listed.{known} (Official VOC or COCO: use a "
            "preset, as in `data check voc_vit_b --data-root ...`)"
        )
    where = f"the XML files in {root / _LAYOUT.objects}" if source == "xml" else f"the labels of {source} in {root}"
    return named_classes(named, where)


def labelled_images(root: Path, source: str) -> Sequence[str]:
    """Names of the images that have a label, in alphabetical order: a row in a label file, a mask, or an XML file.

    A label may name no class: such an image is all background.
    """
    images = image_files(root)
    return sorted(images.keys() & set(matched_entries(root, source, images).values()))


def image_files(root: Path) -> dict[str, Path]:
    """The image of each name of a folder."""
    return locate(root, _LAYOUT.images, _LAYOUT.suffixes, nested=True)


def mask_files(root: Path) -> dict[str, Path]:
    """The mask of each name of a folder."""
    return locate(root, _LAYOUT.masks, (".png",), nested=True)


def xml_files(root: Path, layout: Layout = _LAYOUT) -> dict[str, Path]:
    """The XML file of each name of a folder."""
    return locate(root, (layout.objects,), (".xml",), nested=layout.nested)


def matched_entries(root: Path, source: str, images: Collection[str], layout: Layout = _LAYOUT) -> dict[str, str]:
    """Each name as the source of the labels has it, of a row, a mask or an XML file, and the image that it means."""
    if source == "masks":
        entries = list(locate(root, layout.masks, (".png",), nested=layout.nested))
    elif source == "xml":
        entries = list(xml_files(root, layout))
    else:
        entries = labelled_names(find_label_file(source, root))
    endings = MASK_ENDINGS if source == "masks" else ()
    return dict(zip(entries, match_names(entries, images, layout.suffixes, endings), strict=True))
