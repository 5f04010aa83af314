"""CAM quality layer by layer: how well do the tokens of each block still say where a class is?

A linear classifier is trained on the frozen tokens of every block, from image labels alone, and its CAMs are scored by
the protocol of the run. Read beside the similarity of the tokens, this shows what over-smoothing costs.
"""

import functools
from collections.abc import Sequence
from itertools import islice

import pandas as pd
import torch
from torch import Tensor

from toco_lab.backbones.activations import capture
from toco_lab.backbones.kinds import final_norm
from toco_lab.backbones.weights import weights_hash
from toco_lab.config import Config
from toco_lab.data.loader import EvalSample, eval_samples
from toco_lab.evaluation.samples import image_label_of, mask_of
from toco_lab.evaluation.scores import confusion_matrix, iou_scores
from toco_lab.files import require
from toco_lab.method.cam import at_evaluation_size, fuse_flip, min_max, resize
from toco_lab.method.face import CamModel
from toco_lab.method.labels import confident_label
from toco_lab.method.present import PresentClasses
from toco_lab.progress import progress_bar
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model
from toco_lab.training.probe import fit_heads
from toco_lab.training.processes import resolve_device
from toco_lab.vocabulary import AFTER_BLOCK, FINAL_NORM

THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # tried besides the config's own, to find the best of each layer


def layer_cams_of_run(
    run: RunDir,
    *,
    num_train: int = 200,
    num_images: int = 50,
    device: str = "auto",
    progress: bool = True,
    write: bool = True,
) -> pd.DataFrame:
    """CAM quality per layer of a run's last checkpoint; layer_cams.csv keeps what was measured over more images.

    Args:
        run: A run with a checkpoint.
        num_train: As in `layer_cam_quality`.
        num_images: As in `layer_cam_quality`.
        device: As in `Config.device`.
        progress: Show progress bars.
        write: Whether layer_cams.csv may change. Who measures a run to compare it with another leaves its folder as it
            is.

    Returns:
        The table of `layer_cam_quality`, of what this call measured, with the columns model (name of the run) and
        weights.
    """
    model, cfg = load_run_model(run, resolve_device(device))
    checkpoint = run.checkpoints()[-1]
    frame = layer_cam_quality(model, cfg, num_train=num_train, num_images=num_images, progress=progress)
    frame = frame.assign(model=run.name, weights=f"{checkpoint.stem} ({weights_hash(checkpoint)})")
    if write and not _measured_better(run, frame):
        run.write_table("layer_cams", frame)
    return frame


def _measured_better(run: RunDir, new: pd.DataFrame) -> bool:
    """Whether layer_cams.csv is of the same weights over more images, or over as many by heads of more images.

    A file of an older version has no column of weights; it counts as one of these.
    """
    try:
        old = run.read_table("layer_cams", text=("weights",))
    except (FileNotFoundError, ValueError):  # not there, or damaged: written anew
        return False
    if old.empty or not {"images", "trained_on"} <= set(old) or set(old.get("weights", ())) - set(new["weights"]):
        return False
    counts = [(int(table["images"].min()), int(table["trained_on"].min())) for table in (old, new)]
    return counts[0] > counts[1]


def layer_cam_quality(
    model: CamModel, cfg: Config, *, num_train: int = 200, num_images: int = 50, progress: bool = True
) -> pd.DataFrame:
    """mIoU of the CAMs of every block, each from a linear classifier of its own on frozen tokens.

    Head, pooling and protocol are ToCo's: maximum over positions per channel, a linear map without bias, multi-scale
    CAM with flip, masked by the true image labels. Tokens are divided by the root mean square of each channel over the
    training images, because blocks differ in scale. The heads see image labels of the training split, never a mask.
    Blocks of a model in stages also differ in their grid: a CAM of an early one is finer.

    Args:
        model: Frozen; its mode is left alone.
        cfg: Splits, sizes, scales and the threshold.
        num_train: How many training images, from the first on, without augmentation.
        num_images: How many validation images, from the first on.
        progress: Show progress bars.

    Returns:
        One row per site and threshold: site, layer (the final norm has that of the last block), threshold, miou, own
        (whether it is the config's threshold), best (whether it is this layer's best; it is chosen on the images that
        are scored, so its miou is an upper bound), images, trained_on.

    Raises:
        ValueError: If a validation image has no mask, or a training image no labels.
    """
    require(model, CamModel, "model", ": load_run_model(run) loads one")
    require(cfg, Config, "cfg", ": it is that of the run, run.config()")
    heads, trained_on = _train_heads(model, cfg, num_train, progress)
    thresholds = sorted({*THRESHOLDS, cfg.background_threshold})
    samples = eval_samples(cfg, model.mean, model.std)
    num_images = min(num_images, len(samples))
    matrices = torch.zeros(len(heads), len(thresholds), cfg.num_classes + 1, cfg.num_classes + 1, dtype=torch.int64)
    first = islice(iter(samples), num_images)
    for sample in progress_bar(first, "CAM of every block", num_images, shown=progress):
        matrices += _matrices(model, cfg, sample, heads, thresholds)
    rows, normed = [], final_norm(model.encoder) is not None
    for layer, of_layer in enumerate(matrices, start=1):
        scores = [iou_scores(matrix, over=cfg.miou_over).miou.item() for matrix in of_layer]
        final = normed and layer == len(matrices)
        site, number = (FINAL_NORM, layer - 1) if final else (AFTER_BLOCK, layer)
        for threshold, score in zip(thresholds, scores, strict=True):
            own, best = threshold == cfg.background_threshold, score == max(scores)
            rows.append((site, number, threshold, score, own, best, num_images, trained_on))
    return pd.DataFrame(rows, columns="site layer threshold miou own best images trained_on".split())


