"""One way to read an image file: training, `data check`, evaluation and the explorer's upload see the same pixels.

What becomes of a file is decided by its bytes, not by its name:

* EXIF orientation is applied, as every viewer does; no other mark turns an image.
* Transparent parts lie on white.
* Grey of 16 bits is divided by 257. Integers of 32 bits are read alike where they are 0..65535, else refused. Where all
  are at most 255 they were meant as 8 bits, and the file is refused. Colours of 16 bits keep their upper 8.
* Floating point numbers in [0, 1] are multiplied by 255, those in [0, 255] rounded, others refused.
* Grey, one-bit, palette and CMYK become RGB. Of an animation or several pages the first one is read.
* What is no regular file, damaged, truncated, or too large to be a photo is refused; a PNG by its checksums, which
  decoders pass over.
"""

import io
import stat
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from toco_lab.data.classes import DataError
from toco_lab.files import in_words

# The rules above in short, for the protocol of a number.
RULE = "EXIF orientation applied, transparent on white, 16 bits / 257, floats in [0, 1] x 255, first picture of a file"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_PHOTOMETRIC = 262  # of a TIFF: 0 says that 0 is white
_COLOURS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
_SAVE_AGAIN = (
    "It is damaged or of a format not known here: copy it again, or open it in an image viewer and save it again as "
    "PNG or JPEG"
)


def read_rgb(source: bytes | Path, where: str = "") -> np.ndarray:
    """An image file as it is displayed, uint8 RGB (H, W, 3), by the rules above.

    Args:
        source: The file's bytes, or its path.
        where: What an error calls it; "" takes the path.

    Raises:
        DataError: If there is no such file, it cannot be decoded, or its numbers are no colours.
    """
    where = where or str(source)
    return as_displayed(load(source, where), where)


def as_displayed(picture: Image.Image, where: str) -> np.ndarray:
    """A decoded picture as it is displayed, uint8 RGB (H, W, 3), by the rules above; `where` is what an error calls it.

    Raises:
        DataError: If its numbers are no colours.
    """
    turn = _TURNS.get(orientation(picture))
    picture = _as_rgb(picture, where)
    return np.array(picture.transpose(turn) if turn is not None else picture)


def scaled_down(raw: np.ndarray, longest_side: int | None) -> np.ndarray:
    """An image (H, W, 3) uint8 of which no side is longer than `longest_side`, smaller ones as they are; None or 0
    keeps every size.
    """
    if not longest_side or max(raw.shape[:2]) <= longest_side:
        return raw
    factor = longest_side / max(raw.shape[:2])
    height, width = (max(1, round(factor * side)) for side in raw.shape[:2])
    return np.array(Image.fromarray(raw).resize((width, height), Image.Resampling.LANCZOS))


def load(source: bytes | Path, where: str = "", remedy: str = _SAVE_AGAIN) -> Image.Image:
    """The first picture of a file, decoded but neither turned nor converted; arguments and errors as in `read_rgb`."""
    return _opened(source, where or str(source), remedy, decode=True)


def header(source: bytes | Path, where: str = "", remedy: str = _SAVE_AGAIN) -> Image.Image:
    """What a file says of its picture, without its pixels; arguments and errors as in `read_rgb`."""
    return _opened(source, where or str(source), remedy, decode=False)


def sizes(picture: Image.Image) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) of a file's picture as displayed, and as stored."""
    width, height = picture.size
    turned = orientation(picture) >= 5
    return (height, width) if turned else (width, height), (width, height)


def conversions(path: Path) -> list[str]:
    """What is done to the pixels of a file beyond decoding them, each in words; [] for an ordinary photo."""
    picture = header(path)
    several = getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO"  # a phone's photo with its preview
    return [
        words
        for words, applies in (
            ("are turned as the EXIF orientation says: the masks must be, too", orientation(picture) > 1),
            (
                "have an alpha channel or a transparent colour: what is transparent becomes white",
                picture.has_transparency_data,
            ),
            ("have more than 8 bits, scaled to 8", picture.mode == "F" or picture.mode.startswith("I")),
            ("hold several pictures, of which the first is read", several),
        )
        if applies
    ]


