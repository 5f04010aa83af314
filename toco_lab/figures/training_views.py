"""What the network sees: the views of training images, their padding and the valid box."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from toco_lab.figures.colours import LINE_COLOURS

VALID_BOX, SECOND_VIEW = LINE_COLOURS[:2]
PANEL = 2.6  # side of a picture, in inches


def view_panels(rows: Sequence[Mapping], *, title: str | None = None) -> Figure:
    """A row per image: as it lies on disk, then the three views that a training step is given.

    Args:
        rows: Each with name, original (H, W, 3) uint8, view2_box (top, left, height, width) in it, valid_box (top,
            bottom, left, right) in the first view, and views, a mapping from heading to (S, S, 3) uint8. The valid box
            is drawn on all views of the first one's size. `seen_views` gives them.
        title: Heading.

    Raises:
        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError("view_panels needs at least one row")
    headings = list(rows[0]["views"])
    figure = Figure(figsize=(PANEL * (1 + len(headings)), PANEL * len(rows) + 0.9), layout="constrained")
    grid = figure.subplots(len(rows), 1 + len(headings), squeeze=False)
    for axes_of_row, row in zip(grid, rows, strict=True):
        _draw(axes_of_row[0], row["original"])
        axes_of_row[0].set_ylabel(row["name"], fontsize=9)
        top, left, height, width = row["view2_box"]
        _frame(axes_of_row[0], (top, top + height, left, left + width), SECOND_VIEW, "--")
        first = row["views"][headings[0]].shape
        for axes, heading in zip(axes_of_row[1:], headings, strict=True):
            _draw(axes, row["views"][heading])
            if heading == headings[0] or "local" in heading:
                _hatch_padding(axes, row["valid_box"], first[:2])
                _frame(axes, row["valid_box"], VALID_BOX, "-")
    for axes, heading in zip(grid[0], ["image", *headings], strict=True):
        axes.set_title(heading, fontsize=11)
    handles = [
        Patch(label="valid box: labels and losses count inside", edgecolor=VALID_BOX, fill=False, linewidth=2),
        Patch(label="padding", edgecolor="black", fill=False, hatch="////", linewidth=0.5),
        Patch(label="what the second view shows", edgecolor=SECOND_VIEW, fill=False, linewidth=2, linestyle="--"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    figure.suptitle(title or "", fontsize=13)
    return figure


def _draw(axes: Axes, picture: np.ndarray) -> None:
    height, width = picture.shape[:2]
    axes.imshow(picture, extent=(0, width, height, 0))  # edges of pixels are whole numbers, as boxes count
    axes.set_xticks([])
    axes.set_yticks([])


def _frame(axes: Axes, box: Sequence[int], colour: str, line: str) -> None:
    """The outline of a box (top, bottom, left, right), on white so that it shows on any picture."""
    top, bottom, left, right = box
    for edge, thickness, style in (("white", 4.0, "-"), (colour, 2.0, line)):
        axes.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=edge, linewidth=thickness,
                      linestyle=style, clip_on=False)
        )  # fmt: skip


def _hatch_padding(axes: Axes, box: Sequence[int], size: tuple[int, int]) -> None:
    top, bottom, left, right = box
    height, width = size
    around = (
        (0, 0, width, top),
        (0, bottom, width, height - bottom),
        (0, top, left, bottom - top),
        (right, top, width - right, bottom - top),
    )
    for x, y, across, down in around:
        if across > 0 and down > 0:
            axes.add_patch(Rectangle((x, y), across, down, fill=False, edgecolor="white", linewidth=0, hatch="////"))
