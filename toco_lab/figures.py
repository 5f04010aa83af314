"""Figures: arrays and tables in, a new figure out. No model, config or file is touched here.

Pixels are drawn with matplotlib (without pyplot: nothing stays open), curves and bars with plotly, imported only where
it is used. Colour limits are always explicit, so that two panels compare; a run keeps its colour in every figure.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

if TYPE_CHECKING:
    import plotly.graph_objects as go

IGNORED = 255  # label value drawn white and hatched
CAM_COLOURS = "inferno"  # matplotlib colour scale of every CAM: ordered in brightness, safe for colour-blind readers
RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F")  # Okabe and Ito
DASHES = ("solid", "dash", "dot", "dashdot")
TITLES = {  # column or target -> what the reader sees
    "cam": "CAM",
    "cam_aux": "auxiliary CAM",
    "cam_refined": "CAM + PAR",
    "seg": "segmentation",
    "seg_crf": "segmentation + CRF",
    "labels": "image labels",
    "cls_loss": "classification loss",
    "cls_aux_loss": "auxiliary classification loss",
    "ptc_loss": "patch token contrast (PTC)",
    "ctc_loss": "class token contrast (CTC)",
    "seg_loss": "segmentation loss",
    "reg_loss": "regularised loss",
    "total_loss": "total loss",
    "positive_cosine": "|cos| of positive pairs",
    "negative_cosine": "|cos| of negative pairs",
    "val_cam": "CAM mIoU",
    "val_cam_aux": "auxiliary CAM mIoU",
    "val_seg": "segmentation mIoU",
}
_SIZE = 2.6  # side of one picture, in inches


def run_colours(names: Iterable[str]) -> dict[str, str]:
    """One colour per name, in order; pass the result to every figure so that a run looks the same in all of them."""
    return {name: RUN_COLOURS[i % len(RUN_COLOURS)] for i, name in enumerate(dict.fromkeys(names))}


# --- pixels: matplotlib -----------------------------------------------------------------------------------------------


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
    figure = Figure(figsize=(1.6 * _SIZE, 1.4 * _SIZE), layout="constrained")
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
    figure = Figure(figsize=(1.8 * _SIZE, 1.4 * _SIZE), layout="constrained")
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
    title: str | None = None,
) -> Figure:
    """Images as rows, what is known about each as columns: image, truth, CAM of run A, auxiliary CAM, segmentation, ...

    The type of an array says how it is drawn: uint8 (H, W, 3) is a picture, floats (H, W) a CAM over the first picture
    of the row, integers (H, W) a label map. All CAMs share one colour scale.

    Args:
        rows: Per image a mapping from column heading to array; a missing or None entry leaves its panel empty.
        palette: (256, 3) uint8, colour of each label.
        class_names: Names of the classes 0..C for the legend; numbers without.
        names: Name of each row.
        alpha: Opacity of the CAMs, in [0, 1].
        vmin, vmax: Scores at the two ends of the colour scale.
        title: Heading of the whole figure.

    Raises:
        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError("cam_gallery needs at least one row")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    figure = Figure(figsize=(_SIZE * len(columns) + 1, _SIZE * len(rows) + 0.9), layout="constrained")
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
                axes.set_title(column, fontsize=11)
        if names is not None:
            grid[i, 0].set_ylabel(names[i], fontsize=9)
    if cams:
        _colour_bar(figure, list(grid.flat), vmin, vmax)
    if labels:
        _legend(figure, labels, palette, class_names, loc="outside lower center", ncols=max(3, 2 * len(columns)))
    figure.suptitle(title or "", fontsize=13)
    return figure


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
        colours = np.asarray(palette, np.uint8).copy()
        colours[IGNORED] = 255
        axes.imshow(colours[array], interpolation="nearest")
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
    loc: str,
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


# --- curves and bars: plotly ------------------------------------------------------------------------------------------


