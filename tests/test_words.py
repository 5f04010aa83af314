"""Counts in words: 1 problem, 2 problems, and nowhere "1 problems"."""

import ast
import re
from pathlib import Path

import pytest

from toco_lab.words import counted

PACKAGE = Path(__file__).resolve().parents[1] / "toco_lab"
NOUNS = (
    "images masks problems runs files rows seeds notebooks steps checkpoints processes categories lines cells "
    "workers layers columns micro-batches"
).split()
NO_COUNTS = (
    "said(",
    "program()",
    "images",
    "sorted(",
    "runs",
    "_count(runs)",
)  # text, a name, a list, and a number above the limit of runs


@pytest.mark.parametrize(
    ("number", "words", "shown"),
    [
        (1, ["problem"], "1 problem"), (0, ["problem"], "0 problems"), (2, ["class"], "2 classes"),
        (3, ["category"], "3 categories"), (2, ["day"], "2 days"), (2, ["batch"], "2 batches"),
        (1, ["image has", "images have"], "1 image has"), (2, ["image has", "images have"], "2 images have"),
    ],
)  # fmt: skip
def test_counted(number, words, shown):
    assert counted(number, *words) == shown


def test_every_count_in_a_message_goes_through_the_function():
    """An f-string in which a value stands before a noun in the plural would say "1 problems"."""
    plural = re.compile(rf" ({'|'.join(NOUNS)})\b")
    found, looked = [], 0
    for path in sorted(PACKAGE.rglob("*.py")):
        for text in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for value, after in (
                zip(text.values, text.values[1:], strict=False) if isinstance(text, ast.JoinedStr) else ()
            ):
                looked += 1
                if not (isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant)):
                    continue
                if plural.match(after.value) and not ast.unparse(value.value).startswith(NO_COUNTS):
                    found.append(f"{path.name}:{text.lineno}: {{{ast.unparse(value.value)}}}{after.value[:20]}")
    assert looked > 500 and not found
