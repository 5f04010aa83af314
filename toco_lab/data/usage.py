"""Which files of a folder a run uses, which it leaves out, and why."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from toco_lab.config import Config
from toco_lab.data.classes import DataError
from toco_lab.data.image_labels import find_label_file, read_label_names
from toco_lab.data.layouts import LAYOUTS, files_below, find_list, find_root, read_list
from toco_lab.data.names import match_names
from toco_lab.data.own_folder import folder_names, image_files, label_entries, mask_files

_LAYOUT = LAYOUTS["folder"]
_SHOWN = 3  # names of each reason in the line at the start of training
NO_INFORMATION = (
    "every image shows {0!r}: labels that are the same for all say nothing of where it is. Add images without it, with "
    "a label that names other classes or none"
)


@dataclass
class Usage:
    """What a run makes of the files of a folder.

    Attributes:
        folder: Of the data set.
        used: Number of images of each split.
        without_class: Training images whose label names no class; they train as background. 0 where masks or XML files
            would have to be read to know.
        everywhere: Classes that every training image shows, likewise.
        shared: Images that are in both splits.
        left_out: Of each reason, what is not used for it: paths of files below the folder, or names in a table.
    """

    folder: Path
    used: dict[str, int] = field(default_factory=dict)
    without_class: int = 0
    everywhere: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, what: Iterable[str]) -> None:
        """Note what is not used, if there is anything."""
        if found := sorted(what):
            self.left_out.setdefault(reason, []).extend(found)

    def problems(self) -> list[str]:
        """One sentence for each thing that is left out."""
        return [f"not used: {what} {reason}" for reason, found in self.left_out.items() for what in found]

    def lines(self) -> list[str]:
        """What a person should know when a run starts, in a few lines."""
        counts = ", ".join(f"{count} {split}" for split, count in self.used.items())
        total = sum(map(len, self.left_out.values()))
        lines = [f"images used: {counts}; left out: {total or 'none'}"]
        for reason, found in self.left_out.items():
            names = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
            lines.append(f"  {len(found)} left out ({names}): {reason}")
        if total:
            lines.append(f"  `python -m toco_lab data check {self.folder}` lists each")
        if self.without_class:
            lines.append(f"  training images without any class, all background: {self.without_class}")
        if self.without_class == next(iter(self.used.values()), 0) > 0:
            lines.append(f"warning: no training image of {self.folder} has a class: nothing can be learned. Label some")
        if self.shared:
            lines.append(f"warning: images of both splits: {', '.join(self.shared[:_SHOWN])}"
                         f"{', ...' if len(self.shared) > _SHOWN else ''}; scores on them say little")  # fmt: skip
        return lines + [f"warning: {NO_INFORMATION.format(name)}" for name in self.everywhere]


def folder_usage(cfg: Config) -> Usage | None:
    """What a run of a folder uses; None for another data set. No image and no mask is decoded.

    Images of a list that is neither split of the config (`test.txt`, say) count as known, and are not left out.

    Raises:
        DataError: If a list or a label file cannot be read.
    """
    if cfg.dataset != "folder":
        return None
    root = find_root(cfg.data_root, _LAYOUT)
    usage, images = Usage(root), image_files(root)
    splits = {split: _names(cfg, root, split, images) for split in dict.fromkeys((cfg.train_split, cfg.val_split))}
    usage.used = {split: len(images.keys() & set(names)) for split, names in splits.items()}
    usage.shared = sorted(set.intersection(*(images.keys() & set(names) for names in splits.values())))
    known = {name for names in splits.values() for name in names} | _other_lists(root, images)
    _compare_images(usage, images, known, has_lists=any(find_list(root, _LAYOUT, split) for split in splits))
    _compare_labels(usage, cfg.label_source, images)
    if Path(cfg.label_source).suffix in (".csv", ".json"):
        _look_at_labels(usage, cfg.label_source, images, splits[cfg.train_split])
    return usage


def _names(cfg: Config, root: Path, split: str, images: Collection[str]) -> list[str]:
    drawn = folder_names(cfg, split)
    if drawn is None and not find_list(root, _LAYOUT, split):
        return []  # whoever opens this split says so
    return drawn or match_names(read_list(root, _LAYOUT, split)[1], images, _LAYOUT.suffixes)


def _other_lists(root: Path, images: Collection[str]) -> set[str]:
    """Images that any list of the folder names."""
    named: set[str] = set()
    for path in (path for below in _LAYOUT.lists for path in (root / below).glob("*.txt")):
        try:
            names = read_list(root, _LAYOUT, path.stem)[1]
        except DataError:  # some other text, and no list of this run
            continue
        named |= set(match_names(names, images, _LAYOUT.suffixes)) & set(images)
    return named


def _compare_images(usage: Usage, images: dict[str, Path], known: set[str], *, has_lists: bool) -> None:
    root = usage.folder
    files = [path for folder in _LAYOUT.images for path in files_below(root / folder, nested=True)]
    read = {path for path in files if path.suffix.lower() in _LAYOUT.suffixes}
    kinds = ", ".join(_LAYOUT.suffixes)
    usage.leave_out(
        f"has an extension that is not read. Images end in {kinds}: convert it, or take it away",
        (str(path.relative_to(root)) for path in files if path not in read),
    )
    usage.leave_out(
        "has the name of another image. Rename one, with its mask and its row",
        (str(path.relative_to(root)) for path in read - set(images.values())),
    )
    reason = "stands in no list. Add its name to one" if has_lists else "has no label. Add one, or take it away"
    usage.leave_out(reason, (str(path.relative_to(root)) for name, path in images.items() if name not in known))


def _compare_labels(usage: Usage, source: str, images: dict[str, Path]) -> None:
    root, remedy = usage.folder, "Add the image, or take it away"
    if not source.endswith(".npy"):
        entries = label_entries(root, source, images)
        where = {"masks": "is a mask", "xml": "is an XML file"}.get(source, f"is a row of {source}")
        pairs = zip(entries, match_names(entries, images, _LAYOUT.suffixes), strict=True)
        usage.leave_out(f"{where} without an image. {remedy}", (name for name, image in pairs if image not in images))
    masks = mask_files(root)
    if source != "masks":
        pairs = zip(masks, match_names(masks, images, _LAYOUT.suffixes), strict=True)
        lost = (str(masks[name].relative_to(root)) for name, image in pairs if image not in images)
        usage.leave_out(f"is a mask without an image. {remedy}", lost)
    files = {path for folder in _LAYOUT.masks for path in files_below(root / folder, nested=True)}
    pngs = {path for path in files if path.suffix.lower() == ".png"}
    usage.leave_out(
        "has an extension that is not read. Masks are PNGs: save it as one",
        (str(path.relative_to(root)) for path in files - pngs),
    )
    usage.leave_out(
        "has the name of another mask. Rename or remove one",
        (str(path.relative_to(root)) for path in pngs - set(masks.values())),
    )


def _look_at_labels(usage: Usage, source: str, images: Collection[str], train: list[str]) -> None:
    table = read_label_names(find_label_file(source, usage.folder))
    labels = dict(zip(match_names(table, images, _LAYOUT.suffixes), map(set, table.values()), strict=True))
    shown = [labels[name] for name in train if name in labels]
    usage.without_class = sum(not label for label in shown)
    if len(shown) > 1:
        usage.everywhere = sorted(set.intersection(*shown))
