"""Where the files of a data set lie: folders, lists of names, and the path of each name."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from toco_lab.data.classes import DataError
from toco_lab.files import atomic_write, entries, here_or_shipped, read_text


@dataclass(frozen=True)
class Layout:
    """Where a data set keeps its files. Of several folders, the first that holds a file of a name wins.

    Attributes:
        roots: Where the data set's own folder may lie below `cfg.data_root`.
        images: Folders of images, relative to that folder, like all that follow.
        masks: Folders of masks, which are PNGs.
        lists: Folders of lists, one name a line.
        objects: Folder of XML files that name the objects of an image; "" where there are none.
        suffixes: Of image files, in lower case.
        nested: Whether images and masks may lie in subfolders, each name once.
    """

    roots: tuple[str, ...]
    images: tuple[str, ...]
    masks: tuple[str, ...]
    lists: tuple[str, ...]
    objects: str = ""
    suffixes: tuple[str, ...] = (".jpg", ".jpeg", ".png")
    nested: bool = False


LAYOUTS = {
    "voc": Layout(
        roots=(".", "VOCdevkit/VOC2012", "VOC2012"),
        images=("JPEGImages",),
        masks=("SegmentationClass", "SegmentationClassAug"),
        lists=("ImageSets/Segmentation",),
        objects="Annotations",
    ),
    "coco": Layout(
        roots=(".", "COCO2014"),
        images=("coco2014/train2014", "coco2014/val2014", "train2014", "val2014"),
        masks=("SegmentationClass/train2014", "SegmentationClass/val2014"),
        lists=("lists",),
    ),
    "folder": Layout(
        roots=(".",),
        images=("images", "JPEGImages"),
        masks=("masks", "SegmentationClass"),
        lists=(".", "lists", "ImageSets", "ImageSets/Segmentation"),
        objects="Annotations",
        suffixes=(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"),
        nested=True,
    ),
}


def guide() -> Path:
    """The page that says where images, masks and lists lie."""
    return here_or_shipped("data/README.md")


def find_root(data_root: str, layout: Layout) -> Path:
    """The folder that holds the images' folder, at or below `data_root`; DataError if there is none."""
    for root in (Path(data_root) / below for below in layout.roots):
        if any((root / folder).is_dir() for folder in layout.images):
            return root
    looked = ", ".join(str(Path(data_root, below, folder)) for below in layout.roots for folder in layout.images)
    raise DataError(f"no images below data_root {data_root}: looked for {looked}. See {guide()}, or set data_root")


def find_list(root: Path, layout: Layout, split: str) -> Path | None:
    """The list file of a split, or None."""
    return next((path for path in (root / below / f"{split}.txt" for below in layout.lists) if path.is_file()), None)


def read_list(root: Path, layout: Layout, split: str) -> tuple[Path, list[str]]:
    """The list file of a split and its names; DataError if it is missing or empty."""
    path = find_list(root, layout, split)
    if path is None:
        there = ", ".join(sorted(file.stem for below in layout.lists for file in (root / below).glob("*.txt")))
        wanted = " or ".join(str(root / below / f"{split}.txt") for below in layout.lists)
        raise DataError(
            f"no list {wanted}; lists in that folder: {there or 'none'}. Add it ({guide()}) or correct the split"
        )
    names = [line.strip() for line in read_text(path, error=DataError).split("\n") if line.strip()]
    if not names:
        raise DataError(f"list {path} is empty. It needs one file name a line, without folder and extension")
    return path, names


def write_list(path: Path, names: Sequence[str]) -> None:
    """Write a list file, one name a line; DataError for a name that does not fit into one line."""
    broken = next((name for name in names if "\n" in name or "\r" in name or name != name.strip()), None)
    if broken is not None:
        raise DataError(
            f"{path} cannot list the image {broken!r}: its name begins or ends with a space, or has a line break. "
            "Rename the file"
        )
    with atomic_write(path, "w") as file:
        file.write("".join(f"{name}\n" for name in names))


def locate(root: Path, folders: Sequence[str], suffixes: Sequence[str], *, nested: bool = False) -> dict[str, Path]:
    """The path of each file name without its suffix; of several folders below `root` the first one wins.

    Folders are listed: asking for 80,000 files one by one is far slower on a network disk.

    Args:
        root: Folder of the data set.
        folders: Below it.
        suffixes: Of the files that count, in lower case; hidden files never do.
        nested: Take files in subfolders too, where no other file has their name.
    """
    paths: dict[str, Path] = {}
    for folder in reversed(folders):  # so that the first folder wins
        found = [path for path in files_below(root / folder, nested=nested) if path.suffix.lower() in suffixes]
        direct = {path.stem: path for path in reversed(found) if path.parent == root / folder}
        deeper = [path for path in found if path.parent != root / folder]
        count = Counter(path.stem for path in deeper)
        paths |= {path.stem: path for path in deeper if count[path.stem] == 1} | direct
    return paths


def files_below(folder: Path, *, nested: bool) -> list[Path]:
    """Files of a folder, and of its subfolders if `nested`, sorted; none if there is no folder, and no hidden ones.

    Pipes and broken links are among them: whoever opens one says so. So are links to folders, which are not followed
    because they may lead back: see `usage`.

    Raises:
        DataError: For a name whose bytes are not UTF-8: no list and no table could name it.
        OSError: If a folder may not be read: its images would be missing without a word.
    """
    # sorted: of two files of one stem the same one is taken on every machine
    # a name that begins with a dot is hidden; macOS leaves such copies of every image in archives
    found = [path for path in entries(folder) if not path.name.startswith(".")]
    for path in found:
        if any("\ud800" <= letter <= "\udfff" for letter in path.name):  # how Python keeps bytes that are no letters
            raise DataError(
                f"{path.parent} has a file whose name is not UTF-8: {path.name!a}. Rename it (a copy made on an "
                "older system: `convmv -f cp1252 -t utf8 --notest` renames them all)"
            )
    if not nested:
        return found
    folders = {path for path in found if path.is_dir() and not path.is_symlink()}
    inner = [path for folder in folders for path in files_below(folder, nested=True)]
    return sorted([path for path in found if path not in folders] + inner)


def unread(root: Path, folders: Sequence[str], used: Iterable[Path]) -> list[Path]:
    """Files in these folders and their subfolders that are not among those `used`."""
    known = set(used)
    return [path for folder in folders for path in files_below(root / folder, nested=True) if path not in known]


def clashes(root: Path, folders: Sequence[str], suffixes: Sequence[str]) -> list[str]:
    """Paths without suffix that two files share, like a.jpg and a.png: only one of them would ever be read."""
    shared = []
    for folder in folders:
        if (root / folder).is_dir():
            stems = Counter(path.stem for path in (root / folder).iterdir() if path.suffix.lower() in suffixes)
            shared += [str(root / folder / stem) for stem, count in stems.items() if count > 1]
    return shared
