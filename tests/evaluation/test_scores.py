"""Scores of label maps and image labels against hand counts."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc

from toco_lab.evaluation.scores import (
    confusion_matrix,
    dice_of_iou,
    iou_scores,
    label_auc,
    label_f1,
    pseudo_label_iou,
    pseudo_label_matrix,
)


def slow_matrix(prediction, truth, num_classes):
    matrix = np.zeros((num_classes, num_classes), dtype=int)
    for p, t in zip(prediction.ravel(), truth.ravel(), strict=True):
        if t < num_classes:
            matrix[t, p] += 1
    return matrix


def test_confusion_matrix_counts_pixels_and_leaves_255_out():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, (7, 9))
    truth[0] = 255
    prediction = rng.integers(0, 4, (7, 9))
    matrix = confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(truth), 4)
    assert np.array_equal(matrix.numpy(), slow_matrix(prediction, truth, 4))
    assert confusion_matrix(torch.zeros(2, 2).int(), torch.full((2, 2), 255), 4).sum() == 0


def test_an_ignored_pixel_in_a_prediction_is_an_error():
    with pytest.raises(ValueError, match=r"0\.\.3, got 255"):
        confusion_matrix(torch.tensor([[255]]), torch.tensor([[1]]), 4)


def test_scores_by_hand():
    matrix = torch.tensor([[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])  # class 2 and 3 nowhere
    scores = iou_scores(matrix)
    assert scores.iou[:2].tolist() == pytest.approx([6 / 9, 3 / 6])
    assert scores.iou[2:].isnan().all()
    assert scores.miou.item() == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert scores.over_activation[:2].tolist() == pytest.approx([1 / 7, 2 / 5])  # wrong among 7 and among 5 predicted
    assert scores.over_activation[2:].isnan().all()
    assert scores.pixel_accuracy.item() == pytest.approx(9 / 12)
    assert scores.mean_accuracy.item() == pytest.approx((6 / 8 + 3 / 4) / 2)
    only_predicted = torch.tensor([[6, 2], [0, 0]])  # class 1 is predicted but never true: 0, and counted only by `all`
    assert iou_scores(only_predicted).miou.item() == pytest.approx(6 / 8)
    assert iou_scores(only_predicted, over="all").miou.item() == pytest.approx(3 / 8)


def test_dice_is_that_of_the_confusion_matrix():
    matrix = torch.tensor([[50, 3, 1], [4, 20, 0], [2, 0, 0]])
    hits, rows, columns = matrix.diagonal().double(), matrix.sum(1), matrix.sum(0)
    expected = 2 * hits / (rows + columns)  # 2 TP + FP + FN = (TP + FN) + (TP + FP)
    torch.testing.assert_close(dice_of_iou(iou_scores(matrix).iou), expected)
    assert expected.tolist() == pytest.approx([100 / 110, 40 / 47, 0])


def test_auc_of_image_labels_is_that_of_torchmetrics():
    torch.manual_seed(0)
    scores, truth = torch.randn(40, 3).mul(4).round(), (torch.rand(40, 3) < 0.4).float()  # with ties
    expected = [binary_auroc(scores[:, k].sigmoid(), truth[:, k].int()).item() for k in range(3)]
    assert label_auc(scores, truth).tolist() == pytest.approx(expected)
    by_hand = label_auc(torch.tensor([[3.0], [1.0], [1.0], [0.0]]), torch.tensor([[1], [1], [0], [0]]))
    assert by_hand.tolist() == pytest.approx([(1 + 1 + 0.5 + 1) / 4])
    assert label_auc(torch.randn(3, 2), torch.tensor([[1, 0]] * 3)).isnan().all()
    with pytest.raises(ValueError, match=r"scores \(3, 2\) and truth \(3, 1\)"):
        label_auc(torch.zeros(3, 2), torch.zeros(3, 1))


def test_label_f1_by_hand():
    truth = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    prediction = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    assert label_f1(truth, prediction).tolist() == pytest.approx([0.5, 1.0, 1.0])  # nothing missed, nothing made up
    assert label_f1(truth[:1], prediction[:1]).tolist() == pytest.approx([0.5])  # a batch of one


def test_open_pixels_have_a_column_and_no_share_in_the_iou():
    truth = torch.tensor([[0, 0, 0, 1, 1], [1, 2, 2, 255, 255]])
    label = torch.tensor([[0, 0, 255, 1, 0], [255, 255, 255, 1, 255]])
    matrix = pseudo_label_matrix(label, truth, 4)
    assert matrix.tolist() == [[2, 0, 0, 0, 1], [1, 1, 0, 0, 1], [0, 0, 0, 0, 2], [0, 0, 0, 0, 0]]
    iou = pseudo_label_iou(matrix)
    assert iou[:3].tolist() == pytest.approx([2 / 3, 1 / 2, 0])  # class 2 is all open: 0, not left out
    assert iou[3].isnan()  # in neither
    whole = label.where(label != 255, truth)
    assert torch.equal(pseudo_label_matrix(whole, truth, 4)[:, :-1], confusion_matrix(whole, truth, 4))
