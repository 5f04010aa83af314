"""Pixel-adaptive mask refinement (PAMR), the older filter that PAR comes from.

Source: Araslanov, Roth: "Single-Stage Semantic Segmentation from Image Labels" (CVPR 2020); GETAM refines its maps with
it. PAR squares the colour difference, and adds a term of the distance.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from toco_lab.method.refine import DILATIONS, neighbours, par_filter

SIGMA = 0.1  # width of the affinity, in local standard deviations


@torch.no_grad()
def pamr_weights(image: Tensor, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """Weight of each pixel's neighbours by how alike their colours are.

    Softmax over the n = 8 * len(dilations) neighbours of -|I_k - I| / (0.1 std + 1e-8), averaged over RGB. As in the
    released code the standard deviation is over the 3x3 windows of all dilations, in which the centre stands once each.

    Args:
        image: (B, 3, h, w) float, values in [0, 255].
        dilations: Distances of the eight neighbours, in pixels; beyond the border the border pixel counts.

    Returns:
        (B, n, h, w), dilation-major; sums to 1 over n.
    """
    image, centres = image.float(), len(dilations)
    number = 9 * centres
    mean = (sum(neighbours(image, dilations)) + centres * image) / number
    variance = centres * (image - mean).square()
    for near in neighbours(image, dilations):
        variance += (near - mean).square()
    width = (variance / (number - 1)).sqrt_().mul_(SIGMA).add_(1e-8)
    terms = [((near - image).abs() / width).mean(1) for near in neighbours(image, dilations)]
    return torch.stack(terms, 1).neg_().softmax(1)


def pamr(image: Tensor, masks: Tensor, *, dilations: Sequence[int] = DILATIONS, num_iter: int = 10) -> Tensor:
    """Refine masks (B, K, h, w) by an image of their size, values in [0, 255]; each stays in its range."""
    return par_filter(pamr_weights(image, dilations), masks, dilations, num_iter)
