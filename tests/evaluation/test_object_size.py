"""Scores by size and of single images, from pixel counts written by hand."""

import math

import pandas as pd
import pytest

from toco_lab.evaluation.image_counts import COLUMNS
from toco_lab.evaluation.object_size import ANY_SIZE, SizeBounds, bounds_of, image_scores, scores_by_size

NAMES = ("background", "cat", "dog")


def counts_of(*rows: tuple[str, int, int, int, int], target: str = "cam") -> pd.DataFrame:
    """Rows image, label, truth, predicted, hits; images of 100 pixels."""
    return pd.DataFrame([(i, target, n, NAMES[n], t, p, h, 100) for i, n, t, p, h in rows], columns=COLUMNS)


COUNTS = counts_of(
    ("a", 0, 90, 80, 75), ("a", 1, 10, 20, 5),  # a small cat
    ("b", 0, 60, 50, 50), ("b", 1, 40, 50, 40),  # a large cat
    ("c", 0, 75, 95, 75), ("c", 1, 5, 5, 5), ("c", 2, 20, 0, 0),  # a small cat and a middle dog, which nobody sees
    ("d", 0, 100, 90, 90), ("d", 1, 0, 10, 0),  # no object, though a cat is predicted
)  # fmt: skip
BOUNDS = SizeBounds(0.2, 0.4)


def test_sizes_pool_the_pixels_of_the_images_that_show_a_class():
    table = scores_by_size(COUNTS, BOUNDS).set_index(["class", "size"])
    small = table.loc["cat", "small"]
    assert small["iou"] == pytest.approx(10 / (15 + 25 - 10)) and small["images"] == 2
    assert small["image_iou"] == pytest.approx((5 / 25 + 1) / 2)
    assert small["recall"] == pytest.approx(10 / 15) and small["over_activation"] == pytest.approx(1 - 10 / 25)
    assert small["whole_image"] == pytest.approx(15 / 200)
    assert table.loc[("cat", ANY_SIZE), "iou"] == pytest.approx(50 / (55 + 75 - 50))  # image d does not count
    assert table.loc[("dog", "middle"), "iou"] == 0 and math.isnan(table.loc[("dog", "middle"), "over_activation"])
    assert ("dog", "small") not in table.index and ("cat", "middle") not in table.index


def test_the_mean_is_over_the_classes_that_have_a_size():
    table = scores_by_size(COUNTS, BOUNDS)
    means = table[table["class"] == "mIoU"].set_index("size")
    assert means["classes"].to_dict() == {"small": 1, "middle": 1, "large": 1, ANY_SIZE: 2}
    assert means.loc[ANY_SIZE, "iou"] == pytest.approx(0.5 * 50 / 80) and means.loc[ANY_SIZE, "images"] == 4
    assert list(table["class"].unique()) == ["cat", "dog", "mIoU"]
    assert list(means.index) == ["small", "middle", "large", ANY_SIZE]


def test_a_bound_belongs_to_the_larger_size():
    assert [BOUNDS.size_of(share) for share in (0.199, 0.2, 0.399, 0.4)] == ["small", "middle", "middle", "large"]
    assert str(BOUNDS) == "small: below 20.0% of the image, large: from 40.0% on"


def test_thirds_count_a_pair_once_for_all_targets():
    both = pd.concat([COUNTS, counts_of(("a", 1, 10, 0, 0), target="seg")])
    shares = [0.05, 0.1, 0.2, 0.4]  # of c, a, c, b
    assert bounds_of(both) == SizeBounds.thirds(shares) == SizeBounds(0.1, 0.2)


@pytest.mark.parametrize("middle, large", [(0, 0.5), (0.5, 0.2), (0.5, 1), (math.nan, 0.5)])
def test_bounds_out_of_order_are_refused(middle, large):
    with pytest.raises(ValueError, match="0 < middle <= large < 1"):
        SizeBounds(middle, large)


def test_without_an_object_there_is_no_size():
    with pytest.raises(ValueError, match="no image shows a class"):
        scores_by_size(COUNTS[COUNTS["image"] == "d"])


def test_the_score_of_an_image_is_the_mean_over_what_its_truth_shows():
    found = image_scores(COUNTS).set_index("image")
    assert found.loc["a", "miou"] == pytest.approx((75 / 95 + 5 / 25) / 2)
    assert found.loc["c", "miou"] == pytest.approx((75 / 95 + 1 + 0) / 3)
    assert found.loc["d", "miou"] == pytest.approx(0.9)  # the false cat costs the background
    assert found["classes"].to_dict() == {"a": 1, "b": 1, "c": 2, "d": 0}
    assert found.loc["c", ["foreground", "smallest", "largest"]].tolist() == pytest.approx([0.25, 0.05, 0.2])
    assert found.loc["d", "foreground"] == 0 and math.isnan(found.loc["d", "smallest"])