def similarity_curves(
    frame: pd.DataFrame,
    *,
    metrics: Sequence[str] = ("pairwise cosine",),
    colours: Mapping[str, str] | None = None,
    title: str | None = None,
) -> "go.Figure":
    """Similarity per layer: a line per model (mean over images) with a band from lower to upper quartile.

    The site "final norm" is no further block: it stands as a diamond of its own, one step behind the last block.

    Args:
        frame: Table of `smoothing.similarity_per_layer`, of one or more models.
        metrics: Metrics to draw, one dash style each.
        colours: Colour of each model, see `run_colours`.
        title: First line of the heading; the second always names variant, site, norm and token set.

    Raises:
        ValueError: If the table has none of the metrics.
    """
    import plotly.graph_objects as go

    shown = frame[frame["metric"].isin(metrics)]
    if shown.empty:
        raise ValueError(f"no rows of {', '.join(metrics)}; the table has {', '.join(map(str, set(frame['metric'])))}")
    colours = colours or run_colours(shown["model"])
    last, normed = int(shown["layer"].max()), "final norm" in set(shown["site"])
    figure = go.Figure()
    for (model, metric), rows in shown.groupby(["model", "metric"], sort=False):
        name = _text(model) + (f", {_text(metric)}" if len(metrics) > 1 else "")
        dash = DASHES[list(metrics).index(metric) % len(DASHES)]
        for site, part in rows.groupby("site", sort=False):
            behind = last + 1 if site == "final norm" else None
            _add_similarity(figure, part, name=name, colour=colours[model], dash=dash, place=behind)
    ticks = [*map(str, range(1, last + 1))] + (["norm"] if normed else [])
    figure.update_xaxes(title="block", tickvals=[*range(1, len(ticks) + 1)], ticktext=ticks)
    figure.update_yaxes(title="mean |cos|", range=[0, 1])
    heading = title or ("Similarity" if len(metrics) == 1 else "Pairs") + " of patch tokens per layer"
    return _style(figure, height=460, title=f"{_text(heading)}<br><sub>{_text(_what(shown))}</sub>")


def _add_similarity(
    figure: "go.Figure", part: pd.DataFrame, *, name: str, colour: str, dash: str, place: int | None
) -> None:
    """Mean and quartiles of one model, metric and site: a line over the layers, or one diamond at `place`."""
    stats = part.groupby("layer")["value"].describe()  # count, mean, std, min, 25%, 50%, 75%, max
    x = stats.index.tolist() if place is None else [place] * len(stats)
    mean, low, high = (stats[key].tolist() for key in ("mean", "25%", "75%"))
    common = {
        "x": x,
        "y": mean,
        "legendgroup": name,
        "customdata": list(zip(low, high, stats["count"].astype(int).tolist(), strict=True)),
        "hovertemplate": f"{name}<br>{_text(part['site'].iloc[0])}, %{{x}}: %{{y:.3f}}<br>quartiles "
        "%{customdata[0]:.3f} to %{customdata[1]:.3f} over %{customdata[2]} images<extra></extra>",
    }
    if place is not None:
        bars = {
            "array": [max(0, b - m) for b, m in zip(high, mean, strict=True)],
            "arrayminus": [max(0, m - a) for a, m in zip(low, mean, strict=True)],
            "symmetric": False,
        }
        figure.add_scatter(
            **common,
            name=f"{name}, final norm",
            mode="markers",
            showlegend=False,
            error_y=bars,
            marker={"symbol": "diamond", "size": 11, "color": colour},
        )
        return
    figure.add_scatter(
        x=x + x[::-1],
        y=high + low[::-1],
        fill="toself",
        fillcolor=colour,
        opacity=0.15,
        mode="lines",
        line_width=0,
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
        name=f"{name}, quartiles",
    )
    figure.add_scatter(**common, name=name, mode="lines+markers", line={"color": colour, "dash": dash})


def _what(shown: pd.DataFrame) -> str:
    """Variant, sites with their norms, token set and N of a similarity table, in words."""
    sites = shown[["site", "norm"]].drop_duplicates().itertuples(index=False)
    places = ", ".join(f"{site} ({'raw' if norm == 'none' else norm})" for site, norm in sites)
    counts = sorted(shown["tokens"].unique()) if "tokens" in shown else []
    count = f", N = {counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else "") if counts else ""
    return f"{', '.join(shown['variant'].unique())}; {places}; {', '.join(shown['token_set'].unique())}{count}"


