"""Checkpoints of training: save, load, and the model training starts from."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch

from toco_lab.backbones.build import full_backbone_name
from toco_lab.backbones.weights import CheckpointError, load_backbone_weights, load_encoder, read_weights
from toco_lab.config import Config, backbone_kind
from toco_lab.files import atomic_write, require
from toco_lab.method.face import CamModel
from toco_lab.peers.build import build_model
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoint_checks import check_config, check_content, check_model, check_moments, check_scaler


def save_checkpoint(path: Path, states: Mapping[str, Any], step: int, cfg: Config) -> None:
    """Write a checkpoint, whole or not at all.

    It is all that a run needs to go on, because data order, augmentation and crops depend on (seed, step) alone. Equal
    states give equal bytes, and so equal hashes, whether or not the run was interrupted before.

    Args:
        path: File to write.
        states: What `Learner.state` gives.
        step: Steps made so far.
        cfg: The run's config.
    """
    state = {name: value if name == "model" else _apart(value) for name, value in states.items()}
    state |= {"step": step, "config": cfg.to_json()}
    with atomic_write(path) as file:
        torch.save(state, file)


def _apart(state: Any) -> Any:
    """The same values in new containers and with interned strings.

    A pickle records which strings and containers are one object; a state that was loaded shares others than a new one,
    so its bytes would differ.
    """
    if isinstance(state, dict):
        return {sys.intern(key) if isinstance(key, str) else key: _apart(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)([_apart(value) for value in state])
    return sys.intern(state) if isinstance(state, str) else state


def load_checkpoint(
    path: Path,
    cfg: Config | None = None,
    *,
    model: CamModel | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> dict[str, Any]:
    """Read a training checkpoint: `model`, `optimizer`, `step`, `config` (JSON), and `scaler` where there was one.

    Nothing is loaded into `model` or `optimizer`; the file is only compared with them.

    Args:
        path: A file that `save_checkpoint` wrote.
        cfg: The config it must be of; None takes any.
        model: A model that its weights must fit.
        optimizer: An optimiser that its moments must fit.

    Raises:
        CheckpointError: If it is unreadable, damaged, not finite, of another step than its name, or of another config
            or model; an older one in the same folder is named.
    """
    path = Path(path)
    try:
        state = read_weights(path)
        check_content(path, state)
        if cfg is not None:
            check_config(path, state, cfg)
            if cfg.precision == "fp16":
                check_scaler(path, state)
        if model is not None:
            check_model(path, state, model)
        if optimizer is not None:
            check_moments(path, state, optimizer)
    except CheckpointError as error:
        older = sorted(other for other in path.parent.glob("step_*.pt") if other.name < path.name)
        then = f"and train again to continue from {older[-1]}" if older else "to start again"
        raise CheckpointError(f"{error}. Delete {path} {then}") from error
    return state


def load_run_model(run: RunDir, device: str | torch.device = "cpu") -> tuple[CamModel, Config]:
    """The model of a run's last checkpoint, in evaluation mode, and its config.

    Raises:
        CheckpointError: If the run has no checkpoint yet, or it is damaged or of another run.
        ValueError: If `run` is no run.
    """
    require(run, RunDir, "run", ": open one with RunDir(folder)")
    checkpoints = run.checkpoints()
    if not checkpoints:
        raise CheckpointError(f"{run.path} has no checkpoint yet; train it first (state: {run.state()})")
    cfg = run.config()
    model = build_model(cfg)
    model.load_state_dict(load_checkpoint(checkpoints[-1], cfg, model=model)["model"])
    return model.eval().to(device), cfg


def initial_model(cfg: Config) -> CamModel:
    """A model of `cfg.method` as training starts it: random heads, the encoder pretrained where the config says so.

    Raises:
        ValueError: If the crops of training do not consist of whole tokens of this backbone.
        CheckpointError: If the weights cannot be had; the message names the model and how to pass a local file.
    """
    model = build_model(cfg)
    check_crops(model, cfg)
    cut = cfg.depth is not None  # fewer blocks than were pretrained, if the config says so
    if cfg.pretrained and cfg.weights:
        model.load_pretrained(lambda encoder: load_backbone_weights(encoder, cfg.weights, first_blocks=cut))
    elif cfg.pretrained:
        name, file = full_backbone_name(cfg), f"{cfg.backbone.rpartition('/')[2]}.safetensors"
        try:
            downloaded = timm.create_model(name, pretrained=True, num_classes=0)
        except Exception as error:  # network, hub and file errors of several libraries
            raise CheckpointError(
                f"the pretrained weights of {name!r} cannot be downloaded ({type(error).__name__}: {error}). "
                f"Without a network, pass a local file: weights='path/to/{file}' "
                f"(--weights on the command line), or pretrained=False to start from random weights"
            ) from error
        state, source = downloaded.state_dict(), f"timm's {name}"
        model.load_pretrained(lambda encoder: load_encoder(encoder, state, source, first_blocks=cut))
    return model


def check_crops(model: CamModel, cfg: Config) -> None:
    """Refuse training crops that do not consist of whole tokens.

    PTC's labels and valid boxes count tokens from the corner of the crop, so the crop must end with a token. Of a local
    crop only the class token is read, but a plain ViT would lose the pixels that fill no patch.

    Raises:
        ValueError: With the nearest sizes that do.
    """
    wanted = {"crop_size": (cfg.crop_size, model.patch_size)}
    if backbone_kind(cfg.backbone) == "vit":
        wanted["local_crop_size"] = (cfg.local_crop_size, math.lcm(2, model.patch_size))  # even, besides
    for name, (size, unit) in wanted.items():
        if size % unit:
            fitting = [times * unit for times in (size // unit, size // unit + 1) if times]
            offer = " or ".join(f"{side} = {side // model.patch_size} x {model.patch_size}" for side in fitting)
            raise ValueError(
                f"{name} {size} does not consist of whole tokens of {cfg.backbone}, which have a side of "
                f"{model.patch_size} pixels; take {offer}"
            )


def model_of_checkpoint(path: Path, state: Mapping[str, Any]) -> tuple[CamModel, Config]:
    """The model and config of a checkpoint file by itself, without its run; `state` is what the file holds.

    Raises:
        CheckpointError: Naming `path`, for content that is not a run's, a config that cannot be read, or weights that
            do not fit it.
    """
    check_content(path, state)
    try:
        cfg = Config.from_json(state["config"])
    except ValueError as error:
        raise CheckpointError(f"{path} holds a config that cannot be read ({error})") from error
    model = build_model(cfg)
    check_model(path, state, model)
    model.load_state_dict(state["model"])
    return model, cfg
