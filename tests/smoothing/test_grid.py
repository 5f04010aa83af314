"""The grid of patches."""

import torch

from toco_lab.smoothing.grid import majority_label


def test_majority_label():
    mask = torch.zeros(1, 5, 4, dtype=torch.long)
    mask[0, :2, 2:] = torch.tensor([[3, 3], [3, 255]])
    mask[0, 2:4, :2] = torch.tensor([[255, 255], [255, 1]])
    mask[0, 2:4, 2:] = torch.tensor([[7, 7], [2, 2]])  # a tie
    mask[0, 4] = 9  # fills no patch
    assert majority_label(mask, 2).tolist() == [[[0, 3], [255, 2]]]
