"""Images that somebody brings: any file a browser may upload, as RGB of a size a session can work with."""

from pathlib import Path

import numpy as np

from toco_lab.data.images import read_rgb, scaled_down

LONGEST_SIDE = 1024  # pixels; a larger image is scaled down to it


def decode_image(
    source: bytes | bytearray | memoryview | Path | str, *, longest_side: int | None = LONGEST_SIDE
) -> np.ndarray:
    """An image file as uint8 RGB, (H, W, 3), by the rules of `toco_lab.data.images`, as in training.

    It is turned as its EXIF data say. Transparent parts become white, 16-bit grey is scaled to 8 bits, and of an
    animation the first picture is taken.

    Args:
        source: The file's bytes, or its path.
        longest_side: Most pixels of a side; a larger image is scaled down. None keeps the size.

    Raises:
        DataError: If the bytes are no image, are damaged or truncated, or hold something other than colours.
        ValueError: If `source` is neither bytes nor a path, or `longest_side` is below 1.
    """
    if isinstance(source, bytearray | memoryview):  # what widgets hand over
        source = bytes(source)
    if not isinstance(source, bytes | str | Path):
        raise ValueError(f"source must be the bytes of an image file or its path, got {type(source).__name__}")
    if longest_side is not None and longest_side < 1:
        raise ValueError(f"longest_side must be at least 1 pixel, got {longest_side}")
    raw = read_rgb(source, "the uploaded file") if isinstance(source, bytes) else read_rgb(Path(source))
    return scaled_down(raw, longest_side)
