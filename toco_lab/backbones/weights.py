"""Weights of a backbone: this reads files without running code in them, and loads them into an encoder."""

import hashlib
import pickle
import re
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from toco_lab.backbones.anti_smoothing import ANTI_SMOOTHING_PARAMETERS
from toco_lab.backbones.kinds import blocks_of, is_plain_vit
from toco_lab.files import project_root

# taken off in this order: of DataParallel, Lightning, DINO, and of checkpoints of this package
PREFIXES = ("module.", "model.", "teacher.backbone.", "backbone.", "encoder.")


class CheckpointError(ValueError):
    """A weights file that cannot be used; the message names it and says what to do."""


def find_weights(path: Path | str) -> Path:
    """The path of a weights file, looked for in the current folder and then in the project's, or in the package.

    So `data/toy/...` is found from every folder, in a checkout and where a wheel was installed.

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

    A torch file carries a checksum of each of its parts, which torch itself does not look at: they are verified here.

    Raises:
        CheckpointError: If the file is missing, truncated, has a flipped bit, or holds anything but a dict of tensors
            and plain values.
        OSError: If the system does not let it be read.
    """
    path = find_weights(path)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        _verify_checksums(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} {_no_pickle_of_values(path, str(error))}") from error
    except Exception as error:  # a damaged pickle can fail in every way
        if isinstance(error, OSError) and error.filename:  # no rights, too many open files: the file may be good
            raise
        raise CheckpointError(
            f"{path} is truncated or not a weights file ({_first_line(error)}); copy or download it again"
        ) from error
    if not isinstance(state, Mapping):
        raise CheckpointError(
            f"{path} holds no dict of tensors by name but an object of type {type(state).__name__}; save a state_dict()"
        )
    return dict(state)


def _no_pickle_of_values(path: Path, message: str) -> str:
    """Why a file is refused that is no pickle of plain values, in words after its name."""
    if path.read_bytes()[:40].startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS in place of the file; fetch it with `git lfs pull`"
    if named := re.search(r"GLOBAL ([\w.]+)", message):
        return f"holds more than tensors and plain values ({named[1]}), which could run code; save a state_dict()"
    return "is damaged or not a weights file; copy or download it again"


def _first_line(error: Exception) -> str:
    """The first sentence of an error, without what it advises."""
    return str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__


def _verify_checksums(path: Path) -> None:
    """Refuse a torch file, which is a zip archive, of which a part differs from its CRC-32; older formats have none."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy or download it again") from error
    if damaged:
        raise CheckpointError(f"{path} is damaged: {damaged} differs from its checksum; copy or download it again")


def some(names: Sequence[str], shown: int = 3) -> str:
    """The first few of many names, and how many more there are.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def weights_hash(path: Path | str) -> str:
    """First twelve hex digits of a file's SHA-256: the checkpoint hash of a protocol record."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def load_backbone_weights(encoder: nn.Module, path: Path | str, *, first_blocks: bool = False) -> None:
    """Load a local file into an encoder. Its names are timm's, or the authors' where timm can translate them.

    Positions are resampled where the grid has another size; a classification head in the file is ignored.

    Args:
        encoder: The backbone.
        path: A .safetensors or torch file.
        first_blocks: A file with more blocks than the encoder fits as well: its first ones are taken.

    Raises:
        CheckpointError: If the file is unreadable or does not fit; the differing names or shapes are listed.
    """
    state = read_weights(path)
    for wrapper in ("model", "state_dict"):
        state = state[wrapper] if isinstance(state.get(wrapper), Mapping) else state
    load_encoder(encoder, state, str(path), first_blocks=first_blocks)


def load_encoder(encoder: nn.Module, state: Mapping[str, Tensor], source: str, *, first_blocks: bool = False) -> None:
    """Load a state dict with timm's names; prefixes that training code puts before them (`PREFIXES`) are taken off.

    `first_blocks` as in `load_backbone_weights`.

    Raises:
        CheckpointError: Naming `source`, if it does not fit, or holds a number that is NaN or infinite.
    """
    check_tensors(state, source)
    try:
        translated = _translated(encoder, _without_prefixes(encoder, state))
        if first_blocks and is_plain_vit(encoder):
            translated = _of_first_blocks(translated, len(blocks_of(encoder)))
        check_floating(translated, encoder, source)
        result = encoder.load_state_dict(translated, strict=False)
    except (RuntimeError, KeyError) as error:
        first, _, more = str(error).partition("\n\t")
        raise CheckpointError(f"{source} does not fit this backbone: {more.partition(chr(10))[0] or first}") from error
    missing = [name for name in result.missing_keys if not name.endswith(ANTI_SMOOTHING_PARAMETERS)]
    if missing or result.unexpected_keys:
        raise CheckpointError(
            f"{source} does not fit this backbone; missing ({len(missing)}): {some(missing) or 'none'}; unexpected "
            f"({len(result.unexpected_keys)}): {some(result.unexpected_keys) or 'none'}"
        )


def _of_first_blocks(state: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """A plain ViT's state dict without the blocks behind the first `count`."""
    number = re.compile(r"blocks\.(\d+)\.")
    return {name: value for name, value in state.items() if not (found := number.match(name)) or int(found[1]) < count}


def check_tensors(state: Mapping[str, Any], source: str) -> None:
    """Weights are tensors of finite numbers.

    Raises:
        CheckpointError: Naming `source` and the first entries that are not.
    """
    if not state:
        raise CheckpointError(f"{source} holds no weights")
    if other := [name for name in state if not isinstance(name, str)]:
        raise CheckpointError(f"{source} is no dict of tensors by name: {other[0]!r} is no name")
    if other := [f"{name} ({type(value).__name__})" for name, value in state.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"{source} is no dict of tensors by name: {some(other)}")
    if odd := [f"{name} is {kind}" for name, value in state.items() if (kind := odd_kind(value))]:
        raise CheckpointError(f"{source} holds tensors that are no weights: {some(odd)}; save them as dense numbers")
    bad = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise CheckpointError(f"{source} holds numbers that are NaN or infinite, in {some(bad)}")


def odd_kind(value: Tensor) -> str:
    """What makes a tensor no weight, in a word; "" for dense real numbers."""
    kinds = {"complex": value.is_complex(), "quantised": value.is_quantized, "without values": value.is_meta}
    kinds["sparse"] = value.layout != torch.strided
    return next((kind for kind, holds in kinds.items() if holds), "")


def check_floating(state: Mapping[str, Tensor], model: nn.Module, source: str) -> None:
    """Whole numbers in place of floating point ones have lost their fractions.

    Raises:
        CheckpointError: Naming `source` and the first entries.
    """
    own = model.state_dict()
    cut = [
        f"{name} ({str(value.dtype).removeprefix('torch.')})"
        for name, value in state.items()
        if name in own and own[name].is_floating_point() and not value.is_floating_point()
    ]
    if cut:
        raise CheckpointError(f"{source} holds whole numbers where the model has fractions, in {some(cut)}")


def _without_prefixes(encoder: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries behind a known prefix, without it, where no name is known as it is."""
    state, own = dict(state), encoder.state_dict()
    for prefix in PREFIXES:
        if not any(name in own for name in state):
            behind = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            state = behind or state
    return state


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