def training_curves(
    metrics: pd.DataFrame | Mapping[str, pd.DataFrame],
    *,
    colours: Mapping[str, str] | None = None,
    columns: Sequence[str] | None = None,
) -> "go.Figure":
    """Small panels over the step: each loss term, |cos| of PTC's pairs, and validation scores where there are some.

    Args:
        metrics: Rows of metrics.csv with a column `step`, of one run or per run name.
        colours: Colour of each run, see `run_colours`.
        columns: Columns to draw; None takes the known ones that are not empty or zero throughout.
    """
    from plotly.subplots import make_subplots

    frames = metrics if isinstance(metrics, Mapping) else {"run": metrics}
    colours = colours or run_colours(frames)
    if columns is None:
        columns = [name for name in TITLES if any(name in f and f[name].fillna(0).any() for f in frames.values())]
    width = min(3, max(1, len(columns)))
    height = max(1, -(-len(columns) // width))
    figure = make_subplots(
        height,
        width,
        subplot_titles=[TITLES.get(name, _text(name)) for name in columns],
        horizontal_spacing=0.07,
        vertical_spacing=0.32 / height,
    )
    for i, column in enumerate(columns):
        for name, frame in frames.items():
            if column in frame:
                rows = frame[frame[column].notna()]
                figure.add_scatter(
                    x=rows["step"].tolist(),
                    y=rows[column].tolist(),
                    name=_text(name),
                    legendgroup=name,
                    showlegend=i == 0,
                    mode="lines+markers" if len(rows) < 30 else "lines",
                    line={"color": colours[name], "width": 1.8},
                    marker_size=4,
                    hovertemplate=f"{_text(name)}<br>step %{{x}}: %{{y:.4g}}<extra></extra>",
                    row=i // width + 1,
                    col=i % width + 1,
                )
        if column.startswith("val_") or column.endswith("_cosine"):
            figure.update_yaxes(range=[0, 1], row=i // width + 1, col=i % width + 1)
    return _style(figure, height=125 + 210 * height, title=None)


def iou_bars(evaluation: pd.DataFrame, *, colours: Mapping[str, str] | None = None) -> "go.Figure":
    """IoU of each class as grouped bars, one panel per target, mIoU as the last group.

    Args:
        evaluation: Columns target, class, iou (in [0, 1]) and, for several runs, run. Rows of F1 are left out.
        colours: Colour of each run, see `run_colours`.
    """
    from plotly.subplots import make_subplots

    frame = evaluation if "run" in evaluation else evaluation.assign(run="run")
    frame = frame[~frame["class"].isin(["F1"])]
    targets = list(dict.fromkeys(frame["target"]))
    colours = colours or run_colours(frame["run"])
    height = max(1, len(targets))
    titles = [TITLES.get(target, _text(target)) for target in targets]
    figure = make_subplots(height, 1, subplot_titles=titles, shared_xaxes=True, vertical_spacing=0.16 / height)
    for i, target in enumerate(targets, start=1):
        part = frame[frame["target"] == target]
        classes = sorted(dict.fromkeys(part["class"]), key=lambda name: name == "mIoU")  # stable: mIoU goes last
        for name, rows in part.groupby("run", sort=False):
            values = rows.set_index("class")["iou"].reindex(classes) * 100
            ticks = ["<b>mean</b>" if label == "mIoU" else _text(label) for label in classes]
            figure.add_bar(
                x=ticks,
                y=values.tolist(),
                name=_text(name),
                legendgroup=name,
                showlegend=i == 1,
                marker_color=colours[name],
                row=i,
                col=1,
                hovertemplate=f"{_text(name)}<br>%{{x}}: %{{y:.1f}} %<extra></extra>",
            )
    figure.update_yaxes(range=[0, 100], title="IoU, %")
    figure.update_layout(barmode="group", bargap=0.25)
    return _style(figure, height=125 + 190 * height, title=None)


def table_html(frame: pd.DataFrame, *, digits: int = 3, index: bool = False) -> str:
    """The table as HTML, everything escaped, missing values as a dash."""
    return frame.to_html(
        index=index, border=0, classes="table", escape=True, na_rep="-", float_format=f"{{:.{digits}f}}".format
    )


def _style(figure: "go.Figure", *, height: int, title: str | None) -> "go.Figure":
    """Sober look shared by all curves: clear background (page or notebook shows through), readable fonts."""
    font: dict[str, Any] = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13}
    grid = "rgba(128,128,128,0.25)"
    more = 22 * (sum(trace.showlegend is not False for trace in figure.data) // 4)  # further rows of the legend
    figure.update_xaxes(gridcolor=grid, zeroline=False, linecolor="rgba(128,128,128,0.6)", showline=True)
    figure.update_yaxes(gridcolor=grid, zeroline=False)
    figure.update_annotations(font_size=13)
    figure.update_layout(
        template="none",
        height=height + more,
        font=font,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        title={"text": title, "x": 0, "xref": "paper", "font_size": 15} if title else None,
        margin={"l": 60, "r": 20, "t": 75 if title else 40, "b": 85 + more},
        hoverlabel_align="left",
        showlegend=True,
        legend={"orientation": "h", "y": 0, "yanchor": "bottom", "yref": "container", "x": 0},
    )
    return figure


def _text(value: Any) -> str:
    """Text for plotly, which reads HTML tags in names."""
    return html.escape(str(value), quote=False)
