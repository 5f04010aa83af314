"""Curves, bars and matrices on screen: tables in, a new plotly figure out. No model, config or file is touched here.

A run keeps its colour in every figure, and the heading says what was measured. The numbers come from `series`, the look
from `plotly_style`. Plotly is imported only where it is used.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from toco_lab.figures import series
from toco_lab.figures.colours import LINE_COLOURS, assign_colours
from toco_lab.figures.counted import images_measured, images_tested
from toco_lab.figures.plotly_style import add_band, escaped, heading_of, styled
from toco_lab.figures.series import Metric
from toco_lab.vocabulary import AFTER_ATTENTION, AFTER_BLOCK, EMBEDDING, FINAL_NORM, MEAN_ABSOLUTE_COSINE, MIOU, TITLES

if TYPE_CHECKING:
    import plotly.graph_objects as go

DASHES = ("solid", "dash", "dot", "dashdot")


def smoothing_curves(
    frame: pd.DataFrame,
    *,
    metrics: Sequence[Metric] = (MEAN_ABSOLUTE_COSINE,),
    colours: Mapping[str, str] | None = None,
    title: str | None = None,
) -> "go.Figure":
    """Metrics per layer: a line per model (mean over images) with a band from lower to upper quartile.

    A line runs through the residual stream: embedding (0), after the attention of block k (k - 1/2), after block k, as
    far as the table has them. The final norm is no further block: it stands as a diamond of its own behind the line.

    Args:
        frame: Table of `smoothing.smoothing_per_layer`, of one or more models.
        metrics: (metric, variant) to draw, one dash style each.
        colours: Colour of each model; `assign_colours` chooses them by default.
        title: First line of the heading; the second always names variant, sites, norm and token set.

    Raises:
        ValueError: If the table has none of the metrics.
    """
    import plotly.graph_objects as go

    shown = series.rows_of_metrics(frame, metrics)
    colours = colours or assign_colours(shown["model"])
    figure = go.Figure()
    for i, metric in enumerate(metrics):
        for model, rows in series.rows_of_metric(shown, metric).groupby("model", sort=False):
            name = escaped(model) + (f", {escaped(metric[0])}" if len(metrics) > 1 else "")
            _add_layers(figure, rows, name=name, colour=colours[model], dash=DASHES[i % len(DASHES)], shown=shown)
    _layer_axis(figure, shown)
    cosine = all("cosine" in name for name, _ in metrics) and shown["value"].min() >= 0
    figure.update_yaxes(title="mean |cos|" if cosine else escaped(metrics[0][0]), range=[0, 1] if cosine else None)
    subject = f"{metrics[0][0].capitalize()} of patch tokens" if len(metrics) == 1 else "Pairs of patch tokens"
    return styled(figure, height=460, title=heading_of(title or f"{subject} per layer", series.measured_at(shown)))


def smoothing_panels(
    frame: pd.DataFrame,
    *,
    metrics: Sequence[Metric] | None = None,
    colours: Mapping[str, str] | None = None,
    width: int = 3,
    title: str | None = None,
) -> "go.Figure":
    """A small panel per metric, each with its own scale, so that metrics can be compared in shape.

    Args:
        frame: Table of `smoothing.smoothing_per_layer`, of one or more models.
        metrics: (metric, variant) to draw; None takes all that the table has.
        colours: Colour of each model; `assign_colours` chooses them by default.
        width: Panels in a row.
        title: First line of the heading.

    Raises:
        ValueError: If the table has none of the metrics.
    """
    from plotly.subplots import make_subplots

    metrics = metrics or series.metrics_of(frame)
    shown = series.rows_of_metrics(frame, metrics)
    metrics = [metric for metric in metrics if len(series.rows_of_metric(shown, metric))]
    colours = colours or assign_colours(shown["model"])
    height = -(-len(metrics) // width)
    titles = [f"{escaped(metric)}<br><sub>{escaped(variant)}</sub>" for metric, variant in metrics]
    figure = make_subplots(
        height, width, subplot_titles=titles, horizontal_spacing=0.08, vertical_spacing=min(0.42, 0.38 / height)
    )
    for i, metric in enumerate(metrics):
        place = {"row": i // width + 1, "col": i % width + 1}
        for model, rows in series.rows_of_metric(shown, metric).groupby("model", sort=False):
            _add_layers(
                figure,
                rows,
                name=escaped(model),
                colour=colours[model],
                shown=shown,
                legend=i == 0,
                small=True,
                place=place,
            )
        _layer_axis(figure, shown, place)
    heading = heading_of(title or "What each metric sees", series.measured_at(shown, variants=False))
    return styled(figure, height=140 + 230 * height, title=heading, top=105)


def sublayer_bars(
    frame: pd.DataFrame, *, metric: Metric = MEAN_ABSOLUTE_COSINE, title: str | None = None
) -> "go.Figure":
    """What each attention and each MLP adds to a metric: two bars per block, a panel per model, mean over images.

    Args:
        frame: Table of `smoothing.smoothing_per_layer` with the sites patch embedding, after attention, after block.
        metric: (metric, variant).
        title: First line of the heading.

    Raises:
        ValueError: If the metric or one of the sites is missing.
    """
    from plotly.subplots import make_subplots

    shown = series.rows_of_metrics(frame, [metric])
    absent = {EMBEDDING, AFTER_ATTENTION, AFTER_BLOCK} - set(shown["site"])
    if absent:
        raise ValueError(f"the table has no site {', '.join(sorted(absent))}: measure with sites=smoothing.SITES")
    models = list(dict.fromkeys(shown["model"]))
    figure = make_subplots(1, len(models), subplot_titles=list(map(escaped, models)), shared_yaxes=True)
    for column, model in enumerate(models, start=1):
        changes = series.sublayer_changes(shown[shown["model"] == model])
        for part, colour in zip(changes, LINE_COLOURS, strict=False):
            figure.add_bar(
                x=changes.index.tolist(), y=changes[part].tolist(), name=part, legendgroup=part,
                showlegend=column == 1, marker_color=colour,
                hovertemplate=f"{part} of block %{{x}}: %{{y:+.3f}}<extra></extra>", row=1, col=column,
            )  # fmt: skip
    figure.update_xaxes(title="block", dtick=1)
    figure.update_yaxes(title=f"change of {escaped(metric[0])}", col=1)
    heading = heading_of(title or "Which part of a block smooths", series.measured_at(shown))
    return styled(figure, height=420, title=heading, top=105)


def layer_matrix(matrix: pd.DataFrame, *, title: str) -> "go.Figure":
    """A square table in [0, 1], blocks against blocks (`smoothing.layer_similarity`), as a heat map."""
    import plotly.graph_objects as go

    names = list(map(str, matrix.index))
    figure = go.Figure()
    figure.add_heatmap(
        x=names, y=names, z=matrix.to_numpy().tolist(), zmin=0, zmax=1, colorscale="Viridis", colorbar_title="CKA",
        hovertemplate="blocks %{y} and %{x}: %{z:.3f}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title="block", type="category")
    figure.update_yaxes(title="block", type="category", scaleanchor="x", autorange="reversed")
    return styled(figure, height=460, title=escaped(title)).update_layout(showlegend=False)


def quality_and_similarity(
    quality: pd.DataFrame, smoothing: pd.DataFrame, *, colours: Mapping[str, str] | None = None
) -> "go.Figure":
    """CAM quality of every layer above the similarity of its tokens: what smoothing costs.

    Args:
        quality: Table of `evaluation.layer_cam_quality` with a column `model`. A solid line has the threshold of the
            config, a dotted one the best threshold of each layer.
        smoothing: Table of `smoothing.smoothing_per_layer` with the same models.
        colours: Colour of each model; `assign_colours` chooses them by default.
    """
    from plotly.subplots import make_subplots

    shown = series.rows_of_metrics(smoothing, [MEAN_ABSOLUTE_COSINE])
    colours = colours or assign_colours(shown["model"])
    over = images_measured(shown)
    titles = (
        f"mIoU of CAMs from a linear head on each block<br><sub>over {escaped(images_tested(quality))}</sub>",
        "similarity of the patch tokens" + (f"<br><sub>over {escaped(over)}</sub>" if over else ""),
    )
    figure = make_subplots(2, 1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.16)
    for model, rows in quality.groupby("model", sort=False):
        for threshold, dash in (("own", "solid"), ("best", "dot")):
            line = series.cam_quality_series(rows, threshold)
            figure.add_scatter(
                x=line["x"].tolist(), y=line["mean"].tolist(), mode="lines+markers", name=escaped(model),
                legendgroup=model, showlegend=dash == "solid", line={"color": colours[model], "dash": dash},
                customdata=line["threshold"].tolist(), row=1, col=1,
                hovertemplate=f"{escaped(model)}, layer %{{x}}: %{{y:.1f}} %, threshold %{{customdata}}<extra></extra>",
            )  # fmt: skip
    place = {"row": 2, "col": 1}
    for model, rows in shown[shown["site"] != AFTER_ATTENTION].groupby("model", sort=False):
        _add_layers(figure, rows, name=escaped(model), colour=colours[model], shown=shown, legend=False, place=place)
    _layer_axis(figure, shown, place)
    figure.update_xaxes(range=[0.5, int(shown["layer"].max()) + 1.5])
    figure.update_yaxes(title="mIoU, %", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title="mean |cos|", range=[0, 1], row=2, col=1)
    return styled(figure, height=640, title=None).update_layout(margin_t=55)


def training_curves(
    metrics: pd.DataFrame | Mapping[str, pd.DataFrame],
    *,
    colours: Mapping[str, str] | None = None,
    columns: Sequence[str] | None = None,
) -> "go.Figure":
    """Small panels over the step: each loss term, |cos| of PTC's pairs, and validation scores where there are some.

    Args:
        metrics: Rows of metrics.csv with a column `step`, of one run or per run name. Where a step has several rows, as
            for seeds of one config, their mean is drawn, with a band from the lowest to the highest.
        colours: Colour of each run; `assign_colours` chooses them by default.
        columns: Columns to draw; None takes the known ones that have a value other than zero.
    """
    from plotly.subplots import make_subplots

    frames = metrics if isinstance(metrics, Mapping) else {"run": metrics}
    colours = colours or assign_colours(frames)
    columns = series.training_columns(frames.values()) if columns is None else columns
    width = min(3, max(1, len(columns)))
    height = max(1, -(-len(columns) // width))
    figure = make_subplots(
        height, width, subplot_titles=[escaped(series.training_title(name)) for name in columns],
        horizontal_spacing=0.07, vertical_spacing=0.32 / height,
    )  # fmt: skip
    named: set[str] = set()  # runs that stand in the legend
    for i, column in enumerate(columns):
        place = {"row": i // width + 1, "col": i % width + 1}
        for run, frame in frames.items():
            if column not in frame:
                continue
            line, name = series.training_series(frame, column), escaped(run)
            if line.empty:
                continue
            if (line["low"] < line["high"]).any():
                add_band(figure, line, colour=colours[run], group=run, name=f"{name}, lowest to highest", place=place)
            figure.add_scatter(
                x=line["x"].tolist(), y=line["mean"].tolist(), name=name, legendgroup=run, showlegend=run not in named,
                mode="lines+markers" if len(line) < 30 else "lines", line={"color": colours[run], "width": 1.8},
                marker_size=4, hovertemplate=f"{name}<br>step %{{x}}: %{{y:.4g}}<extra></extra>", **place,
            )  # fmt: skip
            named.add(run)
        if series.is_share(column) or column.endswith("_cosine"):
            figure.update_yaxes(range=[0, 100 if series.is_share(column) else 1], **place)
    return styled(figure, height=125 + 210 * height, title=None)


def iou_bars(evaluation: pd.DataFrame, *, colours: Mapping[str, str] | None = None, note: str = "") -> "go.Figure":
    """IoU of each class as grouped bars, one panel per target, mIoU as the last group.

    A class without an IoU, which is in neither truth nor prediction, has a dash in place of its bar.

    Args:
        evaluation: Columns target, class, iou (in [0, 1]) and, for several runs, run. Rows of F1, and those
            of CAMs at a tuned threshold, are left out.
        colours: Colour of each run; `assign_colours` chooses them by default.
        note: Second line of the heading: over how many images. Without it there is no heading.
    """
    from plotly.subplots import make_subplots

    frame = evaluation if "run" in evaluation else evaluation.assign(run="run")
    panels = series.class_bars(frame)
    colours = colours or assign_colours(run for panel in panels for run in panel.percent)
    height = max(1, len(panels))
    titles = [TITLES.get(panel.target, escaped(panel.target)) for panel in panels]
    figure = make_subplots(height, 1, subplot_titles=titles, shared_xaxes=True, vertical_spacing=0.16 / height)
    for i, panel in enumerate(panels, start=1):
        ticks = ["<b>mean</b>" if name == MIOU else escaped(name) for name in panel.classes]
        for run, percent in panel.percent.items():
            figure.add_bar(
                x=ticks, y=percent, name=escaped(run), legendgroup=run, showlegend=i == 1, marker_color=colours[run],
                hovertemplate=f"{escaped(run)}<br>%{{x}}: %{{y:.1f}} %<extra></extra>", offsetgroup=run, row=i, col=1,
            )  # fmt: skip
        if any(math.isnan(value) for percent in panel.percent.values() for value in percent):
            _add_dashes(figure, ticks, panel.percent, colours, row=i)
    figure.update_yaxes(range=[0, 100], title="IoU, %")
    figure.update_layout(barmode="group", bargap=0.25, scattermode="group", scattergap=0.25)
    title = heading_of("IoU per class", note) if note else None
    return styled(figure, height=125 + 190 * height + 45 * bool(note), title=title, top=105)


def _add_dashes(
    figure: "go.Figure",
    ticks: Sequence[str],
    percent: Mapping[str, Sequence[float]],
    colours: Mapping[str, str],
    *,
    row: int,
) -> None:
    """A dash where a run has no bar, because a class is in neither truth nor prediction: no bar would look like 0."""
    for run, values in percent.items():  # every run takes part, so that each dash stands where its bar would
        lacking: list[str | None] = [tick for tick, value in zip(ticks, values, strict=True) if math.isnan(value)]
        figure.add_scatter(
            x=lacking or [None], y=[4 if lacking else None] * max(1, len(lacking)), mode="text", text="<b>-</b>",
            textfont_size=24, textfont_color=colours[run], showlegend=False, legendgroup=run, offsetgroup=run,
            row=row, col=1,
            hovertemplate=f"{escaped(run)}<br>%{{x}}: -, in neither truth nor prediction<extra></extra>",
        )  # fmt: skip


def _layer_axis(figure: "go.Figure", shown: pd.DataFrame, place: Mapping[str, int] | None = None) -> None:
    """Blocks as ticks, and the final norm behind them; in a panel, at `place`, only a few ticks."""
    ticks = series.layer_ticks(shown, sparse=place is not None)
    figure.update_xaxes(tickvals=list(ticks), ticktext=list(ticks.values()), tickangle=0, **(place or {}))
    if place is None:
        figure.update_xaxes(title="block")


def _add_layers(
    figure: "go.Figure",
    rows: pd.DataFrame,
    *,
    name: str,
    colour: str,
    shown: pd.DataFrame,
    dash: str = "solid",
    legend: bool = True,
    small: bool = False,
    place: Mapping[str, int] | None = None,
) -> None:
    """Mean and quartiles of one model and metric: a line through the stream, and one diamond for the final norm."""
    place = place or {}
    points = series.layer_series(rows, norm_x=int(shown["layer"].max()) + 1)
    line, normed = points[~points["apart"]], points[points["apart"]]
    add_band(figure, line, colour=colour, group=name, name=f"{name}, quartiles", place=place)
    hover = (
        f"{name}<br>layer %{{x}}: %{{y:.3f}}<br>quartiles %{{customdata[0]:.3f}} to %{{customdata[1]:.3f}} over "
        "%{customdata[2]}<extra></extra>"
    )
    figure.add_scatter(
        x=line["x"].tolist(), y=line["mean"].tolist(), name=name, legendgroup=name, showlegend=legend,
        mode="lines+markers", line={"color": colour, "dash": dash, "width": 1.6 if small else 2},
        marker_size=3 if small else 6, customdata=line[["low", "high", "over"]].values.tolist(), hovertemplate=hover,
        **place,
    )  # fmt: skip
    if len(normed):
        up, down = (normed["high"] - normed["mean"]).clip(0), (normed["mean"] - normed["low"]).clip(0)
        figure.add_scatter(
            x=normed["x"].tolist(), y=normed["mean"].tolist(), name=f"{name}, final norm", legendgroup=name,
            mode="markers", showlegend=False, marker={"symbol": "diamond", "size": 7 if small else 11, "color": colour},
            error_y={"array": up.tolist(), "arrayminus": down.tolist(), "symmetric": False},
            customdata=normed[["low", "high", "over"]].values.tolist(),
            hovertemplate=hover.replace("layer %{x}", FINAL_NORM), **place,
        )  # fmt: skip
