"""Many runs on screen: rows of an ablation over seeds, and a metric against a parameter. Tables in, a figure out.

The numbers come from `series`, the look from `plotly_style`. Plotly is imported only where it is used.
"""

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from toco_lab.figures import series
from toco_lab.figures.colours import MEAN_BAR, RUN_DOT, assign_colours
from toco_lab.figures.plotly_style import INK, escaped, heading_of, styled
from toco_lab.vocabulary import TITLES

if TYPE_CHECKING:
    import plotly.graph_objects as go

_ROW_NAME = 22  # letters in a line of the name of a row


def ablation_plot(
    frame: pd.DataFrame, summary: pd.DataFrame, *, titles: Mapping[str, str] | None = None, title: str | None = None
) -> "go.Figure":
    """Rows of an ablation over seeds, a panel per score: every run a dot, the mean a bar across, ± one sd a line.

    Where every row has one seed there are dots alone. The dashed line is the mean of the first row's reference (or of
    the first row; none where that lacks the score), to read differences by eye. Whether they are more than chance
    stands in the table, where rows are paired by seed.

    Args:
        frame: One line per run: row, seed, scores.
        summary: Table of `reports.ablation.summarise` of that frame; its scores are drawn, in its order of rows.
        titles: Heading of each score.
        title: Heading of the figure.
    """
    from plotly.subplots import make_subplots

    rows, panels = series.ablation_rows(summary), series.ablation_points(frame, summary)
    titles = {panel.score: TITLES.get(panel.score, panel.score) for panel in panels} | dict(titles or {})
    headings = [escaped(titles[panel.score]) for panel in panels]
    figure = make_subplots(1, len(panels), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=headings)
    for column, panel in enumerate(panels, start=1):
        runs, means, place = panel.runs, panel.means, {"row": 1, "col": column}
        figure.add_scatter(
            x=runs["value"].tolist(), y=list(map(_wrapped, runs["row"])), mode="markers",
            marker={"size": 7, "color": RUN_DOT, "opacity": 0.45}, name="a run", showlegend=column == 1,
            customdata=runs["seed"].tolist(), hovertemplate="%{y}, seed %{customdata}: %{x:.3~f}<extra></extra>",
            **place,
        )  # fmt: skip
        if len(means):
            figure.add_scatter(
                x=means["mean"].tolist(), y=list(map(_wrapped, means["row"])), mode="markers",
                error_x={"array": means["sd"].tolist(), "thickness": 1.6, "width": 0},
                marker={"size": 15, "symbol": "line-ns", "line": {"width": 2.5, "color": MEAN_BAR}},
                marker_color=MEAN_BAR, name="mean ± sd over seeds", showlegend=column == 1,
                customdata=means["seeds"].tolist(),
                hovertemplate="%{y}: %{x:.3~f} ± %{error_x.array:.2~f}, %{customdata} seeds<extra></extra>", **place,
            )  # fmt: skip
        if panel.compared is not None:
            figure.add_vline(x=panel.compared, line={"dash": "dash", "width": 1, "color": INK}, **place)
        figure.update_xaxes(title="<br>".join(["points"] * panel.in_points + [f"<sub>{panel.over}</sub>"]), **place)
    figure.update_yaxes(categoryorder="array", categoryarray=list(map(_wrapped, reversed(rows))))
    figure.update_yaxes(automargin=True, col=1)
    lines = max(_wrapped(row).count("<br>") for row in rows) + 1
    return styled(figure, height=190 + (13 + 17 * lines) * len(rows), title=title)


def _wrapped(name: str) -> str:
    """The name of a row in lines that leave room for the drawing."""
    return "<br>".join(map(escaped, textwrap.wrap(str(name), _ROW_NAME)))


def metric_by_parameter(
    points: pd.DataFrame,
    means: pd.DataFrame,
    *,
    metric: str,
    parameter: str,
    colour: str | None = None,
    colours: Mapping[str, str] | None = None,
    note: str = "",
) -> "go.Figure":
    """A metric against a parameter: every run as a point, mean and standard deviation of the runs of equal parameter.

    Numbers get a numeric axis and a line through the means; words are categories, which no line joins.

    Args:
        points: A row per run: run, x, y, group; in the order of the categories.
        means: A row per value and group: x, group, mean, std (NaN for a single run), runs; in the order of the groups.
        metric: Name of y.
        parameter: Name of x.
        colour: Name of what the groups differ in; None has one group.
        colours: Colour of each group; `assign_colours` chooses them by default.
        note: Second line of the heading.
    """
    import plotly.graph_objects as go

    numeric = pd.api.types.is_numeric_dtype(means["x"])
    colours = colours or assign_colours(means["group"])
    figure = go.Figure()
    for group, rows in means.groupby("group", sort=False):
        own, ink = points[points["group"] == group], colours[group]
        name = escaped(f"{colour} = {group}") if colour else "mean and standard deviation"
        together = {"legendgroup": name, "offsetgroup": name}
        figure.add_scatter(
            x=own["x"].tolist(), y=own["y"].tolist(), mode="markers", name=f"{name}, runs", showlegend=False,
            marker={"color": ink, "size": 7, "opacity": 0.45}, customdata=[escaped(run) for run in own["run"]],
            hovertemplate="%{customdata}<br>%{x}: %{y:.4g}<extra></extra>", **together,
        )  # fmt: skip
        figure.add_scatter(
            x=rows["x"].tolist(), y=rows["mean"].tolist(), mode="lines+markers" if numeric else "markers", name=name,
            line={"color": ink, "width": 2}, marker={"color": ink, "size": 10, "symbol": "diamond"},
            error_y={"type": "data", "array": rows["std"].fillna(0).tolist(), "color": ink, "width": 6},
            customdata=list(zip(rows["std"].map("{:.2g}".format), rows["runs"].tolist(), strict=True)),
            hovertemplate=f"{name}<br>%{{x}}: %{{y:.4g}} ± %{{customdata[0]}} (%{{customdata[1]}} runs)<extra></extra>",
            **together,
        )  # fmt: skip
    figure.update_xaxes(title=escaped(parameter))
    if not numeric:  # a word that looks like a number stays a word; groups stand beside each other
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=list(dict.fromkeys(points["x"])))
        figure.update_layout(scattermode="group", scattergap=0.4)
    figure.update_yaxes(title=escaped(metric))
    return styled(figure, height=460, title=heading_of(f"{metric} against {parameter}", note or " "))
