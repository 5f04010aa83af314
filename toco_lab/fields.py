"""Documented fields of a frozen dataclass, and the strict conversion of their values to the annotated types."""

import dataclasses
import functools
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def opt(default: Any, help: str, *, result: bool = True, quirk: Any = None) -> Any:
    """A documented dataclass field.

    Args:
        default: The sound value; presets may replace it.
        help: One sentence, shown by `--help`, `Config.to_frame` and the notebooks.
        result: False where the value cannot change a number (log interval, workers): left out of the digest.
        quirk: The value that reproduces the authors' released code, where it differs from the sound reading.
    """
    return dataclasses.field(default=default, metadata={"help": help, "result": result, "quirk": quirk})


def coerce_fields(instance: Any) -> None:
    """Convert every field of a frozen dataclass to its annotated type, in place; for `__post_init__`.

    Raises:
        ValueError: For a value of another type; the message names the field, the type and the value.
    """
    hints = _type_hints(instance.__class__)
    for field in dataclasses.fields(instance):
        object.__setattr__(instance, field.name, coerce(field.name, getattr(instance, field.name), hints[field.name]))


def coerce(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint`; only an int becomes a float, and only a list becomes a tuple.

    Args:
        name: Name of the field, for the message.
        value: What the user gave.
        hint: A class, `Literal[...]`, `X | None` or `tuple[X, ...]`; a tuple must not be empty.

    Raises:
        ValueError: For any other type.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value in args:
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
    raise ValueError(f"config field {name!r} must be {wanted}, got {value!r} ({type(value).__name__})")


@functools.cache  # runs are listed by the hundred, each with its config
def _type_hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)
