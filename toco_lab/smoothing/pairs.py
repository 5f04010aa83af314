"""Pairs of tokens by label: how alike are tokens of one class (positive pairs) and of two classes (negative pairs)?"""

from dataclasses import dataclass

from torch import Tensor

from toco_lab.config import IGNORE_INDEX
from toco_lab.smoothing.arithmetic import ratio, trace


@dataclass(frozen=True)
class PairCosine:
    """Mean |cos| over the token pairs of each image, (B,) each, in [0, 1]; NaN where there is no such pair.

    Attributes:
        positive: Over pairs of equal label; high is good.
        negative: Over pairs of different labels; low is good.
    """

    positive: Tensor
    negative: Tensor

    @property
    def gap(self) -> Tensor:
        """Positive minus negative, (B,); 0 when all tokens are alike."""
        return self.positive - self.negative


@dataclass(frozen=True)
class PairSums:
    """Sums of |cos| over the ordered token pairs i != j of each image, and the number of these pairs, (B,) each."""

    positive: Tensor
    num_positive: Tensor
    negative: Tensor
    num_negative: Tensor

    @property
    def mean(self) -> PairCosine:
        """The means of both kinds of pairs."""
        positive = ratio(self.positive, self.num_positive)
        return PairCosine(positive.clamp(0, 1), ratio(self.negative, self.num_negative).clamp(0, 1))


def pair_sums(absolute_cosine: Tensor, label: Tensor) -> PairSums:
    """Add up |cos| over pairs of equal and of different label.

    Args:
        absolute_cosine: |cos| of every pair of tokens, (B, N, N).
        label: Class of each token, (B, N) or (1, N) integers; `IGNORE_INDEX` leaves a token out.
    """
    classes = label[label != IGNORE_INDEX].unique()
    member = (label[:, :, None] == classes).double()  # (B, N, classes); an ignored token is in none
    blocks = member.mT @ absolute_cosine @ member  # sum of |cos| from class to class, (B, classes, classes)
    same, size = trace(blocks), member.sum(1)
    itself = (absolute_cosine.diagonal(dim1=1, dim2=2)[:, None] @ member).sum((1, 2))
    known, num_same = size.sum(1), size.square().sum(1)
    return PairSums(same - itself, num_same - known, blocks.sum((1, 2)) - same, known.square() - num_same)
