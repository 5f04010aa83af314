"""Names that people write, and the files that are meant: with folder or extension, composed or decomposed letters."""

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath
from typing import TypeVar

from toco_lab.data.classes import DataError

Value = TypeVar("Value")
MASK_ENDINGS = ("_mask", "_masks", "_label", "_labels", "_seg", "_segmentation", "_gt")  # of a mask's name


def match_names(
    written: Iterable[str], known: Collection[str], suffixes: Collection[str], endings: Collection[str] = ()
) -> list[str]:
    """The known name that each written one means; one that means none, or several, stays as it is.

    A name that is known is taken as it is. Else it may have a folder and an extension, its letters may be composed
    otherwise (macOS writes "u" and two dots where others write "ü"), and capitals do not matter where only one known
    name differs in them.

    Args:
        written: Names as a list or a table has them.
        known: Names of files, without folder and extension.
        suffixes: Extensions that may be taken off, in lower case.
        endings: Ends of names that may be taken off, in lower case.
    """
    alike, folded = defaultdict(list), defaultdict(list)
    for name in known:
        plain = unicodedata.normalize("NFC", name)
        alike[plain].append(name)
        folded[plain.casefold()].append(name)

    def meant(name: str) -> str:
        if name in known:
            return name
        forms = _forms(unicodedata.normalize("NFC", name).replace("\\", "/"), suffixes, endings)
        for found in (*(alike.get(form) for form in forms), *(folded.get(form.casefold()) for form in forms)):
            if found:
                return found[0] if len(found) == 1 else name
        return name

    known = known if isinstance(known, (set, dict)) else set(known)
    return [meant(name) for name in written]


def _forms(name: str, suffixes: Collection[str], endings: Collection[str]) -> list[str]:
    """What a name may mean, the most literal first."""
    forms = []
    for candidate in (name, name.rpartition("/")[2]):
        suffix = PurePosixPath(candidate).suffix
        forms += [candidate, candidate.removesuffix(suffix) if suffix.lower() in suffixes else candidate]
    return forms + [form[: -len(end)] for form in forms for end in endings if form.lower().endswith(end)]


def by_image(
    table: Mapping[str, Value],
    known: Collection[str],
    suffixes: Collection[str],
    where: str,
    endings: Collection[str] = (),
) -> dict[str, Value]:
    """A table with the names of the images as keys, see `match_names`.

    Raises:
        DataError: If two of its names mean the same image; the message says that they stand in `where`.
    """
    matched: dict[str, Value] = {}
    origin: dict[str, str] = {}
    for name, image in zip(table, match_names(table, known, suffixes, endings), strict=True):
        if image in matched:
            raise DataError(f"{where} has {origin[image]!r} and {name!r}, which mean the same image. Keep one of them")
        matched[image], origin[image] = table[name], name
    return matched
