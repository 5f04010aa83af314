"""Weights of a backbone: this reads files without running code in them, and loads them into an encoder."""

import hashlib
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from toco_lab.backbones.anti_smoothing import ANTI_SMOOTHING_PARAMETERS
from toco_lab.backbones.kinds import is_plain_vit
from toco_lab.files import project_root


class CheckpointError(ValueError):
    """A weights file that cannot be used; the message names it and says what to do."""


def find_weights(path: Path | str) -> Path:
    """The path of a weights file, looked for in the current folder and then in the project's.

    So `data/toy/...` is found from every folder.

    Raises:
        CheckpointError: If there is no such file in either; the message names both.
    """
    places = [Path(path), project_root() / path]
    for place in places:
        if place.is_file():
            return place
    raise CheckpointError(f"no weights file {places[0]} (looked for {places[1]} as well); check the path")


def read_weights(path: Path | str) -> dict[str, Any]:
    """The content of a .safetensors file, or of a torch file, read without running any code in it.

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


def weights_hash(path: Path | str) -> str:
    """First twelve hex digits of a file's SHA-256: the checkpoint hash of a protocol record."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def load_backbone_weights(encoder: nn.Module, path: Path | str) -> None:
    """Load a local file into an encoder. Its names are timm's, or the authors' where timm can translate them.

    Positions are resampled where the grid has another size; a classification head in the file is ignored.

    Raises:
        CheckpointError: If the file is unreadable or does not fit; the differing names or shapes are listed.
    """
    state = read_weights(path)
    for wrapper in ("model", "state_dict"):
        state = state[wrapper] if isinstance(state.get(wrapper), Mapping) else state
    load_encoder(encoder, state, str(path))


def load_encoder(encoder: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict with timm's names; `source` names it in the CheckpointError if it does not fit."""
    try:
        result = encoder.load_state_dict(_translated(encoder, dict(state)), strict=False)
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(f"{source} does not fit this backbone: {error}") from error
    missing = [name for name in result.missing_keys if not name.endswith(ANTI_SMOOTHING_PARAMETERS)]
    if missing or result.unexpected_keys:
        raise CheckpointError(
            f"{source} does not fit this backbone; missing: {', '.join(missing) or 'none'}; "
            f"unexpected: {', '.join(result.unexpected_keys) or 'none'}"
        )


def _translated(encoder: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the names and sizes of this encoder, without the parts that only a classifier has."""
    if is_plain_vit(encoder):
        if "norm.weight" not in state:  # a model that pools first has its norm behind the pooling
            state = {re.sub(r"^fc_norm\.", "norm.", name): value for name, value in state.items()}
        classifier = ("head.", "head_dist.", "fc_norm.", "attn_pool.")
        kept = {name: value for name, value in state.items() if not name.startswith(classifier)}
        return checkpoint_filter_fn(kept, cast(VisionTransformer, encoder))
    translate = getattr(sys.modules[type(encoder).__module__], "checkpoint_filter_fn", lambda state, _: state)
    own = encoder.state_dict()
    return {k: v for k, v in translate(state, encoder).items() if k in own or not k.startswith(("head.", "fc."))}
