"""Images of many bits or many bands as arrays of their own numbers, and three of the bands as a picture of 8 bits.

Training and prediction read pictures (`images`); these files are converted once (`convert`). Pillow drops the lower
bits of colours of 16 bits and opens no file of more than four bands, so that a TIFF is read here: its parts in strips
or tiles, plain or compressed by Deflate, as in the specification TIFF 6.0 (sections 2, 14, 15) and its supplement 2.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from toco_lab.data.classes import DataError
from toco_lab.data.images import load, read_rgb

Levels = Literal["percentile", "range"]
WINDOW = (1.0, 99.0)  # percentiles of a band that become 0 and 255
NUMBERS = (".npy",)  # endings of arrays, beside those of images
_TIFF = (".tif", ".tiff")
_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_LETTERS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # of the types of whole numbers without sign
_CODINGS = {5: "LZW", 7: "JPEG", 32773: "PackBits", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP"}
_KINDS = {1: "u", 2: "i", 3: "f"}  # of the tag SampleFormat
_SAVE = "Save it uncompressed or with Deflate (GDAL: `-co COMPRESS=DEFLATE`), or as an array .npy of (H, W, bands)"


def read_bands(path: Path) -> np.ndarray:
    """The numbers of an image file as they are, (H, W, N): one band or more, of any kind of number.

    A TIFF of more than 8 bits or of more than four bands, an array `.npy` of (H, W) or (H, W, N), and grey of more than
    8 bits keep all of their numbers. All else is read as a picture, by the rules of `images`: three bands of 8 bits.

    Raises:
        DataError: If it cannot be read.
    """
    if path.suffix.lower() in NUMBERS:
        return _array(path)
    if path.suffix.lower() in _TIFF and path.is_file():
        with path.open("rb") as file:
            if file.read(4) in _MARKS and (numbers := _tiff(path)) is not None:
                return numbers
    picture = load(path)
    wide = picture.mode == "F" or picture.mode.startswith("I")
    return np.asarray(picture)[..., None] if wide else read_rgb(path)


def as_picture(
    numbers: np.ndarray,
    where: str,
    *,
    levels: Levels = "percentile",
    bits: int = 0,
    bands: Sequence[int] | None = None,
) -> np.ndarray:
    """Three bands of an array (H, W, N) as uint8 (H, W, 3).

    Numbers of 8 bits stay as they are. Others become 0..255: with `percentile` each band by itself, linearly from its
    percentile 1 to its percentile 99 over all finite numbers, so that images of unlike exposure look alike, and one
    colour unlike in unlike images; with `range` whole numbers without sign by the range of their type (16 bits: divided
    by 257), or of the bits that are used. What is not finite is 0. A single band is repeated.

    Args:
        numbers: As from `read_bands`.
        where: What an error calls it.
        levels: How more than 8 bits become 8.
        bits: That are used, for `range`: 12 of a scanner's 16. 0 takes those of the type.
        bands: Which three become red, green and blue, counted from 1; None takes the only one or all three.

    Raises:
        DataError: If the bands are not there or not chosen, numbers have no range, or one needs more bits.
    """
    count = numbers.shape[2]
    if bands is None and count not in (1, 3):
        raise DataError(f"{where} has {count} bands: choose three that become red, green, blue: --bands 3 2 1, say")
    chosen = (1, 1, 1) if bands is None and count == 1 else tuple(bands or (1, 2, 3))
    if len(chosen) != 3 or not all(1 <= band <= count for band in chosen):
        raise DataError(f"{where} has bands 1 to {count}, and three of them are needed, got {list(chosen)}")
    made = {band: _eight_bits(numbers[..., band - 1], where, levels, bits) for band in set(chosen)}
    return np.stack([made[band] for band in chosen], -1)


def rule(levels: Levels, bits: int, bands: Sequence[int] | None) -> str:
    """What `as_picture` does, in words, for a protocol."""
    low, high = WINDOW
    whole = f"range of {bits} bits" if bits else "type's range"
    stretched = f"percentiles {low:g} to {high:g} of each band to 0..255" if levels == "percentile" else whole
    return f"more than 8 bits: {stretched}; bands: {'the only one or all three' if bands is None else list(bands)}"


def _eight_bits(band: np.ndarray, where: str, levels: Levels, bits: int) -> np.ndarray:
    if band.dtype == np.uint8:
        return band
    if levels == "range":
        if band.dtype.kind != "u":
            raise DataError(f"{where} holds {band.dtype}, which has no range of grey levels. Take levels `percentile`")
        most = 2**bits - 1 if bits else np.iinfo(band.dtype).max
        if band.max() > most:
            raise DataError(f"{where} holds {band.max()}, which needs more than {bits} bits. Give the bits it has")
        return (band * (255 / most)).round().astype(np.uint8)
    finite = np.isfinite(band)
    if not finite.any():
        return np.zeros(band.shape, np.uint8)
    low, high = np.percentile(band[finite].astype(np.float64), WINDOW)
    share = (np.where(finite, band, low).astype(np.float64) - low) / max(high - low, np.finfo(np.float64).tiny)
    return (255 * share.clip(0, 1)).round().astype(np.uint8)


def _array(path: Path) -> np.ndarray:
    try:
        numbers = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read {path}: {error}. Save it with numpy.save") from error
    if not isinstance(numbers, np.ndarray) or numbers.ndim not in (2, 3) or numbers.dtype.kind not in "uif":
        raise DataError(f"{path} is no array of numbers (H, W) or (H, W, bands). Save it as one")
    if not numbers.size:
        raise DataError(f"{path} has the shape {numbers.shape} and no pixel. Take it out")
    return numbers.reshape(*numbers.shape[:2], -1)


# --- TIFF -------------------------------------------------------------------------------------------------------------


def _tiff(path: Path) -> np.ndarray | None:
    """The first picture of a TIFF, (H, W, N); None for one of 8 bits and four bands at most, which Pillow reads."""
    try:
        content = path.read_bytes()
        tags = _tags(content)
        bits, bands = tags.get(258, (1,)), tags.get(277, (1,))[0]
        if (max(bits) <= 8 and bands <= 4) or bands == 1:
            return None
        return _decoded(content, tags, max(bits), bands)
    except DataError as error:
        raise DataError(f"cannot read {path}: {error}. {_SAVE}") from error
    except Exception as error:  # a damaged file may raise anything
        raise DataError(f"cannot read {path}: {error or type(error).__name__}. Copy it again. {_SAVE}") from error


def _tags(content: bytes) -> dict[int, tuple[int, ...]]:
    """The whole numbers of the first picture's tags; tags of another kind are left out."""
    order, big = "<" if content[:2] == b"II" else ">", 43 in content[2:4]
    count, slot, room = ("Q", "Q", 8) if big else ("H", "I", 4)  # BigTIFF counts in 8 bytes

    def numbers(letter: str, place: int, amount: int = 1) -> tuple[int, ...]:
        return struct.unpack_from(f"{order}{amount}{letter}", content, place)

    place = numbers(slot, 8 if big else 4)[0]
    entries = numbers(count, place)[0]
    place += struct.calcsize(count)
    tags = {}
    for _ in range(entries):
        tag, kind = numbers("H", place, 2)
        amount, value = numbers(slot, place + 4)[0], place + 4 + room
        if letter := _LETTERS.get(kind):
            beyond = amount * struct.calcsize(letter) > room
            tags[tag] = numbers(letter, numbers(slot, value)[0] if beyond else value, amount)
        place += 4 + 2 * room
    return tags


