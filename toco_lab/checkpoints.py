"""Weights in and out: training checkpoints, pretrained backbones, the authors' released checkpoints."""

import hashlib
import pickle
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from toco_lab.config import Config
from toco_lab.encoders import is_plain_vit
from toco_lab.model import ToCo, check_crops, full_backbone_name
from toco_lab.remedies import REMEDY_PARAMETERS
from toco_lab.runs import RunDir, atomic_write

RELEASED_NAMES = {  # our parameter prefix -> the authors'
    "decoder.conv1.": "decoder.conv6.",
    "decoder.conv2.": "decoder.conv7.",
    "decoder.conv3.": "decoder.conv8.",
    "projection_head.directions": "proj_head.last_layer.weight_v",
    "teacher_head.directions": "proj_head_t.last_layer.weight_v",
    "projection_head.": "proj_head.",
    "teacher_head.": "proj_head_t.",
}
GAINS = ("proj_head.last_layer.weight_g", "proj_head_t.last_layer.weight_g")  # weight norm's gain, fixed at 1


class CheckpointError(ValueError):
    """A weights file that can not be used; the message names it and what to do."""


@dataclass(frozen=True)
class ImportReport:
    """What `import_released` found.

    Attributes:
        missing: Names our model has and the file lacks; they keep their values.
        unexpected: Names of the file that nothing here uses.
        unused: The tensors behind `unexpected`, to be exported again.
    """

    missing: list[str]
    unexpected: list[str]
    unused: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        """Both lists in words."""
        return f"missing: {', '.join(self.missing) or 'none'}; unexpected: {', '.join(self.unexpected) or 'none'}"


def find_weights(path: Path | str) -> Path:
    """The file, or `data/toy/...` of the project from whatever folder one works in; else CheckpointError."""
    places = [Path(path), Path(__file__).parents[1] / path]
    for place in places:
        if place.is_file():
            return place
    raise CheckpointError(f"no weights file {places[0]} (looked for {places[1]} as well); check the path")


def read_weights(path: Path | str) -> dict[str, Any]:
    """Read a .safetensors file, or a torch file without running any code in it.

    Raises:
        CheckpointError: If the file is missing, truncated, or holds anything but tensors and plain values.
    """
    path = find_weights(path)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds more than plain values (it could run code) and is refused: {error}"
        ) from error
    except (RuntimeError, EOFError, OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a weights file ({error}); copy or download it again"
        ) from error


# --- training checkpoints ---------------------------------------------------------------------------------------------


def save_checkpoint(path: Path, states: Mapping[str, Any], step: int, cfg: Config) -> None:
    """Write a checkpoint under a temporary name, then rename it.

    Data order, augmentation and crops depend on (seed, step) alone, so this is all a run needs to go on. Equal states
    give equal bytes, and so one hash, whether or not the run was interrupted before.

    Args:
        path: Its file.
        states: State dicts `model` and `optimizer`, and what else the learner has.
        step: Steps made so far.
        cfg: The run's config.
    """
    state = {name: value if name == "model" else _apart(value) for name, value in states.items()}
    state |= {"step": step, "config": cfg.to_json()}
    with atomic_write(path) as file:
        torch.save(state, file)


