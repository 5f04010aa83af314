"""Readers of images, masks and image labels.

A reader gives `names`, `image(i)`, `mask(i)`, `image_label(i)`. `ToyReader` makes scenes; `FolderReader` reads VOC,
COCO and any other folder. These differ in where their files lie (`layouts`); besides, COCO's masks may be painted from
its json (`coco_masks`), and the lists of a folder may be drawn (`own_folder`).
Masks are numbers, not colours: 0 background, 1..C classes, 255 (`IGNORE_INDEX`) not counted.
"""

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from toco_lab.config import Config
from toco_lab.data import toy, toy_land, toy_parts, toy_tissue
from toco_lab.data.classes import DataError, class_names
from toco_lab.data.coco_masks import CocoMasks, find_annotations
from toco_lab.data.image_labels import find_label_file, label_of_mask, read_labels, read_xml_label
from toco_lab.data.images import read_rgb
from toco_lab.data.layouts import LAYOUTS, clashes, find_root, guide, locate, read_list, unread
from toco_lab.data.masks import check_classes_shown, read_mask
from toco_lab.data.names import MASK_ENDINGS, by_image, match_names
from toco_lab.data.own_folder import folder_names
from toco_lab.data.toy_clips import Clip, make_clip
from toco_lab.files import require
from toco_lab.words import counted, program

FRAMES = 8  # of a clip to train on


