"""Curves, bars and matrices: tables in, a new plotly figure out. No model, config or file is touched here.

A run keeps its colour in every figure; what was measured stands in the heading. Plotly is imported where it is used
only.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from toco_lab.vocabulary import (
    AFTER_ATTENTION,
    AFTER_BLOCK,
    EMBEDDING,
    F1,
    FINAL_NORM,
    MEAN_ABSOLUTE_COSINE,
    MEAN_SCORES,
    MIOU,
    NO_NORM,
    TITLES,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F")  # Okabe and Ito
INK = "#7f7f7f"  # of text: read on white and on black, for the background is the page's
DASHES = ("solid", "dash", "dot", "dashdot")


def run_colours(names: Iterable[str]) -> dict[str, str]:
    """One colour per name, in order; pass the result to every figure so that a run looks the same in all of them."""
    return {name: RUN_COLOURS[i % len(RUN_COLOURS)] for i, name in enumerate(dict.fromkeys(names))}


def smoothing_curves(
    frame: pd.DataFrame,
    *,
    keys: Sequence[tuple[str, str]] = (MEAN_ABSOLUTE_COSINE,),
    colours: Mapping[str, str] | None = None,
    title: str | None = None,
) -> "go.Figure":
    """Metrics per layer: a line per model (mean over images) with a band from lower to upper quartile.

    A line runs through the residual stream: embedding (0), after the attention of block k (k - 1/2), after block k, as
    far as the table has them. The site "final norm" is no further block: it stands as a diamond of its own behind.

    Args:
        frame: Table of `smoothing.smoothing_per_layer`, of one or more models.
        keys: (metric, variant) to draw, one dash style each.
        colours: Colour of each model, see `run_colours`.
        title: First line of the heading; the second always names variant, sites, norm and token set.

    Raises:
        ValueError: If the table has none of the metrics.
    """
    import plotly.graph_objects as go

    shown = _chosen(frame, keys)
    colours = colours or run_colours(shown["model"])
    figure = go.Figure()
    for i, key in enumerate(keys):
        for model, rows in _of_key(shown, key).groupby("model", sort=False):
            name = _text(model) + (f", {_text(key[0])}" if len(keys) > 1 else "")
            _add_layers(figure, rows, name=name, colour=colours[model], dash=DASHES[i % len(DASHES)], shown=shown)
    _layer_axis(figure, shown)
    cosine = all("cosine" in metric for metric, _ in keys) and shown["value"].min() >= 0
    figure.update_yaxes(title="mean |cos|" if cosine else _text(keys[0][0]), range=[0, 1] if cosine else None)
    subject = f"{keys[0][0].capitalize()} of patch tokens" if len(keys) == 1 else "Pairs of patch tokens"
    heading = title or f"{subject} per layer"
    return _style(figure, height=460, title=f"{_text(heading)}<br><sub>{_text(_what(shown))}</sub>")


def smoothing_panels(
    frame: pd.DataFrame,
    *,
    keys: Sequence[tuple[str, str]] | None = None,
    colours: Mapping[str, str] | None = None,
    width: int = 3,
    title: str | None = None,
) -> "go.Figure":
    """A small panel per metric, each with its own scale, so that metrics can be compared in shape.

    Args:
        frame: Table of `smoothing.smoothing_per_layer`, of one or more models.
        keys: (metric, variant) to draw; None takes all the table has.
        colours: Colour of each model, see `run_colours`.
        width: Panels in a row.
        title: First line of the heading.

    Raises:
        ValueError: If the table has none of the metrics.
    """
    from plotly.subplots import make_subplots

    keys = keys or [*frame[["metric", "variant"]].drop_duplicates().itertuples(index=False, name=None)]
    shown = _chosen(frame, keys)
    keys = [key for key in keys if len(_of_key(shown, key))]
    colours = colours or run_colours(shown["model"])
    height = -(-len(keys) // width)
    titles = [f"{_text(metric)}<br><sub>{_text(variant)}</sub>" for metric, variant in keys]
    figure = make_subplots(
        height, width, subplot_titles=titles, horizontal_spacing=0.08, vertical_spacing=min(0.42, 0.38 / height)
    )
    for i, key in enumerate(keys):
        place = {"row": i // width + 1, "col": i % width + 1}
        for model, rows in _of_key(shown, key).groupby("model", sort=False):
            _add_layers(
                figure, rows, name=_text(model), colour=colours[model], shown=shown, legend=i == 0, small=True, **place
            )
        _layer_axis(figure, shown, **place)
    heading = f"{_text(title or 'What each metric sees')}<br><sub>{_text(_what(shown, variants=False))}</sub>"
    return _style(figure, height=140 + 230 * height, title=heading, top=105)


def sublayer_bars(
    frame: pd.DataFrame, *, key: tuple[str, str] = MEAN_ABSOLUTE_COSINE, title: str | None = None
) -> "go.Figure":
    """What each attention and each MLP adds to a metric: two bars per block, a panel per model, mean over images.

    Args:
        frame: Table of `smoothing.smoothing_per_layer` with the sites patch embedding, after attention, after block.
        key: (metric, variant).
        title: First line of the heading.

    Raises:
        ValueError: If the metric or one of the sites is missing.
    """
    from plotly.subplots import make_subplots

    shown = _chosen(frame, [key])
    absent = {EMBEDDING, AFTER_ATTENTION, AFTER_BLOCK} - set(shown["site"])
    if absent:
        raise ValueError(f"the table has no site {', '.join(sorted(absent))}: measure with sites=smoothing.SITES")
    models = list(dict.fromkeys(shown["model"]))
    figure = make_subplots(1, len(models), subplot_titles=list(map(_text, models)), shared_yaxes=True)
    for column, model in enumerate(models, start=1):
        means = shown[shown["model"] == model].groupby(["site", "layer"])["value"].mean()
        middle, after = means[AFTER_ATTENTION], means[AFTER_BLOCK]
        before = pd.concat([means[EMBEDDING], after])
        bars = {"attention": middle - before.shift(1).reindex(middle.index), "MLP": after - middle}
        for (part, change), colour in zip(bars.items(), RUN_COLOURS, strict=False):
            figure.add_bar(
                x=change.index.tolist(),
                y=change.tolist(),
                name=part,
                legendgroup=part,
                showlegend=column == 1,
                marker_color=colour,
                hovertemplate=f"{part} of block %{{x}}: %{{y:+.3f}}<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_xaxes(title="block", dtick=1)
    figure.update_yaxes(title=f"change of {_text(key[0])}", col=1)
    heading = f"{_text(title or 'Which part of a block smooths')}<br><sub>{_text(_what(shown))}</sub>"
    return _style(figure, height=420, title=heading, top=105)


def layer_matrix(matrix: pd.DataFrame, *, title: str) -> "go.Figure":
    """A square table in [0, 1], blocks against blocks (`smoothing.layer_similarity`), as a heat map."""
    import plotly.graph_objects as go

    names = list(map(str, matrix.index))
    figure = go.Figure()
    figure.add_heatmap(
        x=names,
        y=names,
        z=matrix.to_numpy().tolist(),
        zmin=0,
        zmax=1,
        colorscale="Viridis",
        colorbar_title="CKA",
        hovertemplate="blocks %{y} and %{x}: %{z:.3f}<extra></extra>",
    )
    figure.update_xaxes(title="block", type="category")
    figure.update_yaxes(title="block", type="category", scaleanchor="x", autorange="reversed")
    return _style(figure, height=460, title=_text(title)).update_layout(showlegend=False)


def quality_and_similarity(
    quality: pd.DataFrame, smoothing: pd.DataFrame, *, colours: Mapping[str, str] | None = None
) -> "go.Figure":
    """CAM quality of every layer above the similarity of its tokens: what smoothing costs.

    Args:
        quality: Table of `layer_cams.layer_cam_quality` with a column `model`; solid is the threshold that is not
            tuned (of the config), dotted the best of each layer.
        smoothing: Table of `smoothing.smoothing_per_layer` with the same models.
        colours: Colour of each model, see `run_colours`.
    """
    from plotly.subplots import make_subplots

    shown = _chosen(smoothing, [MEAN_ABSOLUTE_COSINE])
    colours = colours or run_colours(shown["model"])
    counts = quality[["images", "trained_on"]].drop_duplicates().itertuples(index=False)
    images = ", ".join(f"{tested} images, heads trained on {trained}" for tested, trained in counts)
    titles = (f"mIoU of CAMs from a linear head on each block ({images})", "similarity of the patch tokens")
    figure = make_subplots(2, 1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.12)
    last = int(shown["layer"].max())
    for model, rows in quality.groupby("model", sort=False):
        for part, dash in ((rows[rows["own"]], "solid"), (rows[rows["best"]], "dot")):
            part = part.drop_duplicates(["site", "layer"])
            x = (part["layer"] + (part["site"] == FINAL_NORM)).tolist()
            figure.add_scatter(
                x=x,
                y=(100 * part["miou"]).tolist(),
                mode="lines+markers",
                name=_text(model),
                legendgroup=model,
                showlegend=dash == "solid",
                line={"color": colours[model], "dash": dash},
                customdata=part["threshold"].tolist(),
                hovertemplate=f"{_text(model)}, layer %{{x}}: %{{y:.1f}} %, threshold %{{customdata}}<extra></extra>",
                row=1,
                col=1,
            )
    for model, rows in shown[shown["site"] != AFTER_ATTENTION].groupby("model", sort=False):
        _add_layers(figure, rows, name=_text(model), colour=colours[model], shown=shown, legend=False, row=2, col=1)
    _layer_axis(figure, shown, row=2, col=1)
    figure.update_xaxes(range=[0.5, last + 1.5])
    figure.update_yaxes(title="mIoU, %", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title="mean |cos|", range=[0, 1], row=2, col=1)
    return _style(figure, height=620, title=None)


def _chosen(frame: pd.DataFrame, keys: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Rows of the (metric, variant) pairs asked for; ValueError if there are none."""
    pairs = pd.MultiIndex.from_frame(frame[["metric", "variant"]])
    shown = frame[pairs.isin(list(keys))]
    if shown.empty:
        there = "; ".join(f"{metric} ({variant})" for metric, variant in dict.fromkeys(pairs))
        raise ValueError(f"no rows of {', '.join(f'{m} ({v})' for m, v in keys)}; the table has {there}")
    return shown


