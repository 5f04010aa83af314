"""Over-smoothing of a run, and of any ToCo on the validation images of its config."""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import islice
from statistics import mode

import pandas as pd
import torch.nn.functional as F

from toco_lab.backbones.weights import weights_hash
from toco_lab.config import Config
from toco_lab.data.loader import EvalSample, eval_samples
from toco_lab.files import check_writable, require
from toco_lab.method.cam import at_evaluation_size
from toco_lab.method.face import CamModel
from toco_lab.progress import progress_bar
from toco_lab.runs.locks import only_worker
from toco_lab.runs.run_dir import RunDir
from toco_lab.smoothing.layers import DEFAULT_SITES
from toco_lab.smoothing.per_layer import ALL_IMAGES, PAIR_COSINES, Sample, measured_table, what_is_asked
from toco_lab.training.checkpoints import load_run_model
from toco_lab.training.processes import resolve_device

_MEASURED = ("site", "metric", "variant")


def smoothing_of_run(
    run: RunDir,
    num_images: int = 50,
    *,
    metrics: Sequence[str] | None = PAIR_COSINES,
    sites: Sequence[str] = DEFAULT_SITES,
    device: str = "auto",
    progress: bool = True,
    write: bool = True,
) -> pd.DataFrame:
    """Over-smoothing of a run's last checkpoint on its validation images; what is new is written to smoothing.csv.

    Numbers of the same weights that the file holds over more images stay there, and what this call measured over fewer
    is only returned. Who measures a run to compare it with another passes `write=False`.

    Images are resized to `eval_cam_size` squared, as in the evaluation of CAMs, so that runs share one N; they keep
    their native size if that is 0. Labels of pairs come from the true masks.

    Args:
        run: A run with a checkpoint.
        num_images: How many images, from the start of the validation list.
        metrics: Names of metrics; None takes all.
        sites: Among `SITES`.
        device: As in `Config.device`.
        progress: Show a progress bar.
        write: Whether smoothing.csv may change; without it the folder of the run stays as it is.

    Returns:
        The table of `smoothing_per_layer`, of what this call measured.

    Raises:
        ValueError: If smoothing.csv may change and another process is at work in the folder of the run.
    """
    require(run, RunDir, "run", ": open one with RunDir(folder)")
    if write:
        check_writable(run.path / "smoothing.csv")
    with only_worker(run.path) if write else nullcontext():
        frame = _measure(run, num_images, metrics, sites, device, progress=progress)
        if write:
            run.write_table("smoothing", merged(_kept(run, frame), frame))
    return frame


def _measure(
    run: RunDir, num_images: int, metrics: Sequence[str] | None, sites: Sequence[str], device: str, *, progress: bool
) -> pd.DataFrame:
    model, cfg = load_run_model(run, resolve_device(device))
    checkpoint = run.checkpoints()[-1]
    weights = f"{checkpoint.stem} ({weights_hash(checkpoint)})"
    return smoothing_of_model(
        model, cfg, num_images, name=run.name, weights=weights, metrics=metrics, sites=sites, progress=progress
    )


def _kept(run: RunDir, new: pd.DataFrame) -> pd.DataFrame:
    """What smoothing.csv holds; no row, in the columns of `new`, where there is none or it is damaged."""
    try:
        return run.read_table("smoothing", text=("image", "weights")) if run.is_measured else new.iloc[:0]
    except ValueError as error:
        run.log(f"smoothing.csv is written anew: {error}")
        return new.iloc[:0]


def merged(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Two tables of `smoothing_per_layer` of one run: of each metric at each site the one over more images.

    Rows of `old` of other weights, or with other columns (of an older version of this package), are dropped. Equally
    many images: the new ones.
    """
    if list(old.columns) != list(new.columns) or old.empty or new.empty:
        return new
    old = old[old["weights"] == new["weights"].iloc[0]]
    before, now = num_images_of(old), num_images_of(new)
    stay = [before[key] > now.get(key, 0) for key in zip(*(old[name] for name in _MEASURED), strict=True)]
    go = [before.get(key, 0) > now[key] for key in zip(*(new[name] for name in _MEASURED), strict=True)]
    both = pd.concat([old[stay], new[[not gone for gone in go]]], ignore_index=True)
    return both.astype(new.dtypes.to_dict())


def num_images_of(frame: pd.DataFrame) -> dict[tuple[str, str, str], int]:
    """Over how many images each metric was measured: (site, metric, variant) -> images.

    A metric that needs two classes has no value for an image that shows one. A metric of the tokens of all images
    together has one row; it counts as many images as most metrics of its table.
    """
    found = frame.groupby(list(_MEASURED))["image"].nunique().to_dict()
    pooled = set(frame.loc[frame["image"] == ALL_IMAGES, list(_MEASURED)].itertuples(index=False, name=None))
    usual = mode([count for key, count in found.items() if key not in pooled] or [1])
    return {key: usual if key in pooled else count for key, count in found.items()}


def smoothing_of_model(
    model: CamModel,
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
    shown = progress_bar(samples, f"smoothing {name}", total, shown=progress)
    return measured_table(model, shown, wanted, name, weights)


def _resized(sample: EvalSample, size: int) -> Sample:
    """The image and its mask at size x size pixels; at native size for size 0."""
    image, mask = sample.image, sample.mask
    if size:
        image = at_evaluation_size(image[None], size)[0]
        mask = None if mask is None else F.interpolate(mask[None, None].float(), (size, size))[0, 0].long()
    return Sample(image, mask, sample.name)
