"""Rows of panels over one image, for a slider: composed as pixels, some ten times faster than a Figure of axes.

Arrays in, pixels out; no model, config or file is touched here. Colours are those of `figures`.
"""

import functools
import io
import itertools
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib import colormaps, get_data_path
from matplotlib.figure import Figure
from PIL import Image, ImageColor, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from toco_lab.figures.pictures import CAM_COLOURS, IGNORED

REGIONS = {0: ("certain background", "#1B2A41"), 1: ("uncertain", "#56B4E9"), 2: ("certain foreground", "#F0E442")}
CROP_COLOURS = {True: "#009E73", False: "#D55E00"}  # positive, negative; told apart by their lines as well
_INK, _GREY = "#111111", "#555555"
_MARGIN, _LINE, _SWATCH, _DASH = 10, 18, 12, 7  # pixels


@dataclass(frozen=True)
class CropBox:
    """A square in image pixels; a positive one is drawn solid, a negative one dashed."""

    top: int
    left: int
    size: int
    positive: bool


@dataclass(frozen=True)
class Panel:
    """One panel of `panel_row`.

    Attributes:
        title: Heading.
        array: As in `cam_gallery`: uint8 (H, W, 3) a picture, floats (H, W) a CAM, integers (H, W) a label map; None
            leaves the panel empty.
        note: A second, smaller line: the panel's number.
        legend: Name and colour ("#rrggbb") of each value of a label map; 255 is always white and hatched.
        crops: Boxes over the panel.
    """

    title: str
    array: np.ndarray | None = None
    note: str = ""
    legend: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    crops: Sequence[CropBox] = ()


def label_legend(palette: np.ndarray, class_names: Sequence[str]) -> dict[int, tuple[str, str]]:
    """`Panel.legend` of the classes 0..C, from their colours (256, 3) uint8 and names."""
    return {value: (name, "#{:02x}{:02x}{:02x}".format(*palette[value])) for value, name in enumerate(class_names)}


