"""Over-smoothing of a run, and of any ToCo on the validation images of its config."""

from collections.abc import Sequence
from itertools import islice

import pandas as pd
import torch.nn.functional as F
from tqdm import tqdm

from toco_lab.backbones.weights import weights_hash
from toco_lab.config import Config
from toco_lab.data.loader import EvalSample, eval_samples
from toco_lab.method.cam import at_evaluation_size
from toco_lab.method.model import ToCo
from toco_lab.runs.run_dir import RunDir
from toco_lab.smoothing.layers import DEFAULT_SITES
from toco_lab.smoothing.per_layer import PAIR_COSINES, Sample, measured_table, what_is_asked
from toco_lab.training.checkpoints import load_run_model
from toco_lab.training.processes import resolve_device


def smoothing_of_run(
    run: RunDir,
    num_images: int = 50,
    *,
    metrics: Sequence[str] | None = PAIR_COSINES,
    sites: Sequence[str] = DEFAULT_SITES,
    device: str = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Over-smoothing of a run's last checkpoint on its validation images, written to smoothing.csv.

    Images are resized to `eval_cam_size` squared, as in the evaluation of CAMs, so that runs share one N; they keep
    their native size if that is 0. Labels of pairs come from the true masks.

    Args:
        run: A run with a checkpoint.
        num_images: How many images, from the start of the validation list.
        metrics: Names of metrics; None takes all.
        sites: Among `SITES`.
        device: As in `Config.device`.
        progress: Show a progress bar.

    Returns:
        The table of `smoothing_per_layer`.
    """
    model, cfg = load_run_model(run, resolve_device(device))
    checkpoint = run.checkpoints()[-1]
    weights = f"{checkpoint.stem} ({weights_hash(checkpoint)})"
    frame = smoothing_of_model(
        model, cfg, num_images, name=run.name, weights=weights, metrics=metrics, sites=sites, progress=progress
    )
    run.write_table("smoothing", frame)
    return frame


def smoothing_of_model(
    model: ToCo,
    cfg: Config,
    num_images: int = 50,
    *,
    name: str,
    weights: str,
    metrics: Sequence[str] | None = PAIR_COSINES,
    sites: Sequence[str] = DEFAULT_SITES,
    progress: bool = True,
) -> pd.DataFrame:
    """Over-smoothing of a model that no run holds, for example before training (`training.initial_model`).

    Args:
        model: The model.
        cfg: Its config, which names the data set and the size of the images.
        num_images: How many images, from the start of the validation list.
        name: Name of the model in the table.
        weights: Which weights it carries.
        metrics: Names of metrics; None takes all.
        sites: Among `SITES`.
        progress: Show a progress bar.

    Returns:
        The table of `smoothing_per_layer`.
    """
    wanted = what_is_asked(model.encoder, metrics, sites)
    validation = eval_samples(cfg, model.mean, model.std)
    samples = (_resized(sample, cfg.eval_cam_size) for sample in islice(iter(validation), num_images))
    total = min(num_images, len(validation))
    return measured_table(model, tqdm(samples, f"smoothing {name}", total, disable=not progress), wanted, name, weights)


def _resized(sample: EvalSample, size: int) -> Sample:
    """The image and its mask at size x size pixels; at native size for size 0."""
    image, mask = sample.image, sample.mask
    if size:
        image = at_evaluation_size(image[None], size)[0]
        mask = None if mask is None else F.interpolate(mask[None, None].float(), (size, size))[0, 0].long()
    return Sample(image, mask, sample.name)
