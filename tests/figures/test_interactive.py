"""Curves: what is drawn (lines, limits, labels, colours), never image bytes."""

import numpy as np
import pandas as pd
import pytest

from toco_lab.figures import across_runs, interactive
from toco_lab.figures.colours import LINE_COLOURS, assign_colours
from toco_lab.vocabulary import MEAN_ABSOLUTE_COSINE


def similarity_frame(models=("a", "b")):
    """Five images whose value is layer / 10 + image / 100, in three blocks and behind the norm."""
    places = [("after block", "none", layer) for layer in (1, 2, 3)] + [("final norm", "LayerNorm", 3)]
    rows = [
        (
            model,
            "random",
            *place,
            "patch tokens",
            16,
            image,
            "pairwise cosine",
            "absolute, off-diagonal",
            place[2] / 10 + image / 100,
        )
        for model in models
        for place in places
        for image in range(5)
    ]
    columns = "model weights site norm layer token_set tokens image metric variant value".split()
    return pd.DataFrame(rows, columns=columns)


def test_colours_are_stable_and_distinct():
    assert assign_colours(["a", "b", "a"]) == {"a": "#0072B2", "b": "#D55E00"}
    assert len(set(LINE_COLOURS)) == len(LINE_COLOURS)
    assert assign_colours(map(str, range(9)))["8"] == LINE_COLOURS[0]


def test_similarity_curves_mean_band_and_norm_point():
    figure = interactive.smoothing_curves(similarity_frame(), colours={"a": "#111111", "b": "#222222"})
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
    keys = [(name, "absolute, off-diagonal") for name in ("positive cosine", "negative cosine")]
    frame = pd.concat([similarity_frame(["a"]).assign(metric=name) for name, _ in keys])
    figure = interactive.smoothing_curves(frame, metrics=keys)
    lines = {trace.name: trace.line.dash for trace in figure.data if trace.mode == "lines+markers"}
    assert lines == {"a, positive cosine": "solid", "a, negative cosine": "dash"}
    with pytest.raises(ValueError, match="pairwise cosine"):
        interactive.smoothing_curves(frame)


def test_names_cannot_smuggle_markup_into_plotly():
    frame = similarity_frame(["<b>x</b>"])
    figure = interactive.smoothing_curves(frame, colours={"<b>x</b>": "#111111"})
    assert "<b>" not in figure.data[1].name
    assert figure.data[1].line.color == "#111111"


def test_training_curves_draw_what_is_there():
    plain = pd.DataFrame({"step": [10, 20], "total_loss": [2.0, 1.0], "ptc_loss": [0.0, 0.0], "val_cam": [np.nan, 0.5]})
    other = pd.DataFrame({"step": [10], "total_loss": [3.0]})
    figure = interactive.training_curves({"a": plain, "b": other}, colours={"a": "#111111", "b": "#222222"})
    assert [note.text for note in figure.layout.annotations] == ["total loss", "CAM mIoU, %"]  # PTC is zero throughout
    assert [(trace.name, list(trace.x), list(trace.y)) for trace in figure.data] == [
        ("a", [10, 20], [2, 1]),
        ("b", [10], [3]),
        ("a", [20], [50]),  # per cent
    ]
    assert [trace.line.color for trace in figure.data] == ["#111111", "#222222", "#111111"]
    assert tuple(figure.layout.yaxis2.range) == (0, 100)
    assert sum(trace.showlegend for trace in figure.data) == 2
    assert len(interactive.training_curves(plain).data) == 2
    assert len(interactive.training_curves(plain.iloc[:0]).data) == 0


def test_seeds_in_one_frame_are_a_mean_with_a_band():
    seeds = pd.DataFrame({"step": [10, 20, 10, 20], "total_loss": [2.0, 1.0, 4.0, 1.0]})
    band, line = interactive.training_curves({"a": seeds}).data
    assert (list(band.x), list(band.y)) == ([10, 20, 20, 10], [4, 1, 1, 2])  # up along the highest, back the lowest
    assert (list(line.x), list(line.y)) == ([10, 20], [3, 1])
    assert line.showlegend and not band.showlegend and band.fillcolor == line.line.color


