"""The image files that a person means by paths, folders and patterns, each with a name for its outputs."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from toco_lab.data.layouts import LAYOUTS, files_below

SUFFIXES = LAYOUTS["folder"].suffixes


@dataclass(frozen=True)
class ImageFile:
    """An image file.

    Attributes:
        name: Of its outputs: its path below the folder that all images share, without extension; with it where two
            files differ in nothing else.
        path: The file.
    """

    name: str
    path: Path


def image_files(given: Sequence[Path | str], *, outside: Path | None = None) -> list[ImageFile]:
    """The images of files, folders (with all that lie in them) and patterns (`photos/*.jpg`, `photos/**/*.png`).

    A file is taken whatever its name; of folders and patterns those with the extension of an image, and no hidden ones.
    What is meant twice is taken once.

    Args:
        given: Paths and patterns.
        outside: A folder whose files do not count: that of the outputs.

    Raises:
        FileNotFoundError: If one of them means no image.
    """
    paths: dict[Path, Path] = {}
    apart = None if outside is None else outside.resolve()
    for one in given:
        found = [path for path in _meant(str(one)) if apart is None or apart not in path.resolve().parents]
        if not found:
            kinds = ", ".join(SUFFIXES)
            raise FileNotFoundError(f"no image at {one}: give a file, a folder of images ({kinds}) or a pattern")
        paths |= {path.resolve(): path for path in found if path.resolve() not in paths}
    return _named(list(paths.values()))


def _meant(one: str) -> list[Path]:
    path = Path(one)
    if path.is_dir():
        return _images(files_below(path, nested=True))
    if path.exists():
        return [path]
    if not glob.has_magic(one):
        return []
    return _images(found for found in map(Path, sorted(glob.iglob(one, recursive=True))) if not found.is_dir())  # noqa: PTH207


def _images(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.suffix.lower() in SUFFIXES]


def _named(paths: list[Path]) -> list[ImageFile]:
    """A name for each file, as short as tells them apart."""
    absolute = [path.parent.resolve() / path.name for path in paths]
    shared = os.path.commonpath([path.parent for path in absolute]) if absolute else ""
    below = [path.relative_to(shared) for path in absolute]
    count = Counter(path.with_suffix("").as_posix().casefold() for path in below)
    names = (path if count[path.with_suffix("").as_posix().casefold()] > 1 else path.with_suffix("") for path in below)
    return [ImageFile(name.as_posix(), path) for name, path in zip(names, paths, strict=True)]
