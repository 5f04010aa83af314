"""The classes of a folder: from classes.txt, or as its labels name them. What two readings could mean is refused."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import Path

from toco_lab.data.classes import DataError
from toco_lab.data.label_rows import tidy
from toco_lab.files import read_text


def read_classes(path: Path) -> tuple[str, ...]:
    """Names of classes.txt, one a line; DataError for one that is given twice, an empty line, or background."""
    lines = [tidy(line) for line in read_text(path, error=DataError).rstrip().split("\n")]
    if not any(lines):
        raise DataError(f"{path} is empty. It needs one class a line: line k is number k of the masks")
    if "" in lines:
        raise DataError(
            f"{path}, line {lines.index('') + 1} is empty: whether it counts is not known, and line k is number k of "
            "the masks. Take it out, or name the class"
        )
    if len(set(lines)) < len(lines):
        twice = Counter(lines).most_common(1)[0][0]
        raise DataError(
            f"{path} needs one class a line, each once; it has {len(lines)}, {len(set(lines))} different: {twice!r} "
            "stands there more than once. Rename or remove one"
        )
    _refuse_background(lines, str(path), "number 0 and not listed. Take the line out")
    _refuse_alike(lines, str(path))
    return tuple(lines)


def named_classes(named: Collection[str], where: str) -> tuple[str, ...]:
    """The classes that labels name, in alphabetical order, where no classes.txt says which there are.

    Args:
        named: Names as the labels have them.
        where: What an error calls the labels.

    Raises:
        DataError: If it is doubtful that these are the classes: 0 and 1, two that differ in capitals alone, background,
            or several names in one.
    """
    written = "If they are right, write classes.txt, one class a line"
    if named and set(named) <= {"0", "1"}:
        raise DataError(
            f"{where} hold 0 and 1 in place of class names. Give the names of the classes that an image shows, "
            f"separated by `;`. {written}"
        )
    _refuse_background(named, where, "no class: an image that shows none has no names. Take it out of the labels")
    _refuse_alike(named, where)
    parts = {name: set(map(tidy, re.split(r"[,|/]", name))) - {""} for name in named}
    count = Counter(part for found in parts.values() for part in found)
    joined = next(
        (name for name in sorted(named) if len(parts[name]) > 1 and any(count[p] > 1 for p in parts[name])), None
    )
    if joined is not None:
        raise DataError(
            f"{where} name the class {joined!r}, which looks like several, since a part of it occurs elsewhere. Class "
            f"names are separated by `;`. {written}"
        )
    return tuple(sorted(named))


def _refuse_background(names: Collection[str], where: str, what: str) -> None:
    found = next((name for name in names if name.strip("_ ").casefold() == "background"), None)
    if found is None:
        return
    first = "begins with" if next(iter(names)) == found and where.endswith(".txt") else "names"
    raise DataError(f"{where} {first} {found}, which is {what}")


def _refuse_alike(names: Collection[str], where: str) -> None:
    alike = defaultdict(list)
    for name in names:
        alike[re.sub(r"[\s_-]", "", name).casefold()].append(name)
    several = next((sorted(found) for found in alike.values() if len(found) > 1), None)
    if several:
        raise DataError(
            f"{where} name {' and '.join(map(repr, several))} as different classes: they differ in capitals, spaces, "
            "hyphens or underscores alone. Write them alike, or rename one"
        )