def test_iou_bars_in_percent_with_the_mean_last():
    table = pd.DataFrame(
        {
            "run": ["a"] * 4 + ["b"] * 2,
            "target": ["cam"] * 3 + ["labels"] + ["cam"] * 2,
            "class": ["mIoU", "background", "cat", "F1", "cat", "mIoU"],
            "iou": [0.6, 0.9, 0.3, 0.8, 0.5, np.nan],
        }
    )
    figure = interactive.iou_bars(table)
    first, second, *dashes = figure.data
    assert [(trace.name, trace.text, list(trace.x)) for trace in dashes] == [
        (None, "<b>-</b>", [None]), (None, "<b>-</b>", ["background", "<b>mean</b>"]),
    ]  # fmt: skip
    assert "in neither truth nor prediction" in dashes[1].hovertemplate
    assert len(interactive.iou_bars(table[table["run"] == "a"]).data) == 1  # no dash where every class has a bar
    assert "over 3 images" in interactive.iou_bars(table, note="over 3 images").layout.title.text
    assert list(first.x) == ["background", "cat", "<b>mean</b>"]
    np.testing.assert_allclose(first.y, [90, 30, 60])
    assert np.isnan(second.y[0]) and second.y[1] == 50
    assert first.marker.color != second.marker.color
    assert tuple(figure.layout.yaxis.range) == (0, 100)
    assert [note.text for note in figure.layout.annotations] == ["CAM"]


# --- all metrics ------------------------------------------------------------------------------------------------------


def stream_frame(models=("a",)):
    """Two blocks at every site; attention adds 0.1 and the MLP takes 0.02 away, two images 0.2 apart."""
    places = [("patch embedding", 0, 0.2), ("after attention", 1, 0.3), ("after block", 1, 0.28)]
    places += [("after attention", 2, 0.38), ("after block", 2, 0.36), ("final norm", 2, 0.9)]
    rows = [
        (model, "w", site, "LayerNorm" if site == "final norm" else "none", "patch tokens", 16, layer, image, *key, v)
        for model in models
        for site, layer, value in places
        for image, v in (("x", value - 0.1), ("y", value + 0.1))
        for key in (MEAN_ABSOLUTE_COSINE, ("stable rank", "not centred"))
    ]
    columns = "model weights site norm token_set tokens layer image metric variant value".split()
    return pd.DataFrame(rows, columns=columns)


def test_a_line_runs_through_embedding_attention_and_blocks():
    figure = interactive.smoothing_curves(stream_frame())
    line = next(trace for trace in figure.data if trace.mode == "lines+markers")
    assert list(line.x) == [0, 0.5, 1, 1.5, 2]
    np.testing.assert_allclose(line.y, [0.2, 0.3, 0.28, 0.38, 0.36])
    assert list(figure.layout.xaxis.ticktext) == ["0", "1", "2", "norm"]
    other = interactive.smoothing_curves(stream_frame(), metrics=[("stable rank", "not centred")])
    assert other.layout.yaxis.range is None and other.layout.yaxis.title.text == "stable rank"


def test_panels_one_per_metric_with_one_legend_entry_per_model():
    figure = interactive.smoothing_panels(stream_frame(("a", "b")), width=2)
    titles = [note.text for note in figure.layout.annotations]
    assert titles == ["pairwise cosine<br><sub>absolute, off-diagonal</sub>", "stable rank<br><sub>not centred</sub>"]
    assert sorted(trace.name for trace in figure.data if trace.showlegend) == ["a", "b"]
    assert {trace.xaxis for trace in figure.data} == {"x", "x2"}
    one = interactive.smoothing_panels(stream_frame(), metrics=[("stable rank", "not centred"), ("no", "such")])
    assert len(one.layout.annotations) == 1
    with pytest.raises(ValueError, match=r"no rows of no \(such\); the table has pairwise cosine"):
        interactive.smoothing_panels(stream_frame(), metrics=[("no", "such")])


def test_sublayer_bars_are_differences_of_means():
    figure = interactive.sublayer_bars(stream_frame(("a", "b")))
    attention, mlp = figure.data[:2]
    assert (attention.name, mlp.name) == ("attention", "MLP")
    assert list(attention.x) == list(mlp.x) == [1, 2]
    np.testing.assert_allclose(attention.y, [0.1, 0.1])
    np.testing.assert_allclose(mlp.y, [-0.02, -0.02])
    assert [note.text for note in figure.layout.annotations] == ["a", "b"]
    frame = stream_frame()
    with pytest.raises(ValueError, match=r"no site after attention: measure with sites=smoothing\.SITES"):
        interactive.sublayer_bars(frame[frame["site"] != "after attention"])


def test_layer_matrix_on_a_fixed_scale():
    names = pd.RangeIndex(1, 4)
    figure = interactive.layer_matrix(pd.DataFrame(np.eye(3), names, names), title="CKA <b>")
    (heat,) = figure.data
    assert (heat.zmin, heat.zmax) == (0, 1) and list(heat.x) == ["1", "2", "3"]
    np.testing.assert_array_equal(np.array(heat.z), np.eye(3))
    assert figure.layout.title.text == "CKA &lt;b&gt;"


