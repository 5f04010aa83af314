"""The check of a whole data set: every problem at once, a summary to read, and pictures of the worst images."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.data.classes import DataError
from toco_lab.data.doubts import Doubts, listed
from toco_lab.data.images import load
from toco_lab.data.masks import no_class_shown
from toco_lab.data.readers import FolderReader, Reader, make_reader
from toco_lab.data.usage import NO_INFORMATION, Usage, folder_usage
from toco_lab.progress import progress_bar
from toco_lab.words import counted

SHOWN_PROBLEMS = 20  # in the printed summary


@dataclass
class CheckReport:
    """What `check_dataset` found; `print(report)` gives a summary.

    Attributes:
        dataset: `Config.dataset`.
        split: The list that was checked.
        folder: Of the data set.
        num_images: On the list.
        num_masks: That could be read.
        problems: What stops training or evaluation, or makes a number wrong.
        notes: What may be right and should be known.
        class_images: Of each class, the number of images whose label names it.
        sizes: Number of images of each (width, height), in pixels.
        ignored: Share of mask pixels that are 255, in [0, 1].
        doubtful: Of each image with something wrong, what it is, in a few words.
        unused: How many files are left out although nothing is wrong with them: official data sets hold images that no
            list names.
        pictures: The images that show the same picture, by a digest of its pixels.
    """

    dataset: str
    split: str
    folder: str = ""
    num_images: int = 0
    num_masks: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    class_images: dict[str, int] = field(default_factory=dict)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    ignored: float = 0.0
    doubtful: dict[str, list[str]] = field(default_factory=dict)
    unused: int = 0
    pictures: dict[bytes, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        """The summary, with the first problems at its end."""
        return self.text(SHOWN_PROBLEMS)

    def text(self, most: int | None = None) -> str:
        """The summary with at most `most` problems, each on a line of its own; None takes all."""
        lines = [
            f"{self.dataset} {self.split}: {counted(self.num_images, 'image')}, "
            f"{counted(self.num_masks, 'mask')} in {self.folder}"
        ]
        if self.sizes:
            widths, heights = (sorted(size[axis] for size in self.sizes.elements()) for axis in (0, 1))
            middle = len(widths) // 2
            lines.append(f"width {widths[0]}..{widths[-1]}, median {widths[middle]}; "
                         f"height {heights[0]}..{heights[-1]}, median {heights[middle]}")  # fmt: skip
        if self.num_masks:
            lines.append(f"share of mask pixels that are {IGNORE_INDEX}: {self.ignored:.1%}")
        if self.class_images:
            lines.append("images per class: " + ", ".join(f"{name} {n}" for name, n in self.class_images.items()))
        absent = [name for name, count in self.class_images.items() if count == 0]
        lines += [f"in no image: {', '.join(absent)}"] if absent else []
        lines += [f"note: {note}" for note in self.notes]
        more = len(self.problems) - len(self.problems[:most])
        count = counted(len(self.problems), "problem")
        spare = counted(self.unused, "file or name is", "files or names are")
        count += f"; {spare} not used, see the notes" if self.unused else ""
        return "\n".join([*lines, count, *self.problems[:most], *([f"... and {more} more"] * bool(more))])


def check_dataset(cfg: Config, split: str, *, progress: bool = True) -> CheckReport:
    """Read every image, mask and label of a split, and collect all problems instead of stopping at the first.

    Args:
        cfg: Names the data set.
        split: Name of the list.
        progress: Show a progress bar.
    """
    report = CheckReport(cfg.dataset, split)
    try:
        reader = make_reader(cfg, split)
    except DataError as error:
        report.problems.append(str(error))
        return report
    report.folder, report.num_images = str(reader.root), len(reader)
    problems = dict.fromkeys(reader.problems())  # a dict keeps the order and drops repeats

    def attempt(what: str, read: Callable, *arguments) -> Any:
        try:
            return read(*arguments)
        except DataError as error:
            problems[str(error)] = None
            report.doubtful.setdefault(reader.names[index], []).append(what)

    is_training = split == cfg.train_split
    labels, pixels = np.zeros(len(reader.classes), int), np.zeros(256, int)
    empty: list[str] = []
    doubts = Doubts(reader, report.doubtful)
    for index in progress_bar(range(len(reader)), f"check {split}", shown=progress):
        image, mask = attempt("image", reader.image, index), attempt("mask", reader.mask, index)
        label = None
        if is_training or mask is not None or cfg.label_source != "masks":  # evaluation may do without labels
            label = attempt("label", reader.image_label, index)
        labels += 0 if label is None else label.astype(int)
        empty += [reader.names[index]] if label is not None and not label.any() else []
        if image is not None:
            report.sizes[image.shape[1], image.shape[0]] += 1
            digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
            report.pictures.setdefault(digest, []).append(reader.names[index])
            attempt("image", doubts.look_at_image, index, image)
        if mask is not None:
            report.num_masks += 1
            pixels += np.bincount(mask.ravel(), minlength=256)
            doubts.look(index, mask, label)
    report.class_images = dict(zip(reader.classes, labels.tolist(), strict=True))
    report.ignored = float(pixels[IGNORE_INDEX] / max(1, pixels.sum()))
    if report.num_masks and not pixels[1 : len(reader.classes) + 1].any():
        where = f"of {split!r} in {reader.root}"
        problems[no_class_shown(where, bool(pixels[IGNORE_INDEX]))] = None
    report.problems = list(problems) + doubts.problems()
    if is_training:
        report.notes += listed(empty, *(f"{has} no class: all background" for has in ("image has", "images have")))
    if is_training and len(reader) > 1:
        everywhere = [name for name, count in report.class_images.items() if count == len(reader)]
        report.notes += [f"warning: {NO_INFORMATION.format(name)}" for name in everywhere]
    if is_training and (usage := _usage(cfg, report)):
        report.problems += usage.problems()
        report.notes += usage.notes()
        report.unused = usage.num_spare()
    if is_training and len(empty) == len(reader) > 0:
        report.problems.append(f"no image of {split} in {reader.root} has a class: nothing can be learned. Label some")
    same = [" = ".join(names) for names in report.pictures.values() if len(set(names)) > 1]
    if cfg.dataset == "folder" and isinstance(reader, FolderReader) and reader.list_file == reader.root:
        report.notes.append("the folder has no lists: these images were drawn, and a run writes the lists down")
    report.notes += doubts.notes()
    report.notes += listed(same, *(f"{lies} there under several names" for lies in ("picture lies", "pictures lie")))
    return report


def _usage(cfg: Config, report: CheckReport) -> Usage | None:
    try:
        return folder_usage(cfg, labels=False)  # the check has read them
    except DataError as error:  # of the other split's list, or of a list that no split is
        report.problems.append(str(error))
        return None


def shared_pictures(first: CheckReport, second: CheckReport) -> list[str]:
    """A note if pictures of one split are in the other as well, by content and not by name; [] if none is."""
    both = [" = ".join(dict.fromkeys(names + second.pictures[digest]))
            for digest, names in first.pictures.items() if digest in second.pictures]  # fmt: skip
    too = f"in {first.split} too: scores on them say little"
    return listed(both, f"picture of {second.split} is {too}", f"pictures of {second.split} are {too}")


# --- pictures ---------------------------------------------------------------------------------------------------------


def contact_sheet(cfg: Config, report: CheckReport, count: int = 8) -> list[tuple[str, dict[str, Any]]]:
    """Names and rows for `figures.cam_gallery`: images of a checked split with their masks, the worst first.

    A mask is shown as its file has it: numbers in class colours, colours as a picture. What cannot be read is left
    empty. After the doubtful images come the first ones of the list.

    Args:
        cfg: As given to `check_dataset`.
        report: What it found.
        count: Number of images to show at most.
    """
    reader = make_reader(cfg, report.split)
    place = {name: index for index, name in enumerate(reader.names)}
    worst = sorted(report.doubtful, key=lambda name: -len(report.doubtful[name]))
    chosen = list(dict.fromkeys([*worst, *reader.names]))[:count]
    return [
        (
            "\n".join([name, *report.doubtful.get(name, [])]),
            {"image": _or_none(reader.image, place[name]), "mask": _or_none(_raw_mask, reader, place[name])},
        )
        for name in chosen
    ]


def _or_none(read: Callable, *arguments) -> np.ndarray | None:
    try:
        return read(*arguments)
    except (ValueError, OSError, SyntaxError):  # the report has it already
        return None


def _raw_mask(reader: Reader, index: int) -> np.ndarray | None:
    path = reader.mask_path(index)
    if path is None:
        return reader.mask(index)
    file = load(path)
    return np.array(file if file.mode in ("P", "L") else file.convert("RGB"))