def _of_key(frame: pd.DataFrame, key: tuple[str, str]) -> pd.DataFrame:
    return frame[(frame["metric"] == key[0]) & (frame["variant"] == key[1])]


def _layer_axis(figure: "go.Figure", shown: pd.DataFrame, **place: int) -> None:
    """Blocks as ticks, and the place of the final norm behind them."""
    sites = shown["site"].unique()
    last, normed = int(shown["layer"].max()), FINAL_NORM in sites
    first = 0 if EMBEDDING in sites else 1
    step = 1 if last <= 12 and not place else max(1, last // 4)
    ticks = [tick for tick in range(first, last + 1, step) if not (place and normed and tick == last)]
    names = [*map(str, ticks)] + (["norm"] if normed else [])
    title = {"title": "block"} if not place else {}
    figure.update_xaxes(tickvals=ticks + [last + 1] * normed, ticktext=names, tickangle=0, **title, **place)


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
    **place: int,
) -> None:
    """Mean and quartiles of one model and metric: a line through the stream, and one diamond for the final norm."""
    normed = rows["site"] == FINAL_NORM
    half = 0.5 * (rows["site"] == AFTER_ATTENTION)
    places = rows.assign(x=rows["layer"] - half)[~normed].groupby("x")["value"]
    stats = places.agg(["count", "mean"]).join(places.quantile([0.25, 0.75]).unstack().set_axis(["25%", "75%"], axis=1))
    last = int(shown["layer"].max())
    x, mean, low, high = stats.index.tolist(), *(stats[key].tolist() for key in ("mean", "25%", "75%"))
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
        **place,
    )
    hover = (
        f"{name}<br>layer %{{x}}: %{{y:.3f}}<br>quartiles %{{customdata[0]:.3f}} to %{{customdata[1]:.3f}} over "
        "%{customdata[2]} images<extra></extra>"
    )
    figure.add_scatter(
        x=x,
        y=mean,
        name=name,
        legendgroup=name,
        showlegend=legend,
        mode="lines+markers",
        line={"color": colour, "dash": dash, "width": 1.6 if small else 2},
        marker_size=3 if small else 6,
        customdata=list(zip(low, high, stats["count"].astype(int).tolist(), strict=True)),
        hovertemplate=hover,
        **place,
    )
    if normed.any():
        values = rows[normed]["value"].describe()
        figure.add_scatter(
            x=[last + 1],
            y=[values["mean"]],
            name=f"{name}, final norm",
            legendgroup=name,
            mode="markers",
            showlegend=False,
            error_y={
                "array": [max(0, values["75%"] - values["mean"])],
                "arrayminus": [max(0, values["mean"] - values["25%"])],
                "symmetric": False,
            },
            marker={"symbol": "diamond", "size": 7 if small else 11, "color": colour},
            customdata=[(values["25%"], values["75%"], int(values["count"]))],
            hovertemplate=hover.replace("layer %{x}", FINAL_NORM),
            **place,
        )


