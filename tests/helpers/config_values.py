"""Values that fit no config field: of every other type, and outside of the range that the field declares."""

import dataclasses
import math
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from toco_lab.config import Config
from toco_lab.fields import LARGEST, Limits

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
HINTS = get_type_hints(Config)
# one value of every kind that YAML, JSON or a notebook may hold
ANYTHING: list[Any] = [
    None, True, False, 3, -1, 2**63, -(2**70), 10**5000, 0.5, math.nan, math.inf, -math.inf, "", " ", "text",
    "1", b"bytes", [], [1], [0.5], ["a"], [None], [True], [[]], [math.nan], (), {}, {"a": 1}, {1}, Path("a"),
    object(), print,
]  # fmt: skip
TINY = 1e-9


def kinds(name: str) -> tuple[bool, bool, Any]:
    """Whether a field may be None, whether it is a tuple, and the type of a value or of an item."""
    hint, optional = HINTS[name], False
    if get_origin(hint) in (Union, types.UnionType):
        hint, optional = get_args(hint)[0], True
    return (optional, True, get_args(hint)[0]) if get_origin(hint) is tuple else (optional, False, hint)


def is_of(value: Any, kind: Any) -> bool:
    """Whether a value has the type of a field, an int counting as a float."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if kind is float:
        return type(value) in (int, float) and not isinstance(value, bool) and abs(value) <= LARGEST * 2.0
    return type(value) is kind and not (kind is int and abs(value) > LARGEST)


def wrong_types(name: str) -> list[Any]:
    """Values of ANYTHING that are not of a field's type; NaN and infinity count as no number."""
    optional, listed, kind = kinds(name)

    def fits(value: Any) -> bool:
        if value is None:
            return optional
        if not listed:
            return is_of(value, kind) and not (isinstance(value, float) and not math.isfinite(value))
        return isinstance(value, list | tuple) and len(value) > 0 and all(is_of(item, kind) for item in value)

    return [value for value in ANYTHING if not fits(value)]


def outside(name: str) -> list[Any]:
    """Values of a field's own type that lie outside its declared range."""
    _, listed, kind = kinds(name)
    limits: Limits = FIELDS[name].metadata["limits"]
    step = 1 if kind is int else TINY
    edges = [
        (limits.at_least, -step), (limits.above, 0), (limits.above, -step), (limits.at_most, step), (limits.below, 0),
        (limits.up_to, step),
    ]  # fmt: skip
    bad: list[Any] = [kind(edge + shift * max(1, abs(edge))) for edge, shift in edges if edge is not None]
    bad += [kind(edge + shift * 1000 * max(1, abs(edge))) for edge, shift in edges if edge is not None and shift]
    bad += [12, -8, 0] if limits.one_of else []
    bad += ["", "  ", "\t\n"] if limits.filled else []
    bad += ["a/b", "..\\b", "a" * 101] if limits.matches else []
    bad += ["\0", "a\0b", "\ud800"] if kind is str else []
    bad += [math.nan, math.inf, -math.inf] if kind is float else []
    if not listed:
        return bad
    good = list(FIELDS[name].default or ("ant", "bee"))
    faulty: list[Any] = [[*good[:place], one, *good[place + 1 :]] for one in bad for place in range(len(good))]
    if limits.length is not None:
        faulty += [good[:-1], [*good, good[-1]]]
    faulty += [[good[0]] * (limits.most + 1)] if limits.most is not None else []
    faulty += [[good[1], good[0]]] if limits.increasing else []
    faulty += [[*good, good[0]]] if limits.distinct else []
    return faulty
