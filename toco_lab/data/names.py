"""Names that people write, and the files that are meant: with folder or extension, composed or decomposed letters."""

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath
from typing import TypeVar

from toco_lab.data.classes import DataError

Value = TypeVar("Value")


def match_names(written: Iterable[str], known: Collection[str], suffixes: Collection[str]) -> list[str]:
    """The known name that each written one means; one that means none, or several, stays as it is.

    A name that is known is taken as it is. Else it may have a folder and an extension, and its letters may be composed
    otherwise: macOS writes "u" and two dots where others write "ü".

    Args:
        written: Names as a list or a table has them.
        known: Names of files, without folder and extension.
        suffixes: Extensions that may be taken off, in lower case.
    """
    alike = defaultdict(list)
    for name in known:
        alike[unicodedata.normalize("NFC", name)].append(name)

    def meant(name: str) -> str:
        if name in known:
            return name
        plain = unicodedata.normalize("NFC", name).replace("\\", "/")
        for candidate in (plain, plain.rpartition("/")[2]):
            path = PurePosixPath(candidate)
            bare = candidate[: -len(path.suffix)] if path.suffix.lower() in suffixes else candidate
            for form in (candidate, bare):
                if form in alike:
                    return alike[form][0] if len(alike[form]) == 1 else name
        return name

    known = known if isinstance(known, (set, dict)) else set(known)
    return [meant(name) for name in written]


def by_image(
    table: Mapping[str, Value], known: Collection[str], suffixes: Collection[str], where: str
) -> dict[str, Value]:
    """A table with the names of the images as keys, see `match_names`.

    Raises:
        DataError: If two of its names mean the same image; the message says that they stand in `where`.
    """
    matched: dict[str, Value] = {}
    origin: dict[str, str] = {}
    for name, image in zip(table, match_names(table, known, suffixes), strict=True):
        if image in matched:
            raise DataError(f"{where} has {origin[image]!r} and {name!r}, which mean the same image. Keep one of them")
        matched[image], origin[image] = table[name], name
    return matched
