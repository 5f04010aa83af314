"""The losses of ToCo as pure functions: no loop over images, no host synchronisation, fp32 also under autocast.

`step.compute_losses` makes their inputs and sums them (paper, section on the training objective): classification +
auxiliary classification + 0.2 patch token contrast + 0.5 class token contrast + 0.1 segmentation + 0.05 regularisation.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.config import IGNORE_INDEX
from toco_lab.method.flow import warp
from toco_lab.method.labels import inside_box
from toco_lab.method.lattice import Lattice, bilateral_features

CTC_EPSILON = 1e-4  # added to the InfoNCE denominator and to the number of positives


def classification_loss(logits: Tensor, image_label: Tensor) -> Tensor:
    """Multi-label soft margin: binary cross entropy of every class, averaged.

    Args:
        logits: (B, C), C foreground classes.
        image_label: (B, C) in {0, 1}.

    Returns:
        Scalar >= 0.
    """
    logits = _at_least_fp32(logits)
    return F.multilabel_soft_margin_loss(logits, image_label.to(logits.dtype))


def affinity_mask(label: Tensor) -> Tensor:
    """The relation of every pair of tokens, which patch token contrast reads (step 4 of `toco_lab.method`).

    Args:
        label: (B, h, w) integers: 0 background, 1..C classes, 255 ignored.

    Returns:
        (B, N, N) uint8, N = h * w row-major: 1 same label, 0 different, 255 where either is ignored and on the
        diagonal.
    """
    flat = label.flatten(1)
    rows, columns = flat[:, :, None], flat[:, None, :]
    diagonal = torch.eye(flat.shape[1], dtype=torch.bool, device=label.device)
    ignored = (rows == IGNORE_INDEX) | (columns == IGNORE_INDEX) | diagonal
    return (rows == columns).to(torch.uint8).masked_fill(ignored, IGNORE_INDEX)


@dataclass(frozen=True)
class PtcTerms:
    """Patch token contrast with the two means it must be read with.

    The loss is near 0.5 both when all tokens are equal and when all are orthogonal; the means tell the two apart.

    Attributes:
        loss: Scalar.
        positive_cosine: Scalar, detached: mean |cos| over the positive pairs of the batch, in [0, 1]; NaN if there
            are none.
        negative_cosine: The same over the negative pairs.
    """

    loss: Tensor
    positive_cosine: Tensor
    negative_cosine: Tensor


def ptc_terms(
    patch_tokens: Tensor, affinity: Tensor, *, similarity: Literal["absolute", "raw"] = "absolute"
) -> PtcTerms:
    """Patch token contrast: pull same-class tokens together, push different-class tokens apart.

    Paper: section on patch token contrast. With A the similarity, P and N the positive and negative pairs of the whole
    batch: 0.5 (1 - sum_P A / (|P| + 1)) + 0.5 sum_N A / (|N| + 1), as in the released code; the paper has plain means.

    Args:
        patch_tokens: Final patch tokens, (B, D, h, w), any scale; normalised here over D.
        affinity: (B, N, N) with N = h * w; 1 same class, 0 different, 255 ignored.
        similarity: `absolute` takes the absolute cosine as the released code does, `raw` the cosine itself.

    Returns:
        The loss, in [0, 1] for `absolute` and exactly 0.5 when all pairs are ignored, with the mean |cos| of the
        positive and of the negative pairs.

    Raises:
        ValueError: If `affinity` does not fit the tokens or `similarity` is unknown.
    """
    batch, _, height, width = patch_tokens.shape
    if affinity.shape != (batch, height * width, height * width):
        raise ValueError(
            f"affinity {tuple(affinity.shape)} does not fit patch_tokens {tuple(patch_tokens.shape)}: "
            "need (B, h * w, h * w)"
        )
    if similarity not in ("absolute", "raw"):
        raise ValueError(f"similarity must be 'absolute' or 'raw', got {similarity!r}")
    with torch.autocast(patch_tokens.device.type, enabled=False):
        tokens = F.normalize(_at_least_fp32(patch_tokens).flatten(2), dim=1, eps=1e-8)  # (B, D, N)
        cosine = tokens.transpose(1, 2) @ tokens  # (B, N, N)
    absolute = cosine.abs()
    compared = absolute if similarity == "absolute" else cosine
    positive, negative = affinity == 1, affinity == 0
    num_positive, num_negative = positive.sum(), negative.sum()
    pull = 1 - (compared * positive).sum() / (num_positive + 1)
    push = (compared * negative).sum() / (num_negative + 1)
    with torch.no_grad():
        positive_cosine = (absolute * positive).sum() / num_positive
        negative_cosine = (absolute * negative).sum() / num_negative
    return PtcTerms(0.5 * pull + 0.5 * push, positive_cosine, negative_cosine)


def ptc_loss(patch_tokens: Tensor, affinity: Tensor, *, similarity: Literal["absolute", "raw"] = "absolute") -> Tensor:
    """The loss of `ptc_terms` alone.

    Example:
        >>> tokens = torch.eye(4).reshape(1, 4, 2, 2)  # four orthogonal tokens
        >>> ptc_loss(tokens, torch.full((1, 4, 4), 255)).item()
        0.5
    """
    return ptc_terms(patch_tokens, affinity, similarity=similarity).loss


@dataclass(frozen=True)
class CtcTerms:
    """Class token contrast with what it must be read with: whether the two kinds of local crops part.

    Attributes:
        loss: Scalar.
        positive_cosine: Scalar, detached: mean cosine of the teacher's global views with the student's positive local
            crops over the batch, in [-1, 1]; NaN if there are none. The global views themselves do not count.
        negative_cosine: The same with the negative crops.
        positive_share, negative_share, ignored_share: Of the local crops of the batch, in [0, 1]; NaN without crops.
    """

    loss: Tensor
    positive_cosine: Tensor
    negative_cosine: Tensor
    positive_share: Tensor
    negative_share: Tensor
    ignored_share: Tensor


def ctc_terms(
    student: Tensor, teacher: Tensor, flags: Tensor, *, temperature: float = 0.5, negative_only_term: bool = False
) -> CtcTerms:
    """Class token contrast: InfoNCE between the teacher's global views and the student's global and local views.

    Paper: section on class token contrast. Per image, with z = <teacher_v, student_j> / temperature (raw dot products),
    Neg_v = sum of exp(z_vj) over negatives j and P the positives: mean over the teacher's views v of
    sum_P -log(exp(z_vj) / (exp(z_vj) + Neg_v + 1e-4)) / (|P| + 1e-4); then the mean over images. Ignored views are in
    no sum and in no count, and get no gradient.

    Args:
        student: (V * B, D), view-major: row v * B + i is view v of image i. The first T views are the global ones.
        teacher: (T * B, D), view-major; T = 2 global views.
        flags: (B, V): 1 where the view is a positive, 0 a negative, 255 ignored.
        temperature: > 0.
        negative_only_term: Add log(1 + Neg_v + 1e-4) to each sum, as the released code always does (its
            `for ... else` never breaks); False leaves it at the terms of the positives.

    Returns:
        The loss, a scalar >= 0, with cosines and shares of the local crops.

    Raises:
        ValueError: If the rows of student and teacher do not fit `flags`.
    """
    batch, views = flags.shape
    same_width = student.shape[1:] == teacher.shape[1:]
    if len(student) != views * batch or len(teacher) < batch or len(teacher) % batch or not same_width:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} do not fit flags "
            f"{tuple(flags.shape)}: need (V * B, D) and (T * B, D)"
        )
    student = _at_least_fp32(student).unflatten(0, (views, batch))
    teacher = _at_least_fp32(teacher).unflatten(0, (-1, batch))
    with torch.autocast(student.device.type, enabled=False):
        z = torch.einsum("tbd,vbd->btv", teacher, student) / temperature  # (B, T, V)
    positive, negative = (flags == 1)[:, None], (flags == 0)[:, None]  # (B, 1, V)
    # -log(e / (e + Neg + 1e-4)) = softplus(log(Neg + 1e-4) - z), and that log is a logsumexp: nothing overflows.
    epsilon = torch.full_like(z[..., :1], CTC_EPSILON).log()
    log_negatives = torch.cat([z.masked_fill(~negative, -torch.inf), epsilon], dim=2).logsumexp(2, keepdim=True)
    terms = (F.softplus(log_negatives - z) * positive).sum(2)  # (B, T)
    if negative_only_term:
        terms = terms + F.softplus(log_negatives).squeeze(2)
    loss = (terms.mean(1) / (positive.sum(2).squeeze(1) + CTC_EPSILON)).mean()
    return CtcTerms(loss, *_crop_statistics(student, teacher, flags))


@torch.no_grad()
def _crop_statistics(student: Tensor, teacher: Tensor, flags: Tensor) -> list[Tensor]:
    """The numbers of `CtcTerms` after the loss, of student (V, B, D), teacher (T, B, D) and flags (B, V)."""
    local = len(teacher)
    with torch.autocast(student.device.type, enabled=False):
        cosine = torch.einsum(
            "tbd,vbd->btv", F.normalize(teacher, dim=2, eps=1e-8), F.normalize(student[local:], dim=2, eps=1e-8)
        )
    kinds = [flags[:, local:] == kind for kind in (1, 0, IGNORE_INDEX)]  # (B, n) each
    means = [(cosine * kind[:, None]).sum() / (local * kind.sum()) for kind in kinds[:2]]
    return means + [kind.to(cosine.dtype).mean() for kind in kinds]


def ctc_loss(
    student: Tensor, teacher: Tensor, flags: Tensor, *, temperature: float = 0.5, negative_only_term: bool = False
) -> Tensor:
    """The loss of `ctc_terms` alone.

    Example:
        >>> tokens = torch.eye(3)  # of one image: two global views and a local crop, all orthogonal
        >>> [round(ctc_loss(tokens, tokens[:2], torch.tensor([[1, 1, kind]])).item(), 2) for kind in (0, 255)]
        [0.41, 0.0]
    """
    return ctc_terms(student, teacher, flags, temperature=temperature, negative_only_term=negative_only_term).loss


def distil_loss(cam: Tensor, target: Tensor, image_label: Tensor, inside: Tensor) -> Tensor:
    """Regression of the final tokens on the auxiliary CAM: mean squared error of the sigmoid of their raw CAM.

    This is not part of ToCo. It is the obvious alternative to patch token contrast, here to compare with.

    Args:
        cam: Raw CAM of the final tokens, (B, C, h, w), with gradient; all classes or the present ones.
        target: Auxiliary CAM of the same classes in [0, 1], (B, C, h, w).
        image_label: (B, C) in {0, 1}; maps of absent classes do not count.
        inside: (B, h, w) bool, False for tokens of padding.

    Returns:
        Scalar in [0, 1]: mean over the tokens inside and the present classes of the batch; 0 if there are none.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if target.shape != cam.shape or image_label.shape != cam.shape[:2] or inside.shape != cam[:, 0].shape:
        raise ValueError(
            f"cam {tuple(cam.shape)} does not fit target {tuple(target.shape)}, image_label {tuple(image_label.shape)} "
            f"and inside {tuple(inside.shape)}: need (B, C, h, w) twice, (B, C) and (B, h, w)"
        )
    counted = image_label[:, :, None, None].bool() & inside[:, None]
    error = (_at_least_fp32(cam).sigmoid() - target.detach()).square()
    return (error * counted).sum() / counted.sum().clamp(min=1)


