"""Pictures: arrays in, a new matplotlib figure out. No model, config or file is touched here.

Drawn without pyplot: nothing stays open. Colour limits are always explicit, so that two panels compare.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

IGNORED = 255  # label value drawn white and hatched
CAM_COLOURS = "inferno"  # matplotlib colour scale of every CAM: ordered in brightness, safe for colour-blind readers
SIMILARITY_COLOURS = "viridis"  # matplotlib colour scale of cosines, as in the token explorer
PICTURE_SIZE = 2.6  # side of one picture, in inches


def cam_overlay(
    image: np.ndarray,
    cam: np.ndarray,
    *,
    alpha: float = 0.55,
    vmin: float = 0.0,
    vmax: float = 1.0,
    title: str | None = None,
) -> Figure:
    """A CAM over its image, with a colour bar.

    Args:
        image: (H, W, 3) uint8.
        cam: (H, W) scores.
        alpha: Opacity of the CAM, in [0, 1].
        vmin, vmax: Scores at the two ends of the colour scale.
        title: Heading.
    """
    figure = Figure(figsize=(1.6 * PICTURE_SIZE, 1.4 * PICTURE_SIZE), layout="constrained")
    axes = figure.subplots()
    _draw(axes, cam, image=image, palette=None, alpha=alpha, limits=(vmin, vmax))
    axes.set_title(title or "", fontsize=11)
    _colour_bar(figure, [axes], vmin, vmax)
    return figure


def label_panel(
    label: np.ndarray, palette: np.ndarray, *, class_names: Sequence[str] | None = None, title: str | None = None
) -> Figure:
    """A label map with a legend of the classes that occur; ignored pixels are white and hatched.

    Args:
        label: (H, W) integers: 0 background, 1..C classes, 255 ignored.
        palette: (256, 3) uint8, colour of each value.
        class_names: Names of the classes 0..C; numbers without.
        title: Heading.
    """
    figure = Figure(figsize=(1.8 * PICTURE_SIZE, 1.4 * PICTURE_SIZE), layout="constrained")
    axes = figure.subplots()
    _draw(axes, label, image=None, palette=palette, alpha=1, limits=(0, 1))
    axes.set_title(title or "", fontsize=11)
    _legend(figure, [label], palette, class_names, loc="outside right center", ncols=1)
    return figure


def cam_gallery(
    rows: Sequence[Mapping[str, np.ndarray | None]],
    *,
    palette: np.ndarray,
    class_names: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    alpha: float = 0.55,
    vmin: float = 0.0,
    vmax: float = 1.0,
    size: float = PICTURE_SIZE,
    title: str | None = None,
) -> Figure:
    """A row per image, a column per map of it: image, truth, CAM of run A, auxiliary CAM, segmentation, ...

    The type of an array says how it is drawn: uint8 (H, W, 3) is a picture, floats (H, W) a CAM over the first picture
    of the row, integers (H, W) a label map. All CAMs share one colour scale.

    Args:
        rows: Per image a mapping from column heading to array; a missing or None entry leaves its panel empty.
        palette: (256, 3) uint8, colour of each label.
        class_names: Names of the classes 0..C for the legend; numbers without.
        names: Name of each row.
        alpha: Opacity of the CAMs, in [0, 1].
        vmin, vmax: Scores at the two ends of the colour scale.
        size: Side of one picture, in inches.
        title: Heading of the whole figure.

    Raises:
        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError("cam_gallery needs at least one row")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    figure = Figure(figsize=(size * len(columns) + 1, size * len(rows) + 0.9), layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    labels, cams = [], False
    for i, row in enumerate(rows):
        picture = next((array for array in row.values() if array is not None and array.ndim == 3), None)
        for axes, column in zip(grid[i], columns, strict=True):
            array = row.get(column)
            if array is None:
                axes.set_axis_off()
            else:
                _draw(axes, array, image=picture, palette=palette, alpha=alpha, limits=(vmin, vmax))
                labels += [array] if _is_label(array) else []
                cams |= np.issubdtype(array.dtype, np.floating)
            if i == 0:
                axes.set_title(textwrap.fill(column, int(10 * size), break_long_words=False), fontsize=11)
        if names is not None:
            grid[i, 0].set_ylabel(names[i], fontsize=9)
    if cams:
        _colour_bar(figure, list(grid.flat), vmin, vmax)
    if labels:
        ncols = max(2, int(figure.get_figwidth() / 1.4))
        _legend(figure, labels, palette, class_names, loc="outside lower center", ncols=ncols)
    figure.suptitle(title or "", fontsize=13)
    return figure


def similarity_maps(
    panels: Sequence[Mapping],
    *,
    columns: int = 4,
    limits: tuple[float, float] = (0.0, 1.0),
    alpha: float = 0.75,
    title: str | None = None,
) -> Figure:
    """Maps of one patch's cosine similarity over their images, all on one scale: the token explorer on paper.

    Args:
        panels: Each with title, image (H, W, 3) uint8, map (h, w) cosines and patch (row, column), as
            `TokenExplorer.similarity_maps` gives them; the frame of a patch that was `found` is dashed.
        columns: Panels in a row.
        limits: Cosines at the two ends of the colour scale; what lies outside has the colour of the end.
        alpha: Opacity of the maps.
        title: Heading.

    Raises:
        ValueError: If there are no panels.
    """
    if not panels:
        raise ValueError("similarity_maps needs at least one panel")
    width = min(len(panels), columns)
    height = -(-len(panels) // width)
    figure = Figure(figsize=(PICTURE_SIZE * width + 1, (PICTURE_SIZE + 0.3) * height + 0.3), layout="constrained")
    axes = figure.subplots(height, width, squeeze=False).ravel()
    for ax, panel in zip(axes, panels, strict=False):
        h, w = panel["map"].shape
        frame = (-0.5, w - 0.5, h - 0.5, -0.5)  # in patches
        ax.imshow(panel["image"], extent=frame)
        ax.imshow(panel["map"], cmap=SIMILARITY_COLOURS, vmin=limits[0], vmax=limits[1], alpha=alpha, extent=frame)
        row, column = panel["patch"]
        dashes = (0, (3, 2)) if panel.get("found") else None  # None: a solid line
        for colour, thick in (("white", 2.5), ("black", 1)):
            frame_of = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=colour, linewidth=thick)
            frame_of.set_linestyle(dashes)
            ax.add_patch(frame_of)
        ax.set_title(panel["title"], fontsize=10)
        ax.set_xticks([])
        ax.set_yticks([])
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    scale = ScalarMappable(Normalize(*limits), SIMILARITY_COLOURS)
    figure.colorbar(scale, ax=list(axes), label="cosine to the marked patch", shrink=0.8, aspect=30)
    figure.suptitle(title or "", fontsize=13)
    return figure


def cam_pixels(
    image: np.ndarray, cam: np.ndarray, *, alpha: float = 0.55, vmin: float = 0.0, vmax: float = 1.0
) -> np.ndarray:
    """A CAM over its image without any axes, (H, W, 3) uint8; both (H, W), as `cam_overlay` shows them."""
    colours = colormaps[CAM_COLOURS](Normalize(vmin, vmax, clip=True)(cam))[..., :3]
    return np.rint(255 * alpha * colours + (1 - alpha) * image).astype(np.uint8)


def label_pixels(label: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """A label map (H, W) in its colours, (H, W, 3) uint8; ignored pixels are white."""
    colours = np.asarray(palette, np.uint8).copy()
    colours[IGNORED] = 255
    return colours[label]


def box_pixels(image: np.ndarray, boxes: Sequence[tuple[tuple[int, int, int, int], np.ndarray]]) -> np.ndarray:
    """An image (H, W, 3) uint8 with the outlines of boxes, the last on top; they lie inside their boxes.

    Args:
        image: Left as it is.
        boxes: Each x0, y0, x1, y1 in pixels, half-open, with its colour (3,).
    """
    drawn = image.copy()
    width = max(1, round(min(image.shape[:2]) / 150))
    for (x0, y0, x1, y1), colour in boxes:
        box = drawn[y0:y1, x0:x1]
        inside = box[width:-width, width:-width].copy()
        box[:] = colour
        box[width:-width, width:-width] = inside
    return drawn


def plain_text(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")


def colour_scale(steps: int = 9) -> list[str]:
    """The colours of CAM scores from 0 to 1, as #rrggbb."""
    return [to_hex(colour) for colour in colormaps[CAM_COLOURS](np.linspace(0, 1, steps))]


def _draw(
    axes: Axes,
    array: np.ndarray,
    *,
    image: np.ndarray | None,
    palette: np.ndarray | None,
    alpha: float,
    limits: tuple[float, float],
) -> None:
    """One panel without ticks: a picture, a label map, or a CAM over a picture."""
    axes.set_xticks([])
    axes.set_yticks([])
    if array.ndim == 3:
        axes.imshow(array)
    elif _is_label(array):
        if palette is None:
            raise ValueError("a label map needs a palette")
        axes.imshow(label_pixels(array, palette), interpolation="nearest")
        if (array == IGNORED).any() and min(array.shape) > 1:
            axes.contourf(array == IGNORED, levels=[0.5, 1.5], colors="none", hatches=["////"])
    else:
        if image is not None:
            axes.imshow(image)
        axes.imshow(array, cmap=CAM_COLOURS, vmin=limits[0], vmax=limits[1], alpha=1 if image is None else alpha)


def _is_label(array: np.ndarray) -> bool:
    return array.ndim == 2 and np.issubdtype(array.dtype, np.integer)


def _colour_bar(figure: Figure, axes: list[Axes], vmin: float, vmax: float) -> None:
    scale = ScalarMappable(Normalize(vmin, vmax), CAM_COLOURS)  # opaque, whatever the overlays' alpha
    figure.colorbar(scale, ax=axes, label="CAM score", shrink=0.8, aspect=30)


def _legend(
    figure: Figure,
    labels: list[np.ndarray],
    palette: np.ndarray,
    class_names: Sequence[str] | None,
    *,
    loc: Literal["outside right center", "outside lower center"],
    ncols: int,
) -> None:
    """Legend of the label values that occur in any of the maps."""
    handles = []
    for value in sorted(set().union(*(np.unique(label).tolist() for label in labels))):
        if value == IGNORED:
            handles.append(Patch(facecolor="white", edgecolor="black", hatch="////", label="ignored"))
        else:
            name = str(value) if class_names is None else class_names[value]
            colour = np.asarray(palette)[value] / 255
            handles.append(Patch(facecolor=colour, edgecolor="black", linewidth=0.4, label=name))
    figure.legend(handles=handles, loc=loc, ncols=min(ncols, len(handles)), fontsize=9, frameon=False)