class FolderReader:
    """Images, masks and labels of the names in a list file, from folders laid out as `LAYOUTS[cfg.dataset]` says.

    A mask is read as numbers, so VOC's palette PNGs and grey PNGs give the same labels. An image is read as it is
    displayed, by the rules of `data.images`.
    """

    def __init__(self, cfg: Config, split: str | None) -> None:
        """Read the list, the contents of the folders and the label file, but no image.

        Args:
            cfg: Names the data set.
            split: Name of a list, or None for every image. A folder without lists gets drawn ones; without lists of
                COCO, its json gives the names.

        Raises:
            DataError: If one of them is missing or wrong.
        """
        self.classes = class_names(cfg)
        layout = LAYOUTS[cfg.dataset]
        self.root = find_root(cfg.data_root, layout)
        # SBD's masks make up train_aug; for the official lists VOC's own files come first
        masks = layout.masks if split != "train_aug" else layout.masks[::-1]
        self._images = locate(self.root, layout.images, layout.suffixes, nested=layout.nested)
        found = locate(self.root, masks, (".png",), nested=layout.nested)
        self._masks = by_image(found, self._images, layout.suffixes, " or ".join(masks), MASK_ENDINGS)
        self._layout = layout
        self._source = cfg.label_source
        self._painted = self._open_annotations(cfg, split)
        self.list_file, self.names = self._read_names(cfg, split)
        self.names = self.names[: _limit(cfg, split) if split else None]
        self._table: dict[str, np.ndarray] = {}
        self._xml: dict[str, Path] = {}
        if self._source == "xml" and not layout.objects:
            raise DataError(f"label_source 'xml' is not known for {cfg.dataset}; use `masks` or a label file")
        if self._source == "masks":
            for painted in self._painted:
                painted.prepare(painted.classes.keys() & set(self.names))
        elif self._source == "annotations":
            self._table = {name: part.image_label(name) for part in self._painted for name in part.classes}
        elif self._source == "xml":
            objects = locate(self.root, (layout.objects,), (".xml",), nested=layout.nested)
            self._xml = by_image(objects, self._images, layout.suffixes, layout.objects)
        else:
            path = find_label_file(self._source, self.root)
            self._table = by_image(read_labels(path, self.classes), self._images, layout.suffixes, f"label file {path}")

    def _open_annotations(self, cfg: Config, split: str | None) -> list[CocoMasks]:
        """COCO's jsons, where masks or labels come from them: ready-made masks win."""
        needed = self._source == "annotations"
        paths = find_annotations(self.root, split) if cfg.dataset == "coco" and (needed or not self._masks) else []
        if needed and not paths:
            raise DataError(
                f"label_source 'annotations' needs COCO's {self.root}/annotations/instances_*.json. Put it there "
                f"({guide()}), or use `masks` or a label file"
            )
        return [CocoMasks(path, crowds=cfg.crowds) for path in paths]

    def _read_names(self, cfg: Config, split: str | None) -> tuple[Path, list[str]]:
        """The list file, or what stands in for it, and its names."""
        if split is None:
            return self.root, sorted(self._images)
        if cfg.dataset == "folder" and (drawn := folder_names(cfg, split)):
            return self.root, drawn
        try:
            path, names = read_list(self.root, self._layout, split)
            return path, match_names(names, self._images, self._layout.suffixes)
        except DataError:
            own = [part for part in self._painted if part.path.stem.startswith(f"instances_{split}")]
            if not own:
                raise
            names = [name for part in own for name in part.classes]
            if not names:
                raise DataError(f"{own[0].path} annotates no image. Take another json, or add a list") from None
            return own[0].path, names

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def problems(self) -> list[str]:
        """What is wrong with the list, without decoding a file: names given twice, missing images, masks, labels.

        Missing masks are fine beside a label file, and in a list without any mask (VOC's test).
        """
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        problems = [f"{name!r} stands twice in {self.list_file}. Remove the repeated line" for name in twice]
        problems += [self._missing_image(name) for name in self.names if name not in self._images]
        problems += [
            f"two images are called {stem}.*, and only one is read. Rename or remove the other"
            for stem in clashes(self.root, self._layout.images, self._layout.suffixes)
        ]
        without = [name for name, has_mask in zip(self.names, self.has_masks(), strict=True) if not has_mask]
        if self._source == "masks" and len(without) < len(self):
            problems += [self._missing_mask(name) for name in without]
        if self._source not in ("masks", "xml"):
            problems += [self._missing_entry(name) for name in self.names if name not in self._table]
        return problems

    def has_masks(self) -> list[bool]:
        """Whether each image has a mask, or annotations to paint one from; none is read."""
        known = self._masks or set().union(*(part.classes for part in self._painted))
        return [name in known for name in self.names]

    def image(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3), RGB, as displayed; DataError for a file that `data.images` refuses."""
        return read_rgb(self.image_path(index))

    def mask(self, index: int) -> np.ndarray | None:
        """uint8 (H, W) of labels, or None where there is no mask; DataError if it cannot be the image's mask."""
        path = self.mask_path(index)
        return None if path is None else read_mask(path, self.image_path(index), len(self.classes))

    def mask_path(self, index: int) -> Path | None:
        """The mask's file, not checked; one from COCO's json is painted now. None where there is none."""
        name = self.names[index]
        if self._masks:  # ready-made and painted masks never mix: they differ
            return self._masks.get(name)
        painted = next((part for part in self._painted if name in part.classes), None)
        return painted.mask_path(name) if painted else None

    def image_label(self, index: int) -> np.ndarray:
        """float32 (C,) in {0, 1} from `cfg.label_source`; all 0 where no class is present."""
        name = self.names[index]
        if self._source == "masks":
            mask = self.mask(index)
            if mask is None:
                raise DataError(self._missing_mask(name))
            return label_of_mask(mask, len(self.classes))
        if self._source == "xml":
            path = self._xml.get(name, self.root / self._layout.objects / f"{name}.xml")
            return read_xml_label(path, self.classes)
        if name not in self._table:
            raise DataError(self._missing_entry(name))
        return self._table[name]

    def image_path(self, index: int) -> Path:
        """The image's file, not opened; DataError if it is missing."""
        name = self.names[index]
        if name not in self._images:
            raise DataError(self._missing_image(name))
        return self._images[name]

    def _missing_image(self, name: str) -> str:
        folders = " or ".join(self._layout.images)
        first, _, second = name.rpartition(" ")
        if second in ("-1", "0", "1") and first.strip() in self._images:
            return (
                f"line {name!r} of {self.list_file} has a second column, as VOC's lists of one class have. Keep the "
                "names alone, one a line"
            )
        return (
            f"no image for {name!r} of {self.list_file} in {folders} below {self.root}{self._there(name)}. Add "
            "the file, or take the line out (a line is a file name without folder and extension)"
        )

    def _there(self, name: str) -> str:
        """Why a file that seems to be meant is not the missing one."""
        of_masks = name in self._images
        path = self._unread[of_masks].get(name)
        if path is None:
            return ""
        suffixes = (".png",) if of_masks else self._layout.suffixes
        rule = f"{'masks' if of_masks else 'images'} end in {', '.join(suffixes)}"
        if path.suffix.lower() in suffixes:
            rule = "two files have this name" if self._layout.nested else "subfolders are not looked into"
        return f" ({path.relative_to(self.root)} is there, but {rule})"

    @functools.cached_property
    def _unread(self) -> tuple[dict[str, Path], dict[str, Path]]:
        """Files in the folders of images, and in those of masks, that no name has, by the name on the list they fit."""
        images = unread(self.root, self._layout.images, self._images.values())
        masks = unread(self.root, self._layout.masks, self._masks.values())
        return self._by_name(images, ()), self._by_name(masks, MASK_ENDINGS)

    def _by_name(self, paths: list[Path], endings: tuple[str, ...]) -> dict[str, Path]:
        return dict(zip(match_names([path.stem for path in paths], self.names, (), endings), paths, strict=True))

    def _missing_entry(self, name: str) -> str:
        return f"no entry for {name!r} in label file {self._source}. Add it, or shorten {self.list_file}"

    def _missing_mask(self, name: str) -> str:
        folders = " or ".join(self._layout.masks)
        return (
            f"no mask for {name!r} of {self.list_file} in {folders} below {self.root}{self._there(name)}. Add "
            "the file, take the line out, or give a label file as label_source"
        )


