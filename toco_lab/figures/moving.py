"""Moving pictures and strips of them, as files that any viewer opens: arrays in, bytes out."""

import io
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from toco_lab.figures.pictures import label_pixels

ALPHA = 0.55  # opacity of a label over its image
GAP = 4  # pixels between two pictures of a strip
LINE = 14  # pixels above a row of a strip, for its heading


def label_overlay(image: np.ndarray, label: np.ndarray, palette: np.ndarray, *, alpha: float = ALPHA) -> np.ndarray:
    """A label map over its image, (H, W, 3) uint8; background, label 0, stays as it is.

    Args:
        image: (H, W, 3) uint8.
        label: (H, W) class numbers.
        palette: Colours (256, 3) of the labels.
        alpha: Opacity of the colours, in [0, 1].
    """
    mixed = np.rint(alpha * label_pixels(label, palette) + (1 - alpha) * image).astype(np.uint8)
    return np.where((label > 0)[..., None], mixed, image)


def beside(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (H, W, 3) of one size in a row, white between them."""
    white = np.full((pictures[0].shape[0], GAP, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (picture, white)]
    return np.concatenate(parts[:-1], axis=1)


def strip(rows: Mapping[str, Sequence[np.ndarray]]) -> np.ndarray:
    """Rows of pictures, (H, W, 3) uint8, each below its heading.

    Args:
        rows: By heading; equally many pictures (h, w, 3) uint8 in each, all of one size.

    Raises:
        ValueError: If there is no picture, or the sizes and numbers differ.
    """
    numbers = {len(pictures) for pictures in rows.values()}
    sizes = {picture.shape for pictures in rows.values() for picture in pictures}
    if len(numbers) != 1 or len(sizes) != 1:
        raise ValueError(
            f"a strip needs rows of equally many pictures of one size, got rows of {sorted(numbers)}, sizes "
            f"{sorted(sizes)}"
        )
    parts = []
    for heading, pictures in rows.items():
        row = beside(pictures)
        title = Image.new("RGB", (row.shape[1], LINE), "white")
        ImageDraw.Draw(title).text((2, 1), heading, fill="black")
        parts += [np.array(title), row]
    return np.concatenate(parts)


def clip_rows(images: np.ndarray, labels: Mapping[str, np.ndarray], palette: np.ndarray) -> dict[str, list[np.ndarray]]:
    """The frames of a clip, and below them their labels over them, as `strip` takes them.

    Args:
        images: Frames (T, H, W, 3) uint8.
        labels: By heading: a label map of each frame, (T, H, W).
        palette: Colours (256, 3) of the labels.
    """
    return {"frames": list(images)} | {
        name: [label_overlay(image, label, palette) for image, label in zip(images, maps, strict=True)]
        for name, maps in labels.items()
    }


def enlarged(picture: np.ndarray, factor: int) -> np.ndarray:
    """A picture (H, W, 3) `factor` times as high and wide, pixels kept apart."""
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def png_bytes(picture: np.ndarray) -> bytes:
    """A picture, (H, W, 3) uint8, as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return file.getvalue()


def gif_bytes(pictures: Iterable[np.ndarray], *, rate: float = 8.0) -> bytes:
    """Pictures, (H, W, 3) uint8 of one size, as an animated GIF file that begins again at its end.

    Args:
        pictures: Taken one by one. A GIF has 256 colours a picture, so that it is for the eye alone.
        rate: Pictures a second.

    Raises:
        ValueError: If there is no picture, or `rate` is not positive.
    """
    if not rate > 0:
        raise ValueError(f"rate must be positive, got {rate}")
    frames = (Image.fromarray(picture).quantize(256, dither=Image.Dither.NONE) for picture in pictures)
    first = next(frames, None)
    if first is None:
        raise ValueError("an animation needs at least one picture")
    file = io.BytesIO()
    # a viewer counts in hundredths of a second, and takes less than two of them for something else
    duration = max(20, 10 * round(100 / rate))
    first.save(file, format="GIF", save_all=True, append_images=frames, duration=duration, loop=0)
    return file.getvalue()
