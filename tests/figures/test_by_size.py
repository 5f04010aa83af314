"""Bars by size: heights, panels and what is refused."""

import pandas as pd
import pytest

from toco_lab.figures import size_bars


def scores(**more) -> pd.DataFrame:
    rows = [
        ("cam", "cat", "small", 0.25, 0.5, 0.08, 3), ("cam", "cat", "any size", 0.3, 0.5, 0.1, 4),
        ("cam", "mIoU", "small", 0.25, 0.5, 0.08, 3), ("seg", "cat", "large", 0.75, 0.9, 0.4, 1),
    ]  # fmt: skip
    columns = ["target", "class", "size", "iou", "recall", "whole_image", "images"]
    return pd.DataFrame(rows, columns=columns).assign(**more)


def test_a_bar_per_class_and_size_with_the_whole_image_across():
    figure = size_bars(scores(), note="small: below 10%")
    bars, marks = ([one for one in figure.data if one.type == kind] for kind in ("bar", "scatter"))
    assert [(bar.name, list(bar.x), list(bar.y)) for bar in bars] == [
        ("small", ["cat", "<b>mean</b>"], [25, 25]),
        ("large", ["cat"], [75]),
    ]
    assert [list(mark.y) for mark in marks] == [[8, 8], [40]]
    assert [one.text for one in figure.layout.annotations] == ["CAM", "segmentation"]
    assert figure.layout.title.text == "IoU by the size of objects<br><sub>small: below 10%</sub>"


def test_runs_have_panels_and_recall_has_no_marks():
    figure = size_bars(pd.concat([scores(run="<a>"), scores(run="b")]), score="recall")
    assert [one.text for one in figure.layout.annotations][::2] == ["&lt;a&gt;, CAM", "b, CAM"]
    assert all(one.type == "bar" for one in figure.data)


@pytest.mark.parametrize(
    "frame, score, message", [(scores()[:0], "iou", "no scores"), (scores(), "mIoU", "got 'mIoU'")]
)
def test_nothing_and_an_unknown_score_are_refused(frame, score, message):
    with pytest.raises(ValueError, match=message):
        size_bars(frame, score=score)
