"""Scores of label maps: confusion matrix, IoU, over-activation, F1 of image labels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from toco_lab.config import IGNORE_INDEX


@dataclass(frozen=True)
class IouScores:
    """Scores of a confusion matrix in [0, 1]: two per class, (K,), and three means.

    Attributes:
        iou: NaN where a class is in neither truth nor prediction.
        over_activation: Share of the pixels predicted as a class that are not it, FP / (TP + FP), as in DuPL (CVPR
            2024, section 4.3); NaN where a class is never predicted. Low is good.
        miou, pixel_accuracy, mean_accuracy: As usual.
    """

    iou: Tensor
    over_activation: Tensor
    miou: Tensor
    pixel_accuracy: Tensor
    mean_accuracy: Tensor


def confusion_matrix(prediction: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Pixel counts (K, K), truth in rows, over the pixels whose truth is one of the K classes.

    Raises:
        ValueError: If a prediction that counts is not a class (an ignored pixel of a pseudo label, say), or the two
            label maps are not of whole numbers and of one shape.
    """
    for name, labels in (("prediction", prediction), ("truth", truth)):
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
            found = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise ValueError(f"{name} must be a tensor of whole numbers, got {found}")
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} does not fit truth {tuple(truth.shape)}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    counted = (truth >= 0) & (truth < num_classes)
    prediction, truth = prediction[counted], truth[counted].long()
    if prediction.numel() == 0:
        return torch.zeros(num_classes, num_classes, dtype=torch.int64, device=truth.device)
    if prediction.max() >= num_classes or prediction.min() < 0:
        raise ValueError(f"predictions must lie in 0..{num_classes - 1}, got {prediction.min()}..{prediction.max()}")
    from torchmetrics.functional.classification import multiclass_confusion_matrix  # brings scipy and audio: a second

    return multiclass_confusion_matrix(prediction, truth, num_classes, validate_args=False)


def iou_scores(matrix: Tensor, *, over: str = "present") -> IouScores:
    """Scores of a confusion matrix (truth in rows).

    Args:
        matrix: (K, K) counts.
        over: mIoU over the classes `present` in the truth, or over `all` K, which is NaN if one is in neither truth nor
            prediction (what the reference's printed tables do).

    Raises:
        ValueError: For another shape, counts that are negative or NaN, or another word than these two.
    """
    if not isinstance(matrix, Tensor) or matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        found = tuple(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
        raise ValueError(f"matrix must be a tensor of shape (K, K), got {found}")
    if not matrix.numel() or not (matrix >= 0).all():
        raise ValueError(f"matrix must hold counts of at least one class, 0 or more each, got {matrix.tolist()}"[:300])
    if over not in ("present", "all"):
        raise ValueError(f"over must be 'present' or 'all', got {over!r}")
    matrix = matrix.double()
    hits, in_truth, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    iou = hits / (in_truth + predicted - hits)
    return IouScores(
        iou=iou,
        over_activation=1 - hits / predicted,
        miou=(iou[in_truth > 0] if over == "present" else iou).mean(),
        pixel_accuracy=hits.sum() / matrix.sum(),
        mean_accuracy=(hits / in_truth).nanmean(),
    )


def pseudo_label_matrix(label: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Pixel counts (K, K + 1), truth in rows; the last column holds the pixels that the label leaves open (255)."""
    if label.is_floating_point():
        raise ValueError(f"label must be a tensor of whole numbers, got {label.dtype}")
    column = label.long().masked_fill(label == IGNORE_INDEX, num_classes)
    return confusion_matrix(column, truth, num_classes + 1)[:-1]


def pseudo_label_iou(matrix: Tensor) -> Tensor:
    """IoU (K,) of a matrix of `pseudo_label_matrix`, over the decided pixels; NaN where a class is in neither.

    Open pixels count neither as hit nor as miss. A class of the truth of which nothing is decided has IoU 0, because
    otherwise leaving it open would improve the mean.
    """
    iou, in_truth = iou_scores(matrix[:, :-1]).iou, matrix.sum(1) > 0
    return torch.where(in_truth, iou.nan_to_num(0), iou)


def label_f1(truth: Tensor, prediction: Tensor) -> Tensor:
    """F1 of each image's label set, (B,) from two (B, C) in {0, 1}; 1 where both are empty: nothing is missed.

    Written out: torchmetrics refuses a batch of one image here.
    """
    both, named = (truth * prediction).sum(1), truth.sum(1) + prediction.sum(1)
    return torch.where(named == 0, 1.0, 2 * both / named.clamp(min=1))


def dice_of_iou(iou: Tensor) -> Tensor:
    """Dice 2 TP / (2 TP + FP + FN) of IoU TP / (TP + FP + FN), both of one confusion matrix, in [0, 1]; NaN stays.

    Example:
        >>> dice_of_iou(torch.tensor([0.0, 0.5, 1.0])).tolist()
        [0.0, 0.6666666865348816, 1.0]
    """
    return 2 * iou / (1 + iou)


def label_auc(scores: Tensor, truth: Tensor) -> Tensor:
    """Area under the ROC curve of each class over images, (C,): how often an image that shows the class has a higher
    score than one that does not, ties counting half; NaN for a class that all images show, or none.

    Args:
        scores: (N, C), logits or any numbers that grow with them.
        truth: Image labels, (N, C) in {0, 1}.

    Raises:
        ValueError: If the two do not fit, or there is no image.
    """
    if scores.shape != truth.shape or scores.ndim != 2 or not len(scores):
        raise ValueError(f"scores {tuple(scores.shape)} and truth {tuple(truth.shape)} must be (N, C) of some images")
    from scipy.stats import rankdata  # a second

    rank = torch.from_numpy(rankdata(scores.double().cpu().numpy(), axis=0))  # (N, C), 1..N, ties share their mean
    shows = truth.cpu() > 0
    with_it, without = shows.sum(0), (~shows).sum(0)
    return ((rank * shows).sum(0) - with_it * (with_it + 1) / 2) / (with_it * without)
