"""Images that somebody brings: any file a browser may upload, as RGB of a size a session can work with."""

from pathlib import Path

import numpy as np
from PIL import Image

from toco_lab.data.images import read_rgb

LONGEST_SIDE = 1024  # pixels; a larger image is scaled down to it


def decode_image(source: bytes | Path | str, *, longest_side: int | None = LONGEST_SIDE) -> np.ndarray:
    """An image file as uint8 RGB, (H, W, 3), by the rules of `toco_lab.data.images`, as in training.

    It is turned as its EXIF data say. Transparent parts become white, 16-bit grey is scaled to 8 bits, and of an
    animation the first picture is taken.

    Args:
        source: The file's bytes, or its path.
        longest_side: Most pixels of a side; a larger image is scaled down. None keeps the size.

    Raises:
        DataError: If the bytes are no image, are damaged or truncated, or hold something other than colours.
    """
    raw = read_rgb(source, "the uploaded file") if isinstance(source, bytes) else read_rgb(Path(source))
    if longest_side is None or max(raw.shape) <= longest_side:
        return raw
    picture = Image.fromarray(raw)
    factor = longest_side / max(picture.size)
    width, height = (max(1, round(factor * side)) for side in picture.size)
    return np.array(picture.resize((width, height), Image.Resampling.LANCZOS))