def test_quality_above_similarity():
    rows = [
        ("after block", 1, 0.5, 0.4, True, False), ("after block", 1, 0.6, 0.5, False, True),
        ("final norm", 1, 0.5, 0.3, True, True), ("final norm", 1, 0.6, 0.2, False, False),
    ]  # fmt: skip
    quality = pd.DataFrame(rows, columns="site layer threshold miou own best".split())
    quality = quality.assign(model="a", images=20, trained_on=100)
    figure = interactive.quality_and_similarity(quality, similarity_frame(["a"]), colours={"a": "#111111"})
    own, best = (trace for trace in figure.data if trace.yaxis == "y")
    assert (list(own.x), own.line.dash, best.line.dash) == ([1, 2], "solid", "dot")
    np.testing.assert_allclose(own.y, [40, 30])
    np.testing.assert_allclose(best.y, [50, 30])
    assert list(best.customdata) == [0.6, 0.5]
    line = next(trace for trace in figure.data if trace.yaxis == "y2" and trace.mode == "lines+markers")
    assert list(line.x) == [1, 2, 3] and line.line.color == own.line.color == "#111111"
    assert "20 images, heads trained on 100" in figure.layout.annotations[0].text


def test_ablation_plot_shows_every_run_and_the_spread():
    frame = pd.DataFrame(
        {"row": ["a", "a", "<b>"], "seed": [0, 1, 0], "cam_mIoU": [0.2, 0.4, np.nan], "x": [1, 2, 3.0]}
    )
    lines = [("<b>", "x", 3.0, np.nan, 1, "a"), ("a", "x", 1.5, 0.7, 2, ""), ("a", "cam_mIoU", 0.3, 0.1, 2, "")]
    lines.append(("<b>", "cam_mIoU", np.nan, np.nan, 0, "a"))
    summary = pd.DataFrame(lines, columns=["row", "score", "mean", "sd", "seeds", "reference"])
    figure = across_runs.ablation_plot(frame, summary, titles={"x": "similarity"})
    runs, means, cam_runs, cam_means = figure.data
    assert list(runs.x) == [1, 2, 3] and list(runs.y) == ["a", "a", "&lt;b&gt;"] and list(runs.customdata) == [0, 1, 0]
    assert list(means.x) == [3, 1.5] and list(means.error_x.array) == [0, 0.7]
    assert list(cam_runs.x) == [20, 40] and cam_means.x[0] == 30  # points; a run without a score is no dot
    assert [shape.x0 for shape in figure.layout.shapes] == [1.5, 30]  # the reference
    assert [note.text for note in figure.layout.annotations] == ["similarity", "cam_mIoU"]
    assert list(figure.layout.yaxis.categoryarray) == ["a", "&lt;b&gt;"]  # from below


# --- a metric against a parameter -------------------------------------------------------------------------------------


def related(xs, groups=("", "", "")):
    points = pd.DataFrame({"run": ["a<b", "c", "d"], "x": xs, "y": [0.2, 0.4, 0.6], "group": groups})
    means = points.groupby(["group", "x"], sort=False)["y"].agg(mean="mean", std="std", runs="count").reset_index()
    return points, means


def test_metric_by_parameter_shows_every_run_and_the_spread():
    points, means = related([0.0, 0.0, 1.0])
    figure = across_runs.metric_by_parameter(points, means, metric="cam_mIoU", parameter="w<b", note="3 runs")
    dots, line = figure.data
    assert (list(dots.x), list(dots.y), list(dots.customdata)) == ([0, 0, 1], [0.2, 0.4, 0.6], ["a&lt;b", "c", "d"])
    assert (list(line.x), line.mode) == ([0, 1], "lines+markers")
    np.testing.assert_allclose(line.y, [0.3, 0.6])
    np.testing.assert_allclose(line.error_y.array, [np.sqrt(0.02), 0])  # of the sample; none of a single run
    assert [trace.showlegend for trace in figure.data] == [False, None]
    assert figure.layout.xaxis.type is None and figure.layout.xaxis.title.text == "w&lt;b"
    assert figure.layout.title.text.startswith("cam_mIoU against w&lt;b") and "3 runs" in figure.layout.title.text


def test_metric_by_words_has_categories_in_the_order_of_the_points():
    points, means = related(["10", "2", "2"], ["v", "u", "v"])
    colours = {"v": "#111111", "u": "#222222"}
    figure = across_runs.metric_by_parameter(points, means, metric="m", parameter="p", colour="kind", colours=colours)
    assert (figure.layout.xaxis.type, figure.layout.xaxis.categoryarray) == ("category", ("10", "2"))
    assert figure.layout.scattermode == "group"
    of_v = [trace for trace in figure.data if trace.legendgroup == "kind = v"]
    assert [trace.marker.color for trace in of_v] == ["#111111"] * 2 and of_v[1].mode == "markers"
    assert {trace.name for trace in figure.data if trace.showlegend is None} == {"kind = u", "kind = v"}


def test_metric_by_parameter_without_runs_is_an_empty_figure():
    points, means = related([0.0, 0.0, 1.0])
    assert len(across_runs.metric_by_parameter(points[:0], means[:0], metric="m", parameter="p").data) == 0
