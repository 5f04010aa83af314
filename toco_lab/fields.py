"""Documented fields of a frozen dataclass: strict conversion of their values to the annotated types, and their ranges.

A field states its range where it is declared: `opt(0.5, "probability of a flip", within=(0, 1))`.
"""

import dataclasses
import functools
import itertools
import math
import re
import reprlib
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from toco_lab.words import counted

LARGEST = 2**63 - 1  # whole numbers have 64 bits wherever they go: to torch, to NumPy, into files
_SHOWN = 200  # characters of a value that a message repeats


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a value of a field may be; for a tuple the bounds hold for each of its items. None is always allowed.

    Attributes:
        at_least: Smallest value.
        above: A value below every allowed one.
        at_most: Largest value.
        below: A value above every allowed one.
        up_to: Largest value that a machine can bear; more would only exhaust memory or time.
        within: Short for (`at_least`, `at_most`).
        one_of: The only values there are.
        length: Number of items of a tuple.
        most: Largest number of items of a tuple.
        increasing: No item of the tuple is smaller than the one before.
        distinct: No item of the tuple comes twice.
        filled: Text may not be blank.
        matches: Regular expression of the whole text, and the same in words.
        because: Why, for the end of the message.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    up_to: float | None = None
    within: tuple[float, float] | None = None
    one_of: tuple[Any, ...] = ()
    length: int | None = None
    most: int | None = None
    increasing: bool = False
    distinct: bool = False
    filled: bool = False
    matches: tuple[str, str] | None = None
    because: str = ""

    def __post_init__(self) -> None:
        """Spell `within` out."""
        if self.within is not None:
            object.__setattr__(self, "at_least", self.within[0])
            object.__setattr__(self, "at_most", self.within[1])

    def fault(self, value: Any) -> str:
        """What `value`, of the right type, does not keep to, in words after the name of the field; "" if it fits."""
        if value is None:
            return ""
        if isinstance(value, tuple) and (fault := self._fault_of_tuple(value)):
            return fault
        items, each = (value, ", each of its items") if isinstance(value, tuple) else ((value,), "")
        faults = (fault + each for item in items if (fault := self._fault_of_item(item)))
        return next(faults, "")

    def _fault_of_tuple(self, items: Sequence[Any]) -> str:
        if self.length is not None and len(items) != self.length:
            return f"needs {counted(self.length, 'number')}"
        if self.most is not None and len(items) > self.most:
            return f"may name {counted(self.most, 'number')} at most"
        if self.increasing and any(first > second for first, second in itertools.pairwise(items)):
            return "must increase: the smaller number comes first"
        return "may not name anything twice" if self.distinct and len(set(items)) < len(items) else ""

    def _fault_of_item(self, value: Any) -> str:
        if isinstance(value, str):
            return self._fault_of_text(value)
        if isinstance(value, bool):
            return ""
        if isinstance(value, float) and not math.isfinite(value):
            return "must be a finite number"
        if self.one_of and value not in self.one_of:
            return f"must be {_listed(self.one_of)}"
        if not self._holds(value):
            return f"must {self.interval()}"
        too_much = self.up_to is not None and value > self.up_to
        return f"must be at most {self.up_to:,} (more would only exhaust memory or time)" if too_much else ""

    def _fault_of_text(self, text: str) -> str:
        if self.filled and not text.strip():
            return "must not be empty"
        if self.matches and not re.fullmatch(self.matches[0], text):
            return f"must be {self.matches[1]}"
        if "\0" in text:
            return "must be text without the character NUL"
        try:
            text.encode()
        except UnicodeEncodeError:
            return "must be text that UTF-8 can hold (rename the file or folder)"
        return ""

    def _holds(self, value: float) -> bool:
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def interval(self) -> str:
        """The bounds in words after `must`: `lie in [0, 1)`, `be at least 1`, `not be negative`; "" without bounds."""
        low = self.at_least if self.above is None else self.above
        high = self.at_most if self.below is None else self.below
        if low is not None and high is not None:
            opened, closed = "[" if self.above is None else "(", "]" if self.below is None else ")"
            return f"lie in {opened}{low}, {high}{closed}"
        if low is not None:
            if low == 0:
                return "not be negative" if self.above is None else "be positive"
            return f"be at least {low}" if self.above is None else f"be above {low}"
        if high is not None:
            return f"be at most {high}" if self.below is None else f"be below {high}"
        return ""


