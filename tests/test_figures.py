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

from toco_lab import figures

PALETTE = np.zeros((256, 3), np.uint8)
PALETTE[:4] = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [0, 0, 128]]
NAMES = ("background", "cat", "dog", "cow")
IMAGE = np.full((6, 8, 3), 200, np.uint8)
LABEL = np.zeros((6, 8), np.int64)
LABEL[1:3], LABEL[4:, 5:] = 2, 255


def pictures(axes):
    return [child for child in axes.get_children() if isinstance(child, AxesImage)]


def similarity_frame(models=("a", "b")):
    """Five images whose value is layer / 10 + image / 100, in three blocks and behind the norm."""
    places = [("after block", "none", layer) for layer in (1, 2, 3)] + [("final norm", "LayerNorm", 3)]
    rows = [
        (model, "random", *place, "patch tokens", 16, image, "pairwise cosine", "absolute", place[2] / 10 + image / 100)
        for model in models
        for place in places
        for image in range(5)
    ]
    columns = "model weights site norm layer token_set tokens image metric variant value".split()
    return pd.DataFrame(rows, columns=columns)


# --- pixels -----------------------------------------------------------------------------------------------------------


def test_cam_overlay_draws_the_cam_over_the_image_with_fixed_limits():
    cam = np.linspace(0, 0.4, 48).reshape(6, 8)
    figure = figures.cam_overlay(IMAGE, cam, alpha=0.3, vmax=0.8, title="cat")
    axes, bar = figure.axes
    below, above = pictures(axes)
    assert (below.get_array() == 200).all()
    np.testing.assert_array_equal(above.get_array(), cam)
    assert above.get_clim() == (0, 0.8)  # not the map's own maximum
    assert above.get_alpha() == 0.3
    assert above.get_cmap().name == "inferno"
    assert axes.get_title() == "cat"
    assert bar.get_ylim() == (0, 0.8)


def test_label_panel_shows_present_classes_and_hatches_ignored_pixels():
    figure = figures.label_panel(LABEL, PALETTE, class_names=NAMES)
    (axes,) = figure.axes
    drawn = pictures(axes)[0].get_array()
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
    figure = figures.cam_gallery(rows, palette=PALETTE, class_names=NAMES, names=["x", "y"], title="two")
    grid = np.array(figure.axes[:8]).reshape(2, 4)
    assert [axes.get_title() for axes in grid[0]] == ["image", "truth", "CAM", "segmentation"]
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["x", "y"]
    assert {pictures(axes)[1].get_clim() for axes in grid[:, 2]} == {(0, 1)}
    assert len(pictures(grid[0, 2])) == 2  # over the picture of its row
    assert not pictures(grid[0, 3]) and not pictures(grid[1, 1])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["background", "cat", "dog", "ignored"]
    assert len(figure.axes) == 9  # one shared colour bar
    with pytest.raises(ValueError, match="at least one row"):
        figures.cam_gallery([], palette=PALETTE)


def test_run_colours_are_stable_and_distinct():
    assert figures.run_colours(["a", "b", "a"]) == {"a": "#0072B2", "b": "#D55E00"}
    assert len(set(figures.RUN_COLOURS)) == len(figures.RUN_COLOURS)
    assert figures.run_colours(map(str, range(9)))["8"] == figures.RUN_COLOURS[0]


# --- curves -----------------------------------------------------------------------------------------------------------


def test_similarity_curves_mean_band_and_norm_point():
    figure = figures.similarity_curves(similarity_frame(), colours={"a": "#111111", "b": "#222222"})
    band, line, point = (trace for trace in figure.data if trace.legendgroup == "a")
    np.testing.assert_allclose(line.y, [0.12, 0.22, 0.32])  # mean over images 0..4
    np.testing.assert_allclose(band.y, [0.13, 0.23, 0.33, 0.31, 0.21, 0.11])  # upper quartile, and lower one back
    assert list(line.x) == [1, 2, 3]
    assert line.line.color == band.fillcolor == "#111111"
    assert (list(point.x), point.marker.symbol) == ([4], "diamond")
    np.testing.assert_allclose(point.error_y.array, [0.01])
    assert tuple(figure.layout.yaxis.range) == (0, 1)
    assert list(figure.layout.xaxis.ticktext) == ["1", "2", "3", "norm"]
    title = figure.layout.title.text
    for word in ("absolute", "after block (raw)", "final norm (LayerNorm)", "patch tokens", "N = 16"):
        assert word in title
    assert {trace.name for trace in figure.data if trace.showlegend is not False} == {"a", "b"}


