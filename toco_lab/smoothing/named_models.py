"""A model by what somebody has of it: a module, a run, a checkpoint, a name of timm with weights or without."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from toco_lab.backbones.kinds import any_encoder_of
from toco_lab.backbones.weights import CheckpointError, load_backbone_weights, read_weights, weights_hash
from toco_lab.files import did_you_mean
from toco_lab.method.face import CamModel
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model, model_of_checkpoint

RANDOM = "random"  # NAME=random: the weights that timm draws, with seed 0
_FREE_SIZES: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True},
    {"strict_img_size": False},
    {},
)  # of timm's kinds


@dataclass(frozen=True, eq=False)
class NamedModel:
    """A model that can be measured.

    Attributes:
        name: In tables and figures.
        model: The module, or one that carries the encoder.
        weights: Which weights it carries, with their hash.
        mean: Of the colours of its images, in 0..1.
        std: Likewise.
    """

    name: str
    model: nn.Module
    weights: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def open_model(
    source: nn.Module | RunDir | Path | str, *, name: str = "", device: str | torch.device = "cpu"
) -> NamedModel:
    """Make a model of what is given.

    Args:
        source: A module that `backbones` can read, which stays on its device; a run or its folder; a checkpoint of a
            run; or a name of timm: `NAME` downloads its pretrained weights, `NAME=FILE` reads them from a file, and
            `NAME=random` draws them. `hf-hub:OWNER/NAME` is such a name, too.
        name: In tables; "" takes that of the run, file or model.
        device: Where a model that is opened here goes.

    Raises:
        FileNotFoundError: If a path leads to nothing.
        ValueError: For a name that timm does not know (the nearest one is in the message), or a model that cannot be
            read here.
        CheckpointError: For weights that cannot be had, are damaged or do not fit.
    """
    if isinstance(source, nn.Module):
        return _named(name or type(source).__name__, source, f"as given ({state_hash(source)})")
    if isinstance(source, RunDir):
        return _of_run(source, name, device)
    if not isinstance(source, Path | str):
        raise ValueError(
            f"a model must be a module, a run, or the name of a folder, a file or a model of timm, got a "
            f"{type(source).__name__}"
        )
    text = str(source)
    if Path(text).is_dir() and ":" not in text:
        return _of_run(RunDir(text), name, device)
    if Path(text).is_file():
        return _of_checkpoint(Path(text), name, device)
    model, weights = text.partition("=")[::2]
    if ":" not in model and ("/" in model or Path(model).suffix in (".pt", ".pth", ".safetensors")):
        raise FileNotFoundError(
            f"{model}: there is no such folder or file. A model is the folder of a run, its checkpoint, or a name of "
            "timm"
        )
    return _of_timm(model, weights, name, device)


def names_of(sources: Sequence[str]) -> dict[str, str]:
    """Names for models given on a command line, each with what it was given as.

    Raises:
        ValueError: If one is given twice.

    >>> list(names_of(["results/demo/toco", "vit_tiny_patch16_224=random", "vit_tiny_patch16_224"]))
    ['toco', 'vit_tiny_patch16_224, random', 'vit_tiny_patch16_224']
    """
    if twice := [source for source, count in Counter(sources).items() if count > 1]:
        raise ValueError(f"the model {twice[0]} is given twice: leave one out")
    short = {source: _short_name(source) for source in sources}
    counts = Counter(short.values())
    return {source if counts[name] > 1 else name: source for source, name in short.items()}


def _short_name(source: str) -> str:
    if Path(source).is_file():
        return " ".join((*Path(source).resolve().parts[-3:-2], Path(source).stem))
    model, weights = source.partition("=")[::2]
    return f"{Path(model).name}, {weights}" if weights == RANDOM else Path(model).name


def state_hash(model: nn.Module) -> str:
    """First twelve hex digits of the SHA-256 over names and values of a module's weights."""
    digest = sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def _named(name: str, model: nn.Module, weights: str) -> NamedModel:
    if isinstance(model, CamModel):
        return NamedModel(name, model, weights, model.mean, model.std)
    told: Mapping[str, Any] = getattr(any_encoder_of(model), "pretrained_cfg", None) or {}
    mean, std = told.get("mean", IMAGENET_DEFAULT_MEAN), told.get("std", IMAGENET_DEFAULT_STD)
    return NamedModel(name, model, weights, tuple(mean), tuple(std))


def _of_run(run: RunDir, name: str, device: str | torch.device) -> NamedModel:
    model, _ = load_run_model(run, device)
    checkpoint = run.checkpoints()[-1]
    return _named(name or run.name, model, f"{checkpoint.stem} ({weights_hash(checkpoint)})")


def _of_checkpoint(path: Path, name: str, device: str | torch.device) -> NamedModel:
    state = read_weights(path)
    if not isinstance(state.get("config"), str):
        raise CheckpointError(
            f"{path} does not say which model it is of: give its name too, NAME={path}; "
            "a released checkpoint of ToCo becomes a run by import_released"
        )
    model, _ = model_of_checkpoint(path, state)
    return _named(name or path.stem, model.eval().to(device), f"{path.stem} ({weights_hash(path)})")


def _of_timm(model_name: str, weights: str, name: str, device: str | torch.device) -> NamedModel:
    if ":" not in model_name and not timm.is_model(model_name):
        plain = model_name.partition(".")[0]
        raise ValueError(
            f"there is no model {model_name!r}: no folder or file has this name, and no model of timm"
            f"{did_you_mean(plain, timm.list_models())}"
        )
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers go on as if nothing had been drawn
        torch.manual_seed(0)
        model = _created(model_name, pretrained=not weights)
    any_encoder_of(model)
    short = model_name.rpartition("/")[2]
    if not weights:
        return _named(name or short, model.eval().to(device), f"pretrained ({state_hash(model)})")
    if weights == RANDOM:
        return _named(name or f"{short}, random", model.eval().to(device), f"random ({state_hash(model)})")
    load_backbone_weights(model, weights)
    return _named(name or short, model.eval().to(device), f"{Path(weights).name} ({weights_hash(weights)})")


def _created(name: str, *, pretrained: bool) -> nn.Module:
    """timm's model without classifier, for images of any size where it can be."""
    for options in _FREE_SIZES:
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
        except TypeError as error:
            if options and next(iter(options)) in str(error):
                continue
            raise ValueError(f"model {name!r} cannot be made: {error}") from error
        except Exception as error:  # of the network, the Hub and the files, from several libraries
            if not pretrained and ":" not in name:
                raise ValueError(f"model {name!r} cannot be made: {error}") from error
            cached = "it must lie in the cache of the Hub (HF_HOME)"
            remedy = cached if ":" in name else f"give them as a file, {name}=FILE, or take {name}={RANDOM}"
            raise CheckpointError(
                f"the pretrained weights of {name!r} cannot be had ({type(error).__name__}: "
                f"{str(error).partition('. ')[0]}). Without a network {remedy}"
            ) from error
    raise AssertionError("the last of the options is none")
