"""Images that somebody brings: any file a browser may upload, as RGB of a size a session can work with."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from toco_lab.data.classes import DataError

LONGEST_SIDE = 1024  # pixels; a larger image is scaled down to it


def decode_image(source: bytes | Path | str, *, longest_side: int | None = LONGEST_SIDE) -> np.ndarray:
    """An image file as uint8 RGB, (H, W, 3).

    It is turned as its EXIF data say (images of a data set are not: their masks would no longer fit). Transparent parts
    become white, 16-bit grey is scaled to 8 bits, and of an animation the first picture is taken.

    Args:
        source: The file's bytes, or its path.
        longest_side: Most pixels of a side; a larger image is scaled down. None keeps the size.

    Raises:
        DataError: If the bytes are no image, are damaged or truncated, or hold something other than colours.
    """
    where = "the uploaded file" if isinstance(source, bytes) else str(source)
    picture = _as_rgb(_read(source, where), where)
    if longest_side is not None and max(picture.size) > longest_side:
        factor = longest_side / max(picture.size)
        width, height = (max(1, round(factor * side)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return np.array(picture)


def _read(source: bytes | Path | str, where: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            file.load()
            return ImageOps.exif_transpose(file)
    except Exception as error:  # decoders of damaged files raise whatever they like
        cause = "no format fits its bytes" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(
            f"cannot read {where} as an image: {cause}. It is damaged or of a format not known here: open it in an "
            "image viewer and save it again as PNG or JPEG"
        ) from error


def _as_rgb(picture: Image.Image, where: str) -> Image.Image:
    if picture.mode == "F":
        raise DataError(f"{where} holds floating point numbers, no colours: save it as an 8-bit PNG")
    if picture.mode.startswith("I"):  # Pillow would clip 16 bits, not scale them
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) / 257).round().astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
