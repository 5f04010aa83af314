"""Snapshots of tokens during training: a few probe images at a few steps, in small files.

They feed the token explorer, where a slider moves through training.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from toco_lab.backbones.activations import capture
from toco_lab.backbones.kinds import any_encoder_of, fill_patches, final_norm
from toco_lab.backbones.pixels import check_normalised, denormalise
from toco_lab.config import Config
from toco_lab.data.loader import EvalSample, eval_samples
from toco_lab.files import require
from toco_lab.method.cam import at_evaluation_size
from toco_lab.method.face import CamModel
from toco_lab.runs.run_dir import RunDir
from toco_lab.tokens.quantise import quantise_images
from toco_lab.tokens.token_maps import TokenMaps, load_run_maps, save_token_maps
from toco_lab.training.checkpoints import load_run_model
from toco_lab.vocabulary import FINAL_NORM


def probe_samples(cfg: Config, model: CamModel) -> list[EvalSample]:
    """The probe images: the first `cfg.probe_images` of the validation list."""
    return list(islice(iter(eval_samples(cfg, model.mean, model.std)), cfg.probe_images))


def token_maps(
    model: CamModel, cfg: Config, samples: Iterable[EvalSample], *, name: str, weights: str, step: int = 0
) -> list[TokenMaps]:
    """The tokens of each image after every block and after the final norm, as the token explorer shows them.

    The explorer has one grid and one width for all layers, so from a model in stages it gets the blocks whose tokens
    have the shape of the final ones.

    Args:
        model: Its mode is left alone.
        cfg: Gives `eval_cam_size`, the square size images are brought to (0: native).
        samples: Images.
        name: Of the model, as the reader will see it.
        weights: Which weights it carries.
        step: Optimiser steps it was trained for.
    """
    device, seen = next(model.parameters()).device, []
    for sample in samples:
        image = at_evaluation_size(sample.image[None].to(device), cfg.eval_cam_size)
        seen.append(_layers_of(model.encoder, image, sample.name, model.mean, model.std))
    return _quantised(seen, name=name, weights=weights, step=step)


def maps_of_model(
    model: nn.Module,
    images: Iterable[Tensor],
    *,
    name: str,
    weights: str = "",
    image_names: Iterable[str] | None = None,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
) -> list[TokenMaps]:
    """The tokens of any model on given images, for the token explorer: a timm model, one of your own, or a ToCo.

    Args:
        model: As in `smoothing_per_layer`.
        images: Normalised images, (3, H, W) each.
        name: Of the model, as the reader will see it.
        weights: Which weights it carries.
        image_names: Of the images; numbers from 0 by default. Maps of several models are matched by them.
        mean: Of the colours, in 0..1, by which the images are normalised; they are shown as they were before.
        std: Likewise.
    """
    encoder = any_encoder_of(model)
    device, seen = next(encoder.parameters()).device, []
    named: Iterable[tuple[object, Tensor]] = (
        enumerate(images) if image_names is None else zip(image_names, images, strict=True)
    )
    for image_name, image in named:
        check_normalised(image, f"image {image_name!r}")
        seen.append(_layers_of(encoder, image[None].to(device), str(image_name), mean, std))
    return _quantised(seen, name=name, weights=weights, step=0)


@dataclass(frozen=True)
class _Seen:
    """What a model made of one image: its patch tokens (N, D) by layer, and what it saw, (H, W, 3) uint8."""

    name: str
    layers: dict[str, Tensor]
    grid: tuple[int, int]
    pixels: np.ndarray


def _layers_of(
    encoder: nn.Module, image: Tensor, image_name: str, mean: Sequence[float], std: Sequence[float]
) -> _Seen:
    """The tokens of one normalised image, (1, 3, H, W)."""
    image, grid = fill_patches(encoder, image)
    seen = capture(encoder, image)
    layers = {
        f"block {number}": seen.patches(tokens)[0].cpu()
        for number, tokens in enumerate(seen.after_block, start=1)
        if tokens.shape == seen.final.shape
    }
    if final_norm(encoder) is not None:
        layers[FINAL_NORM] = seen.patches(seen.final)[0].cpu()
    pixels = denormalise(image, mean, std)[0].clamp(0, 255).round().to(torch.uint8)
    return _Seen(image_name, layers, grid, pixels.permute(1, 2, 0).cpu().numpy())


def _quantised(seen: Sequence[_Seen], *, name: str, weights: str, step: int) -> list[TokenMaps]:
    """The small form of the tokens of images that are kept together."""
    tokens = quantise_images([list(one.layers.values()) for one in seen]) if seen else []
    return [
        TokenMaps(
            model=name,
            weights=weights,
            image_name=one.name,
            image=one.pixels,
            grid=one.grid,
            steps=(step,),
            layers=tuple(one.layers),
            tokens=small,
        )
        for one, small in zip(seen, tokens, strict=True)
    ]


def save_snapshot(run: RunDir, model: CamModel, cfg: Config, samples: Iterable[EvalSample], step: int) -> None:
    """Write the tokens of the probe images after `step` optimiser steps into the run's folder."""
    for image, maps in enumerate(token_maps(model, cfg, samples, name=run.name, weights="training", step=step)):
        save_token_maps(run.token_maps_path(image, step), maps)


class Snapshots:
    """Keeps the tokens of a run's probe images, which it reads once; `fit` calls it as `snapshots(model, step)`."""

    def __init__(self, run: RunDir) -> None:
        """Reads no image yet."""
        self._run, self._cfg = run, run.config()
        self._samples: list[EvalSample] | None = None

    def __call__(self, model: CamModel, step: int) -> None:
        """Write the tokens after `step` optimiser steps."""
        if self._samples is None:
            self._samples = probe_samples(self._cfg, model)
        save_snapshot(self._run, model, self._cfg, self._samples, step)


def snapshot_of_run(run: RunDir, *, device: str | torch.device = "cpu") -> None:
    """Keep the tokens of the probe images as of the last checkpoint, for a run that kept none in training."""
    model, cfg = load_run_model(run, device)
    save_snapshot(run, model, cfg, probe_samples(cfg, model), int(run.checkpoints()[-1].stem.removeprefix("step_")))


def maps_of_run(run: RunDir, *, device: str | torch.device = "cpu") -> list[TokenMaps]:
    """The tokens of every probe image of a run; a run that kept none keeps those of its last checkpoint now."""
    require(run, RunDir, "run", ": open one with RunDir(folder)")
    if not run.token_maps():
        snapshot_of_run(run, device=device)
    return load_run_maps(run)
