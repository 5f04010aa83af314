"""Curves, bars and scatter plots for paper: matplotlib."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from toco_lab.figures.pictures import _SIZE, plain_text
from toco_lab.vocabulary import MEAN_SCORES


def ablation_plot(frame: pd.DataFrame, summary: pd.DataFrame, *, titles: Mapping[str, str] | None = None) -> Figure:
    """Rows of an ablation over seeds, a panel per score: every run a dot, the mean a bar across, ± one sd a line.

    As `curves.ablation_plot`, on paper.

    Args:
        frame: One line per run: row, seed, scores.
        summary: Table of `ablation.summarise` of that frame; its scores are drawn, in its order of rows.
        titles: Heading of each score.
    """
    scores, rows = (list(dict.fromkeys(summary[name])) for name in ("score", "row"))
    place = {row: number for number, row in enumerate(rows)}
    width = 1.2 + 0.075 * max(map(len, rows))
    figure = Figure(figsize=(width + 2.2 * len(scores), 0.9 + 0.3 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for axes, score in zip(panels, scores, strict=True):
        part = summary[summary["score"] == score].set_index("row").loc[rows]
        factor = 100 if score.endswith(MEAN_SCORES) else 1
        runs = frame[frame[score].notna()]
        axes.plot(factor * runs[score], runs["row"].map(place), "o", color="#0072B2", alpha=0.4, markersize=4)
        axes.errorbar(
            factor * part["mean"], range(len(rows)), xerr=(factor * part["sd"]).fillna(0), fmt="|", color="#D55E00",
            markersize=11, markeredgewidth=2, elinewidth=1.4,
        )  # fmt: skip
        compared = next((name for name in part["reference"] if name), rows[0])
        axes.axvline(factor * part.loc[compared, "mean"], color="0.4", linestyle="--", linewidth=0.8)
        axes.set_title((titles or {}).get(score, score), fontsize=9)
        axes.set_xlabel("points" if factor == 100 else "", fontsize=8)
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
    """A metric against a parameter, as `curves.metric_by_parameter`, on paper.

    Args:
        points: A row per run: run, x, y, group; in the order of the categories.
        means: A row per value and group: x, group, mean, std (NaN for a single run), runs; in the order of the groups.
        metric: Name of y.
        parameter: Name of x.
        colours: Colour of each group.
        colour: Name of what the groups differ in; None has one group, and no legend.
        note: A second, smaller line of the heading.
    """
    figure = Figure(figsize=(3.2 * _SIZE, 1.9 * _SIZE), layout="constrained")
    axes = figure.subplots()
    numeric = pd.api.types.is_numeric_dtype(means["x"])
    places = {x: x if numeric else place for place, x in enumerate(dict.fromkeys(points["x"]))}
    groups = list(dict.fromkeys(means["group"]))
    for i, group in enumerate(groups):
        own, rows = points[points["group"] == group], means[means["group"] == group]
        aside = 0.0 if numeric else 0.6 * ((i + 0.5) / len(groups) - 0.5)  # categories leave room beside each other
        axes.plot(own["x"].map(places) + aside, own["y"], "o", color=colours[group], markersize=5, alpha=0.45)
        line, label = "-" if numeric else "none", _plain(f"{colour} = {group}") if colour else None
        axes.errorbar(
            rows["x"].map(places) + aside, rows["mean"], rows["std"].fillna(0), linestyle=line, marker="D",
            markersize=7, capsize=4, color=colours[group], label=label,
        )  # fmt: skip
    if not len(points):
        axes.text(0.5, 0.5, "no run has values of both", ha="center", va="center", transform=axes.transAxes)
    if not numeric and places:
        axes.set_xticks(list(places.values()), [_plain(x) for x in places])
        axes.margins(x=0.15)
    axes.set_xlabel(_plain(parameter))
    axes.set_ylabel(_plain(metric))
    axes.grid(alpha=0.3)
    axes.set_title(_plain(note), fontsize=9)
    figure.suptitle(_plain(f"{metric} against {parameter}"), fontsize=13)
    if colour:
        figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    return figure


def _plain(text: str) -> str:
    """Text for matplotlib, which reads formulas between dollar signs."""
    return text.replace("$", r"\$")


def line_panels(
    table: pd.DataFrame, *, colours: Mapping[str, str], x_title: str, ticks: Mapping[float, str] | None = None
) -> Figure:
    """Small panels of lines with bands, as training curves and curves over layers are printed.

    Args:
        table: Tidy: panel, line, x, mean, low and high for the band (NaN: none), and apart: points that belong to no
            line, drawn as diamonds with bars. The panels have their own scales.
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
