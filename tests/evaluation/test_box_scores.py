"""CorLoc and average precision, by hand."""

import math

import numpy as np
import pytest

from toco_lab.data.instances import Instance
from toco_lab.evaluation.box_scores import ALL, BoxScores, best_box_iou, best_overlaps, localised

SIZE = (40, 60)


def rectangle(number, x0, y0, x1, y1, **about) -> Instance:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return Instance(number, mask, **about)


def row(scores: BoxScores, name=ALL):
    return scores.table().set_index("class").loc[name]


def by_hand(one, other) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(0, width) * max(0, height)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return common / (area - common)


def test_the_best_box_is_the_surest_and_meets_the_nearest_object():
    true = [rectangle(1, 0, 0, 10, 10), rectangle(1, 30, 0, 40, 10)]
    sure, unsure = rectangle(1, 30, 0, 40, 20, score=0.9), rectangle(1, 0, 0, 10, 10, score=0.3)
    assert best_box_iou([unsure, sure], true) == pytest.approx(by_hand((30, 0, 40, 20), (30, 0, 40, 10))) == 0.5
    assert best_box_iou([], true) == 0
    assert math.isnan(best_box_iou([sure], [rectangle(1, 30, 0, 40, 20, crowd=True)]))


def test_corloc_by_hand():
    first = [rectangle(1, 0, 0, 10, 10), rectangle(2, 20, 20, 30, 30)]
    second = [rectangle(1, 5, 5, 25, 25), rectangle(3, 0, 30, 10, 40, crowd=True)]
    predicted = [rectangle(1, 0, 0, 10, 19, score=0.5), rectangle(2, 0, 0, 5, 5, score=0.4)]
    assert best_overlaps(predicted, first) == {1: pytest.approx(10 / 19), 2: 0}
    scores = BoxScores(("ant", "bee", "cat"))
    scores.add(predicted, first, SIZE)
    scores.add([rectangle(1, 5, 5, 25, 14, score=0.8), rectangle(3, 0, 0, 5, 5, score=0.1)], second, SIZE)
    # ant: 10/19 is a hit, 9/20 none; bee: none; cat: a crowd alone is no pair
    assert row(scores)["corloc"] == pytest.approx(1 / 3) and row(scores)["pairs"] == 3
    assert (row(scores, "ant")["corloc"], row(scores, "bee")["corloc"]) == (0.5, 0)
    assert math.isnan(row(scores, "cat")["corloc"]) and row(scores, "cat")["objects"] == 0
    assert (row(scores)["objects"], row(scores)["predicted"]) == (3, 4)
    assert localised([0.5, 0.49]) == 0.5 and math.isnan(localised([]))


def test_average_precision_of_a_perfect_prediction_is_1():
    true = [rectangle(1, 0, 0, 10, 10), rectangle(1, 30, 0, 40, 10), rectangle(2, 5, 20, 50, 39)]
    scores = BoxScores(("ant", "bee"))
    scores.add(true, true, SIZE)
    assert row(scores)[["box_ap25", "box_ap50", "mask_ap25", "mask_ap50", "corloc"]].tolist() == pytest.approx([1] * 5)


def test_average_precision_of_shifted_boxes_by_hand():
    """Shifted by 4 of 10 pixels: IoU 6 / 14, above 0.25 and below 0.5; by 8: 2 / 18, below both."""
    scores = BoxScores(("ant",))
    true = [rectangle(1, 0, 0, 10, 10), rectangle(1, 30, 0, 40, 10)]
    assert by_hand((4, 0, 14, 10), (0, 0, 10, 10)) == 6 / 14
    scores.add([rectangle(1, 4, 0, 14, 10, score=0.9), rectangle(1, 38, 0, 48, 10, score=0.8)], true, SIZE)
    # one of two found by the surest: precision 1 up to recall 0.5, which are 51 of 101 recalls
    assert row(scores)[["box_ap25", "mask_ap25"]].tolist() == pytest.approx([51 / 101] * 2)
    assert row(scores)[["box_ap50", "mask_ap50"]].tolist() == [0, 0]


def test_masks_count_apart_from_boxes():
    mask = np.zeros(SIZE, bool)
    mask[0, 0:10] = mask[0:10, 0] = True  # an L of 19 pixels with the box of the square
    scores = BoxScores(("ant",))
    scores.add([Instance(1, mask)], [rectangle(1, 0, 0, 10, 10)], SIZE)
    assert row(scores)[["box_ap50", "mask_ap25"]].tolist() == pytest.approx([1, 0])


def test_a_prediction_in_a_crowd_is_neither_right_nor_wrong():
    scores, wrong = BoxScores(("ant",)), BoxScores(("ant",))
    there, beside = rectangle(1, 0, 0, 10, 10), rectangle(1, 30, 0, 40, 10, score=1.0)
    predicted = [rectangle(1, 0, 0, 10, 10, score=0.5), beside]
    scores.add(predicted, [there, rectangle(1, 25, 0, 60, 40, crowd=True)], SIZE)
    wrong.add(predicted, [there], SIZE)
    assert row(scores)["box_ap50"] == pytest.approx(1) and row(wrong)["box_ap50"] == pytest.approx(0.5)


def test_nothing_to_score_is_no_zero():
    scores = BoxScores(("ant",))
    scores.add([], [], SIZE)
    assert math.isnan(row(scores)["corloc"]) and math.isnan(row(scores)["box_ap50"]) and row(scores)["pairs"] == 0
    scores.add([rectangle(1, 0, 0, 10, 10)], [], SIZE)
    assert math.isnan(row(scores, "ant")["box_ap50"]) and row(scores)["predicted"] == 1
