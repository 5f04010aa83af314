"""Readers of images, masks and image labels, and the check of a whole data set.

A reader gives `names`, `image(i)`, `mask(i)`, `image_label(i)`; toy scenes have one, and all data sets that lie in
folders share the other: VOC and COCO differ only in folder names (`LAYOUTS`).
Masks are numbers, not colours: 0 background, 1..C classes, 255 (`IGNORE_INDEX`) not counted.
"""

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from toco_lab import toy
from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.labels import (
    DataError,
    class_names,
    find_label_file,
    label_of_mask,
    read_labels,
    read_xml_label,
)

CHECK_HINT = "`python -m toco_lab data check` lists every problem"


@dataclass(frozen=True)
class Layout:
    """Where a data set keeps its files, relative to its folder; of several folders the first that holds a file wins."""

    roots: tuple[str, ...]  # where the folder itself may lie below `cfg.data_root`
    images: tuple[str, ...]
    masks: tuple[str, ...]
    lists: str
    objects: str = ""  # XML files that name the objects of an image


LAYOUTS = {
    "voc": Layout(
        roots=(".", "VOCdevkit/VOC2012", "VOC2012"),
        images=("JPEGImages",),
        masks=("SegmentationClass", "SegmentationClassAug"),
        lists="ImageSets/Segmentation",
        objects="Annotations",
    ),
    "coco": Layout(
        roots=(".", "COCO2014"),
        images=("coco2014/train2014", "coco2014/val2014", "train2014", "val2014"),
        masks=("SegmentationClass/train2014", "SegmentationClass/val2014"),
        lists="lists",
    ),
}


class FolderReader:
    """Images, masks and labels of the names in a list file, from folders laid out as `LAYOUTS[cfg.dataset]` says.

    A mask is read as numbers, so VOC's palette PNGs and grey PNGs give the same labels. The EXIF orientation of a JPEG
    is ignored on purpose: the masks are aligned with the pixels as stored.
    """

    def __init__(self, cfg: Config, split: str) -> None:
        """Reads the list, the folder contents and the label file, but no image; raises DataError."""
        self.classes = class_names(cfg)
        layout = LAYOUTS[cfg.dataset]
        self.root = _find_root(Path(cfg.data_root), layout)
        self.list_file = self.root / layout.lists / f"{split}.txt"
        self.names = _read_list(self.list_file)[: _limit(cfg, split)]
        # SBD's masks make up train_aug; for the official lists VOC's own files come first
        masks = layout.masks if split != "train_aug" else layout.masks[::-1]
        self._images = _locate(self.root, layout.images, (".jpg", ".jpeg", ".png"))
        self._masks = _locate(self.root, masks, (".png",))
        self._layout = layout
        self._source = cfg.label_source
        self._table: dict[str, np.ndarray] = {}
        if self._source == "xml" and not layout.objects:
            raise DataError(f"label_source 'xml' is not known for {cfg.dataset}; use `masks` or a label file")
        if self._source not in ("masks", "xml"):
            self._table = read_labels(find_label_file(self._source, self.root), self.classes)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def problems(self) -> list[str]:
        """What is wrong with the list without decoding anything: names given twice, missing images, missing masks.

        A list none of whose names has a mask (VOC's test) is fine, and so are missing masks beside a label file.
        """
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        found = [f"{name!r} stands twice in {self.list_file}. Remove the repeated line" for name in twice]
        found += [self._missing_image(name) for name in self.names if name not in self._images]
        without = [name for name in self.names if name not in self._masks]
        if self._source == "masks" and len(without) < len(self):
            found += [self._missing_mask(name) for name in without]
        return found

    def image(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3); grey and CMYK files are converted. Decoded in full, so a truncated file is an error."""
        with _opened(self._image_path(index)) as file:
            return np.array(file.convert("RGB"))

    def mask(self, index: int) -> np.ndarray | None:
        """uint8 (H, W) of labels, or None where there is no mask; DataError if it cannot be the image's mask."""
        path = self._masks.get(self.names[index])
        if path is None:
            return None
        with _opened(path) as file:
            mode, mask = file.mode, np.array(file)
        if mode not in ("P", "L"):
            raise DataError(
                f"mask {path} has mode {mode}, i.e. colours instead of class numbers. Save the class numbers as "
                "an 8-bit grey or palette PNG (toco_lab.labels.PALETTE holds VOC's colours)"
            )
        with _opened(self._image_path(index)) as file:
            (width, height), where = file.size, self._image_path(index)
        if mask.shape != (height, width):
            raise DataError(
                f"mask {path} is {mask.shape[1]}x{mask.shape[0]}, its image {where} is {width}x{height}. Make the mask "
                "anew from the original annotation, or resize it with nearest neighbour"
            )
        present = np.unique(mask)
        wrong = present[(present > len(self.classes)) & (present != IGNORE_INDEX)].tolist()
        if wrong:
            raise DataError(
                f"mask {path} holds {wrong}; allowed are 0..{len(self.classes)} and {IGNORE_INDEX}. Renumber the "
                "classes (COCO: 1..80 in order, not the annotation's ids 1..90) or correct num_classes"
            )
        return mask

    def image_label(self, index: int) -> np.ndarray:
        """float32 (C,) in {0, 1} from `cfg.label_source`; all 0 where no class is present."""
        name = self.names[index]
        if self._source == "masks":
            mask = self.mask(index)
            if mask is None:
                raise DataError(self._missing_mask(name))
            return label_of_mask(mask, len(self.classes))
        if self._source == "xml":
            return read_xml_label(self.root / self._layout.objects / f"{name}.xml", self.classes)
        if name not in self._table:
            raise DataError(f"no entry for {name!r} in label file {self._source}. Add it, or shorten {self.list_file}")
        return self._table[name]

    def _image_path(self, index: int) -> Path:
        name = self.names[index]
        if name not in self._images:
            raise DataError(self._missing_image(name))
        return self._images[name]

    def _missing_image(self, name: str) -> str:
        folders = " or ".join(self._layout.images)
        return (
            f"no image for {name!r} of {self.list_file} in {folders} below {self.root}. Add the file, or take the line "
            "out (a line is a file name without folder and extension)"
        )

    def _missing_mask(self, name: str) -> str:
        folders = " or ".join(self._layout.masks)
        return (
            f"no mask for {name!r} of {self.list_file} in {folders} below {self.root}. Add the file, take the line "
            "out, or give a label file as label_source"
        )


