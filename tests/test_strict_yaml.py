"""YAML's surprises: read as they look, or refused with file and line."""

import re
from pathlib import Path

import pytest

from toco_lab.strict_yaml import MOST_VALUES, read_yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 010", "line 2: '010' is a number of base 8 in YAML; write it in decimal, or as text in quotes"),
        ("a: 1:30", "line 1: '1:30' is a number of base 60 in YAML"),
        ("a: 1:30.5", "line 1: '1:30.5' is a number of base 60 in YAML"),
        ("a: 1" + "0" * 5000, "line 1: '1000"),
        ("a: 1\n\tb: 2", "line 2: a tab where YAML wants spaces"),
        ("a: 1\n---\nb: 2", "line 2: a second document begins with `---`"),
        ("a: 1\nb: {<<: {c: 1}, c: 2}", "line 2: `<<` is not read: write the keys out"),
        ("a: 1\nb: {c: 1, c: 2}", "line 2: 'c' comes twice"),
        ("a: &a {b: *a}", "line 1: an alias (*name) stands inside of what it names"),
        ("a: *b", "line 1: cannot be read as YAML: found undefined alias"),
        (LAUGHS, f"aliases (*name) make 1234567909 values; {MOST_VALUES:,} are read at most"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "line 1: cannot be read as YAML: could not determine a constructor",
        ),
        ("[a]: 1", "line 1: cannot be read as YAML: found unhashable key"),
        ("a: {b: 1", "cannot be read as YAML: expected ',' or '}'"),
        ("a: " + "[" * 5000, "nested too deep"),
        ("a: \x07", "cannot be read as YAML: unacceptable character"),
    ],
)
def test_a_surprise_is_one_line_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_yaml(tmp_path / "grid.yaml")
    assert str(error.value).startswith(str(tmp_path / "grid.yaml"))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_what_is_meant_is_read(tmp_path: Path) -> None:
    lines = [
        "a: yes",
        "b: 'no'",
        "c: 2024-01-01",
        "d: 1e-4",
        "e: 1_000",
        "f: 0x10",
        "g: '010'",
        "h: &x [1, -2]",
        "i: *x",
    ]
    (tmp_path / "a.yaml").write_text("\n".join(["---", *lines]))
    assert read_yaml(tmp_path / "a.yaml") == {
        "a": True, "b": "no", "c": "2024-01-01", "d": 1e-4, "e": 1000, "f": 16, "g": "010", "h": [1, -2], "i": [1, -2],
    }  # fmt: skip
    (tmp_path / "a.yaml").write_text("")
    assert read_yaml(tmp_path / "a.yaml") is None