def temporal_loss(logits: Tensor, flow: Tensor, holds: Tensor) -> Tensor:
    """How far the segmentations of two frames of a clip differ along the optical flow; not part of ToCo.

    Of each frame t with the other frame s of its pair: mean over all pixels x that hold of |p_t(x) - p_s(x + f(x))|,
    with p the softmax and |.| the sum over its K channels. The gradient runs through both frames.
    As the temporal losses of video networks, e.g. Liu et al. (ECCV 2020, arXiv 2002.11433), with that distance.

    Args:
        logits: (B, K, H, W); images 2i and 2i + 1 are a pair.
        flow: f, from each frame to the other one, (B, 2, H, W) in pixels to the right and down.
        holds: Pixels that count, (B, H, W) bool.

    Returns:
        Scalar in [0, 2]; 0 where no pixel counts.

    Raises:
        ValueError: If the shapes do not fit, or an image has no other one.
    """
    if len(logits) % 2 or holds.shape != logits[:, 0].shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} are no pairs of frames with holds {tuple(holds.shape)}: need (B, K, H, W) "
            "with an even B, and (B, H, W)"
        )
    probability = _at_least_fp32(logits).softmax(1)
    other = probability.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    differs = (probability - warp(other, flow)).abs().sum(1)
    return (differs * holds).sum() / holds.sum().clamp(min=1)