class ToyReader:
    """Toy scenes of `crop_size` pixels, made when they are asked for.

    The scenes of `train` and of `val` are two disjoint streams and the same for every `cfg.seed`: a seed changes the
    run, not the data. With `train_images=0` the training stream is as long as the run: no scene comes twice.
    """

    STREAMS = ("train", "val")  # a scene is make_scene(seed=place in this tuple, index)

    def __init__(self, cfg: Config, split: str) -> None:
        """DataError for an unknown split or an endless evaluation stream."""
        if split not in self.STREAMS:
            raise DataError(f"toy has no split {split!r}; there are: {', '.join(self.STREAMS)}")
        count = _limit(cfg, split) or (cfg.steps * cfg.batch_size if split == cfg.train_split else 0)
        if count == 0:
            raise DataError("toy scenes never end: give val_images, the number of scenes to evaluate")
        self.root, self.classes = Path(), class_names(cfg)
        self.names = [f"toy_{split}_{index:06d}" for index in range(count)]
        self._scene = functools.partial(_toy_scene, self.STREAMS.index(split), size=cfg.crop_size)

    def __len__(self) -> int:
        """Number of scenes."""
        return len(self.names)

    def problems(self) -> list[str]:
        """None: scenes are right by construction."""
        return []

    def image(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3)."""
        return self._scene(index).image

    def mask(self, index: int) -> np.ndarray:
        """uint8 (H, W): 0 background, 1..C classes."""
        return self._scene(index).mask

    def image_label(self, index: int) -> np.ndarray:
        """float32 (C,) in {0, 1}: the classes in the mask, whatever `cfg.label_source` says."""
        return label_of_mask(self.mask(index), len(self.classes))


@functools.lru_cache(maxsize=128)  # image, mask and label of one scene are asked for one after the other
def _toy_scene(seed: int, index: int, size: int) -> toy.Scene:
    return toy.make_scene(seed, index, size=size)


Reader = FolderReader | ToyReader


def make_reader(cfg: Config, split: str) -> Reader:
    """The reader of `cfg.dataset`, not yet checked."""
    return ToyReader(cfg, split) if cfg.dataset == "toy" else FolderReader(cfg, split)


def open_dataset(cfg: Config, split: str) -> Reader:
    """Images, masks and image labels of a split.

    `cfg.train_images` limits the training split, `cfg.val_images` every other one; 0 = all.

    Raises:
        DataError: If folder, list or label file cannot be read, or the list names an image or a mask that is missing.
    """
    reader = make_reader(cfg, split)
    problems = reader.problems()
    if problems:
        raise DataError(problems[0] + (f" (and {len(problems) - 1} more; {CHECK_HINT})" if len(problems) > 1 else ""))
    return reader


def _limit(cfg: Config, split: str) -> int | None:
    return (cfg.train_images if split == cfg.train_split else cfg.val_images) or None


def _find_root(data_root: Path, layout: Layout) -> Path:
    for root in (data_root / below for below in layout.roots):
        if any((root / folder).is_dir() for folder in layout.images):
            return root
    looked = ", ".join(str(data_root / below / layout.images[0]) for below in layout.roots)
    raise DataError(f"no images below data_root {data_root}: looked for {looked}. See data/README.md, or set data_root")


def _read_list(path: Path) -> list[str]:
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.txt"))) or "none"
        raise DataError(f"no list {path}; lists in that folder: {there}. Add it (data/README.md) or correct the split")
    names = path.read_text().split()
    if not names:
        raise DataError(f"list {path} is empty. It needs one file name a line, without folder and extension")
    return names


def _locate(root: Path, folders: Sequence[str], suffixes: tuple[str, ...]) -> dict[str, Path]:
    """File stem -> path. Listing a folder is far faster than asking for 80,000 files one by one on a network disk."""
    found = {}
    for folder in reversed(folders):  # so that the first folder wins
        if (root / folder).is_dir():
            found |= {path.stem: path for path in (root / folder).iterdir() if path.suffix.lower() in suffixes}
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as file:  # reads the header; pixels are decoded when asked for
            yield file
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # PIL raises SyntaxError for a broken PNG
        raise DataError(f"cannot decode {path}: {error}. The file is damaged: copy or download it again") from error


def training_label(reader: Reader, index: int) -> np.ndarray:
    """`reader.image_label(index)`, which must name a class: an image without one teaches the classifier nothing."""
    label = reader.image_label(index)
    if not label.any():
        raise DataError(
            f"training image {reader.names[index]!r} of {reader.root} has no class. Take it off the list or label it; "
            f"{CHECK_HINT}"
        )
    return label


# --- check ------------------------------------------------------------------------------------------------------------


@dataclass
class CheckReport:
    """What `check_dataset` found; `str(report)` is meant to be read."""

    dataset: str
    split: str
    folder: str = ""
    num_images: int = 0
    num_masks: int = 0
    problems: list[str] = field(default_factory=list)
    class_images: dict[str, int] = field(default_factory=dict)  # class -> images whose label names it
    sizes: Counter = field(default_factory=Counter)  # (width, height) -> images
    ignored: float = 0.0  # share of mask pixels that are 255

    def __str__(self) -> str:
        """A summary of some lines, every problem on its own line at the end."""
        lines = [f"{self.dataset} {self.split}: {self.num_images} images, {self.num_masks} masks in {self.folder}"]
        if self.sizes:
            widths, heights = (sorted(size[axis] for size in self.sizes.elements()) for axis in (0, 1))
            middle = len(widths) // 2
            lines.append(f"width {widths[0]}..{widths[-1]}, median {widths[middle]}; "
                         f"height {heights[0]}..{heights[-1]}, median {heights[middle]}")  # fmt: skip
        lines.append(f"share of mask pixels that are {IGNORE_INDEX}: {self.ignored:.1%}")
        lines.append("images per class: " + ", ".join(f"{name} {n}" for name, n in self.class_images.items()))
        absent = [name for name, count in self.class_images.items() if count == 0]
        lines += [f"in no image: {', '.join(absent)}"] if absent else []
        return "\n".join([*lines, f"{len(self.problems)} problems", *self.problems])


def check_dataset(cfg: Config, split: str, *, progress: bool = True) -> CheckReport:
    """Reads every image, mask and label of a split and collects all problems instead of stopping at the first."""
    report = CheckReport(cfg.dataset, split)
    try:
        reader = make_reader(cfg, split)
    except DataError as error:
        report.problems.append(str(error))
        return report
    report.folder, report.num_images = str(reader.root), len(reader)
    problems = dict.fromkeys(reader.problems())  # a dict keeps the order and drops repeats

    def attempt(read: Callable, *arguments):
        try:
            return read(*arguments)
        except DataError as error:
            problems[str(error)] = None

    is_training = split == cfg.train_split
    labels, pixels = np.zeros(len(reader.classes), int), np.zeros(256, int)
    for index in tqdm(range(len(reader)), desc=f"check {split}", disable=not progress):
        image, mask = attempt(reader.image, index), attempt(reader.mask, index)
        if image is not None:
            report.sizes[image.shape[1], image.shape[0]] += 1
        if mask is not None:
            report.num_masks += 1
            pixels += np.bincount(mask.ravel(), minlength=256)
        if is_training or mask is not None or cfg.label_source != "masks":  # evaluation may do without labels
            label = attempt(training_label, reader, index) if is_training else attempt(reader.image_label, index)
            labels += 0 if label is None else label.astype(int)
    report.class_images = dict(zip(reader.classes, labels.tolist(), strict=True))
    report.ignored = float(pixels[IGNORE_INDEX] / max(1, pixels.sum()))
    report.problems = list(problems)
    return report
