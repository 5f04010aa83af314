"""VOC 2012 with SBD's masks, made ready once: the 10,582 training images `train_aug`.

What is there already is not made again, and files are written whole, so a killed command continues.
"""

from pathlib import Path

import numpy as np

from toco_lab.data.archives import Archive, fetch
from toco_lab.data.classes import VOC_CLASSES, DataError, save_mask
from toco_lab.data.images import header, sizes
from toco_lab.data.layouts import LAYOUTS, find_root, locate, write_list
from toco_lab.files import read_text
from toco_lab.progress import progress_bar
from toco_lab.words import counted

LAYOUT = LAYOUTS["voc"]
TRAIN_AUG = 10582  # images
# images of the official lists: what a wrong number of train_aug is compared with
VOC_LISTS = {"SBD train": 8498, "SBD val": 2857, "VOC train": 1464, "VOC val": 1449}


def voc_archives() -> tuple[Archive, Archive]:
    """VOC 2012 and SBD, with the addresses and checksums that torchvision knows."""
    from torchvision.datasets import SBDataset, voc

    known = voc.DATASET_YEAR_DICT["2012"]
    return (
        Archive(known["filename"], known["url"], "VOCdevkit", known["md5"], ("VOC2012", "VOC2012/JPEGImages")),
        Archive(SBDataset.filename, SBDataset.url, "benchmark_RELEASE", SBDataset.md5, ("dataset", "dataset/cls")),
    )


def prepare_voc(folder: Path, *, download: bool = False, subset: bool = False, progress: bool = True) -> str:
    """Make VOC 2012 ready for `train_aug`: unpack the archives, write SBD's masks as PNGs and the list of names.

    `train_aug` is VOC's `train` and all of SBD without VOC's `val`. Where VOC has a mask itself, SBD's is not written.
    The list is written last: where it is, everything is.

    Args:
        folder: Holds the two archives, or what is in them: VOCdevkit/VOC2012 (or the files of VOC2012 themselves) and
            benchmark_RELEASE/dataset (or SBD, as torchvision leaves it).
        download: Fetch missing archives by torchvision, which checks their content.
        subset: Allow another number of names than 10,582, for a part of VOC.
        progress: Show progress bars.

    Returns:
        What is there now, in words.

    Raises:
        DataError: If an archive is missing or damaged, a file cannot be read, or the number is wrong.
    """
    root, sbd = _unpacked(folder, download=download)
    lists = root / LAYOUT.lists[0]
    names = _train_aug(sbd, lists, subset=subset)
    images = locate(root, LAYOUT.images, LAYOUT.suffixes)
    absent = [name for name in names if name not in images]
    if absent:
        like = f"of train_aug, like {absent[0]}.jpg,"
        images_are = counted(len(absent), f"image {like} is", f"images {like} are")
        raise DataError(f"{images_are} not in {root}/JPEGImages")
    masks, out = locate(root, LAYOUT.masks, (".png",)), root / LAYOUT.masks[1]
    todo = [name for name in names if name not in masks]
    for name in progress_bar(todo, "SBD masks", unit="mask", shown=progress):
        save_mask(out / f"{name}.png", _checked_sbd(sbd / "cls" / f"{name}.mat", images[name]))
    write_list(lists / "train_aug.txt", names)
    return f"{lists}/train_aug.txt: {counted(len(names), 'image')}; {counted(len(todo), 'mask')} written to {out}"


def _unpacked(folder: Path, *, download: bool) -> tuple[Path, Path]:
    """The folders of VOC and of SBD, from their archives where they are not there yet."""
    voc_archive, sbd_archive = voc_archives()
    missing = []
    if not any((folder / below / LAYOUT.images[0]).is_dir() for below in LAYOUT.roots):
        missing.append(voc_archive)
    if _find_sbd(folder) is None:
        missing.append(sbd_archive)
    fetch(folder, missing, download=download)
    sbd = _find_sbd(folder)
    if sbd is None:
        raise DataError(f"{folder}/{sbd_archive.folder} lacks dataset/cls, train.txt or val.txt: remove it, run again")
    return find_root(str(folder), LAYOUT), sbd


def _find_sbd(folder: Path) -> Path | None:
    for below in ("benchmark_RELEASE/dataset", "SBD/benchmark_RELEASE/dataset", "SBD"):
        if (folder / below / "cls").is_dir() and all((folder / below / f"{s}.txt").is_file() for s in ("train", "val")):
            return folder / below
    return None


def _train_aug(sbd: Path, lists: Path, *, subset: bool) -> list[str]:
    """Names of train_aug in order; DataError naming each list's length if they are not 10,582."""
    files = dict(
        zip(VOC_LISTS, (sbd / "train.txt", sbd / "val.txt", lists / "train.txt", lists / "val.txt"), strict=True)
    )
    for path in files.values():
        if not path.is_file():
            raise DataError(f"no list {path}. Unpack the archive again")
    listed = {title: set(read_text(path, error=DataError).split()) for title, path in files.items()}
    names = (listed["SBD train"] | listed["SBD val"] | listed["VOC train"]) - listed["VOC val"]
    if len(names) != TRAIN_AUG and not subset:
        counts = "; ".join(
            f"{title} {len(listed[title])} ({VOC_LISTS[title]}) in {path}" for title, path in files.items()
        )
        raise DataError(
            f"train_aug has {counted(len(names), 'name')}, it must be {TRAIN_AUG}. Lists, with their official "
            f"numbers: {counts}. Bring back the official lists, or allow a part of VOC by --subset"
        )
    return sorted(names)


def _checked_sbd(path: Path, image: Path) -> np.ndarray:
    """uint8 (H, W): SBD's class mask, 0..20, as large as its image."""
    mask = _read_sbd(path)
    width, height = sizes(header(image))[0]
    if mask.shape != (height, width):
        raise DataError(
            f"{path} has a mask of the shape {mask.shape}, its image {image} is {width}x{height}. Unpack SBD and "
            "VOC again"
        )
    numbers = np.unique(mask)
    if mask.dtype.kind not in "biu" or numbers[0] < 0 or numbers[-1] > len(VOC_CLASSES):
        raise DataError(
            f"{path} has a mask of {mask.dtype} from {numbers[0]} to {numbers[-1]}; SBD's are whole numbers 0..20. "
            "Unpack SBD again"
        )
    return mask.astype(np.uint8)


def _read_sbd(path: Path) -> np.ndarray:
    """SBD's class mask as its file has it."""
    from scipy.io import loadmat

    try:
        return np.asarray(loadmat(path)["GTcls"][0, 0]["Segmentation"])
    except Exception as error:  # scipy raises whatever a damaged file leads to
        raise DataError(f"cannot read {path}: {error!r}. Unpack SBD again") from error
