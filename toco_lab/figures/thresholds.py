"""mIoU of CAMs against the background threshold, on screen; on paper `printed.line_panels` draws the same numbers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from toco_lab.figures import series
from toco_lab.figures.colours import assign_colours
from toco_lab.figures.plotly_style import add_band, escaped, heading_of, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go


def threshold_curves(curves: pd.DataFrame, *, colours: Mapping[str, str] | None = None) -> "go.Figure":
    """mIoU of each CAM against the background threshold, on the images that are scored and on those of the choice.

    A diamond marks the tuned threshold, which is best on the training images; a circle marks that of the config. How
    far apart the two lie in height is calibration: how well one fixed threshold fits the CAM.

    Args:
        curves: `Evaluation.curve`, and for several runs a column `model`. Of several runs of one model the mean is
            drawn, with a band from the lowest to the highest.
        colours: Colour of each model; `assign_colours` chooses them by default.

    Raises:
        ValueError: If there are no rows.
    """
    from plotly.subplots import make_subplots

    if curves.empty:
        raise ValueError("there is no threshold curve: the evaluation scored no CAM, or threshold_images is 0")
    frame = curves if "model" in curves else curves.assign(model="run")
    colours = colours or assign_colours(frame["model"])
    panels = series.curve_panels(frame)
    height = -(-len(panels) // 2)
    titles = [escaped(series.curve_title(panel)) for panel in panels]
    figure = make_subplots(
        height, 2, subplot_titles=titles, horizontal_spacing=0.08, vertical_spacing=0.36 / height, shared_yaxes=True
    )
    for i, panel in enumerate(panels):
        place = {"row": i // 2 + 1, "col": i % 2 + 1}
        for model, rows in panel.groupby("model", sort=False):
            _add_curve(figure, rows, escaped(model), colours[model], legend=i == 0, place=place)
        figure.update_xaxes(title="background threshold", range=[0, 1], **place)
    figure.update_yaxes(title="mIoU, %", rangemode="tozero", col=1)
    note = "diamond: best on the training images; circle: threshold of the config"
    return styled(figure, height=140 + 270 * height, title=heading_of("One threshold decides a lot", note), top=105)


def _add_curve(
    figure: "go.Figure", rows: pd.DataFrame, name: str, colour: str, *, legend: bool, place: Mapping[str, int]
) -> None:
    """One model in one panel of `threshold_curves`: line, band over its runs, and the marks of each run."""
    line = series.curve_series(rows)
    if (line["low"] < line["high"]).any():
        add_band(figure, line, colour=colour, group=name, name=f"{name}, lowest to highest", place=place)
    figure.add_scatter(
        x=line["x"].tolist(), y=line["mean"].tolist(), name=name, legendgroup=name, showlegend=legend, mode="lines",
        line={"color": colour, "width": 1.8}, **place,
        hovertemplate=f"{name}<br>threshold %{{x}}: %{{y:.1f}} %<extra></extra>",
    )  # fmt: skip
    for column, symbol in (("chosen", "diamond"), ("configured", "circle-open")):
        marked = rows[rows[column]]
        figure.add_scatter(
            x=marked["threshold"].tolist(), y=(100 * marked["miou"]).tolist(), mode="markers", legendgroup=name,
            showlegend=False, marker={"symbol": symbol, "size": 9, "color": colour}, name=name, **place,
            hovertemplate=f"{name}<br>{series.MARKS[column]} %{{x}}: %{{y:.1f}} %<extra></extra>",
        )  # fmt: skip
