"""GETAM's own pseudo label, from maps and a saliency mask of the image, as the authors' code makes it.

Saliency comes from a network that was trained with masks: it is extra supervision, and no run here uses it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.config import IGNORE_INDEX

BACKGROUND_POWER = 32
CERTAIN_SHARE = 0.9  # of a class's positive values; above it a pixel has the class whatever saliency says
WINDOW = 10  # side of the square of the opening, in pixels


def saliency_label(cam: Tensor, classes: Tensor, saliency: Tensor) -> Tensor:
    """The label of one image: a class where map and saliency agree, 255 where only saliency speaks.

    Args:
        cam: Maps of the present classes, (n, H, W) in [0, 1].
        classes: Their indices 0..C-1, (n,).
        saliency: (H, W), 0 where nothing stands out.

    Returns:
        (H, W) int64: 0 background, 1..C classes, 255 ignored.
    """
    background = (1 - cam.amax(0, keepdim=True)) ** BACKGROUND_POWER
    place = torch.cat([background, cam]).argmax(0)
    label = torch.cat([classes.new_tensor([IGNORE_INDEX]), classes + 1])[place].long()
    label = label.where(saliency > 0, 0)
    for number, one in zip(classes.tolist(), cam, strict=True):
        values = one[one > 0].sort().values
        if len(values):
            certain = (one > values[int(CERTAIN_SHARE * len(values))]) & (label == 0)
            label = label.masked_fill(certain, number + 1)
    return label.where(_opened(label != 0), 0)


def _opened(mask: Tensor) -> Tensor:
    """Minimum, then maximum of a (H, W) mask over [p - 5, p + 4] both times: shifted by one, as the authors' code."""
    before, after = WINDOW // 2, WINDOW - WINDOW // 2 - 1
    around = (before, after, before, after)
    least = -F.max_pool2d(-F.pad(mask[None].float(), around, value=1.0), WINDOW, 1)
    return F.max_pool2d(F.pad(least, around, value=0.0), WINDOW, 1)[0] > 0
