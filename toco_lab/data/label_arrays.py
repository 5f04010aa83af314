"""Label files of numpy: a pickled dict of arrays, read without running anything that the file asks for.

`np.load` builds whatever a pickle names. Here every object is a stand-in that only keeps what the file says of it;
an array is made from it after its type, shape and number of bytes were compared.
"""

import io
import math
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from toco_lab.data.classes import DataError

# what `np.save` writes of a dict: '|O8' and '|O4' by versions before 1.7
_HEADER = re.compile(r"\{'descr': '\|?O[48]?', 'fortran_order': (?:True|False), 'shape': \(\), *\}\s*")
_NUMBERS = {"b1": "u1"} | {code: code for code in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")}
_MOST_AXES = 32  # what every version of numpy can make
# of a pickle, as `np.save` writes them
_STEPS = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE "
    "BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET EMPTY_TUPLE TUPLE "
    "TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS GLOBAL STACK_GLOBAL REDUCE"
)
# what reading a damaged pickle may raise, beside pickle's own error
_DAMAGED = (
    ValueError, TypeError, LookupError, AttributeError, EOFError, struct.error, ArithmeticError, AssertionError,
    MemoryError, RecursionError, pickle.PickleError,
)  # fmt: skip


class _RefusedError(Exception):
    """What is wrong with a file, in words for its user."""


def read_label_arrays(path: Path) -> dict[str, Any]:
    """The dict of a label file `.npy`: a value is an array of numbers, or in words what stands there instead of it.

    Raises:
        DataError: If the file is damaged, asks for anything but arrays, or holds no dict {image name: array}.
    """
    content = path.read_bytes()
    try:
        start = _after_header(content)
        try:
            found = _Reader(io.BytesIO(content[start:])).load()
        except _DAMAGED as error:
            raise _RefusedError("the file is damaged") from error
        rows = found.only_object() if isinstance(found, _Array) else found
        if not isinstance(rows, dict):
            raise _RefusedError(f"it holds {_in_words(rows)}, not a dict {{name: one-hot array}}")
        arrays = {key: _plain(value) for key, value in rows.items()}
    except _RefusedError as error:
        raise DataError(f"refused to read {path}: {error}. Use a CSV or JSON label file instead") from error
    if wrong := [key for key in arrays if not _is_name(key)]:
        key = repr(wrong[0]) if isinstance(wrong[0], str | bytes | int | float) else _in_words(wrong[0])
        raise DataError(
            f"label file {path} has the key {key:.80}, which is no name of an image. Keys are file names as text, "
            "without extension"
        )
    return arrays


def _after_header(content: bytes) -> int:
    """Where the pickle begins."""
    if content[:6] != b"\x93NUMPY":
        raise _RefusedError("it is no file of np.save")
    length = 2 if content[6:7] == b"\x01" else 4
    start = 8 + length + int.from_bytes(content[8 : 8 + length], "little")
    header = content[8 + length : start].decode("latin-1")
    if not _HEADER.fullmatch(header):
        shown = re.search(r"'descr': '([^']{1,20})'.*'shape': (\([\d, ]{0,40}\))", header)
        if shown and (shown[2] != "()" or "O" not in shown[1]):
            raise _RefusedError(f"it holds an array {shown[2]} of {shown[1]}, not a dict")
        raise _RefusedError("its header is damaged")
    return start


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and not re.search("[\0\ud800-\udfff]", key)


def _plain(value: Any) -> Any:
    """A row of the dict: an array where that has numbers in it, otherwise in words what it is."""
    if isinstance(value, _Array):
        return value.numbers()
    if isinstance(value, list | tuple) and all(type(one) in (bool, int, float) for one in value):
        return np.asarray(value)
    return _in_words(value)


def _in_words(value: Any) -> str:
    return str(value) if isinstance(value, _Array) else f"one {type(value).__name__.strip('_')}"


class _Type:
    """Stands for a dtype."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not (isinstance(code, str) and re.fullmatch(r"[a-zA-Z?]\d{0,9}", code)):
            raise _RefusedError("a type in it is damaged")
        self.code, self.order = code, "|"

    def set(self, state: Any) -> None:
        order, *parts = state[1:5]
        if order not in ("<", ">", "|", "=") or parts != [None, None, None]:
            raise _RefusedError("it holds an array of records, or a type in it is damaged")
        self.order = order


class _Array:
    """Stands for an array."""

    def __init__(self, *_: Any) -> None:
        self.shape: tuple[int, ...] = ()
        self.type = _Type("V0")
        self.fortran = False
        self.content: Any = b""  # or a list, of an array of objects

    def __str__(self) -> str:
        return f"an array {self.shape} of {'objects' if self.holds_objects else self.type.order + self.type.code}"

    @property
    def holds_objects(self) -> bool:
        return self.type.code.startswith("O")

    def set(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        shaped = isinstance(shape, tuple) and len(shape) <= _MOST_AXES
        if not shaped or not all(type(side) is int and 0 <= side < 2**31 for side in shape):
            raise _RefusedError("the shape of an array in it is damaged")
        if not isinstance(kind, _Type):
            raise _RefusedError("the type of an array in it is damaged")
        if not isinstance(content, list if kind.code.startswith("O") else bytes):
            raise _RefusedError("the content of an array in it is damaged")
        self.shape, self.type, self.fortran, self.content = shape, kind, bool(fortran), content

    def only_object(self) -> Any:
        """What an array () of objects holds; the array itself, if it is another."""
        return self.content[0] if self.holds_objects and self.shape == () and len(self.content) == 1 else self

    def numbers(self) -> np.ndarray | str:
        """The array; in words what it is, if it has no numbers."""
        if self.type.code not in _NUMBERS:
            return str(self)
        dtype = np.dtype(self.type.order + _NUMBERS[self.type.code])
        if len(self.content) != math.prod(self.shape) * dtype.itemsize:
            raise _RefusedError(f"an array in it is damaged: {len(self.content)} bytes for {self}")
        return np.frombuffer(self.content, dtype).reshape(self.shape, order="F" if self.fortran else "C")


def _empty_array(*_: Any) -> _Array:
    return _Array()


class _Reader(pickle._Unpickler):
    """The steps that `np.save` writes, and no other; in Python, since the one in C takes a damaged file at its word."""

    _KNOWN: ClassVar[dict[tuple[str, str], Callable[..., Any]]] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Type,
        ("numpy.core.multiarray", "_reconstruct"): _empty_array,
        ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    }

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in self._KNOWN:
            raise _RefusedError(f"it asks for {module:.60}.{name:.60}, which is no array")
        return self._KNOWN[module, name]

    def _build(self: Any) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Type | _Array):
            raise pickle.UnpicklingError("no array to fill")
        self.stack[-1].set(state)

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        code: step
        for code, step in pickle._Unpickler.dispatch.items()
        if code in {getattr(pickle, name)[0] for name in _STEPS.split()}
    } | {pickle.BUILD[0]: _build}
