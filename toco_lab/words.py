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
    """A length of time in its two largest units.

    >>> duration(0.4), duration(59), duration(3725), duration(7200), duration(4_000_000)
    ('less than a second', '59 seconds', '1 hour 2 minutes', '2 hours', '46 days 7 hours')
    """
    whole, parts = round(seconds), []
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        count, whole = divmod(whole, size)
        parts += [counted(count, unit)] if count or parts else []
    shown = [part for part in parts[:2] if not part.startswith("0 ")]
    return " ".join(shown) or "less than a second"


def program() -> str:
    """How to call this program, for messages that name a command: as it was called now, or by Python."""
    return "toco-lab" if Path(sys.argv[0]).stem == "toco-lab" else "python -m toco_lab"
