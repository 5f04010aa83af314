"""The maps of the first images of a split, as rows that a gallery shows or keeps."""

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from toco_lab.config import Config
from toco_lab.data.loader import EvalSample, eval_samples
from toco_lab.evaluation.gallery import MAPS
from toco_lab.evaluation.prediction import learnt_targets, predict
from toco_lab.evaluation.samples import image_label_of
from toco_lab.files import require
from toco_lab.method.face import CamModel
from toco_lab.vocabulary import CAM, SEG

_PREDICTED = dict(zip(MAPS, ("cam_scores", "cam_aux_scores", CAM, SEG), strict=True))  # heading -> in `predict`


@torch.no_grad()
def gallery_rows(
    model: CamModel, cfg: Config, num_images: int = 6, split: str | None = None
) -> list[dict[str, np.ndarray | None]]:
    """Rows for `figures.cam_gallery`: image, truth, CAMs (strongest present class), label of the CAM, segmentation.

    Arrays of native size: uint8 image (H, W, 3), float CAMs (H, W) in [0, 1], integer label maps (H, W). A run that
    learns no segmentation has none.

    Args:
        model: In evaluation mode.
        cfg: Protocol of the maps.
        num_images: How many images of the split, from the first on.
        split: None takes `cfg.val_split`.

    Raises:
        ValueError: If model and cfg are none, or the split cannot be read.
    """
    require(model, CamModel, "model", ": load_run_model(run) loads one")
    require(cfg, Config, "cfg", ": it is that of the run, run.config()")
    device, rows = next(model.parameters()).device, []
    for sample in islice(iter(eval_samples(cfg, model.mean, model.std, split)), num_images):
        image, label = sample.image[None].to(device), image_label_of(sample)[None].to(device)
        rows += map_rows([sample], predict(model, cfg, image, label, learnt_targets(cfg, (CAM, SEG))))
    return rows


def map_rows(samples: Sequence[EvalSample], predicted: Mapping[str, Tensor]) -> list[dict[str, np.ndarray | None]]:
    """What `predict` says of images as arrays under their headings, a row per image.

    `predicted` may be of more images, of which `samples` are the first.
    """
    maps = {title: predicted[key].cpu().numpy() for title, key in _PREDICTED.items() if key in predicted}
    return [
        {"image": sample.raw, "truth": None if sample.mask is None else sample.mask.numpy()}
        | {title: array[i] for title, array in maps.items()}
        for i, sample in enumerate(samples)
    ]
