"""Which files of a data set a run uses, which it leaves out, and why."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from toco_lab.config import Config
from toco_lab.data.classes import DataError
from toco_lab.data.coco_masks import CocoMasks, find_annotations
from toco_lab.data.layouts import LAYOUTS, Layout, files_below, find_list, find_root, locate, read_list
from toco_lab.data.names import MASK_ENDINGS, match_names
from toco_lab.data.own_folder import folder_names, matched_entries, xml_files
from toco_lab.data.readers import open_dataset
from toco_lab.words import program

_SHOWN = 3  # names of each reason in the line at the start of training
_LOOKED_AT = 2000  # images whose labels are read at the start of training: a mask has to be decoded for that
NO_INFORMATION = (
    "every image shows {0!r}: labels that are the same for all say nothing of where it is. Add images without it, with "
    "a label that names other classes or none"
)


@dataclass
class Usage:
    """What a run makes of the files of a data set.

    Attributes:
        folder: Of the data set.
        used: Number of images of each split.
        looked_at: Training images whose labels were read; 0 if none were.
        without_class: How many of these show no class.
        trains_on_empty: Whether they train, as background, or are left out.
        everywhere: Classes that each of these shows.
        shared: Images that are in both splits.
        left_out: Of each reason, what is not used for it: paths of files below the folder, or names in a table.
        spare: The same, where it is no fault: official data sets hold images that no list names.
    """

    folder: Path
    used: dict[str, int] = field(default_factory=dict)
    looked_at: int = 0
    without_class: int = 0
    trains_on_empty: bool = True
    everywhere: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    spare: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, what: Iterable[str], *, spare: bool = False) -> None:
        """Note what is not used, if there is anything."""
        if found := sorted(what):
            (self.spare if spare else self.left_out).setdefault(reason, []).extend(found)

    def problems(self) -> list[str]:
        """One sentence for each thing that is left out by a fault."""
        return [f"not used: {what} {reason}" for reason, found in self.left_out.items() for what in found]

    def num_spare(self) -> int:
        """How many things are left out without a fault."""
        return sum(map(len, self.spare.values()))

    def notes(self) -> list[str]:
        """One sentence for each kind of thing that is left out without a fault."""
        return [f"{_some(found, 'not used')}: {reason}" for reason, found in self.spare.items()]

    def lines(self) -> list[str]:
        """What a person should know when a run starts, in a few lines."""
        counts = ", ".join(f"{count} {split}" for split, count in self.used.items())
        total = sum(map(len, self.left_out.values())) + self.num_spare()
        lines = [f"images used: {counts}; left out: {total or 'none'}"]
        reasons = (*self.left_out.items(), *self.spare.items())
        lines += [f"  {_some(found, 'left out')}: {reason}" for reason, found in reasons]
        if self.left_out:
            lines.append(f"  `{program()} data check {self.folder}` lists each")
        among = f" (of the first {_LOOKED_AT:,})" if self.looked_at == _LOOKED_AT else ""
        if self.without_class:
            fate = "all background" if self.trains_on_empty else "left out (train_on_empty)"
            lines.append(f"  training images without any class, {fate}: {self.without_class}{among}")
        if self.without_class == self.looked_at > 0:
            lines.append(f"warning: no training image of {self.folder} has a class: nothing can be learned. Label some")
        if self.shared:
            lines.append(f"warning: images of both splits: {', '.join(self.shared[:_SHOWN])}"
                         f"{', ...' if len(self.shared) > _SHOWN else ''}; scores on them say little")  # fmt: skip
        return lines + [f"warning: {NO_INFORMATION.format(name)}{among}" for name in self.everywhere]


def _some(found: list[str], words: str) -> str:
    return f"{len(found)} {words} ({', '.join(found[:_SHOWN])}{', ...' * (len(found) > _SHOWN)})"


def folder_usage(cfg: Config, *, labels: bool = True) -> Usage | None:
    """What a run uses of the files of its data set; None for toy scenes. No image is decoded.

    Images of a list that is neither split of the config (`test.txt`, say) count as known, and are not left out.

    Args:
        cfg: Names the data set.
        labels: Read the labels of training images, of the first 2,000 at most; from masks, these are decoded. Labels
            from masks of COCO and VOC are not read.

    Raises:
        DataError: If a list, a label file or a label cannot be read.
    """
    if cfg.dataset == "toy":
        return None
    layout = LAYOUTS[cfg.dataset]
    root = find_root(cfg.data_root, layout)
    usage, images = Usage(root), locate(root, layout.images, layout.suffixes, nested=layout.nested)
    splits = {split: _names(cfg, root, split, images) for split in dict.fromkeys((cfg.train_split, cfg.val_split))}
    usage.used = {split: len(images.keys() & set(names)) for split, names in splits.items()}
    usage.shared = sorted(set.intersection(*(images.keys() & set(names) for names in splits.values())))
    known = {name for names in splits.values() for name in names} | _other_lists(root, layout, images)
    _compare_images(usage, layout, images)
    listed = any(find_list(root, layout, split) for split in splits)
    unknown = (str(path.relative_to(root)) for name, path in images.items() if name not in known)
    reason = "stands in no list. Add its name to one" if listed else "has no label. Add one, or take it away"
    usage.leave_out(reason, unknown, spare=cfg.dataset != "folder")
    _compare_labels(usage, cfg, layout, images)
    _compare_masks(usage, layout, images, are_labels=cfg.label_source == "masks")
    if labels and splits[cfg.train_split] and (cfg.dataset == "folder" or cfg.label_source != "masks"):
        _look_at_labels(usage, cfg)
    return usage


def _names(cfg: Config, root: Path, split: str, images: Collection[str]) -> list[str]:
    layout = LAYOUTS[cfg.dataset]
    drawn = folder_names(cfg, split) if cfg.dataset == "folder" else None
    if drawn is None and not find_list(root, layout, split):
        jsons = find_annotations(root, split) if cfg.dataset == "coco" else []
        own = [path for path in jsons if path.stem.startswith(f"instances_{split}")]
        return [name for path in own for name in CocoMasks(path, crowds=cfg.crowds).classes]  # else its reader says so
    return drawn or match_names(read_list(root, layout, split)[1], images, layout.suffixes)


def _other_lists(root: Path, layout: Layout, images: Collection[str]) -> set[str]:
    """Images that any list of the folder names."""
    named: set[str] = set()
    for path in (path for below in layout.lists for path in (root / below).glob("*.txt")):
        try:
            names = read_list(root, layout, path.stem)[1]
        except DataError:  # some other text, and no list of this run
            continue
        named |= set(match_names(names, images, layout.suffixes)) & set(images)
    return named


def _compare_images(usage: Usage, layout: Layout, images: dict[str, Path]) -> None:
    files = [path for folder in layout.images for path in files_below(usage.folder / folder, nested=True)]
    kinds = ", ".join(layout.suffixes)
    _sort_out(
        usage, layout, files, layout.suffixes, set(images.values()),
        f"has an extension that is not read. Images end in {kinds}: convert it, or take it away",
        "has the name of another image. Rename one, with its mask and its row",
    )  # fmt: skip


def _compare_masks(usage: Usage, layout: Layout, images: dict[str, Path], *, are_labels: bool) -> None:
    root = usage.folder
    masks = [locate(root, folders, (".png",), nested=layout.nested) for folders in (layout.masks, layout.masks[::-1])]
    if not are_labels:
        pairs = zip(masks[0], match_names(masks[0], images, layout.suffixes, MASK_ENDINGS), strict=True)
        lost = (str(masks[0][name].relative_to(root)) for name, image in pairs if image not in images)
        usage.leave_out("is a mask without an image. Add the image, or take it away", lost)
    used = {path for found in (masks if not layout.nested else masks[:1]) for path in found.values()}
    files = [path for folder in layout.masks for path in files_below(root / folder, nested=True)]
    _sort_out(
        usage, layout, files, (".png",), used,
        "has an extension that is not read. Masks are PNGs: save it as one (a JPEG or GIF has changed its numbers)",
        "has the name of another mask. Rename or remove one",
    )  # fmt: skip


_LINKED = "is a link to a folder, which is not followed. Put the folder itself there, or links to its files"


def _sort_out(
    usage: Usage, layout: Layout, files: list[Path], suffixes: Collection[str], used: set[Path], other: str, twice: str
) -> None:
    """Leave out the files that are not used: of another extension, in a subfolder, or with the name of one before."""
    inner = twice if layout.nested else "lies in a subfolder, which is not looked into. Move it up"
    for path in files:
        if path.suffix.lower() not in suffixes:
            usage.leave_out(_LINKED if path.is_dir() else other, [str(path.relative_to(usage.folder))])
        elif path not in used:
            is_direct = any(path.parent == usage.folder / folder for folder in (*layout.images, *layout.masks))
            usage.leave_out(twice if is_direct else inner, [str(path.relative_to(usage.folder))])


def _compare_labels(usage: Usage, cfg: Config, layout: Layout, images: dict[str, Path]) -> None:
    """Rows, masks or XML files without an image, and what lies beside the XML files."""
    source, root = cfg.label_source, usage.folder
    if source == "annotations":
        return
    where = {"masks": "is a mask", "xml": "is an XML file"}.get(source, f"is a row of {source}")
    lost = (name for name, image in matched_entries(root, source, images, layout).items() if image not in images)
    official = cfg.dataset != "folder" and source != "masks"  # label files and XML files of all VOC, say, beside a part
    usage.leave_out(f"{where} without an image. Add the image, or take it away", lost, spare=official)
    if source == "xml":
        files = files_below(root / layout.objects, nested=True)
        used = set(xml_files(root, layout).values())
        _sort_out(
            usage, layout, files, (".xml",), used,
            "is no .xml file. Export the annotation as one, or take it away",
            "has the name of another XML file. Rename or remove one",
        )  # fmt: skip


def _look_at_labels(usage: Usage, cfg: Config) -> None:
    reader = open_dataset(cfg, cfg.train_split)
    labels = [reader.image_label(index) > 0 for index in range(min(len(reader), _LOOKED_AT))]
    usage.looked_at = len(labels)
    usage.without_class = sum(not label.any() for label in labels)
    usage.trains_on_empty = cfg.train_on_empty
    used = [label for label in labels if cfg.train_on_empty or label.any()]
    if len(used) > 1:
        usage.everywhere = [name for place, name in enumerate(reader.classes) if all(label[place] for label in used)]
