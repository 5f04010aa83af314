"""The dense CRF: Kraehenbuehl and Koltun's mean field (NeurIPS 2011) on the permutohedral lattice.

ToCo uses it after the multi-scale segmentation of an evaluation; `crf_label` makes labels of CAMs with it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.config import IGNORE_INDEX
from toco_lab.method.lattice import Lattice, bilateral_features, spatial_features
from toco_lab.method.present import PresentClasses


@torch.no_grad()
def dense_crf(
    image: Tensor,
    prob: Tensor,
    *,
    iterations: int = 10,
    gaussian_sigma_xy: float = 1,
    gaussian_weight: float = 1,
    bilateral_sigma_xy: float = 121,
    bilateral_sigma_rgb: float = 5,
    bilateral_weight: float = 4,
) -> Tensor:
    """Mean field of a fully connected CRF with a Gaussian and a bilateral Potts term, on the lattice.

    Q <- softmax(log(prob) + sum_m weight_m n_m F_m(n_m Q)), n_m = 1 / sqrt(F_m(1)), F_m the lattice filter.

    Args:
        image: (3, H, W) or (B, 3, H, W), any dtype, values in [0, 255].
        prob: (B, K, H, W) in [0, 1]; clipped below at 1e-5.
        iterations: Mean-field steps.
        gaussian_sigma_xy: Standard deviation of the Gaussian term, pixels.
        gaussian_weight: Its weight.
        bilateral_sigma_xy: Standard deviation of the bilateral term, pixels.
        bilateral_sigma_rgb: The same in grey levels.
        bilateral_weight: Its weight.

    Returns:
        (B, K, H, W) float32, sums to 1 over K.

    Raises:
        ValueError: If image and probabilities differ in size.
    """
    image = image[None] if image.ndim == 3 else image
    batch, num_classes, height, width = prob.shape
    if image.shape != (batch, 3, height, width):
        raise ValueError(f"image {tuple(image.shape)} does not fit prob {tuple(prob.shape)}")
    position = spatial_features(height, width, gaussian_sigma_xy, prob.device).expand(batch, -1, -1)
    terms = [
        (gaussian_weight, Lattice(position)),
        (bilateral_weight, Lattice(bilateral_features(image, bilateral_sigma_xy, bilateral_sigma_rgb))),
    ]
    for _, lattice in terms:
        lattice.normalise()
    # One pixel per row, the lattice's own layout: nothing is transposed inside the loop.
    log_prob = prob.float().clamp(1e-5, 1).log_().permute(0, 2, 3, 1).reshape(-1, num_classes).contiguous()  # (B N, K)
    q = log_prob.softmax(1)
    for _ in range(iterations):
        logits = log_prob.clone()
        for weight, lattice in terms:
            logits.add_(lattice.filter_rows(q), alpha=weight)
        q = logits.softmax(1)
    return q.view(batch, height, width, num_classes).permute(0, 3, 1, 2)


@torch.no_grad()
def crf_label(pixels: Tensor, cam: Tensor, present: PresentClasses, *, low: float, high: float) -> Tensor:
    """The label of a CAM after the dense CRF: `refine_cam` with the CRF in place of PAR, on the whole image.

    The CRF gets the probabilities that PAR gets (step 5 of `toco_lab.method`): the softmax over a constant background
    score and the scores of the present classes. Where the runs with `high` and with `low` as background score disagree
    about background, the label is 255.

    Args:
        pixels: (B, 3, H, W), values in [0, 255]; rounded here.
        cam: (B, S, H, W) in [0, 1].
        present: Its classes; absent ones take no part.
        low, high: Background scores. Equal ones take a single run and leave nothing open.

    Returns:
        (B, H, W) int64: 0 background, 1..C classes, 255 ignored.
    """
    labels = []
    for image, maps, index, mask in zip(pixels.round(), cam, present.index, present.mask, strict=True):
        classes = F.pad(index[mask] + 1, (1, 0))  # background, then the present ones
        runs = []
        for background in dict.fromkeys((high, low)):
            constant = maps.new_full((1, *maps.shape[-2:]), background)
            probability = torch.cat([constant, maps[mask]])[None].softmax(1)
            runs.append(classes[dense_crf(image, probability).argmax(1)[0]])
        strict, loose = runs[0], runs[-1]
        labels.append(strict.masked_fill((strict == 0) & (loose != 0), IGNORE_INDEX))
    return torch.stack(labels)
