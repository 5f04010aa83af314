"""Scores of each class by the size of its objects, on screen; the numbers come from `evaluation.scores_by_size`."""

from typing import TYPE_CHECKING

import pandas as pd

from toco_lab.figures.colours import LINE_COLOURS
from toco_lab.figures.plotly_style import INK, escaped, heading_of, styled
from toco_lab.vocabulary import MIOU, SIZES, TITLES

if TYPE_CHECKING:
    import plotly.graph_objects as go

_COLOURS = dict(zip(SIZES, (LINE_COLOURS[5], LINE_COLOURS[0], INK), strict=True))  # light to dark
_SCORES = {"iou": "IoU", "image_iou": "IoU, mean over images", "recall": "recall", "over_activation": "over-activation"}


def size_bars(scores: pd.DataFrame, *, score: str = "iou", note: str = "") -> "go.Figure":
    """A score of each class, small, middle and large objects beside each other, a panel per target, the mean last.

    The dash across a bar of IoU is what the whole image, labelled as this class, would have: what size alone gives.

    Args:
        scores: Table of `evaluation.scores_by_size`; where it has a column `run`, each run has panels of its own.
        score: One of iou, image_iou, recall, over_activation.
        note: Second line of the heading: bounds of the sizes, over how many images.

    Raises:
        ValueError: If there is no row, or no such score.
    """
    from plotly.subplots import make_subplots

    if scores.empty:
        raise ValueError("there are no scores by size to draw")
    if score not in _SCORES:
        raise ValueError(f"score must be one of {', '.join(_SCORES)}, got {score!r}")
    keys = ["run", "target"] if "run" in scores else ["target"]
    panels = dict(list(scores[scores["size"].isin(SIZES)].groupby(keys, sort=False)))
    titles = [escaped(", ".join([*key[:-1], TITLES.get(key[-1], key[-1])])) for key in panels]
    figure = make_subplots(
        len(panels), 1, subplot_titles=titles, shared_xaxes=True, vertical_spacing=0.16 / len(panels)
    )
    for i, panel in enumerate(panels.values(), start=1):
        for size, rows in panel.groupby("size", sort=False):
            _add_bars(figure, str(size), rows, score, first=i == 1, row=i)
    figure.update_yaxes(range=[0, 100], title=f"{_SCORES[score]}, %")
    figure.update_layout(barmode="group", bargap=0.25, scattermode="group", scattergap=0.25)
    title = heading_of(f"{_SCORES[score]} by the size of objects", note) if note else None
    return styled(figure, height=125 + 190 * len(panels) + 45 * bool(note), title=title, top=105)


def _add_bars(figure: "go.Figure", size: str, rows: pd.DataFrame, score: str, *, first: bool, row: int) -> None:
    """One size in one panel: its bars, and across each the IoU of the whole image."""
    ticks = ["<b>mean</b>" if name == MIOU else escaped(name) for name in rows["class"]]
    figure.add_bar(
        x=ticks, y=(100 * rows[score]).tolist(), name=size, legendgroup=size, offsetgroup=size, showlegend=first,
        marker_color=_COLOURS[size], customdata=rows["images"].tolist(), row=row, col=1,
        hovertemplate=f"%{{x}}, {size}: %{{y:.1f}} %, %{{customdata}} images<extra></extra>",
    )  # fmt: skip
    if score in ("iou", "image_iou"):
        figure.add_scatter(
            x=ticks, y=(100 * rows["whole_image"]).tolist(), mode="markers", offsetgroup=size, showlegend=False,
            legendgroup=size, marker={"symbol": "line-ew", "size": 12, "line": {"width": 2, "color": "#D55E00"}},
            hovertemplate=f"%{{x}}, {size}: %{{y:.1f}} % with the whole image labelled so<extra></extra>",
            row=row, col=1,
        )  # fmt: skip