def panel_row(
    image: np.ndarray,
    panels: Sequence[Panel],
    *,
    opacity: float = 0.6,
    vmin: float = 0.0,
    vmax: float = 1.0,
    columns: int = 4,
    side: int = 320,
) -> np.ndarray:
    """Panels over one image, with one colour scale and one legend.

    Args:
        image: (H, W, 3) uint8, under every CAM and label map.
        panels: What to draw, `columns` to a row.
        opacity: Of CAMs and label maps over the image, in [0, 1]; the legend shows full colours.
        vmin, vmax: Scores at the two ends of the colour scale.
        columns: Panels in a row at most.
        side: Longer side of a panel, in pixels; small images are enlarged by a whole factor.

    Returns:
        (h, w, 3) uint8; `as_figure` makes a Figure of it.

    Raises:
        ValueError: If there are no panels.
    """
    if not panels:
        raise ValueError("panel_row needs at least one panel")
    longest = max(image.shape[:2])
    factor = side / longest if longest > side else side // longest
    height, width = (max(1, round(factor * pixels)) for pixels in image.shape[:2])
    cell_width, cell_height = max(width, 190), height + 2 * _LINE + _MARGIN
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    canvas_width = max(columns * (cell_width + _MARGIN) + _MARGIN, 420)
    legend, legend_rows = _legend_places(panels, canvas_width)
    canvas = Image.new("RGB", (canvas_width, rows * cell_height + (legend_rows + 1) * _LINE + _MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    ground = _scaled(image, (width, height))
    for i, panel in enumerate(panels):
        x, y = _MARGIN + i % columns * (cell_width + _MARGIN), _MARGIN // 2 + i // columns * cell_height
        draw.text((x, y), _fitting_text(panel.title, 13, cell_width), fill=_INK, font=_font(13))
        draw.text((x, y + _LINE), _fitting_text(panel.note, 11, cell_width), fill=_GREY, font=_font(11))
        top = y + 2 * _LINE
        if panel.array is not None:
            canvas.paste(Image.fromarray(_painted(panel, ground, opacity, (vmin, vmax))), (x, top))
        for crop in panel.crops:
            corner = x + factor * crop.left, top + factor * crop.top
            _draw_box(draw, *corner, factor * crop.size, positive=crop.positive)
    for (x, row), (kind, name, colour) in legend:
        _draw_key(draw, canvas, x, rows * cell_height + _MARGIN + row * _LINE, kind, name, colour, (vmin, vmax))
    return np.asarray(canvas)


def as_figure(pixels: np.ndarray, *, dpi: int = 110) -> Figure:
    """A Figure that shows pixels (h, w, 3) uint8 one to one when saved at `dpi`."""
    height, width = pixels.shape[:2]
    figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(pixels, interpolation="nearest", aspect="auto")
    return figure


def png_bytes(pixels: np.ndarray, *, text: Mapping[str, str] | None = None) -> bytes:
    """Pixels (h, w, 3) uint8 as a PNG; `text` goes into its text chunks. Huffman coding alone: twice as fast as the
    lightest ordinary packing, and of the same size for photographs.
    """
    chunks = PngInfo()
    for key, value in (text or {}).items():
        chunks.add_text(key, value)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=1, compress_type=zlib.Z_HUFFMAN_ONLY, pnginfo=chunks)
    return file.getvalue()


def _painted(panel: Panel, ground: np.ndarray, opacity: float, limits: tuple[float, float]) -> np.ndarray:
    """The panel's array over the scaled image `ground` (h, w, 3), uint8."""
    size = ground.shape[1::-1]
    array = panel.array
    if array.ndim == 3:
        return _scaled(array, size)
    if np.issubdtype(array.dtype, np.integer):
        table = np.full((IGNORED + 1, 3), 255, np.float32)
        for value, (_, colour) in panel.legend.items():
            table[value] = ImageColor.getrgb(colour)
        label = _scaled(array.astype(np.uint8), size, smooth=False)
        painted = ground + opacity * (table[label] - ground)
        rows, columns = np.ogrid[: size[1], : size[0]]
        painted[(label == IGNORED) & ((rows + columns) % 8 < 2)] = 60  # hatched
        return painted.astype(np.uint8)
    low, high = limits
    levels = (255 * (array - low) / max(high - low, 1e-12)).clip(0, 255).astype(np.uint8)
    colours = _cam_colours()[_scaled(levels, size)]
    return (ground + opacity * (colours - ground)).astype(np.uint8)


@functools.lru_cache(maxsize=1)
def _cam_colours() -> np.ndarray:
    """(256, 3) float32, 0..255: the colour scale of CAMs."""
    return (255 * colormaps[CAM_COLOURS](np.linspace(0, 1, 256))[:, :3]).astype(np.float32)


def _scaled(array: np.ndarray, size: tuple[int, int], *, smooth: bool = True) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3) at (width, height); enlarged pixels stay squares."""
    smooth = smooth and size[0] < array.shape[1]
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(array).resize(size, how))


def _draw_box(draw: ImageDraw.ImageDraw, x: float, y: float, size: float, *, positive: bool) -> None:
    """A square with a light (positive) or dark rim, so that it shows on any ground."""
    corners = [(x, y), (x + size, y), (x + size, y + size), (x, y + size), (x, y)]
    for begin, end in itertools.pairwise(corners):
        _draw_line(draw, begin, end, positive=positive)


def _draw_line(draw: ImageDraw.ImageDraw, begin: tuple, end: tuple, *, positive: bool) -> None:
    draw.line([begin, end], fill="white" if positive else "black", width=5 if positive else 3)
    (x0, y0), (x1, y1) = begin, end
    pieces = 1 if positive else max(1, round(math.dist(begin, end) / (2 * _DASH)))
    for piece in range(pieces):
        part = [
            (x0 + s * (x1 - x0), y0 + s * (y1 - y0)) for s in (piece / pieces, (piece + (positive or 0.6)) / pieces)
        ]
        draw.line(part, fill=CROP_COLOURS[positive], width=3)


def _legend_places(panels: Sequence[Panel], canvas_width: int) -> tuple[list, int]:
    """What the legend holds: ((x, row), (kind, name, colour)) each, broken into rows, and their number."""
    keys = []
    for panel in panels:
        if panel.array is None or panel.array.ndim == 3:
            pass
        elif np.issubdtype(panel.array.dtype, np.integer):
            values = np.flatnonzero(np.bincount(panel.array.ravel(), minlength=IGNORED + 1)).tolist()
            keys += [("patch", *panel.legend[value]) for value in values if value in panel.legend]
            keys += [("patch", "ignored (255)", "")] if IGNORED in values else []
        else:
            keys.insert(0, ("bar", "CAM score", ""))
        keys += [("line", f"{'positive' if good else 'negative'} crop", good) for good in (True, False)
                 if any(crop.positive == good for crop in panel.crops)]  # fmt: skip
    places, x, row = [], _MARGIN, 0
    for key in dict.fromkeys(keys):
        taken = {"bar": 150, "line": 30, "patch": _SWATCH}[key[0]] + 6 + _font(12).getlength(key[1]) + 18
        if x + taken > canvas_width and x > _MARGIN:
            x, row = _MARGIN, row + 1
        places.append(((x, row), key))
        x += round(taken)
    return places, row + 1 if places else 0


def _draw_key(
    draw: ImageDraw.ImageDraw, canvas: Image.Image, x: int, y: int, kind: str, name: str, colour, limits: tuple
) -> None:
    """One entry of the legend."""
    if kind == "bar":
        low, high = (f"{limit:g}" for limit in limits)
        draw.text((x, y), low, fill=_INK, font=_font(12))
        strip = np.broadcast_to(_cam_colours()[::2].astype(np.uint8), (_SWATCH, 128, 3))
        canvas.paste(Image.fromarray(np.ascontiguousarray(strip)), (x + 10, y + 2))
        draw.text((x + 142, y), high, fill=_INK, font=_font(12))
        x += 150
    elif kind == "line":
        _draw_line(draw, (x, y + 8), (x + 28, y + 8), positive=colour)
        x += 30
    else:
        draw.rectangle((x, y + 2, x + _SWATCH, y + 2 + _SWATCH), fill=colour or "white", outline="black")
        for step in range(4, 2 * _SWATCH, 6) if not colour else ():  # hatched
            first, last = max(0, step - _SWATCH), min(step, _SWATCH)
            draw.line([(x + first, y + 2 + step - first), (x + last, y + 2 + step - last)], fill=_GREY)
        x += _SWATCH
    draw.text((x + 6, y), name, fill=_INK, font=_font(12))


@functools.lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _fitting_text(text: str, size: int, width: int) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    while text and _font(size).getlength(text) > width:
        text = text.removesuffix("…")[:-1] + "…" if len(text) > 1 else ""
    return text
