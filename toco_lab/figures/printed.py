"""Curves, bars and scatter plots on paper: tables in, a new matplotlib figure out. The numbers come from `series`."""

import io
from collections.abc import Mapping
from typing import IO, Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from toco_lab.figures import series
from toco_lab.figures.colours import MEAN_BAR, RUN_DOT
from toco_lab.figures.pictures import PICTURE_SIZE, plain_text


def write_png(file: IO[Any], figure: Figure, *, dpi: int) -> None:
    """Write a figure as a PNG of 256 colours, dithered: a gallery takes a third of the bytes, and looks the same."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    few_colours(Image.open(drawn)).save(file, format="PNG", optimize=True)


_ACROSS = 6  # panels in a line of `ablation_plot`


def few_colours(picture: Image.Image) -> Image.Image:
    """A picture in 256 colours of its own."""
    picture = picture.convert("RGB")
    palette = picture.quantize(256, method=Image.Quantize.FASTOCTREE)  # the others tint a white ground
    return picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def ablation_plot(frame: pd.DataFrame, summary: pd.DataFrame, *, titles: Mapping[str, str] | None = None) -> Figure:
    """Rows of an ablation over seeds, a panel per score: every run a dot, the mean a bar across, ± one sd a line.

    On screen this is `interactive.ablation_plot`; the dashed line is the mean of the row that others are compared with.

    Args:
        frame: One line per run: row, seed, scores.
        summary: Table of `reports.ablation.summarise` of that frame; its scores are drawn, in its order of rows.
        titles: Heading of each score.
    """
    rows, scores = series.ablation_rows(summary), series.ablation_points(frame, summary)
    place = {row: number for number, row in enumerate(rows)}
    width = 1.2 + 0.075 * max(map(len, rows))
    across = min(len(scores), _ACROSS)
    down = -(-len(scores) // across)
    figure = Figure(figsize=(width + 2.2 * across, down * (0.9 + 0.3 * len(rows))), layout="constrained")
    panels = list(figure.subplots(down, across, sharey=True, squeeze=False).flat)
    for empty in panels[len(scores) :]:
        empty.remove()
    for axes, score in zip(panels, scores, strict=False):
        runs, means = score.runs, score.means
        axes.plot(runs["value"], runs["row"].map(place), "o", color=RUN_DOT, alpha=0.4, markersize=4)
        if len(means):
            axes.errorbar(
                means["mean"], means["row"].map(place), xerr=means["sd"], fmt="|", color=MEAN_BAR, markersize=11,
                markeredgewidth=2, elinewidth=1.4,
            )  # fmt: skip
        if score.compared is not None:
            axes.axvline(score.compared, color="0.4", linestyle="--", linewidth=0.8)
        axes.set_title((titles or {}).get(score.score, score.score), fontsize=9)
        axes.set_xlabel("\n".join(["points"] * score.in_points + [f"over {score.over}"]), fontsize=8)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="x", color="0.85", linewidth=0.6)
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(rows)), list(map(plain_text, rows)))
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    return figure


def metric_by_parameter(
    points: pd.DataFrame,
    means: pd.DataFrame,
    *,
    metric: str,
    parameter: str,
    colours: Mapping[str, str],
    colour: str | None = None,
    note: str = "",
) -> Figure:
    """A metric against a parameter: every run as a point, mean and standard deviation of the runs of equal parameter.

    On screen this is `interactive.metric_by_parameter`.

    Args:
        points: A row per run: run, x, y, group; in the order of the categories.
        means: A row per value and group: x, group, mean, std (NaN for a single run), runs; in the order of the groups.
        metric: Name of y.
        parameter: Name of x.
        colours: Colour of each group.
        colour: Name of what the groups differ in; None has one group, and no legend.
        note: A second, smaller line of the heading.
    """
    figure = Figure(figsize=(3.2 * PICTURE_SIZE, 1.9 * PICTURE_SIZE), layout="constrained")
    axes = figure.subplots()
    numeric = pd.api.types.is_numeric_dtype(means["x"])
    places = {x: x if numeric else place for place, x in enumerate(dict.fromkeys(points["x"]))}
    groups = list(dict.fromkeys(means["group"]))
    for i, group in enumerate(groups):
        own, rows = points[points["group"] == group], means[means["group"] == group]
        aside = 0.0 if numeric else 0.6 * ((i + 0.5) / len(groups) - 0.5)  # categories leave room beside each other
        axes.plot(own["x"].map(places) + aside, own["y"], "o", color=colours[group], markersize=5, alpha=0.45)
        line, label = "-" if numeric else "none", plain_text(f"{colour} = {group}") if colour else None
        axes.errorbar(
            rows["x"].map(places) + aside, rows["mean"], rows["std"].fillna(0), linestyle=line, marker="D",
            markersize=7, capsize=4, color=colours[group], label=label,
        )  # fmt: skip
    if not len(points):
        axes.text(0.5, 0.5, "no run has values of both", ha="center", va="center", transform=axes.transAxes)
    if not numeric and places:
        axes.set_xticks(list(places.values()), [plain_text(x) for x in places])
        axes.margins(x=0.15)
    axes.set_xlabel(plain_text(parameter))
    axes.set_ylabel(plain_text(metric))
    axes.grid(alpha=0.3)
    axes.set_title(plain_text(note), fontsize=9)
    figure.suptitle(plain_text(f"{metric} against {parameter}"), fontsize=13)
    if colour:
        figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    return figure


def line_panels(
    table: pd.DataFrame, *, colours: Mapping[str, str], x_title: str, ticks: Mapping[int, str] | None = None
) -> Figure:
    """Small panels of lines with bands, as training curves and curves over layers are printed.

    Args:
        table: A row per point: panel, line, x, mean, low and high (the band; NaN for none), apart (a point that
            belongs to no line, drawn as a diamond with a bar). `series` makes such tables. Panels have own scales.
        colours: Colour of each line.
        x_title: Name of x.
        ticks: Words for some x; numbers without.

    Raises:
        ValueError: If the table is empty.
    """
    panels = list(dict.fromkeys(table["panel"]))
    if not panels:
        raise ValueError("line_panels needs at least one panel")
    width = min(3, len(panels))
    height = -(-len(panels) // width)
    figure = Figure(figsize=(max(4.2, 2.9 * width), 2.2 * height + 0.5), layout="constrained")
    axes = figure.subplots(height, width, squeeze=False).ravel()
    for ax, panel in zip(axes, panels, strict=False):
        for line, rows in table[table["panel"] == panel].groupby("line", sort=False):
            alone, rows = rows[rows["apart"]], rows[~rows["apart"]]
            points = {"marker": "o", "markersize": 2.5} if len(rows) < 30 else {}
            ax.plot(rows["x"], rows["mean"], color=colours[line], label=plain_text(line), **points)
            ax.fill_between(rows["x"], rows["low"], rows["high"], color=colours[line], alpha=0.18, linewidth=0)
            ax.vlines(alone["x"], alone["low"], alone["high"], color=colours[line], linewidth=1.2)
            ax.plot(alone["x"], alone["mean"], "D", color=colours[line], markersize=4)
        ax.set_title(plain_text(panel), fontsize=9)
        ax.tick_params(labelsize=8)
        ax.grid(color="0.88", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        if ticks:
            ax.set_xticks(list(ticks), list(ticks.values()))
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    figure.supxlabel(x_title, fontsize=9)
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside upper left", ncols=3, fontsize=8, frameon=False)
    return figure