def _opened(source: bytes | Path, where: str, remedy: str, *, decode: bool) -> Image.Image:
    try:
        if not isinstance(source, bytes):
            _check_regular(source)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            if decode:
                file.load()
                if file.format == "PNG":
                    _check_sums(source if isinstance(source, bytes) else source.read_bytes())
            else:
                _ = getattr(file, "n_frames", 1)  # some formats count them only while the file is open
            return file
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{where} is too large for a photo: {error}. Scale it down, or cut it into tiles") from error
    except FileNotFoundError as error:
        raise DataError(f"there is no file {where}. Correct the path, or copy the file there") from error
    except PermissionError as error:
        raise DataError(f"cannot read {where}: {error.strerror}. Make the file readable (chmod +r)") from error
    except Exception as error:  # decoders of damaged files raise whatever they like
        if isinstance(error, OSError) and error.filename:  # it could not even be opened: too many open files, ...
            raise DataError(in_words(str(error))) from error
        raise DataError(f"cannot decode {where}: {_cause(error, source)}. {remedy}") from error


def _check_sums(png: bytes) -> None:
    """Each chunk of a PNG (length, kind, content) ends with its CRC-32; ValueError for one that differs."""
    place, kind = 8, b""
    while kind != b"IEND":
        end = place + 8 + int.from_bytes(png[place : place + 4], "big")
        kind = png[place + 4 : place + 8]
        if end + 4 > len(png):
            raise ValueError(f"it ends within its part {kind.decode('latin-1')!r}")
        if zlib.crc32(memoryview(png)[place + 4 : end]) != int.from_bytes(png[end : end + 4], "big"):
            raise ValueError(f"its part {kind.decode('latin-1')!r} differs from its checksum")
        place = end + 4


def _check_regular(path: Path) -> None:
    """Opening a pipe would wait for ever, and a device has no end."""
    if not stat.S_ISREG(path.stat().st_mode):
        kind = "a folder" if path.is_dir() else "no regular file, but a pipe, socket or device"
        raise DataError(f"{path} is {kind}. Put an image file there, or take it out")


def _cause(error: Exception, source: bytes | Path) -> str:
    if isinstance(error, UnidentifiedImageError):
        empty = not source if isinstance(source, bytes) else source.stat().st_size == 0
        return "it is empty (0 bytes)" if empty else "no format fits its bytes, whatever its name says"
    return str(error) or type(error).__name__


def orientation(picture: Image.Image) -> int:
    """1..8, from the EXIF block before the pixels; 1, as stored, where there is none or it cannot be read.

    A TIFF has been turned by its decoder already.
    """
    exif = Image.Exif()
    try:
        exif.load(picture.info.get("exif", b""))
        number = exif.get(_ORIENTATION, 1)
    except Exception:  # a damaged block beside sound pixels: no viewer turns these
        return 1
    return number if number in _TURNS and picture.format != "TIFF" else 1


def _as_rgb(picture: Image.Image, where: str) -> Image.Image:
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = Image.fromarray(_eight_bits(picture, where))
    if picture.mode not in _COLOURS:  # LAB: Pillow converts it to other colours
        raise DataError(f"{where} has pixels of mode {picture.mode}, which is not read. Save it as an RGB PNG or JPEG")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _eight_bits(picture: Image.Image, where: str) -> np.ndarray:
    """Grey values of more than 8 bits as uint8, by the rules at the top."""
    if getattr(picture, "tag_v2", {}).get(_PHOTOMETRIC) == 0:  # Pillow turns 8 bits round, and no others
        raise DataError(f"{where} is a TIFF of more than 8 bits in which 0 is white. Save it as an 8-bit PNG")
    raw = np.asarray(picture)
    low, high = raw.min(), raw.max()
    if picture.mode == "F":
        if not (low >= 0 and high <= 255):  # also where one is NaN
            raise DataError(
                f"{where} holds floating point numbers from {low:g} to {high:g}; only those in [0, 1] or [0, 255] can "
                "be colours. Scale them, and save it as an 8-bit PNG"
            )
        return (raw * (255 if high <= 1 else 1)).round().astype(np.uint8)
    if low < 0 or high > 65535 or 0 < high <= 255:
        meant = "they look like 8 bits" if 0 < high <= 255 else "16 bits end at 65535"
        raise DataError(
            f"{where} holds integers of more than 8 bits, from {low} to {high}: {meant}, and how bright they are meant "
            "is not known. Save it as an 8-bit PNG"
        )
    grey = (raw / 257).round().astype(np.uint8)
    clear = picture.info.get("transparency")
    return np.where(raw == clear, np.uint8(255), grey) if isinstance(clear, int) else grey
