"""Insertion and deletion curves of attributions, with the area under each."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from toco_lab.figures.colours import LINE_COLOURS, assign_colours
from toco_lab.figures.counted import number_range
from toco_lab.figures.plotly_style import escaped, heading_of, styled
from toco_lab.vocabulary import DELETION, INSERTION
from toco_lab.words import counted

if TYPE_CHECKING:
    import plotly.graph_objects as go

_DASHES = ("solid", "dash", "dot", "dashdot")
_PANELS = {  # measure -> word before its baseline, what moves, what is better
    INSERTION: ("from", "pixels put in", "more is better"),
    DELETION: ("to", "pixels taken out", "less is better"),
}


def faithfulness_curves(curves: pd.DataFrame, *, colours: Mapping[str, str] | None = None) -> "go.Figure":
    """The mean class score while pixels go in (left) and out (right), in the order of each map.

    Args:
        curves: `attribution.Faithfulness.curves`, of one model.
        colours: Colour of each map, by the name that the legend gives it; `assign_colours` chooses them by default.

    Raises:
        ValueError: If there are no rows, or rows of several models.
    """
    from plotly.subplots import make_subplots

    if curves.empty or curves["model"].nunique() > 1:
        models = ", ".join(map(str, curves["model"].unique())) or "none"
        raise ValueError(f"faithfulness_curves draws the curves of one model, got those of: {models}")
    frame = curves.assign(name=[_name(*row) for row in curves[["method", "block"]].itertuples(index=False)])
    names = list(dict.fromkeys(frame["name"]))
    colours = colours or assign_colours(names)
    titles = [f"{measure}<br><sub>{better}</sub>" for measure, (_, _, better) in _PANELS.items()]
    figure = make_subplots(1, 2, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.06)
    for number, name in enumerate(names):
        rows = frame[frame["name"] == name]
        areas = rows.groupby("measure")["area"].first()
        label = f"{name} ({areas[INSERTION]:.2f}, {areas[DELETION]:.2f})"
        line = {"color": colours[name], "width": 1.8, "dash": _DASHES[number // len(LINE_COLOURS) % len(_DASHES)]}
        for column, measure in enumerate(_PANELS, start=1):
            part = rows[rows["measure"] == measure]
            figure.add_scatter(
                x=(100 * part["share"]).tolist(), y=part["score"].tolist(), name=escaped(label), legendgroup=name,
                showlegend=column == 1, mode="lines", line=line, row=1, col=column,
                customdata=part[["low", "high"]].to_numpy().tolist(),
                hovertemplate=f"{escaped(name)}<br>%{{x:.0f}} % of the pixels: %{{y:.2f}}, quartiles "
                "%{customdata[0]:.2f} to %{customdata[1]:.2f}<extra></extra>",
            )  # fmt: skip
    for column, (_, moved, _) in enumerate(_PANELS.values(), start=1):
        figure.update_xaxes(title=f"{moved}, %", title_font_size=13, range=[0, 100], row=1, col=column)
    figure.update_yaxes(range=[0, 1.02])
    figure.update_yaxes(title="class score", title_font_size=13, col=1)
    heading = heading_of("Does the map find what the model uses?", _counts(frame))
    below = 75 + 22 * -(-len(names) // 3)  # pixels for the legend, three entries to a row
    styled(figure, height=400 + below, title=f"{heading}<br><sub>{escaped(_baselines(frame))}</sub>", top=120)
    return figure.update_layout(margin_b=below, height=400 + below)


def _counts(frame: pd.DataFrame) -> str:
    images, cases = (counted(number_range(frame[f"{what}s"]), what) for what in ("image", "case"))
    return f"mean over {images}, {cases}; in brackets the two areas under the curve"


def _baselines(frame: pd.DataFrame) -> str:
    """What insertion begins with and deletion ends with, as far as the table has them."""
    parts = []
    for measure, (words, _, _) in _PANELS.items():
        parts += [f"{measure} {words} {name}" for name in frame[frame["measure"] == measure]["baseline"].unique()]
    return "; ".join(parts)


def _name(method: str, block: int | None) -> str:
    return method if pd.isna(block) else f"{method}, block {block}"
