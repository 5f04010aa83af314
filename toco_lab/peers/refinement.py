"""Every way to refine a CAM by its image, for any method: `Config.eval_refine` says which one an evaluation uses.

| word | what it does | needs |
|---|---|---|
| `par` | pixel-adaptive refinement (`method.refine`) | |
| `pamr` | the older filter that PAR comes from (`pamr`) | |
| `crf` | dense CRF (`method.crf`) | |
| `patch` | the CAM spread along the attention between patches (`affinity`, MCTformer) | a plain ViT |
| `walk` | a random walk along a learned affinity (`learned_affinity`, AFA) | an affinity head |
| `patch+par`, `walk+par` | one after the other | as above |

Affinities are taken at the largest scale of the CAM, where the grid is finest, and rows of `patch` sum to 1.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import get_args, get_type_hints

import torch
from torch import Tensor

from toco_lab.backbones.kinds import fill_patches
from toco_lab.backbones.pixels import denormalise
from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.method.cam import Cams, at_evaluation_size, min_max, resize, resize_each, scaled_size
from toco_lab.method.crf import crf_label
from toco_lab.method.face import CamModel
from toco_lab.method.labels import confident_label
from toco_lab.method.refine import par_weights, refined_labels
from toco_lab.peers.afa import WithAffinity
from toco_lab.peers.affinity import affinity_of_image, row_normalised, spread
from toco_lab.peers.learned_affinity import walked_label, walked_scores
from toco_lab.peers.pamr import pamr_weights

WORDS: tuple[str, ...] = get_args(get_type_hints(Config)["eval_refine"])


def refinements_of(cfg: Config) -> tuple[str, ...]:
    """The words of the table that models of a config can do; a Swin has no `patch`, and few models learn a `walk`."""
    possible = []
    for word in WORDS:
        with suppress(ValueError):
            cfg.replace(eval_refine=word)
            possible.append(word)
    return tuple(possible)


@torch.no_grad()
def refine(model: CamModel, cfg: Config, image: Tensor, cams: Cams, backgrounds: Sequence[float]) -> list[Tensor]:
    """The labels of refined CAMs, for each of some constant background scores.

    Args:
        model: In evaluation mode; `walk` needs one with an affinity head.
        cfg: Says which refinement, and the settings of PAR.
        image: Normalised, native size, (B, 3, H, W).
        cams: At that size, (B, S, H, W).
        backgrounds: Background scores in [0, 1].

    Returns:
        For each background a label map (B, H, W) int64: 0 background, 1..C classes; nothing is ignored.

    Raises:
        ValueError: If the model lacks what the refinement reads.
    """
    pixels = denormalise(image, model.mean, model.std).clamp(0, 255)
    first, _, then = cfg.eval_refine.partition("+")
    cam, present = cams.cam, cams.present
    if first == "walk":
        return _walked(model, cfg, image, pixels / 255, cams, backgrounds, by_par=then == "par")
    if first == "patch":
        cam = _spread(model, cfg, image, cam)
        if then != "par":
            return [confident_label(cam, present, low=score, high=score) for score in backgrounds]
    if first == "crf":
        return [crf_label(pixels, cam, present, low=score, high=score) for score in backgrounds]
    weights = pamr_weights if first == "pamr" else par_weights
    return refined_labels(
        pixels / 255, cam, present, backgrounds, weights_of=weights,
        dilations=cfg.par_dilations, num_iter=cfg.par_iterations,
    )  # fmt: skip


def refine_between(model: CamModel, cfg: Config, image: Tensor, cams: Cams, *, low: float, high: float) -> Tensor:
    """One label (B, H, W): a class or background where a strict and a loose background score agree, else 255.

    Arguments as of `refine`; for PAR it is what `method.refine.refine_cam` gives.
    """
    strict, loose = refine(model, cfg, image, cams, (high, low))
    return strict.masked_fill((strict == 0) & (loose != 0), IGNORE_INDEX)


def _largest(cfg: Config, image: Tensor) -> Tensor:
    """The image at the largest scale of the CAM."""
    resized = at_evaluation_size(image, cfg.eval_cam_size)
    return resize(resized, scaled_size(resized, max(cfg.cam_scales)))


def _spread(model: CamModel, cfg: Config, image: Tensor, cam: Tensor) -> Tensor:
    """The CAM (B, S, H, W) spread along the patch affinity, in [0, 1) again."""
    large = _largest(cfg, image)
    affinity = row_normalised(affinity_of_image(model, large))
    _, grid = fill_patches(model.encoder, large)
    return min_max(resize_each(spread(resize(cam, grid), affinity), cam.shape[-2:]))


def _walked(
    model: CamModel,
    cfg: Config,
    image: Tensor,
    image01: Tensor,
    cams: Cams,
    backgrounds: Sequence[float],
    *,
    by_par: bool,
) -> list[Tensor]:
    """`refine` by the walk; PAR may follow."""
    if not isinstance(model, WithAffinity):
        raise ValueError(f"the refinement 'walk' reads a learned affinity, and this {type(model).__name__} has none")
    affinity, grid = model.affinity(_largest(cfg, image))
    size, present = cams.cam.shape[-2:], cams.present
    if not by_par:
        small = resize(cams.cam, grid)
        scores = (walked_scores(small, present, affinity, one, radius=model.radius) for one in backgrounds)
        return [present.class_label(resize(one, size).max(1).indices) for one in scores]
    whole = torch.tensor([0, size[0], 0, size[1]], device=image.device).expand(len(image), -1)
    return [
        walked_label(
            image01, cams.cam, present, affinity, grid, low=score, high=score, radius=model.radius, valid_box=whole,
            dilations=cfg.par_dilations, num_iter=cfg.par_iterations,
        )
        for score in backgrounds
    ]  # fmt: skip
