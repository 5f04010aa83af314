"""Figures: what is drawn (artists, limits, labels, colours), never image bytes."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import AxesImage

from toco_lab.figures import pictures, printed

PALETTE = np.zeros((256, 3), np.uint8)
PALETTE[:4] = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [0, 0, 128]]
NAMES = ("background", "cat", "dog", "cow")
IMAGE = np.full((6, 8, 3), 200, np.uint8)
LABEL = np.zeros((6, 8), np.int64)
LABEL[1:3], LABEL[4:, 5:] = 2, 255


def images_in(axes):
    return [child for child in axes.get_children() if isinstance(child, AxesImage)]


# --- pixels -----------------------------------------------------------------------------------------------------------


def test_cam_overlay_draws_the_cam_over_the_image_with_fixed_limits():
    cam = np.linspace(0, 0.4, 48).reshape(6, 8)
    figure = pictures.cam_overlay(IMAGE, cam, alpha=0.3, vmax=0.8, title="cat")
    axes, bar = figure.axes
    below, above = images_in(axes)
    assert (below.get_array() == 200).all()
    np.testing.assert_array_equal(above.get_array(), cam)
    assert above.get_clim() == (0, 0.8)  # not the map's own maximum
    assert above.get_alpha() == 0.3
    assert above.get_cmap().name == "inferno"
    assert axes.get_title() == "cat"
    assert bar.get_ylim() == (0, 0.8)


def test_label_panel_shows_present_classes_and_hatches_ignored_pixels():
    figure = pictures.label_panel(LABEL, PALETTE, class_names=NAMES)
    (axes,) = figure.axes
    drawn = images_in(axes)[0].get_array()
    assert drawn[0, 0].tolist() == [0, 0, 0]
    assert drawn[1, 0].tolist() == [0, 128, 0]
    assert drawn[5, 7].tolist() == [255, 255, 255]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["background", "dog", "ignored"]
    assert to_hex(legend.legend_handles[1].get_facecolor()) == "#008000"
    assert legend.legend_handles[2].get_hatch() == "////"
    assert any(getattr(child, "hatches", None) == ["////"] for child in axes.get_children())
    assert (PALETTE[255] == 0).all()  # the caller's palette is not changed


def test_cam_gallery_places_each_array_and_shares_one_scale():
    rows = [
        {"image": IMAGE, "truth": LABEL, "CAM": np.full((6, 8), 0.5)},
        {"image": IMAGE, "truth": None, "CAM": np.full((6, 8), 0.1), "segmentation": np.ones((6, 8), np.uint8)},
    ]
    figure = pictures.cam_gallery(rows, palette=PALETTE, class_names=NAMES, names=["x", "y"], title="two")
    grid = np.array(figure.axes[:8]).reshape(2, 4)
    assert [axes.get_title() for axes in grid[0]] == ["image", "truth", "CAM", "segmentation"]
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["x", "y"]
    assert {images_in(axes)[1].get_clim() for axes in grid[:, 2]} == {(0, 1)}
    assert len(images_in(grid[0, 2])) == 2  # over the picture of its row
    assert not images_in(grid[0, 3]) and not images_in(grid[1, 1])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["background", "cat", "dog", "ignored"]
    assert len(figure.axes) == 9  # one shared colour bar
    with pytest.raises(ValueError, match="at least one row"):
        pictures.cam_gallery([], palette=PALETTE)


def test_similarity_maps_share_a_scale_and_mark_the_patch():
    maps = [np.linspace(-0.5, 1, 12).reshape(3, 4), np.full((6, 8), 0.3)]
    panels = [{"title": f"model {i}", "image": IMAGE, "map": one, "patch": (2, 1)} for i, one in enumerate(maps)]
    figure = pictures.similarity_maps([*panels, panels[0]], columns=2, title="t")
    first, second, third, empty, bar = figure.axes
    assert [axes.get_title() for axes in (first, second, third)] == ["model 0", "model 1", "model 0"]
    assert not empty.axison and bar.get_ylabel() == "cosine to the marked patch"
    under, over = images_in(first)
    assert over.get_clim() == images_in(second)[1].get_clim() == (0, 1)
    assert under.get_extent() == over.get_extent() == [-0.5, 3.5, 2.5, -0.5]  # patches are whole numbers
    np.testing.assert_array_equal(over.get_array(), maps[0])
    assert {patch.get_xy() for patch in first.patches} == {(0.5, 1.5)}
    with pytest.raises(ValueError, match="at least one panel"):
        pictures.similarity_maps([])


# --- independence -----------------------------------------------------------------------------------------------------


def test_figures_import_neither_torch_nor_the_package_nor_plotly_at_the_top():
    tree = ast.parse(Path(pictures.__file__).read_text())
    modules = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert not {name for name in modules if name.split(".")[0] in ("torch", "toco_lab", "plotly")}
    code = "import sys, toco_lab.figures; sys.exit(bool({'matplotlib.pyplot', 'plotly', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(pictures.__file__).parents[1]).returncode == 0


def test_ablation_plot_shows_every_run_and_the_spread():
    frame = pd.DataFrame({"row": ["a", "a", "b"], "seed": [0, 1, 0], "cam_mIoU": [0.2, 0.4, 0.5]})
    line = {"score": "cam_mIoU", "seeds": 2, "reference": ""}
    summary = pd.DataFrame(
        [{"row": "b", "mean": 0.5, "sd": np.nan} | line, {"row": "a", "mean": 0.3, "sd": 0.1} | line]
    )
    (axes,) = printed.ablation_plot(frame, summary, titles={"cam_mIoU": "final CAM"}).axes
    runs, bars, reference = axes.lines
    assert runs.get_xdata().tolist() == [20, 40, 50] and runs.get_ydata().tolist() == [
        1,
        1,
        0,
    ]  # in the summary's order
    assert bars.get_xdata().tolist() == [50, 30] and reference.get_xdata() == [50, 50]
    (spread,) = axes.collections
    assert spread.get_segments()[1][:, 0].tolist() == pytest.approx([20, 40])
    assert [text.get_text() for text in axes.get_yticklabels()] == ["b", "a"] and axes.yaxis_inverted()
    assert (axes.get_title(), axes.get_xlabel()) == ("final CAM", "points\nover 2 seeds")
    few = printed.ablation_plot(frame, summary.assign(images=["100", "20"])).axes[0]
    assert few.get_xlabel() == "points\nover 20 to 100 images, 2 seeds"


def test_many_scores_of_an_ablation_stand_in_lines():
    scores = [f"s{number}" for number in range(8)]
    frame = pd.DataFrame({"row": ["a", "b"], "seed": [0, 0]} | {score: [1.0, 2.0] for score in scores})
    lines = [(row, score, 1.0, np.nan, 1, "") for score in scores for row in "ab"]
    summary = pd.DataFrame(lines, columns=["row", "score", "mean", "sd", "seeds", "reference"])
    figure = printed.ablation_plot(frame, summary)
    assert [axes.get_title() for axes in figure.axes] == scores
    places = [axes.get_subplotspec() for axes in figure.axes]
    assert [(place.rowspan.start, place.colspan.start) for place in places] == [divmod(n, 6) for n in range(8)]
    for first in (figure.axes[0], figure.axes[6]):
        assert [text.get_text() for text in first.get_yticklabels()] == ["a", "b"]
    assert figure.axes[7].yaxis_inverted()


# --- a metric against a parameter -------------------------------------------------------------------------------------


def metric_axes(xs, groups, **options):
    points = pd.DataFrame({"run": ["a", "b", "c"], "x": xs, "y": [0.2, 0.4, 0.6], "group": groups})
    means = points.groupby(["group", "x"], sort=False)["y"].agg(mean="mean", std="std", runs="count").reset_index()
    colours = {group: colour for group, colour in zip(dict.fromkeys(groups), ("#111111", "#222222"), strict=False)}
    return printed.metric_by_parameter(points, means, metric="m", parameter="p$_1$", colours=colours, **options)


def test_metric_by_parameter_shows_every_run_mean_and_deviation():
    axes = metric_axes([0.0, 0.0, 2.0], ["", "", ""], note="3 runs").axes[0]
    dots, bars = axes.lines[0], axes.containers[0]
    assert dots.get_xydata().tolist() == [[0, 0.2], [0, 0.4], [2, 0.6]]
    line, _, (spread,) = bars.lines
    np.testing.assert_allclose(line.get_xydata(), [[0, 0.3], [2, 0.6]])
    ends = np.array([segment[:, 1] for segment in spread.get_segments()])
    np.testing.assert_allclose(ends, [[0.3 - np.sqrt(0.02), 0.3 + np.sqrt(0.02)], [0.6, 0.6]])
    assert line.get_linestyle() == "-" and axes.get_xlabel() == r"p\$_1\$" and axes.get_title() == "3 runs"
    assert not axes.figure.legends


def test_metric_by_words_stands_groups_beside_each_other():
    axes = metric_axes(["10", "2", "2"], ["v", "v", "u"], colour="kind").axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["10", "2"]
    assert [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "o"] == [[-0.15, 0.85], [1.15]]
    assert [to_hex(bars.lines[0].get_color()) for bars in axes.containers] == ["#111111", "#222222"]
    assert all(bars.lines[0].get_linestyle() == "None" for bars in axes.containers)
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["kind = v", "kind = u"]


# --- for reports ------------------------------------------------------------------------------------------------------


def lines_table():
    """Two lines in two panels: y = x + 10 * panel, a band of half a unit, and a point apart."""
    rows = [
        (f"panel {panel}", line, x, x + 10.0 * panel, x + 10.0 * panel - 0.5, x + 10.0 * panel + 0.5, x == 4)
        for panel in (0, 1)
        for line in ("a", "b $x")
        for x in (1, 2, 4)
    ]
    return pd.DataFrame(rows, columns=["panel", "line", "x", "mean", "low", "high", "apart"])


def test_line_panels_draw_means_bands_and_points_apart():
    colours = {"a": "#0072b2", "b $x": "#d55e00"}
    figure = printed.line_panels(lines_table(), colours=colours, x_title="block", ticks={1: "1", 4: "norm"})
    shown = [ax for ax in figure.axes if ax.axison]
    assert [ax.get_title() for ax in shown] == ["panel 0", "panel 1"]
    line, apart = shown[1].get_lines()[:2]
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([1, 2], [11, 12])
    assert (apart.get_xdata().tolist(), apart.get_ydata().tolist()) == ([4], [14]) and apart.get_linestyle() == "None"
    assert {to_hex(line.get_color()), to_hex(apart.get_color())} == {colours["a"]}
    band, bar = shown[1].collections[:2]
    assert band.get_paths()[0].vertices[:, 1].min() == 10.5 and band.get_paths()[0].vertices[:, 1].max() == 12.5
    assert bar.get_segments()[0].tolist() == [[4, 13.5], [4, 14.5]]
    assert [text.get_text() for text in shown[0].get_xticklabels()] == ["1", "norm"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", r"b \$x"]  # no mathematics
    with pytest.raises(ValueError, match="at least one panel"):
        printed.line_panels(lines_table().iloc[:0], colours=colours, x_title="block")


def test_pixels_are_those_of_the_drawn_panels():
    cam = np.array([[0.0, 0.5], [1.0, 2.0]])
    pixels = pictures.cam_pixels(np.full((2, 2, 3), 100, np.uint8), cam, alpha=0.25)
    scale = [np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)]) for code in pictures.colour_scale(3)]
    for place, colour in zip([(0, 0), (0, 1), (1, 0), (1, 1)], [*scale, scale[-1]], strict=True):
        assert np.abs(pixels[place] - (0.25 * colour + 75)).max() <= 1
    label = pictures.label_pixels(LABEL, PALETTE)
    assert label[0, 0].tolist() == [0, 0, 0] and label[1, 0].tolist() == [0, 128, 0]
    assert label[5, 7].tolist() == [255, 255, 255] and label.dtype == np.uint8


def test_boxes_are_outlines_inside_half_open_boxes():
    image = np.zeros((20, 30, 3), np.uint8)
    red, blue = np.array([255, 0, 0]), np.array([0, 0, 255])
    drawn = pictures.box_pixels(image, [((2, 3, 8, 9), red), ((7, 8, 30, 20), blue), ((0, 0, 1, 1), red)])
    expected = image.copy()
    expected[3:9, 2:8] = red
    expected[4:8, 3:7] = 0
    expected[8:20, 7:30] = np.where(
        np.pad(np.ones((10, 21, 1), bool), ((1, 1), (1, 1), (0, 0))), expected[8:20, 7:30], blue
    )
    expected[0, 0] = red
    assert np.array_equal(drawn, expected) and not image.any()


def test_a_small_gallery_keeps_its_legend_within_the_figure():
    row = {"image": IMAGE, "truth": np.arange(48).reshape(6, 8) % 20}
    figure = pictures.cam_gallery([row], palette=PALETTE, size=1.0)
    figure.canvas.draw()
    assert figure.legends[0].get_window_extent().width <= figure.bbox.width
    assert figure.get_figwidth() == 3.0
