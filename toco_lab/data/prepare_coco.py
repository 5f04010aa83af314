"""COCO 2014 made ready once: masks from its annotations, and the lists of images that show a class.

What is there already is not made again, and files are written whole, so a killed command continues.
"""

from pathlib import Path

from toco_lab.data.archives import Archive, fetch
from toco_lab.data.classes import COCO_CLASSES, DataError
from toco_lab.data.coco_masks import CocoMasks, find_annotations
from toco_lab.data.image_labels import label_of_mask
from toco_lab.data.layouts import LAYOUTS, locate, read_list, write_list
from toco_lab.data.masks import read_mask
from toco_lab.progress import progress_bar
from toco_lab.words import counted

LAYOUT = LAYOUTS["coco"]
YEAR = "2014"
COCO_LISTS = {"train": 82081, "val": 40137}  # images of 2014 with an annotation

COCO_ARCHIVES = tuple(
    Archive(name, f"http://images.cocodataset.org/{below}/{name}", folder)
    for name, below, folder in (
        ("annotations_trainval2014.zip", "annotations", "annotations"),
        ("train2014.zip", "zips", "train2014"),
        ("val2014.zip", "zips", "val2014"),
    )
)


def prepare_coco(folder: Path, *, crowds: str = "class", subset: bool = False, progress: bool = True) -> list[str]:
    """Make COCO 2014 ready: unpack archives, paint every mask that is not there yet, write the lists.

    A run without this step paints masks when it asks for them, which is slower only the first time.

    Args:
        folder: Holds the archives, or what is in them.
        crowds: See `Config.crowds`; each choice has masks of its own.
        subset: Allow another number of images than 82,081 and 40,137, for a part of COCO.
        progress: Show progress bars.

    Returns:
        What is there now, a line for each json.

    Raises:
        DataError: If an archive is missing, a json is not COCO's, or the number is wrong.
    """
    root = next((folder / below for below in LAYOUT.roots if find_annotations(folder / below)), folder)
    annotations, *pictures = COCO_ARCHIVES
    missing = [] if find_annotations(root) else [annotations]
    for archive in pictures:
        there = any((root / images).is_dir() for images in LAYOUT.images if images.endswith(archive.folder))
        if not there and not (subset and find_annotations(root)):
            missing.append(archive)
    fetch(root, missing, download=False)
    return [
        _prepare_json(root, path, crowds=crowds, subset=subset, progress=progress) for path in find_annotations(root)
    ]


def _prepare_json(root: Path, path: Path, *, crowds: str, subset: bool, progress: bool) -> str:
    """Paint the masks of one json and write the list of its images, unless there is one; the result in words."""
    split = path.stem.removeprefix("instances_").rstrip("0123456789")
    year = path.stem.removeprefix(f"instances_{split}")
    if year not in ("", YEAR):
        raise DataError(
            f"{path} is of {year}, whose images have other names and another split. Put "
            f"instances_{split}{YEAR}.json of {COCO_ARCHIVES[0].name} in its place, and take it out of {path.parent}"
        )
    masks = CocoMasks(path, crowds=crowds)
    annotated = len(CocoMasks(path).classes)
    if annotated != COCO_LISTS.get(split) and not subset:
        raise DataError(
            f"{path} annotates {counted(annotated, 'image')}, the official one of {split}2014 "
            f"{COCO_LISTS.get(split)}. Take it "
            "from annotations_trainval2014.zip, or allow a part of COCO by --subset"
        )
    images = locate(root, LAYOUT.images, LAYOUT.suffixes)
    absent = [name for name in masks.classes if name not in images]
    if absent:
        raise DataError(
            f"{counted(len(absent), 'image is', 'images are')} not in {' or '.join(LAYOUT.images)} below {root}, "
            f"but in {path}: {absent[0]}.jpg{', ...' * (len(absent) > 1)}. Add what is missing, or take it out of the "
            "json"
        )
    masks.prepare(masks.classes)
    empty = []
    for name in progress_bar(masks.classes, path.stem, unit="mask", shown=progress):
        try:
            mask = read_mask(masks.mask_path(name), images[name], len(COCO_CLASSES))
        except DataError as error:
            raise DataError(f"{error}; or remove {masks.mask_path(name)}, which is then painted again") from error
        if not label_of_mask(mask, len(COCO_CLASSES)).any():
            empty.append(name)
    names = sorted(masks.classes.keys() - set(empty))
    note = f"{counted(len(names), 'mask')} in {masks.folder}"
    if empty:
        note += f"; left off the list, since no object covers a pixel: {', '.join(empty)}"
    target = root / LAYOUT.lists[0] / f"{split}.txt"
    if target.is_file():
        return f"{note}; kept {target}, {counted(len(read_list(root, LAYOUT, split)[1]), 'image')}"
    write_list(target, names)
    return f"{note}; wrote {target}"
