"""Words of messages and tables: counts (1 problem, 2 problems), lengths of time, and how this program is called."""

import sys
from pathlib import Path


def counted(number: int | str, one: str, many: str = "") -> str:
    """A number and what it counts, in the singular or plural.

    Args:
        number: How many; text like "2 to 5" will do.
        one: The words after 1, like `image` or `image has`.
        many: The words after any other number; by default the last word of `one` in the plural.

    >>> counted(1, "class"), counted(2, "class"), counted(0, "category"), counted(2, "image has", "images have")
    ('1 class', '2 classes', '0 categories', '2 images have')
    """
    return f"{number} {one if str(number) == '1' else many or _plural(one)}"


def _plural(word: str) -> str:
    if word.endswith(("s", "x", "ch", "sh")):
        return f"{word}es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}s"


def duration(seconds: float) -> str:
    """A length of time in its largest unit, and the next one where that is below ten.

    >>> duration(0.4), duration(59), duration(3725), duration(7200), duration(4_000_000)
    ('less than a second', '59 seconds', '1 hour 2 minutes', '2 hours', '46 days')
    """
    sizes = {"day": 86400, "hour": 3600, "minute": 60, "second": 1}
    for (unit, size), (below, part) in zip(sizes.items(), [*list(sizes.items())[1:], ("", 1)], strict=True):
        if seconds >= 10 * size:
            return counted(round(seconds / size), unit)
        if seconds >= size:
            rest = int(seconds % size / part) if below else 0
            return counted(int(seconds / size), unit) + (f" {counted(rest, below)}" if rest else "")
    return "less than a second"


def program() -> str:
    """How to call this program, for messages that name a command: as it was called now, or by Python."""
    return "toco-lab" if Path(sys.argv[0]).stem == "toco-lab" else "python -m toco_lab"
