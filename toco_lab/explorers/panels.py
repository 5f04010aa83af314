"""Rows of panels over one image, composed as pixels: about ten times faster than a Figure, so a slider feels quick.

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
CROP_NAMES = {1: "positive crop", 0: "negative crop", IGNORED: "ignored crop"}  # by kind, as in `LocalCrops.kind`
_INK, _GREY = "#111111", "#555555"
_MARGIN, _LINE, _SWATCH = 10, 18, 12  # pixels
_LINES = {  # above a panel, from the top: size, bold, colour
    "heading": (13, True, _INK), "title": (13, False, _INK), "note": (11, False, _GREY), "details": (11, False, _GREY),
}  # fmt: skip
_ALWAYS = ("title", "note")  # lines that take their room also where no panel has one


@dataclass(frozen=True)
class CropBox:
    """A square in image pixels: solid for a positive (`kind` 1), dashed for a negative (0), dotted if ignored (255)."""

    top: int
    left: int
    size: int
    kind: int


@dataclass(frozen=True)
class CropStyle:
    """How the outline of a kind of crop is drawn; kinds differ in colour, in brightness of the rim and in dashes.

    Attributes:
        colour: Of the line.
        rim: Colour and width of a line below it, so that it shows on any ground.
        dash: Length of a dash and of the gap after it, in pixels; None draws a solid line.
    """

    colour: str
    rim: tuple[str, int]
    dash: tuple[float, float] | None = None


CROP_STYLES = {  # colours of Okabe and Ito, which differ for the colour-blind as well
    1: CropStyle("#009E73", ("white", 5)),
    0: CropStyle("#D55E00", ("black", 3), (8, 6)),
    IGNORED: CropStyle("#CC79A7", ("white", 3), (3, 5)),
}


@dataclass(frozen=True)
class Panel:
    """One panel of `panel_row`.

    Attributes:
        title: Heading.
        array: uint8 (H, W, 3) is a picture, floats (H, W) are a CAM, integers (H, W) a label map, as in
            `figures.cam_gallery`; None leaves the panel empty.
        note: A second, smaller line, for the number that belongs to the panel.
        details: A line below the note, as small; where no panel has one, it takes no room.
        legend: Name and colour ("#rrggbb") of each value of a label map; 255 is always white and hatched.
        crops: Boxes over the panel.
        heading: A line above the title: the run, where panels of several runs stand together.
    """

    title: str
    array: np.ndarray | None = None
    note: str = ""
    details: str = ""
    legend: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    crops: Sequence[CropBox] = ()
    heading: str = ""

    @property
    def words(self) -> str:
        """What stands above the panel, in one line."""
        name = ", ".join(filter(None, [self.heading, self.title]))
        more = "; ".join(filter(None, [self.note, self.details]))
        return f"{name} ({more})" if more else name


Box = tuple[int, int, int, int]  # left, top, width, height in pixels


@dataclass(frozen=True)
class Picture:
    """Panels with their legend as one picture, and where its parts are: a page may show them in other places.

    Attributes:
        pixels: (h, w, 3) uint8.
        boxes: Of the array of each panel; None for a panel without one.
        legend: Name and symbol of each entry of the legend.
    """

    pixels: np.ndarray
    boxes: list[Box | None]
    legend: list[tuple[str, Box]]


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
    """Panels over one image, with one colour scale and one legend for all.

    Args:
        image: (H, W, 3) uint8, under every CAM and label map.
        panels: What to draw, `columns` to a row.
        opacity: Of CAMs and label maps over the image, in [0, 1]; the legend shows full colours.
        vmin, vmax: Scores at the two ends of the colour scale.
        columns: Panels in a row at most.
        side: Longer side of a panel, in pixels; small images are enlarged by a whole number.

    Returns:
        (h, w, 3) uint8; `as_figure` turns it into a Figure.

    Raises:
        ValueError: If there are no panels.
    """
    if not panels:
        raise ValueError("panel_row needs at least one panel")
    return draw_panels(image, panels, opacity=opacity, vmin=vmin, vmax=vmax, columns=columns, side=side).pixels


def draw_panels(
    image: np.ndarray,
    panels: Sequence[Panel | None],
    *,
    opacity: float = 0.6,
    vmin: float = 0.0,
    vmax: float = 1.0,
    columns: int = 4,
    side: int = 320,
) -> Picture:
    """As `panel_row`, with the places of all parts; None among the panels leaves a place empty."""
    longest = max(image.shape[:2])
    factor = side / longest if longest > side else side // longest
    height, width = (max(1, round(factor * pixels)) for pixels in image.shape[:2])
    drawn = [panel for panel in panels if panel is not None]
    lines = [name for name in _LINES if name in _ALWAYS or any(getattr(panel, name) for panel in drawn)]
    cell_width, cell_height = max(width, 190), height + len(lines) * _LINE + _MARGIN
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    canvas_width = max(columns * (cell_width + _MARGIN) + _MARGIN, 420)
    legend, legend_rows = _placed(_legend(drawn), canvas_width)
    canvas = Image.new("RGB", (canvas_width, rows * cell_height + (legend_rows + 1) * _LINE + _MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    ground = _scaled(image, (width, height))
    boxes: list[Box | None] = []
    for i, panel in enumerate(panels):
        x, y = _MARGIN + i % columns * (cell_width + _MARGIN), _MARGIN // 2 + i // columns * cell_height
        top = y + len(lines) * _LINE
        boxes.append(None if panel is None or panel.array is None else (x, top, width, height))
        if panel is not None:
            _draw_lines(draw, (x, y), panel, lines, cell_width)
            if panel.array is not None:
                painted = _painted(panel.array, panel.legend, ground, opacity, (vmin, vmax))
                canvas.paste(Image.fromarray(painted), (x, top))
            for crop in panel.crops:
                _draw_box(draw, x + factor * crop.left, top + factor * crop.top, factor * crop.size, crop.kind)
    symbols = []
    for x, row, entry in legend:
        y = rows * cell_height + _MARGIN + row * _LINE
        _draw_entry(draw, canvas, x, y, entry, (vmin, vmax))
        symbols.append((entry.name, (x, y, entry.symbol_width + 1, _LINE)))
    return Picture(np.asarray(canvas), boxes, symbols)


def _draw_lines(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], panel: Panel, lines: Sequence[str], width: int
) -> None:
    """The lines above a panel."""
    x, y = corner
    for place, name in enumerate(lines):
        size, bold, colour = _LINES[name]
        text = _fitting_text(getattr(panel, name), size, width, bold=bold)
        draw.text((x, y + place * _LINE), text, fill=colour, font=_font(size, bold=bold))


def as_figure(pixels: np.ndarray, *, dpi: int = 110) -> Figure:
    """A Figure that shows pixels (h, w, 3) uint8 one to one when saved at `dpi`."""
    height, width = pixels.shape[:2]
    figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(pixels, interpolation="nearest", aspect="auto")
    return figure


def png_bytes(pixels: np.ndarray, *, text: Mapping[str, str] | None = None) -> bytes:
    """Pixels (h, w, 3) uint8 as a PNG with `text` in its text chunks.

    It uses Huffman coding alone: twice as fast as the quickest ordinary compression, and as small for photographs.
    """
    chunks = PngInfo()
    for key, value in (text or {}).items():
        chunks.add_text(key, value)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=1, compress_type=zlib.Z_HUFFMAN_ONLY, pnginfo=chunks)
    return file.getvalue()


def _painted(
    array: np.ndarray,
    legend: Mapping[int, tuple[str, str]],
    ground: np.ndarray,
    opacity: float,
    limits: tuple[float, float],
) -> np.ndarray:
    """A panel's array over the scaled image `ground` (h, w, 3), uint8."""
    if array.ndim == 3:
        return _scaled(array, ground.shape[1::-1])
    if np.issubdtype(array.dtype, np.integer):
        return _painted_label(array, legend, ground, opacity)
    low, high = limits
    levels = (255 * (array - low) / max(high - low, 1e-12)).clip(0, 255).astype(np.uint8)
    colours = _cam_colours()[_scaled(levels, ground.shape[1::-1])]
    return (ground + opacity * (colours - ground)).astype(np.uint8)


