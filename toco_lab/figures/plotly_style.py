"""What all plotly figures share: their look, headings, bands, and text that carries no markup."""

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    import plotly.graph_objects as go

INK = "#757575"  # colour of text: contrast of 4.5 with white and with black, because the background is the page's
CONFIG = {"displaylogo": False, "showSendToCloud": False}  # of plotly in notebooks and pages: nothing is uploaded


def styled(figure: "go.Figure", *, height: int, title: str | None, top: int = 75) -> "go.Figure":
    """The look that all figures share: readable fonts, and a clear background through which the page shows."""
    family = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
    font: dict[str, Any] = {"family": family, "size": 13, "color": INK}
    grid = "rgba(128,128,128,0.25)"
    entries = sum(trace.showlegend is not False for trace in figure.data)
    more = 22 * (entries // 4)  # pixels for further rows of the legend
    figure.update_xaxes(gridcolor=grid, zeroline=False, linecolor="rgba(128,128,128,0.6)", showline=True)
    figure.update_yaxes(gridcolor=grid, zeroline=False)
    figure.update_annotations(font_size=13)
    figure.update_layout(
        template="none",
        height=height + more,
        font=font,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        title={"text": title, "x": 0, "xref": "paper", "y": 1, "yanchor": "top", "pad_t": 14, "font_size": 15}
        if title
        else None,
        margin={"l": 60, "r": 20, "t": top if title else 40, "b": 85 + more},
        hoverlabel_align="left",
        showlegend=True,
        legend={"orientation": "h", "y": 0, "yanchor": "bottom", "yref": "container", "x": 0},
    )
    return figure


def add_band(
    figure: "go.Figure", line: pd.DataFrame, *, colour: str, group: str, name: str, place: Mapping[str, int]
) -> None:
    """The area between `low` and `high` of a series."""
    x, low, high = (line[key].tolist() for key in ("x", "low", "high"))
    figure.add_scatter(
        x=x + x[::-1], y=high + low[::-1], fill="toself", fillcolor=colour, opacity=0.15, mode="lines", line_width=0,
        hoverinfo="skip", showlegend=False, legendgroup=group, name=name, **place,
    )  # fmt: skip


def heading_of(title: str, subtitle: str) -> str:
    """A title with a smaller second line."""
    return f"{escaped(title)}<br><sub>{escaped(subtitle)}</sub>"


def escaped(value: Any) -> str:
    """Text for plotly, which reads HTML tags in names."""
    return html.escape(str(value), quote=False)