def _what(shown: pd.DataFrame, *, variants: bool = True) -> str:
    """Variants, sites with their norms, token set and N of a table, in words."""
    sites = shown[["site", "norm"]].drop_duplicates().itertuples(index=False)
    places = ", ".join(f"{site} ({'raw' if norm == NO_NORM else norm})" for site, norm in sites)
    counts = sorted(shown["tokens"].unique()) if "tokens" in shown else []
    count = f", N = {counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else "") if counts else ""
    named = ", ".join(shown["variant"].unique()) + "; " if variants else ""
    return f"{named}{places}; {', '.join(shown['token_set'].unique())}{count}"


def training_curves(
    metrics: pd.DataFrame | Mapping[str, pd.DataFrame],
    *,
    colours: Mapping[str, str] | None = None,
    columns: Sequence[str] | None = None,
) -> "go.Figure":
    """Small panels over the step: each loss term, |cos| of PTC's pairs, and validation scores where there are some.

    Args:
        metrics: Rows of metrics.csv with a column `step`, of one run or per run name. Several rows of one step, as of
            seeds of one config, are drawn as their mean with a band from the lowest to the highest.
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
                rows = frame[frame[column].notna()].groupby("step", as_index=False)[column].agg(["mean", "min", "max"])
                place = {"row": i // width + 1, "col": i % width + 1}
                if (rows["min"] < rows["max"]).any():
                    figure.add_scatter(
                        x=rows["step"].tolist() + rows["step"].tolist()[::-1],
                        y=rows["max"].tolist() + rows["min"].tolist()[::-1],
                        fill="toself",
                        fillcolor=colours[name],
                        opacity=0.15,
                        mode="lines",
                        line_width=0,
                        hoverinfo="skip",
                        showlegend=False,
                        legendgroup=name,
                        name=f"{_text(name)}, lowest to highest",
                        **place,
                    )
                figure.add_scatter(
                    x=rows["step"].tolist(),
                    y=rows["mean"].tolist(),
                    name=_text(name),
                    legendgroup=name,
                    showlegend=i == 0,
                    mode="lines+markers" if len(rows) < 30 else "lines",
                    line={"color": colours[name], "width": 1.8},
                    marker_size=4,
                    hovertemplate=f"{_text(name)}<br>step %{{x}}: %{{y:.4g}}<extra></extra>",
                    **place,
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
    frame = frame[~frame["class"].isin([F1])]
    targets = list(dict.fromkeys(frame["target"]))
    colours = colours or run_colours(frame["run"])
    height = max(1, len(targets))
    titles = [TITLES.get(target, _text(target)) for target in targets]
    figure = make_subplots(height, 1, subplot_titles=titles, shared_xaxes=True, vertical_spacing=0.16 / height)
    for i, target in enumerate(targets, start=1):
        part = frame[frame["target"] == target]
        classes = sorted(dict.fromkeys(part["class"]), key=lambda name: name == MIOU)  # stable: mIoU goes last
        for name, rows in part.groupby("run", sort=False):
            values = rows.set_index("class")["iou"].reindex(classes) * 100
            ticks = ["<b>mean</b>" if label == MIOU else _text(label) for label in classes]
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


def ablation_plot(
    frame: pd.DataFrame, summary: pd.DataFrame, *, titles: Mapping[str, str] | None = None, title: str | None = None
) -> "go.Figure":
    """Rows of an ablation over seeds, a panel per score: every run a dot, the mean a bar across, ± one sd a line.

    The dashed line is the mean of the first row's reference (or of the first row), to read differences by eye; whether
    one is more than chance stands in the table, where rows are paired by seed.

    Args:
        frame: One line per run: row, seed, scores.
        summary: Table of `ablation.summarise` of that frame; its scores are drawn, in its order of rows.
        titles: Heading of each score.
        title: Heading of the figure.
    """
    from plotly.subplots import make_subplots

    scores, rows = (list(dict.fromkeys(summary[name])) for name in ("score", "row"))
    titles = {name: TITLES.get(name, name) for name in scores} | dict(titles or {})
    figure = make_subplots(
        1, len(scores), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=[_text(titles[s]) for s in scores]
    )
    for column, score in enumerate(scores, start=1):
        part = summary[summary["score"] == score].set_index("row")
        factor = 100 if score.endswith(MEAN_SCORES) else 1
        runs = frame[frame[score].notna()]
        figure.add_scatter(
            x=(factor * runs[score]).tolist(), y=[_text(row) for row in runs["row"]], mode="markers",
            marker={"size": 7, "color": RUN_COLOURS[0], "opacity": 0.45}, name="a run", showlegend=column == 1,
            customdata=runs["seed"].tolist(), hovertemplate="%{y}, seed %{customdata}: %{x:.3~f}<extra></extra>",
            row=1, col=column,
        )  # fmt: skip
        figure.add_scatter(
            x=(factor * part["mean"]).tolist(), y=[_text(row) for row in part.index], mode="markers",
            error_x={"array": (factor * part["sd"]).fillna(0).tolist(), "thickness": 1.6, "width": 0},
            marker={"size": 15, "symbol": "line-ns", "line": {"width": 2.5, "color": RUN_COLOURS[1]}},
            marker_color=RUN_COLOURS[1], name="mean ± sd over seeds", showlegend=column == 1,
            customdata=part["seeds"].tolist(),
            hovertemplate="%{y}: %{x:.3~f} ± %{error_x.array:.2~f}, %{customdata} seeds<extra></extra>",
            row=1, col=column,
        )  # fmt: skip
        compared = next((name for name in part["reference"] if name), rows[0])
        figure.add_vline(
            x=factor * part.loc[compared, "mean"], line={"dash": "dash", "width": 1, "color": INK}, row=1, col=column
        )
        figure.update_xaxes(title="points" if factor == 100 else "", row=1, col=column)
    figure.update_yaxes(categoryorder="array", categoryarray=[_text(row) for row in reversed(rows)])
    figure.update_yaxes(automargin=True, col=1)
    return _style(figure, height=190 + 30 * len(rows), title=title)


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
        colours: Colour of each group, see `run_colours`.
        note: Put into the heading's second line.
    """
    import plotly.graph_objects as go

    numeric = pd.api.types.is_numeric_dtype(means["x"])
    colours = colours or run_colours(means["group"])
    figure = go.Figure()
    for group, rows in means.groupby("group", sort=False):
        own = points[points["group"] == group]
        name = _text(f"{colour} = {group}") if colour else "mean and standard deviation"
        figure.add_scatter(
            x=own["x"].tolist(),
            y=own["y"].tolist(),
            mode="markers",
            name=f"{name}, runs",
            legendgroup=name,
            offsetgroup=name,
            showlegend=False,
            marker={"color": colours[group], "size": 7, "opacity": 0.45},
            customdata=[_text(run) for run in own["run"]],
            hovertemplate="%{customdata}<br>%{x}: %{y:.4g}<extra></extra>",
        )
        figure.add_scatter(
            x=rows["x"].tolist(),
            y=rows["mean"].tolist(),
            mode="lines+markers" if numeric else "markers",
            name=name,
            legendgroup=name,
            offsetgroup=name,
            line={"color": colours[group], "width": 2},
            marker={"color": colours[group], "size": 10, "symbol": "diamond"},
            error_y={"type": "data", "array": rows["std"].fillna(0).tolist(), "color": colours[group], "width": 6},
            customdata=list(zip(rows["std"].map("{:.2g}".format), rows["runs"].tolist(), strict=True)),
            hovertemplate=f"{name}<br>%{{x}}: %{{y:.4g}} ± %{{customdata[0]}} (%{{customdata[1]}} runs)<extra></extra>",
        )
    figure.update_xaxes(title=_text(parameter))
    if not numeric:  # a word that looks like a number stays a word; groups stand beside each other
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=list(dict.fromkeys(points["x"])))
        figure.update_layout(scattermode="group", scattergap=0.4)
    figure.update_yaxes(title=_text(metric))
    heading = f"{_text(metric)} against {_text(parameter)}<br><sub>{_text(note) or ' '}</sub>"
    return _style(figure, height=460, title=heading)


def _style(figure: "go.Figure", *, height: int, title: str | None, top: int = 75) -> "go.Figure":
    """Sober look shared by all curves: clear background (page or notebook shows through), readable fonts."""
    family = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
    font: dict[str, Any] = {"family": family, "size": 13, "color": INK}
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
        title={"text": title, "x": 0, "xref": "paper", "y": 1, "yanchor": "top", "pad_t": 14, "font_size": 15}
        if title
        else None,
        margin={"l": 60, "r": 20, "t": top if title else 40, "b": 85 + more},
        hoverlabel_align="left",
        showlegend=True,
        legend={"orientation": "h", "y": 0, "yanchor": "bottom", "yref": "container", "x": 0},
    )
    return figure


def _text(value: Any) -> str:
    """Text for plotly, which reads HTML tags in names."""
    return html.escape(str(value), quote=False)
