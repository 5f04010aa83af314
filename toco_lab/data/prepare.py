"""What has to be made once of a data set: VOC with SBD's masks, COCO's masks and lists, tables of image labels.

Each step leaves out what is there already and writes whole files only, so a killed command continues.
"""

import csv
import io
import json
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from toco_lab.config import Config
from toco_lab.data.classes import COCO_CLASSES, DataError, class_names, save_mask
from toco_lab.data.coco_masks import CocoMasks, find_annotations
from toco_lab.data.image_labels import label_of_mask, onehot, read_xml_names
from toco_lab.data.layouts import LAYOUTS, find_root, locate
from toco_lab.data.own_folder import resolve
from toco_lab.data.readers import FolderReader
from toco_lab.files import atomic_write

TRAIN_AUG = 10582  # images
# images of the official lists: what a wrong number of train_aug is compared with
VOC_LISTS = {"SBD train": 8498, "SBD val": 2857, "VOC train": 1464, "VOC val": 1449}
COCO_LISTS = {"train": 82081, "val": 40137}  # images of 2014 with an annotation


@dataclass(frozen=True)
class Archive:
    """A file to fetch, and the folder that is in it."""

    name: str
    url: str
    folder: str
    md5: str | None = None


COCO_ARCHIVES = tuple(
    Archive(name, f"http://images.cocodataset.org/{below}/{name}", folder)
    for name, below, folder in (
        ("annotations_trainval2014.zip", "annotations", "annotations"),
        ("train2014.zip", "zips", "train2014"),
        ("val2014.zip", "zips", "val2014"),
    )
)


def voc_archives() -> tuple[Archive, Archive]:
    """VOC 2012 and SBD, with the addresses and checksums that torchvision knows."""
    from torchvision.datasets import SBDataset, voc

    known = voc.DATASET_YEAR_DICT["2012"]
    return (
        Archive(known["filename"], known["url"], "VOCdevkit", known["md5"]),
        Archive(SBDataset.filename, SBDataset.url, "benchmark_RELEASE", SBDataset.md5),
    )


# --- VOC --------------------------------------------------------------------------------------------------------------


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
        DataError: If an archive is missing or damaged, a file can not be read, or the number is wrong.
    """
    layout = LAYOUTS["voc"]
    voc_archive, sbd_archive = voc_archives()
    missing = []
    if not any((folder / below / layout.images[0]).is_dir() for below in layout.roots):
        missing.append(voc_archive)
    if _find_sbd(folder) is None:
        missing.append(sbd_archive)
    _fetch(folder, missing, download=download)
    root, sbd = find_root(str(folder), layout), _find_sbd(folder)
    if sbd is None:
        raise DataError(f"{folder}/{sbd_archive.folder} lacks dataset/cls, train.txt or val.txt: remove it, run again")
    lists = root / layout.lists[0]
    names = _train_aug(sbd, lists, subset=subset)
    images = locate(root, layout.images, layout.suffixes)
    absent = [name for name in names if name not in images]
    if absent:
        raise DataError(f"{len(absent)} images of train_aug, like {absent[0]}.jpg, are not in {root}/JPEGImages")
    own, out = locate(root, layout.masks[:1], (".png",)), root / layout.masks[1]
    made = locate(root, layout.masks[1:], (".png",))
    todo = [name for name in names if name not in own and name not in made]
    for name in tqdm(todo, desc="SBD masks", unit="mask", disable=not progress):
        save_mask(out / f"{name}.png", _read_sbd(sbd / "cls" / f"{name}.mat"))
    _write_list(lists / "train_aug.txt", names)
    return f"{lists}/train_aug.txt: {len(names)} images; {len(todo)} masks written to {out}"


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
    found = {title: set(path.read_text().split()) for title, path in files.items()}
    names = (found["SBD train"] | found["SBD val"] | found["VOC train"]) - found["VOC val"]
    if len(names) != TRAIN_AUG and not subset:
        counts = "; ".join(
            f"{title} {len(found[title])} ({VOC_LISTS[title]}) in {path}" for title, path in files.items()
        )
        raise DataError(
            f"train_aug has {len(names)} names, it must be {TRAIN_AUG}. Lists, with their official numbers: {counts}. "
            "Bring back the official lists, or allow a part of VOC by --subset"
        )
    return sorted(names)


def _read_sbd(path: Path) -> np.ndarray:
    """uint8 (H, W): SBD's class mask; it has no 255."""
    from scipy.io import loadmat

    try:
        return np.asarray(loadmat(path)["GTcls"][0, 0]["Segmentation"]).astype(np.uint8)
    except Exception as error:  # scipy raises whatever a damaged file leads to
        raise DataError(f"cannot read {path}: {error!r}. Unpack SBD again") from error