def _painted_label(
    array: np.ndarray, legend: Mapping[int, tuple[str, str]], ground: np.ndarray, opacity: float
) -> np.ndarray:
    table = np.full((IGNORED + 1, 3), 255, np.float32)
    for value, (_, colour) in legend.items():
        table[value] = ImageColor.getrgb(colour)[:3]
    label = _scaled(array.astype(np.uint8), ground.shape[1::-1], smooth=False)
    painted = ground + opacity * (table[label] - ground)
    rows, columns = np.ogrid[: ground.shape[0], : ground.shape[1]]
    painted[(label == IGNORED) & ((rows + columns) % 8 < 2)] = 60  # hatched
    return painted.astype(np.uint8)


@functools.lru_cache(maxsize=1)
def _cam_colours() -> np.ndarray:
    """(256, 3) float32, 0..255: the colour scale of CAMs."""
    return (255 * colormaps[CAM_COLOURS](np.linspace(0, 1, 256))[:, :3]).astype(np.float32)


def _scaled(array: np.ndarray, size: tuple[int, int], *, smooth: bool = True) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3) at (width, height); enlarged pixels stay squares."""
    smooth = smooth and size[0] < array.shape[1]
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(array).resize(size, how))


def _draw_box(draw: ImageDraw.ImageDraw, x: float, y: float, size: float, kind: int) -> None:
    """The outline of a crop of a kind."""
    corners = [(x, y), (x + size, y), (x + size, y + size), (x, y + size), (x, y)]
    for begin, end in itertools.pairwise(corners):
        _draw_line(draw, begin, end, kind)


def _draw_line(draw: ImageDraw.ImageDraw, begin: tuple[float, float], end: tuple[float, float], kind: int) -> None:
    style = CROP_STYLES[kind]
    draw.line([begin, end], fill=style.rim[0], width=style.rim[1])
    (x0, y0), (x1, y1) = begin, end
    length = math.dist(begin, end)
    drawn, gap = style.dash or (length, 0)
    pieces = max(1, round(length / (drawn + gap)))
    for piece in range(pieces):
        shares = piece / pieces, (piece + drawn / (drawn + gap)) / pieces
        draw.line([(x0 + s * (x1 - x0), y0 + s * (y1 - y0)) for s in shares], fill=style.colour, width=3)


@dataclass(frozen=True)
class _LegendEntry:
    """One of three kinds: the `bar` of the colour scale, a `patch` (hatched if it has no colour), a crop's `line`."""

    kind: str
    name: str
    colour: str = ""
    crop: int = 1

    @property
    def symbol_width(self) -> int:
        return {"bar": 150, "line": 30, "patch": _SWATCH}[self.kind]


