"""How much of each part of an object a map finds: heads against bodies in the toy world of parts."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from toco_lab.config import Config
from toco_lab.data.loader import eval_samples
from toco_lab.data.readers import PartsReader
from toco_lab.data.toy_parts import BODY, HEAD
from toco_lab.evaluation.prediction import BATCH, grouped_by_size, label_above, predict
from toco_lab.evaluation.samples import image_label_of, mask_of
from toco_lab.method.face import CamModel
from toco_lab.vocabulary import CAM, CAM_AUX, SEG

PARTS = {"background": 0, "head": HEAD, "body": BODY}


@torch.no_grad()
def recall_by_part(
    model: CamModel,
    cfg: Config,
    *,
    targets: Sequence[str] = (CAM, CAM_AUX, SEG),
    thresholds: Sequence[float] | None = None,
    split: str | None = None,
) -> pd.DataFrame:
    """The share of the pixels of heads, of bodies and of the background that get their true label.

    A CAM that covers the telling part alone has a recall near 1 on heads and a low one on bodies.

    Args:
        model: In evaluation mode.
        cfg: Protocol of the maps, with the toy world `parts`.
        targets: Among final CAM, auxiliary CAM and segmentation.
        thresholds: Background thresholds of the CAMs; None takes `cfg.background_threshold`. A segmentation has none,
            and its rows are the same for each.
        split: None takes `cfg.val_split`.

    Returns:
        A row per target, threshold and part: target, threshold, part, recall in [0, 1] (NaN where there is no pixel of
        it), pixels.

    Raises:
        ValueError: If the scenes have no parts, or no threshold is given.
    """
    samples = eval_samples(cfg, model.mean, model.std, split)
    if not isinstance(samples.reader, PartsReader):
        raise ValueError(
            f"the images of {cfg.dataset!r} have no parts on record: recall by part needs dataset 'toy' with toy_world "
            "'parts' (preset toy_parts)"
        )
    wanted = [float(one) for one in (thresholds if thresholds is not None else [cfg.background_threshold])]
    if not wanted:
        raise ValueError("thresholds must name at least one background threshold")
    device = next(model.parameters()).device
    counts = {(target, one, part): (0, 0) for target in targets for one in wanted for part in PARTS}
    first = 0
    for group in grouped_by_size(iter(samples), BATCH):
        image = torch.stack([sample.image for sample in group]).to(device)
        label = torch.stack([image_label_of(sample) for sample in group]).to(device)
        truth = torch.stack([mask_of(sample) for sample in group])
        part = torch.stack([torch.from_numpy(samples.reader.part(first + i)) for i in range(len(group))])
        first += len(group)
        predicted = predict(model, cfg, image, label, targets)  # one pass serves every threshold
        for target, one, name in counts:
            right, there = _label(predicted, target, one).cpu() == truth, part == PARTS[name]
            hits, pixels = counts[target, one, name]
            counts[target, one, name] = hits + int((right & there).sum()), pixels + int(there.sum())
    rows = [(*key, hits / pixels if pixels else float("nan"), pixels) for key, (hits, pixels) in counts.items()]
    return pd.DataFrame(rows, columns=["target", "threshold", "part", "recall", "pixels"])


def _label(predicted: Mapping[str, Tensor], target: str, threshold: float) -> Tensor:
    """The label map (B, H, W) of a target at a background threshold, which a segmentation has none of."""
    if target == SEG:
        return predicted[target]
    return label_above(predicted[f"{target}_scores"], predicted[f"{target}_winners"], threshold)