# --- COCO -------------------------------------------------------------------------------------------------------------


def prepare_coco(folder: Path, *, crowds: str = "class", subset: bool = False, progress: bool = True) -> list[str]:
    """Make COCO 2014 ready: unpack archives, paint every mask that is still to be painted, write the lists.

    Without it masks are painted while a run asks for them, which is slower only the first time.

    Args:
        folder: Holds the archives, or what is in them.
        crowds: As in the config: masks of the other choice are other masks.
        subset: Allow another number of images than 82,081 and 40,137, for a part of COCO.
        progress: Show progress bars.

    Returns:
        What is there now, a line for each json.

    Raises:
        DataError: If an archive is missing, a json is not COCO's, or the number is wrong.
    """
    layout = LAYOUTS["coco"]
    root = next((folder / below for below in layout.roots if find_annotations(folder / below)), folder)
    annotations, *pictures = COCO_ARCHIVES
    missing = [] if find_annotations(root) else [annotations]
    for archive in pictures:
        there = any((root / images).is_dir() for images in layout.images if images.endswith(archive.folder))
        if not there and not (subset and find_annotations(root)):
            missing.append(archive)
    _fetch(root, missing, download=False)
    done = []
    for path in find_annotations(root):
        split = path.stem.removeprefix("instances_").rstrip("0123456789")
        masks = CocoMasks(path, crowds=crowds)
        annotated = len(CocoMasks(path).classes)
        if annotated != COCO_LISTS.get(split) and not subset:
            raise DataError(
                f"{path} annotates {annotated} images, the official one of {split}2014 {COCO_LISTS.get(split)}. Take "
                "it from annotations_trainval2014.zip, or allow a part of COCO by --subset"
            )
        masks.prepare(masks.classes)
        empty = []
        for name in tqdm(masks.classes, desc=path.stem, unit="mask", disable=not progress):
            with Image.open(masks.mask_path(name)) as file:
                if not label_of_mask(np.array(file), len(COCO_CLASSES)).any():
                    empty.append(name)
        names = sorted(masks.classes.keys() - set(empty))
        note = f"{len(names)} masks in {masks.folder}"
        if empty:
            note += f"; left off the list, since no object covers a pixel: {', '.join(empty)}"
        target = root / layout.lists[0] / f"{split}.txt"
        if target.is_file():
            note += f"; kept {target}, {len(target.read_text().split())} images"
        else:
            _write_list(target, names)
            note += f"; wrote {target}"
        done.append(note)
    return done


# --- tables of labels -------------------------------------------------------------------------------------------------