def _train_heads(model: CamModel, cfg: Config, num_train: int, progress: bool) -> tuple[Tensor, int]:
    """Heads (L, C, D) for every layer, and the number of images they were trained on."""
    every = eval_samples(cfg.replace(val_images=0), model.mean, model.std, cfg.train_split)
    pooled, labels = [], []
    for sample in progress_bar(islice(iter(every), num_train), "pool", num_train, shown=progress):
        pooled.append(_pooled(model, cfg, sample))
        labels.append(image_label_of(sample))
    tokens = torch.stack(pooled, dim=1)  # (L, n, D)
    return fit_heads(tokens, torch.stack(labels).to(tokens.device)), len(pooled)


def _matrices(model: CamModel, cfg: Config, sample: EvalSample, heads: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Confusion matrices of one image, (L, thresholds, C + 1, C + 1)."""
    mask, image_label, count = mask_of(sample), image_label_of(sample), cfg.num_classes + 1
    if not image_label.any():  # nothing but background: every map is 0
        background = confusion_matrix(torch.zeros_like(mask), mask, count)
        return background.expand(len(heads), len(thresholds), -1, -1)
    present, layers = PresentClasses.of(image_label[None]), []
    for cam in _cams(model, cfg, sample, heads[:, present.index[0].to(heads.device)]).cpu():
        labels = [confident_label(cam[None], present, low=threshold, high=threshold)[0] for threshold in thresholds]
        layers.append(torch.stack([confusion_matrix(label, mask, count) for label in labels]))
    return torch.stack(layers)


def _tokens(model: CamModel, image: Tensor) -> list[Tensor]:
    """Patch tokens (B, D, h, w) after every block and after the final norm, each with the width and grid it has."""
    seen = capture(model, image)
    layers = [*zip(seen.after_block, seen.block_grids, strict=True)]
    if final_norm(model.encoder) is not None:
        layers.append((seen.final, seen.grid))
    return [seen.patches(tokens).mT.unflatten(2, grid) for tokens, grid in layers]


def _resized(model: CamModel, cfg: Config, sample: EvalSample) -> Tensor:
    """The image as CAMs are evaluated, (1, 3, H, W)."""
    return at_evaluation_size(sample.image[None].to(next(model.parameters()).device), cfg.eval_cam_size)


def _pooled(model: CamModel, cfg: Config, sample: EvalSample) -> Tensor:
    """Maximum over positions, (L + 1, D) with D of the widest layer; narrower ones are padded with 0."""
    pooled = [tokens.amax((2, 3))[0] for tokens in _tokens(model, _resized(model, cfg, sample))]
    return torch.nn.utils.rnn.pad_sequence(pooled, batch_first=True)


def _cams(model: CamModel, cfg: Config, sample: EvalSample, heads: Tensor) -> Tensor:
    """Multi-scale CAMs of every layer at the size of the mask, (L + 1, C', H, W) for heads (L + 1, C', D)."""
    image, scales = _resized(model, cfg, sample), []
    for scale in cfg.cam_scales:
        scaled = image if scale == 1 else resize(image, [int(length * scale) for length in image.shape[-2:]])
        layers = []
        for head, tokens in zip(heads, _tokens(model, torch.cat([scaled, scaled.flip(-1)])), strict=True):
            maps = torch.einsum("cd,bdhw->bchw", head[:, : tokens.shape[1]], tokens)
            layers.append(fuse_flip(maps[None, :, None], image.shape[-2:], relu=cfg.cam_relu)[0, 0])
        scales.append(torch.stack(layers))  # (L + 1, C', H, W)
    return resize(min_max(functools.reduce(torch.add, scales)), mask_of(sample).shape)