def seg_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Segmentation loss: half the mean cross entropy over background pixels plus half that over foreground pixels.

    Args:
        logits: (B, K, H, W), K = 1 + C.
        label: (B, H, W): 0 background, 1..C classes, 255 ignored.

    Returns:
        Scalar >= 0. A half without pixels is 0 (the released code gives NaN there, with this gradient).
    """
    pixels = F.cross_entropy(_at_least_fp32(logits), label.long(), ignore_index=IGNORE_INDEX, reduction="none")
    background = label == 0
    foreground = (label != 0) & (label != IGNORE_INDEX)
    of_background, of_foreground = (
        0.5 * (pixels * half).sum() / half.sum().clamp(min=1) for half in (background, foreground)
    )
    return of_background + of_foreground


def reg_loss(
    logits: Tensor,
    image: Tensor,
    label: Tensor,
    valid_box: Tensor,
    *,
    weight: float = 1e-7,
    sigma_rgb: float = 15.0,
    sigma_xy: float = 100.0,
    scale: float = 0.5,
    gate: Literal["released", "exact"] = "released",
) -> Tensor:
    """Regularised loss: dense CRF energy of the prediction, low where similar pixels share a class.

    After Tang et al., "On regularized losses for weakly-supervised CNN segmentation" (ECCV 2018): at the reduced size,
    -weight * sum(S G F(S)) / B. S is the softmax, 0 outside the box; F is the lattice filter; the gate G is 1 where the
    label is ignored, else 1 - max softmax inside the box and 0 outside.

    Args:
        logits: (B, K, H, W).
        image: (B, 3, H, W) float, values in [0, 255] (denormalised, not rounded).
        label: (B, H, W), 255 ignored.
        valid_box: (B, 4) top, bottom, left, right in pixels, half-open.
        weight: Factor of the energy.
        sigma_rgb: Standard deviation of the filter in grey levels.
        sigma_xy: The same in pixels of the full image.
        scale: Size at which the energy is taken, relative to the image.
        gate: `released` has the gradient that the released code writes by hand: gate constant, filter symmetric, both
            factors S alike. `exact` has the true gradient. The value is the same.

    Returns:
        Scalar <= 0.

    Raises:
        ValueError: If the shapes do not fit or `gate` is unknown.
    """
    batch, _, height, width = logits.shape
    fits = image.shape == (batch, 3, height, width) and label.shape == (batch, height, width)
    if not fits or valid_box.shape != (batch, 4):
        raise ValueError(
            f"logits {tuple(logits.shape)} do not fit image {tuple(image.shape)}, label "
            f"{tuple(label.shape)} and valid_box {tuple(valid_box.shape)}"
        )
    if gate not in ("released", "exact"):
        raise ValueError(f"gate must be 'released' or 'exact', got {gate!r}")
    pred = F.interpolate(_at_least_fp32(logits).softmax(1), scale_factor=scale, mode="bilinear", align_corners=False)
    image, inside, ignored = _reduced(image, label, valid_box, scale)
    # counting the vertices saves work on a CPU; on a GPU the host would wait for the count
    lattice = Lattice(bilateral_features(image, sigma_xy * scale, sigma_rgb), compact=logits.device.type == "cpu")
    with torch.set_grad_enabled(gate == "exact" and torch.is_grad_enabled()):
        masked = pred * inside
        openness = torch.where(ignored > 0, 1.0, inside - pred.amax(1, keepdim=True)).clamp(min=0)
        # contiguous: the lattice has pixels first, and every gradient from here up would be copied
        gated = lattice.filter(masked.flatten(2)).contiguous().view_as(pred) * openness
    energy = (pred * inside * gated).sum()
    if gate == "released":
        energy = 2 * energy - energy.detach()  # both factors S count in the gradient, once in the value
    return -weight / batch * energy


def _reduced(image: Tensor, label: Tensor, valid_box: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """At a smaller size: the image, (B, 3, h, w), and as 0 or 1, (B, 1, h, w), what is in the box and what is ignored.

    Nearest neighbour: pixels are picked, not mixed.
    """
    inside = inside_box(valid_box, *label.shape[-2:])
    stacked = torch.cat([image.float(), inside[:, None].float(), (label == IGNORE_INDEX)[:, None].float()], dim=1)
    image, inside, ignored = F.interpolate(stacked, scale_factor=scale, mode="nearest").split([3, 1, 1], dim=1)
    return image, inside, ignored


def _at_least_fp32(values: Tensor) -> Tensor:
    """Half precision up to float32; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()