def label_table(cfg: Config, source: str, *, progress: bool = True) -> dict[str, list[str]]:
    """Class names of every image of a data set, from its masks or XML files: what `write_labels` writes.

    Args:
        cfg: Names the data set; its lists do not matter. A folder needs no classes for `xml`: the files name them.
        source: `masks` or `xml`.
        progress: Show a progress bar.

    Raises:
        DataError: If there is no mask or XML file, or one is wrong.
    """
    layout = LAYOUTS[cfg.dataset]
    if source == "xml":
        folder = find_root(cfg.data_root, layout) / (layout.objects or "Annotations")
        files = sorted(folder.glob("*.xml"))
        table = {path.stem: list(dict.fromkeys(read_xml_names(path))) for path in files}
        if not table:
            raise DataError(f"no XML files in {folder}: put them there, or take --source masks")
        if cfg.dataset != "folder":
            for path in files:
                onehot(table[path.stem], class_names(cfg), str(path))
        return table
    cfg = resolve(cfg.replace(label_source="masks"))
    reader, table = FolderReader(cfg, None), {}
    for index, has_mask in enumerate(tqdm(reader.has_masks(), desc="labels", unit="mask", disable=not progress)):
        if has_mask:
            present = np.flatnonzero(reader.image_label(index))
            table[reader.names[index]] = [reader.classes[place] for place in present]
    if not table:
        raise DataError(f"no masks in {' or '.join(layout.masks)} below {reader.root}; try --source xml")
    return table


def write_labels(path: Path, table: Mapping[str, Sequence[str]]) -> None:
    """Write a table of labels as `.csv` or `.json`; DataError for a file that exists, which may be hand-made."""
    if path.exists():
        raise DataError(f"{path} exists. Remove it, or choose another --out")
    if path.suffix == ".json":
        text = json.dumps(table, indent=0)
    elif path.suffix == ".csv":
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(
            [("name", "labels"), *((name, ";".join(labels)) for name, labels in table.items())]
        )
        text = buffer.getvalue()
    else:
        raise DataError(f"a label file ends in .csv or .json, got {path}")
    with atomic_write(path, "w") as file:
        file.write(text)


# --- files ------------------------------------------------------------------------------------------------------------


def _fetch(folder: Path, archives: Sequence[Archive], *, download: bool) -> None:
    """Unpack archives into `folder`; of those that are not there, download them or name every one of them."""
    absent = [archive for archive in archives if not (folder / archive.name).is_file()]
    if absent and not download:
        raise DataError(_to_fetch(folder, absent))
    for archive in archives:
        if archive.md5:
            from torchvision.datasets.utils import check_integrity, download_url

            if download and archive in absent:
                try:
                    download_url(archive.url, folder, archive.name, archive.md5)
                except (OSError, RuntimeError) as error:  # no network, a refusal, a wrong checksum
                    raise DataError(
                        f"{archive.url} could not be downloaded ({error}). {_to_fetch(folder, absent)}"
                    ) from error
            elif not check_integrity(str(folder / archive.name), archive.md5):
                raise DataError(
                    f"{folder / archive.name} is incomplete or damaged: its MD5 is not {archive.md5}. Remove it; "
                    f"{_to_fetch(folder, [archive])}"
                )
        _unpack(folder, archive)


def _to_fetch(folder: Path, archives: Sequence[Archive]) -> str:
    lines = "".join(f"\n  {archive.name} from {archive.url}" for archive in archives)
    return f"fetch and put into {folder}, packed or unpacked:{lines}\n(data/README.md; --download does it for VOC)"


def _unpack(folder: Path, archive: Archive) -> None:
    """Beside its place and then renamed: a killed unpacking leaves no half of a data set behind."""
    from torchvision.datasets.utils import extract_archive

    target, half = folder / archive.folder, folder / f".{archive.folder}.unpacking"
    if target.exists():
        raise DataError(f"{target} is there but incomplete. Remove it; {archive.name} is unpacked again")
    shutil.rmtree(half, ignore_errors=True)
    print(f"unpacking {folder / archive.name}", flush=True)
    try:
        extract_archive(str(folder / archive.name), str(half))
        (half / archive.folder).replace(target)
    except (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot unpack {folder / archive.name}: {error}. Remove it and fetch it again") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _write_list(path: Path, names: Sequence[str]) -> None:
    with atomic_write(path, "w") as file:
        file.write("".join(f"{name}\n" for name in names))
