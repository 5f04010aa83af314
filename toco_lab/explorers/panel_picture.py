"""A widget that shows panels: in as many columns as fit, with their headings as text and a description of each."""

from collections.abc import Sequence
from pathlib import Path

import anywidget
import traitlets as T

from toco_lab.explorers.panels import Panel, Picture, png_bytes


class PanelPicture(anywidget.AnyWidget):
    """Panels of one run or more. One PNG travels; the page cuts the panels out of it and arranges them.

    Attributes:
        value: The whole picture as PNG; empty before the first.
        panels: Of each panel `box` (left, top, width, height in the PNG; None: nothing is drawn), `heading`, `title`,
            `note`, `details`, `words` (for who cannot see it), and its place: `run` and `view`, from 0; where `shared`,
            the runs have it in common.
        legend: Of each entry `name` and `box`.
    """

    _esm = Path(__file__).parent / "static" / "panel_picture.js"
    value = T.Bytes().tag(sync=True)
    panels: T.List[dict] = T.List().tag(sync=True)
    legend: T.List[dict] = T.List().tag(sync=True)

    def show(self, picture: Picture, rows: Sequence[Sequence[Panel | None]], columns: int) -> None:
        """Show the panels of `rows`, a row for each run.

        `picture` was drawn of them in so many columns. A view that only the first run has is one that all share.
        """
        lines = -(-len(rows[0]) // columns) * columns  # places that a run takes in the picture
        panels = [
            {
                "box": picture.boxes[run * lines + view],
                "heading": panel.heading, "title": panel.title, "note": panel.note, "details": panel.details,
                "words": panel.words,
                "run": run, "view": view, "shared": len(rows) > 1 and all(row[view] is None for row in rows[1:]),
            }
            for run, row in enumerate(rows) for view, panel in enumerate(row) if panel is not None
        ]  # fmt: skip
        with self.hold_sync():
            self.panels = panels
            self.legend = [{"name": name, "box": box} for name, box in picture.legend]
            self.value = png_bytes(picture.pixels)