def test_similarity_curves_of_two_metrics_and_of_none():
    frame = pd.concat([similarity_frame(["a"]).assign(metric=name) for name in ("positive cosine", "negative cosine")])
    figure = figures.similarity_curves(frame, metrics=("positive cosine", "negative cosine"))
    lines = {trace.name: trace.line.dash for trace in figure.data if trace.mode == "lines+markers"}
    assert lines == {"a, positive cosine": "solid", "a, negative cosine": "dash"}
    with pytest.raises(ValueError, match="pairwise cosine"):
        figures.similarity_curves(frame)


def test_names_cannot_smuggle_markup_into_plotly():
    frame = similarity_frame(["<b>x</b>"])
    figure = figures.similarity_curves(frame, colours={"<b>x</b>": "#111111"})
    assert "<b>" not in figure.data[1].name
    assert figure.data[1].line.color == "#111111"


def test_training_curves_draw_what_is_there():
    plain = pd.DataFrame({"step": [10, 20], "total_loss": [2.0, 1.0], "ptc_loss": [0.0, 0.0], "val_cam": [np.nan, 0.5]})
    other = pd.DataFrame({"step": [10], "total_loss": [3.0]})
    figure = figures.training_curves({"a": plain, "b": other}, colours={"a": "#111111", "b": "#222222"})
    assert [note.text for note in figure.layout.annotations] == ["total loss", "CAM mIoU"]  # PTC is zero throughout
    assert [(trace.name, list(trace.x), list(trace.y)) for trace in figure.data] == [
        ("a", [10, 20], [2, 1]),
        ("b", [10], [3]),
        ("a", [20], [0.5]),
    ]
    assert [trace.line.color for trace in figure.data] == ["#111111", "#222222", "#111111"]
    assert tuple(figure.layout.yaxis2.range) == (0, 1)
    assert sum(trace.showlegend for trace in figure.data) == 2
    assert len(figures.training_curves(plain).data) == 2
    assert len(figures.training_curves(plain.iloc[:0]).data) == 0


def test_iou_bars_in_percent_with_the_mean_last():
    table = pd.DataFrame(
        {
            "run": ["a"] * 4 + ["b"] * 2,
            "target": ["cam"] * 3 + ["labels"] + ["cam"] * 2,
            "class": ["mIoU", "background", "cat", "F1", "cat", "mIoU"],
            "iou": [0.6, 0.9, 0.3, 0.8, 0.5, np.nan],
        }
    )
    figure = figures.iou_bars(table)
    first, second = figure.data
    assert list(first.x) == ["background", "cat", "<b>mean</b>"]
    np.testing.assert_allclose(first.y, [90, 30, 60])
    assert np.isnan(second.y[0]) and second.y[1] == 50
    assert first.marker.color != second.marker.color
    assert tuple(figure.layout.yaxis.range) == (0, 100)
    assert [note.text for note in figure.layout.annotations] == ["CAM"]


def test_table_html_escapes_and_rounds():
    text = figures.table_html(pd.DataFrame({"run": ["<script>"], "x": [1 / 3], "y": [np.nan]}), digits=2)
    assert "&lt;script&gt;" in text and "<script>" not in text
    assert "<td>0.33</td>" in text and "<td>-</td>" in text


# --- independence -----------------------------------------------------------------------------------------------------


def test_figures_import_neither_torch_nor_the_package_nor_plotly_at_the_top():
    tree = ast.parse(Path(figures.__file__).read_text())
    modules = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert not {name for name in modules if name.split(".")[0] in ("torch", "toco_lab", "plotly")}
    code = "import sys, toco_lab.figures; sys.exit(bool({'matplotlib.pyplot', 'plotly', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(figures.__file__).parents[1]).returncode == 0