class ToyReader:
    """Toy scenes of `crop_size` pixels, made when they are asked for.

    The scenes of `train` and of `val` are two streams without a common scene, the same for every `cfg.seed`: a seed
    changes the run, not the data. With `train_images=0` the training stream is as long as the run: each scene comes
    once.
    """

    STREAMS = ("train", "val")  # a scene is make_scene(seed=place in this tuple, index)

    def __init__(self, cfg: Config, split: str) -> None:
        """Raises DataError for an unknown split, or an evaluation stream without a length."""
        if split not in self.STREAMS:
            raise DataError(f"toy has no split {split!r}; there are: {', '.join(self.STREAMS)}")
        count = _limit(cfg, split) or (cfg.steps * cfg.batch_size if split == cfg.train_split else 0)
        if count == 0:
            raise DataError("toy scenes never end: give val_images, the number of scenes to evaluate")
        self.root, self.classes = Path(), class_names(cfg)
        self.names = [f"toy_{split}_{index:06d}" for index in range(count)]
        self._scene: Callable[[int], toy.Scene] = functools.partial(
            _toy_scene, self.STREAMS.index(split), size=cfg.crop_size, world=cfg.toy_world
        )

    def __len__(self) -> int:
        """Number of scenes."""
        return len(self.names)

    def has_masks(self) -> list[bool]:
        """True for every scene."""
        return [True] * len(self)

    def problems(self) -> list[str]:
        """An empty list: scenes are right by construction."""
        return []

    def image_path(self, index: int) -> None:
        """None: a scene is in no file."""

    def mask_path(self, index: int) -> None:
        """None: the mask of a scene is in no file."""

    def image(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3)."""
        return self._scene(index).image

    def mask(self, index: int) -> np.ndarray:
        """uint8 (H, W): 0 background, 1..C classes."""
        return self._scene(index).mask

    def instances(self, index: int) -> np.ndarray:
        """uint8 (H, W): 0 background, from 1 on the objects."""
        return self._scene(index).instances

    def image_label(self, index: int) -> np.ndarray:
        """float32 (C,) in {0, 1}: the classes in the mask, whatever `cfg.label_source` says."""
        return label_of_mask(self.mask(index), len(self.classes))


@functools.lru_cache(maxsize=128)  # image, mask and label of one scene are asked for one after the other
def _toy_scene(seed: int, index: int, size: int, world: str) -> toy.Scene:
    match world:
        case "tissue":
            return toy_tissue.make_tissue_scene(seed, index, size=size)
        case "land":
            return toy_land.make_land_scene(seed, index, size=size)
        case _:
            return toy.make_scene(seed, index, size=size, same_class=world == "same_class")


class PartsReader(ToyReader):
    """The toy world of parts: as `ToyReader`, with `cfg.toy_objects` animals a scene, and where their parts are."""

    def __init__(self, cfg: Config, split: str) -> None:
        """Raises DataError as `ToyReader`."""
        super().__init__(cfg, split)
        seed = self.STREAMS.index(split)
        self._parts = functools.partial(_parts_scene, seed, size=cfg.crop_size, objects=cfg.toy_objects)
        self._scene = self._parts

    def part(self, index: int) -> np.ndarray:
        """uint8 (H, W): 0 background, `toy_parts.HEAD`, `toy_parts.BODY`."""
        return self._parts(index).part


@functools.lru_cache(maxsize=128)
def _parts_scene(seed: int, index: int, size: int, objects: int) -> toy_parts.PartsScene:
    return toy_parts.make_parts_scene(seed, index, size=size, objects=objects)


class ClipReader(ToyReader):
    """Toy clips, frame after frame: as `ToyReader`, with a stream of clips of `FRAMES` frames in place of scenes.

    The image label of a frame is that of its clip: it also names an object that only other frames show.
    """

    def __init__(self, cfg: Config, split: str) -> None:
        """Raises DataError as `ToyReader`."""
        super().__init__(cfg, split)
        clips = range(len(self.names))
        self.names = [f"toy_{split}_clip_{clip:06d}_frame_{frame}" for clip in clips for frame in range(FRAMES)]
        self.stream, self._size = self.STREAMS.index(split), cfg.crop_size
        self._scene = functools.partial(_toy_frame, self.stream, size=cfg.crop_size)

    def image_label(self, index: int) -> np.ndarray:
        """float32 (C,) in {0, 1}: the classes that any frame of the clip shows."""
        return toy_clip(self.stream, index // FRAMES, self._size).image_label


@functools.lru_cache(maxsize=8)
def toy_clip(stream: int, index: int, size: int) -> Clip:
    """A clip of `FRAMES` frames of a stream of `ToyReader`; the last ones are kept."""
    return make_clip(stream, index, FRAMES, size)


def _toy_frame(stream: int, index: int, size: int) -> toy.Scene:
    clip, frame = toy_clip(stream, index // FRAMES, size), index % FRAMES
    return toy.Scene(clip.image[frame], clip.mask[frame], clip.mask[frame])  # one object of a class at most


Reader = FolderReader | ToyReader


def make_reader(cfg: Config, split: str) -> Reader:
    """The reader of a split of `cfg.dataset`, not yet checked; see `open_dataset`."""
    if cfg.dataset != "toy":
        return FolderReader(cfg, split)
    if cfg.train_on_clips and split == cfg.train_split:
        return ClipReader(cfg, split)
    return PartsReader(cfg, split) if cfg.toy_world == "parts" else ToyReader(cfg, split)


def open_dataset(cfg: Config, split: str) -> Reader:
    """Images, masks and image labels of a split.

    `cfg.train_images` limits the training split, `cfg.val_images` every other one; 0 = all.

    Raises:
        DataError: If folder, list or label file cannot be read, or the list names an image or a mask that is missing.
    """
    require(cfg, Config, "cfg", ": make one with Config.preset(name)")
    reader = make_reader(cfg, split)
    problems = reader.problems()
    if problems:
        more = f" (and {len(problems) - 1} more; `{program()} data check` lists every problem)" * (len(problems) > 1)
        raise DataError(problems[0] + more)
    return reader


def _limit(cfg: Config, split: str) -> int | None:
    return (cfg.train_images if split == cfg.train_split else cfg.val_images) or None


def missing_truth(cfg: Config) -> str:
    """Why the validation split cannot be scored, in a sentence; "" if every image has a mask.

    Raises:
        DataError: See `open_dataset`; if no mask has a pixel of a class; if the first one is wrong.
    """
    reader = open_dataset(cfg, cfg.val_split)
    without = reader.has_masks().count(False)
    if not without:
        check_classes_shown(reader, cfg.val_split)
        return ""
    where = f"of {counted(len(reader), 'image')} of {cfg.val_split!r} in {reader.root}"
    return (
        f"{counted(without, f'{where} has', f'{where} have')} no mask: the mIoU of CAM and segmentation cannot be "
        "measured. Put masks there, or make a list of the images that have one, and evaluate"
    )