def _decoded(content: bytes, tags: dict[int, tuple[int, ...]], bits: int, bands: int) -> np.ndarray:
    """The numbers that the tags describe, (H, W, N)."""

    def one_of(tag: int, otherwise: int) -> int:
        return tags.get(tag, (otherwise,))[0]

    kind = _KINDS.get(one_of(339, 1), "")
    coding, predictor, apart = one_of(259, 1), one_of(317, 1), one_of(284, 1) == 2
    if len(set(tags[258])) > 1 or bits not in (8, 16, 32, 64) or not kind or (kind == "f" and bits < 32):
        raise DataError(f"it has bands of {tags[258]} bits")
    if coding not in (1, 8, 32946):
        raise DataError(f"its compression {_CODINGS.get(coding, coding)} is not read")
    if predictor not in (1, 2) or (predictor == 2 and kind == "f"):
        raise DataError(f"its predictor {predictor} is not read")
    dtype = np.dtype(f"{'<' if content[:2] == b'II' else '>'}{kind}{bits // 8}")
    width, height = tags[256][0], tags[257][0]
    tiled = 324 in tags
    across, down = (tags[322][0], tags[323][0]) if tiled else (width, min(one_of(278, height), height))
    found = np.zeros((height, width, bands), dtype.newbyteorder("="))
    places = _places(height, width, down, across, bands if apart else 1)
    starts, sizes = (tags[324], tags[325]) if tiled else (tags[273], tags[279])
    for (top, left, band), start, size in zip(places, starts, sizes, strict=True):
        part = content[start : start + size]
        rows = down if tiled else min(down, height - top)
        one = np.frombuffer(
            zlib.decompress(part) if coding != 1 else part, dtype, rows * across * (1 if apart else bands)
        )
        one = one.reshape(rows, across, -1)
        if predictor == 2:  # each number is the difference to the one on its left, modulo its range
            one = one.cumsum(1, dtype=dtype.newbyteorder("="))
        room = found[top : top + rows, left : left + across]
        room[..., band : band + one.shape[2]] = one[: room.shape[0], : room.shape[1]]
    return found


def _places(height: int, width: int, down: int, across: int, planes: int) -> Iterator[tuple[int, int, int]]:
    """First row, column and band of each part, in the order of the file."""
    for plane in range(planes):
        for top in range(0, height, down):
            for left in range(0, width, across):
                yield top, left, plane
