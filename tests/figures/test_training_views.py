"""What the network sees: frames and hatches lie where the boxes are."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle

from toco_lab.config import Config
from toco_lab.data.loader import TrainSamples, seen_views
from toco_lab.figures.training_views import SECOND_VIEW, VALID_BOX, view_panels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIEWS = {
    "first view, 10 px": np.zeros((10, 10, 3), np.uint8),
    "local view, 10 px": np.full((10, 10, 3), 9, np.uint8),
    "second view, 8 px": np.full((8, 8, 3), 200, np.uint8),
}
ROW = {
    "name": "one",
    "original": np.full((6, 12, 3), 77, np.uint8),
    "view2_box": (1, 2, 4, 9),
    "valid_box": (0, 7, 2, 10),
    "views": VIEWS,
}


def rectangles(axes, **wanted) -> list[tuple]:
    """x, y, width, height of the rectangles on a panel that have these properties."""
    found = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    kept = [patch for patch in found if all(getattr(patch, f"get_{key}")() == value for key, value in wanted.items())]
    return [(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in kept]


def frame(axes, colour: str) -> list[tuple]:
    return rectangles(axes, edgecolor=to_rgba(colour))


def test_frames_and_padding_lie_where_the_boxes_are():
    figure = view_panels([ROW, ROW | {"name": "two", "valid_box": (0, 10, 0, 10)}], title="seen")
    image, first, local, second = figure.axes[:4]
    assert [axes.get_title() for axes in figure.axes[:4]] == ["image", *VIEWS]
    assert image.get_ylabel() == "one" and figure.axes[4].get_ylabel() == "two"
    assert frame(image, SECOND_VIEW) == [(2, 1, 9, 4)]  # x, y, width, height
    for axes in (first, local):
        assert frame(axes, VALID_BOX) == [(2, 0, 8, 7)]
        assert sorted(rectangles(axes, hatch="////")) == [(0, 0, 2, 7), (0, 7, 10, 3)]
    assert not second.patches
    whole = figure.axes[5]
    assert frame(whole, VALID_BOX) == [(0, 0, 10, 10)] and rectangles(whole, hatch="////") == []
    assert list(first.images[0].get_extent()) == [0, 10, 10, 0]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][1:] == ["padding", "what the second view shows"]


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="at least one row"):
        view_panels([])


def test_seen_views_are_those_that_training_gets():
    cfg = Config.preset("smoke").replace(scale_range=(0.5, 0.8), padding="black")
    rows, samples = seen_views(cfg, MEAN, STD, positions=(1, 17)), TrainSamples(cfg, MEAN, STD)
    for row, position in zip(rows, (1, 17), strict=True):
        sample = samples[position]
        assert row["name"] == sample.name and row["valid_box"] == tuple(sample.views.valid_box.tolist())
        top, bottom, left, right = row["valid_box"]
        first, local, second = row["views"].values()
        assert list(row["views"]) == ["first view, 96 px", "local view, 96 px", "second view, 64 px"]
        assert first.dtype == np.uint8 and first.shape == local.shape == (96, 96, 3) and second.shape == (64, 64, 3)
        outside = np.ones((96, 96), bool)
        outside[top:bottom, left:right] = False
        assert not first[outside].any() and first[~outside].mean() > 20
        assert view_panels([row]).axes[1].images[0].get_array().shape == (96, 96, 3)
