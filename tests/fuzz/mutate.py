"""Ways to spoil bytes, text and JSON."""

import copy
import json
from random import Random
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**30, 0.5, -0.5, 1e308, float("nan"), float("inf"), "", " ", "a",
    "0", "\0", "é", "\ud800", "x" * 5000, "a/b", "..", [], [[]], [0], ["a"], [None], {}, {"a": 1}, {"": None},
)  # fmt: skip


def flip(rng: Random, data: bytes, start: int = 0) -> bytes:
    """One bit is another."""
    spoilt = bytearray(data)
    spoilt[rng.randrange(start, len(data))] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def spoil(rng: Random, data: bytes) -> tuple[str, bytes]:
    """One of many ways to spoil a file, in words and done."""
    place, length = rng.randrange(len(data)), rng.randrange(1, 40)
    ways = {
        "a flipped bit": lambda: flip(rng, data),
        "several flipped bits": lambda: flip(rng, flip(rng, flip(rng, data))),
        "a flipped bit of the header": lambda: flip(rng, data[:64]) + data[64:],
        "cut off": lambda: data[:place],
        "the beginning is missing": lambda: data[place:],
        "a piece is missing": lambda: data[:place] + data[place + length :],
        "a piece comes twice": lambda: data[: place + length] + data[place:],
        "a piece of zeros": lambda: data[:place] + b"\0" * length + data[place + length :],
        "a piece of other bytes": lambda: data[:place] + rng.randbytes(length) + data[place + length :],
        "bytes put in": lambda: data[:place] + rng.randbytes(length) + data[place:],
        "empty": lambda: b"",
        "other bytes altogether": lambda: rng.randbytes(length),
    }
    way = rng.choice(list(ways))
    return f"{way} (near byte {place})", ways[way]()


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value in nested dicts and lists, the outermost first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def spoil_json(rng: Random, value: Any) -> tuple[str, Any]:
    """A JSON value with one part replaced, dropped, or renamed; what was done, in words."""
    path = rng.choice(places(value))
    if not path:
        new = rng.choice(VALUES)
        return f"{new!r:.40} in place of everything", new
    spoilt = copy.deepcopy(value)
    holder = spoilt
    for key in path[:-1]:
        holder = holder[key]
    name = ".".join(map(str, path))
    way = rng.choice(("replace", "replace", "drop", "rename"))
    if way == "drop":
        del holder[path[-1]]
        return f"{name} is missing", spoilt
    if way == "rename" and isinstance(holder, dict):
        holder[f"{path[-1]}_"] = holder.pop(path[-1])
        return f"{name} has another name", spoilt
    holder[path[-1]] = rng.choice(VALUES)
    return f"{name} is {holder[path[-1]]!r:.40}", spoilt


def dumps(value: Any) -> bytes:
    """JSON as bytes; lone surrogates are escaped."""
    return json.dumps(value).encode()
