"""Tokens of large norm."""

import pytest
import torch

from toco_lab.smoothing.formulas import outlier_share
from toco_lab.smoothing.outliers import norm_cut
from toco_lab.smoothing.token_view import TokenView


def test_norm_cut_and_share_above_a_given_one():
    norms = torch.tensor([[1.0, 2, 3, 4, 100], [5, 5, 5, 5, 5]])
    assert norm_cut(norms).tolist() == pytest.approx([3 + 5 * 1.4826, 5])
    assert norm_cut(norms[0], deviations=2).item() == pytest.approx(3 + 2 * 1.4826)
    tokens = torch.zeros(1, 4, 2)
    tokens[0, :, 0] = torch.tensor([1.0, 149, 151, -500])
    assert outlier_share(TokenView(tokens, (2, 2)), 150).item() == 0.5
