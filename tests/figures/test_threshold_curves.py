"""Curves of mIoU against the threshold: every run in every panel, the two thresholds marked."""

import pandas as pd
import pytest

from toco_lab.figures import printed, series
from toco_lab.figures.thresholds import threshold_curves

COLOURS = {"plain": "#000000", "ToCo": "#ff0000"}


def curves(*, seeds=1) -> pd.DataFrame:
    """Two models, two CAMs, three thresholds: the plain one is best at 0.2, ToCo at 0.4; 0.5 is the config's."""
    rows = []
    for model, best in (("plain", 0.2), ("ToCo", 0.4)):
        for seed in range(seeds):
            for cam, top in (("cam", 0.6), ("cam_aux", 0.7)):
                for split, images in (("train", 100), ("val", 50)):
                    for threshold in (0.2, 0.4, 0.5):
                        miou = top + seed / 10 - abs(threshold - best)
                        marks = threshold == 0.5, threshold == best
                        rows.append((model, cam, split, split == "train", images, threshold, miou, *marks))
    names = "model target split tuned_on images threshold miou configured chosen".split()
    return pd.DataFrame(rows, columns=names)


def test_every_run_stands_in_every_panel_and_its_thresholds_are_marked():
    figure = threshold_curves(curves(), colours=COLOURS)
    assert [note.text for note in figure.layout.annotations] == [
        "CAM, 50 images of val", "CAM, 100 images of train",
        "auxiliary CAM, 50 images of val", "auxiliary CAM, 100 images of train",
    ]  # fmt: skip
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert [line.name for line in lines] == ["plain", "ToCo"] * 4 and lines[1].line.color == "#ff0000"
    assert list(lines[1].x) == [0.2, 0.4, 0.5] and list(lines[1].y) == pytest.approx([40, 60, 50])
    marks = {
        (trace.name, trace.marker.symbol): (*trace.x, *trace.y) for trace in figure.data[:6] if trace.mode == "markers"
    }
    assert marks == {
        ("plain", "diamond"): (0.2, pytest.approx(60)), ("plain", "circle-open"): (0.5, pytest.approx(30)),
        ("ToCo", "diamond"): (0.4, pytest.approx(60)), ("ToCo", "circle-open"): (0.5, pytest.approx(50)),
    }  # fmt: skip
    assert sum(bool(trace.showlegend) for trace in figure.data) == 2


def test_seeds_of_one_model_are_one_line_with_a_mark_each():
    found = series.threshold_lines(curves(seeds=2))
    own = found[(found["panel"] == "CAM, 50 images of val") & (found["line"] == "ToCo")]
    line, marks = own[~own["apart"]], own[own["apart"]]
    assert line["mean"].tolist() == pytest.approx([45, 65, 55]) and line["high"].tolist() == pytest.approx([50, 70, 60])
    assert marks["x"].tolist() == [0.4, 0.4] and marks["mean"].tolist() == pytest.approx([60, 70])
    figure = printed.line_panels(found, colours=COLOURS, x_title="threshold")
    assert [axes.get_title() for axes in figure.axes[:4]] == list(dict.fromkeys(found["panel"]))


def test_without_a_chosen_threshold_the_curve_is_drawn_alone():
    alone = curves().query("not tuned_on").assign(chosen=False)
    assert not series.threshold_lines(alone)["apart"].any()
    figure = threshold_curves(alone, colours=COLOURS)
    assert [len(trace.x) for trace in figure.data if trace.marker.symbol == "diamond"] == [0] * 4


def test_no_curve_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="scored no CAM, or threshold_images is 0"):
        threshold_curves(curves().iloc[:0])


def test_bars_of_classes_leave_the_second_scores_out():
    rows = [(target, "cat", 0.5) for target in ("cam", "cam_tuned", "seg")]
    frame = pd.DataFrame(rows, columns=["target", "class", "iou"]).assign(run="run")
    assert [bars.target for bars in series.class_bars(frame)] == ["cam", "seg"]