def _legend(panels: Sequence[Panel]) -> list[_LegendEntry]:
    """What the panels show, each once; the colour scale comes first."""
    entries = []
    for panel in panels:
        if panel.array is not None and panel.array.ndim == 2:
            if np.issubdtype(panel.array.dtype, np.integer):
                values = np.flatnonzero(np.bincount(panel.array.ravel(), minlength=IGNORED + 1)).tolist()
                entries += [_LegendEntry("patch", *panel.legend[value]) for value in values if value in panel.legend]
                entries += [_LegendEntry("patch", "ignored (255)")] if IGNORED in values else []
            else:
                entries.insert(0, _LegendEntry("bar", "CAM score"))
        shown = {crop.kind for crop in panel.crops}
        entries += [_LegendEntry("line", name, crop=kind) for kind, name in CROP_NAMES.items() if kind in shown]
    return list(dict.fromkeys(entries))


def _placed(entries: Sequence[_LegendEntry], canvas_width: int) -> tuple[list[tuple[int, int, _LegendEntry]], int]:
    """The entries broken into rows, each with its x in pixels and its row; and the number of rows."""
    places, x, row = [], _MARGIN, 0
    for entry in entries:
        width = entry.symbol_width + 6 + _font(12).getlength(entry.name) + 18
        if x + width > canvas_width and x > _MARGIN:
            x, row = _MARGIN, row + 1
        places.append((x, row, entry))
        x += round(width)
    return places, row + 1 if places else 0


def _draw_entry(
    draw: ImageDraw.ImageDraw, canvas: Image.Image, x: int, y: int, entry: _LegendEntry, limits: tuple[float, float]
) -> None:
    if entry.kind == "bar":
        low, high = (f"{limit:g}" for limit in limits)
        draw.text((x, y), low, fill=_INK, font=_font(12))
        strip = np.broadcast_to(_cam_colours()[::2].astype(np.uint8), (_SWATCH, 128, 3))
        canvas.paste(Image.fromarray(np.ascontiguousarray(strip)), (x + 10, y + 2))
        draw.text((x + 142, y), high, fill=_INK, font=_font(12))
    elif entry.kind == "line":
        _draw_line(draw, (x, y + 8), (x + 28, y + 8), entry.crop)
    else:
        draw.rectangle((x, y + 2, x + _SWATCH, y + 2 + _SWATCH), fill=entry.colour or "white", outline="black")
        for step in range(4, 2 * _SWATCH, 6) if not entry.colour else ():  # hatched
            first, last = max(0, step - _SWATCH), min(step, _SWATCH)
            draw.line([(x + first, y + 2 + step - first), (x + last, y + 2 + step - last)], fill=_GREY)
    draw.text((x + entry.symbol_width + 6, y), entry.name, fill=_INK, font=_font(12))


@functools.lru_cache(maxsize=8)
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / name, size)


def _fitting_text(text: str, size: int, width: int, *, bold: bool = False) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    while text and _font(size, bold=bold).getlength(text) > width:
        text = text.removesuffix("…")[:-1] + "…" if len(text) > 1 else ""
    return text
