"""DuPL's falling threshold: the upper threshold of the pseudo labels sinks while the CAMs become trustworthy, steps 4
and 5 of `toco_lab.method`.

Wu, Ye, Yang, Li, Li: "DuPL: Dual Student with Trustworthy Progressive Learning for Robust Weakly Supervised Semantic
Segmentation" (CVPR 2024). Not part of ToCo; off unless `high_threshold_end` is set.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from toco_lab.config import Config
from toco_lab.method.present import PresentClasses


def high_threshold(cfg: Config, step: int, present: PresentClasses) -> float | Tensor:
    """The upper threshold of a step (0-based): one number, or one for each image, (B,), where classes differ.

    From `cfg.high_threshold` it falls to `cfg.high_threshold_end` over the steps from `cfg.threshold_fall_start_step`
    (None: from `cfg.seg_start_step`) to the last.
    """
    if cfg.high_threshold_end is None:
        return cfg.high_threshold
    first = cfg.seg_start_step if cfg.threshold_fall_start_step is None else cfg.threshold_fall_start_step
    now = [half_cosine(cfg.high_threshold, end, step - first, cfg.steps - first) for end in cfg.high_threshold_end]
    return now[0] if len(now) == 1 else largest_of_present(now, present)


def half_cosine(start: float, end: float, step: int, length: int) -> float:
    """A number that goes from `start` at step 0 to `end` at step `length` - 1 by half a cosine, and stays before and
    after.

    >>> [round(half_cosine(0.7, 0.5, step, 5), 3) for step in range(-1, 6)]
    [0.7, 0.7, 0.671, 0.6, 0.529, 0.5, 0.5]
    """
    if step < 0:
        return start
    if step >= length:
        return end
    return start + (end - start) * (1 - math.cos(math.pi * step / max(length - 1, 1))) / 2


def largest_of_present(thresholds: Sequence[float], present: PresentClasses) -> Tensor:
    """(B,): the largest threshold among the classes that each image shows.

    Args:
        thresholds: C numbers, one for each class.
        present: The classes of the images. An image without any takes the smallest number: it is background anyway.
    """
    every = torch.tensor(thresholds).to(present.index.device, non_blocking=True)
    return every[present.index].masked_fill(~present.mask, min(thresholds)).amax(1)
