"""Boundary IoU against erosion by scipy, mask by mask, and by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from toco_lab.evaluation.boundary import boundary, boundary_counts, boundary_iou


def slow_counts(prediction: np.ndarray, truth: np.ndarray, num_labels: int) -> np.ndarray:
    """The definition: each mask minus its erosion by a square, ignored pixels in no mask."""
    radius = max(1, round(0.02 * math.hypot(*truth.shape)))
    known, square = truth < num_labels, np.ones((2 * radius + 1,) * 2, dtype=bool)
    counts = np.zeros((3, num_labels), dtype=int)
    for label in range(num_labels):
        masks = [(maps == label) & known for maps in (truth, prediction)]
        of_truth, predicted = (mask & ~binary_erosion(mask, square) for mask in masks)
        counts[:, label] = (of_truth & predicted).sum(), of_truth.sum(), predicted.sum()
    return counts


@pytest.mark.parametrize("size", [(40, 61), (110, 90), (3, 2)])
def test_counts_equal_the_definition(size):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 4, (2, 2, 5, 5))
    maps = np.kron(coarse, np.ones((1, 1, size[0] // 5 + 1, size[1] // 5 + 1), dtype=int))[..., : size[0], : size[1]]
    truth, prediction = maps[0].copy(), maps[1]
    truth[:, size[0] // 2] = 255
    found = boundary_counts(torch.from_numpy(prediction), torch.from_numpy(truth).to(torch.uint8), 4)
    expected = sum(slow_counts(*pair, 4) for pair in zip(prediction, truth, strict=True))
    assert np.array_equal(found.numpy(), expected)


def test_a_perfect_map_has_one_and_an_absent_class_none():
    truth = torch.zeros(1, 60, 80, dtype=torch.int64)
    truth[:, 20:40, 20:50] = 1
    truth[:, 18:20] = 255
    said_there = truth.where(truth != 255, 1)
    iou = boundary_iou(boundary_counts(said_there, truth, 3))
    assert iou[:2].tolist() == [1, 1]
    assert iou[2].isnan()


def test_by_hand():
    """A square of 20 in an image whose boundary is 2 wide, and the same moved by one pixel to the right."""
    truth, moved = torch.zeros(1, 80, 60, dtype=torch.int64), torch.zeros(1, 80, 60, dtype=torch.int64)
    truth[:, 20:40, 20:40] = moved[:, 20:40, 21:41] = 1
    assert boundary(truth)[truth == 1].sum() == 20 * 20 - 16 * 16
    shared = 2 * 2 * 19 + 2 * 16  # the upper and lower bars, and of each side one of two columns
    counts = boundary_counts(moved, truth, 2)
    assert counts[:, 1].tolist() == [shared, 144, 144]
    assert boundary_iou(counts)[1].item() == pytest.approx(shared / (288 - shared))