def _apart(state: Any) -> Any:
    """The same values in new containers: a pickle also keeps which strings and tuples are one object, and a state that
    was loaded shares others than a new one.
    """
    if isinstance(state, dict):
        return {sys.intern(key) if isinstance(key, str) else key: _apart(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)([_apart(value) for value in state])
    return sys.intern(state) if isinstance(state, str) else state


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint: model, optimizer, step, config (JSON).

    Raises:
        CheckpointError: If it is unreadable; an older one in the same folder is named.
    """
    try:
        state = read_weights(path)
        absent = {"model", "optimizer", "step", "config"} - set(state)
        if absent:
            raise CheckpointError(f"{path} is not a training checkpoint: it has no {', '.join(sorted(absent))}")
    except CheckpointError as error:
        older = sorted(other for other in Path(path).parent.glob("step_*.pt") if other.name < Path(path).name)
        offer = (
            f"delete {path} and train again to continue from {older[-1]}" if older else f"delete {path} to start again"
        )
        raise CheckpointError(f"{error}. {offer[0].upper()}{offer[1:]}.") from error
    return state


def load_run_model(run: RunDir, device: str | torch.device = "cpu") -> tuple[ToCo, Config]:
    """The model of a run's last checkpoint, in evaluation mode, and its config.

    Raises:
        CheckpointError: If the run has no checkpoint yet, or it is damaged.
    """
    checkpoints = run.checkpoints()
    if not checkpoints:
        raise CheckpointError(f"{run.path} has no checkpoint yet; train it first (state: {run.status()['state']})")
    cfg = run.config()
    model = ToCo(cfg)
    model.load_state_dict(load_checkpoint(checkpoints[-1])["model"])
    return model.eval().to(device), cfg


def weights_hash(path: Path | str) -> str:
    """First twelve hex digits of a file's SHA-256: the checkpoint hash of a protocol record."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


# --- pretrained backbones ---------------------------------------------------------------------------------------------


def initial_model(cfg: Config) -> ToCo:
    """A ToCo as training starts it: random heads, the encoder pretrained where the config says so.

    Raises:
        ValueError: If the crops of training do not consist of whole tokens of this backbone.
        CheckpointError: If the weights can not be had; the message names the model and how to pass a local file.
    """
    model = ToCo(cfg)
    check_crops(model, cfg)
    if cfg.pretrained and cfg.weights:
        load_backbone_weights(model.encoder, cfg.weights)
    elif cfg.pretrained:
        name = full_backbone_name(cfg)
        try:
            downloaded = timm.create_model(name, pretrained=True, num_classes=0)
        except Exception as error:  # network, hub and file errors of several libraries
            raise CheckpointError(
                f"the pretrained weights of {name!r} can not be downloaded ({type(error).__name__}: {error}). "
                f"Without a network, pass a local file: weights='path/to/{cfg.backbone}.safetensors' "
                f"(--weights on the command line), or pretrained=False to start from random weights"
            ) from error
        _load_encoder(model.encoder, downloaded.state_dict(), f"timm's {name}")
    return model


def load_backbone_weights(encoder: nn.Module, path: Path | str) -> None:
    """Load a local file with timm's (or, where timm can translate them, the original authors') names into an encoder.

    The position grid is resampled where its size differs; a classification head in the file is ignored.

    Raises:
        CheckpointError: If the file is unreadable or does not fit; the differing names or shapes are listed.
    """
    state = read_weights(path)
    for wrapper in ("model", "state_dict"):
        state = state[wrapper] if isinstance(state.get(wrapper), Mapping) else state
    _load_encoder(encoder, state, str(path))


def _load_encoder(encoder: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    try:
        result = encoder.load_state_dict(_translated(encoder, dict(state)), strict=False)
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(f"{source} does not fit this backbone: {error}") from error
    missing = [name for name in result.missing_keys if not name.endswith(REMEDY_PARAMETERS)]
    if missing or result.unexpected_keys:
        raise CheckpointError(
            f"{source} does not fit this backbone; missing: {', '.join(missing) or 'none'}; "
            f"unexpected: {', '.join(result.unexpected_keys) or 'none'}"
        )


def _translated(encoder: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the names and sizes of this encoder, without the parts only a classifier has."""
    if is_plain_vit(encoder):
        if "norm.weight" not in state:  # a model that pools first has its norm behind the pooling
            state = {re.sub(r"^fc_norm\.", "norm.", name): value for name, value in state.items()}
        classifier = ("head.", "head_dist.", "fc_norm.", "attn_pool.")
        return checkpoint_filter_fn({k: v for k, v in state.items() if not k.startswith(classifier)}, encoder)
    translate = getattr(sys.modules[type(encoder).__module__], "checkpoint_filter_fn", lambda state, _: state)
    own = encoder.state_dict()
    return {k: v for k, v in translate(state, encoder).items() if k in own or not k.startswith(("head.", "fc."))}


# --- the authors' checkpoints -----------------------------------------------------------------------------------------


def import_released(model: ToCo, source: Path | str | Mapping[str, Tensor]) -> ImportReport:
    """Load a checkpoint of the authors (DataParallel state dict or plain) into a model of the same sizes.

    Args:
        model: Changed in place.
        source: File, or a state dict already read.

    Raises:
        CheckpointError: If the file is unreadable, nothing in it fits, a shape differs, or a weight-norm gain is not 1.
    """
    state = dict(source) if isinstance(source, Mapping) else read_weights(source)
    state = {name.removeprefix("module."): value for name, value in state.items()}
    gains = {name: state.pop(name) for name in GAINS if name in state}
    for name, gain in gains.items():
        if not torch.all(gain == 1):
            raise CheckpointError(f"{name} is not all ones; this model fixes the gain of the projection head at 1")
    ours = {released_name(name): name for name in model.state_dict()}
    known = {ours[name]: value for name, value in state.items() if name in ours}
    unused = {name: value for name, value in state.items() if name not in ours}
    if not known:
        raise CheckpointError(f"no parameter of the checkpoint is known; it begins with {', '.join(list(state)[:3])}")
    try:
        missing = model.load_state_dict(known, strict=False).missing_keys
    except RuntimeError as error:
        raise CheckpointError(
            f"the checkpoint is of a model of other sizes; set them in the config: {error}"
        ) from error
    return ImportReport([released_name(name) for name in missing], list(unused), unused)


def export_released(model: ToCo, unused: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The model as a state dict with the authors' names; `ImportReport.unused` brings back what only their file has."""
    state = {released_name(name): value.detach().clone() for name, value in model.state_dict().items()}
    for head, gain in zip((model.projection_head, model.teacher_head), GAINS, strict=True):
        state[gain] = torch.ones_like(head.directions[:, :1])
    return state | dict(unused or {})


def released_name(name: str) -> str:
    """The authors' name of one of our parameters."""
    for ours, theirs in RELEASED_NAMES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name