def opt(default: Any, help: str, *, result: bool = True, quirk: Any = None, before: Any = None, **limits: Any) -> Any:
    """A documented dataclass field.

    Args:
        default: The sound value; presets may replace it.
        help: One sentence, shown by `--help`, `Config.to_frame` and the notebooks.
        result: False where the value cannot change a number (log interval, workers): left out of the digest.
        quirk: The value that reproduces the authors' released code, where it differs from the sound reading.
        before: What runs did before the field was there, or before `default` became its default, where that is another
            value: files without the field mean it, and the digest leaves it out in place of the default.
        limits: What the value may be: the attributes of `Limits`.
    """
    before = default if before is None else before
    about = {"help": help, "result": result, "quirk": quirk, "before": before, "limits": Limits(**limits)}
    return dataclasses.field(default=default, metadata=about)


def check_fields(instance: Any) -> None:
    """Convert every field of a frozen dataclass to its annotated type, in place, and check its range.

    Made for `__post_init__`.

    Raises:
        ValueError: For a value of another type or out of its range; the message names the field and the value.
    """
    for field in dataclasses.fields(instance):
        object.__setattr__(instance, field.name, check_one(instance, field.name, getattr(instance, field.name)))


def check_one(owner: Any, name: str, value: Any) -> Any:
    """`value` as field `name` of the dataclass `owner`, or its instance, would hold it.

    Raises:
        ValueError: For a value of another type or out of its range; the message names the field and the value.
    """
    kind = owner if isinstance(owner, type) else owner.__class__
    hint, limits = _declared(kind)[name]
    value = coerce(name, value, hint)
    if fault := limits.fault(value):
        because = f" ({limits.because})" if limits.because else ""
        raise ValueError(f"config: {name} {fault}{because}, got {shown(value)}")
    return value


def coerce(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint`; only an int becomes a float, and only a list becomes a tuple.

    Args:
        name: Name of the field, for the message.
        value: What the user gave.
        hint: A class, `Literal[...]`, `X | None` or `tuple[X, ...]`; a tuple must not be empty.

    Raises:
        ValueError: For any other type, and for a whole number of more than 64 bits.
    """
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"config field {name!r} must be below 2**63, got {shown(value)}")
    if origin is Literal:
        if isinstance(value, str) and value in args:
            return value
    elif origin in (Union, types.UnionType):  # int | None
        return None if value is None else coerce(name, value, args[0])
    elif origin is tuple:
        if isinstance(value, list | tuple) and len(value) > 0:
            return tuple(coerce(name, item, args[0]) for item in value)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    wanted = getattr(hint, "__name__", hint) if origin is None else str(hint).replace("typing.", "")
    raise ValueError(f"config field {name!r} must be {wanted}, got {shown(value)} ({type(value).__name__})")


def shown(value: Any) -> str:
    """A value as a message repeats it: its `repr`, shortened where that is long or deep.

    >>> shown(0.5)
    '0.5'
    """
    text = _SHORT.repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} ... {text[-_SHOWN // 4 :]}"


class _Short(reprlib.Repr):
    """`repr` of which the cost is bounded: a few levels, and of each the first items."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 20
        self.maxstring = self.maxother = _SHOWN

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to print thousands of digits."""
        return repr(x) if x.bit_length() < 3 * _SHOWN else f"a whole number of {counted(x.bit_length(), 'bit')}"


_SHORT = _Short()


def _listed(values: Sequence[Any]) -> str:
    """`8, 16 or 32`."""
    *first, last = map(str, values)
    return f"{', '.join(first)} or {last}" if first else last


@functools.cache  # runs are listed by the hundred, each with its config
def _declared(cls: Any) -> dict[str, tuple[Any, Limits]]:
    """Annotated type and limits of every field."""
    hints = get_type_hints(cls)
    return {field.name: (hints[field.name], field.metadata["limits"]) for field in dataclasses.fields(cls)}
