"""What a checkpoint must be before anything is loaded from it: of this step, of this config, finite, and of one shape.

A file that is read without an error may still be wrong: a renamed one, one of another run, one written by other code.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toco_lab.backbones.weights import CheckpointError, odd_kind, some
from toco_lab.config import Config, config_differences
from toco_lab.fields import shown
from toco_lab.runs.run_dir import CONFIG_FIELDS

_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}
_SETTINGS = {"name", "lr_factor", "betas", "eps", "weight_decay"}
PARTS = {"model": dict, "optimizer": dict, "step": int, "config": str}


def check_content(path: Path, state: Mapping[str, Any]) -> None:
    """A training checkpoint has four parts, the step of its file name, and finite numbers.

    Raises:
        CheckpointError: Naming the file and what is wrong with it.
    """
    absent = PARTS.keys() - state.keys()
    if absent:
        raise CheckpointError(f"{path} is not a training checkpoint: it has no {', '.join(sorted(absent))}")
    for name, kind in PARTS.items():
        if type(state[name]) is not kind and not (kind is dict and isinstance(state[name], dict)):
            raise CheckpointError(
                f"{path} is not a training checkpoint: its {name} is of type {type(state[name]).__name__}, not "
                f"{kind.__name__}"
            )
    named = re.fullmatch(r"step_(\d+)", path.stem)
    if named and int(named[1]) != state["step"]:
        raise CheckpointError(f"{path} holds step {state['step']}, not the one of its name: it was renamed or copied")
    tensors = dict(_tensors({part: state[part] for part in ("model", "optimizer")}))
    if odd := [f"{name} is {word}" for name, value in tensors.items() if (word := odd_kind(value))]:
        raise CheckpointError(f"{path} holds tensors of a kind that no training writes: {some(odd)}")
    bad = [name for name, value in tensors.items() if not _good(value)]
    if bad:
        raise CheckpointError(f"{path} holds numbers that are NaN or infinite, in {some(bad)}")


def check_config(path: Path, state: Mapping[str, Any], cfg: Config) -> None:
    """The weights must be of this config and seed; fields that cannot change a number may differ.

    Raises:
        CheckpointError: Naming the file, and each field that differs.
    """
    try:
        there = Config.from_json(state["config"])
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} holds a config that cannot be read ({error})") from error
    differing = [
        f"{key} ({values['file']!r} in the file, {values['run']!r} in the run)"
        for key, values in config_differences({"file": there, "run": cfg}).items()
        if CONFIG_FIELDS[key].metadata["result"]
    ]
    if differing:
        raise CheckpointError(f"{path} is of a run with another config: {', '.join(differing)}")


def check_model(path: Path, state: Mapping[str, Any], model: nn.Module) -> None:
    """Names, shapes and types of the weights must be the model's.

    Raises:
        CheckpointError: Naming the file, and how many names or shapes differ and the first ones.
    """
    own, found = model.state_dict(), state["model"]
    faults = {
        "missing": [name for name in own if name not in found],
        "unexpected": [str(name) for name in found if name not in own],
        "of another shape or type": [
            f"{name} ({_kind(found[name])}, expected {_kind(value)})"
            for name, value in own.items()
            if name in found and _kind(found[name]) != _kind(value)
        ],
    }
    if any(faults.values()):
        said = "; ".join(f"{fault}: {some(names)}" for fault, names in faults.items() if names)
        raise CheckpointError(f"{path} does not hold the weights of this model; {said}")


def check_moments(path: Path, state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """The optimiser's moments must have the shapes of its parameters: the fused update reads memory by them.

    Raises:
        CheckpointError: Naming the file and the first parameter that differs.
    """
    saved = state["optimizer"]
    try:
        sizes = [len(group["params"]) for group in saved["param_groups"]]
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        moments = {number: dict(saved["state"][number]) for number in numbers if number in saved["state"]}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{path} holds no state of this optimiser: expected are `state` and `param_groups`, as AdamW saves them"
        ) from error
    if sizes != (wanted := [len(group["params"]) for group in optimizer.param_groups]):
        raise CheckpointError(f"{path} holds an optimiser of {sizes} parameters in groups, this run's has {wanted}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for own, group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        _check_group(path, group, own)
    for number, parameter in zip(numbers, parameters, strict=True):
        if number in moments:
            _check_moment(path, moments[number], f"parameter {number}", parameter, state["step"])


def _check_group(path: Path, group: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Settings come from the config, so that the file's must be the same; the learning rate is set before each step."""
    for name in own.keys() - {"params", "lr", "initial_lr"}:
        if name not in group and name not in _SETTINGS:
            continue  # written by a version of torch that has no such setting
        if type(group.get(name)) is not type(own[name]) or group[name] != own[name]:
            raise CheckpointError(
                f"{path} holds an optimiser with another setting: {name} of group {own.get('name')!r} is "
                f"{shown(group.get(name))}, expected {own[name]!r}"
            )


def _check_moment(path: Path, moment: Mapping[str, Any], where: str, parameter: Tensor, step: int) -> None:
    if moment.keys() != _MOMENTS:
        found = ", ".join(map(str, moment)) or "nothing"
        raise CheckpointError(f"{path} holds {found} of {where}, expected are {', '.join(sorted(_MOMENTS))} of AdamW")
    for name, value in moment.items():
        expected = _kind(torch.zeros(())) if name == "step" else _kind(parameter)
        if _kind(value) != expected:
            raise CheckpointError(
                f"{path} holds an optimiser moment of another shape: {name} of {where} is {_kind(value)}, expected "
                f"{expected}"
            )
    if not 1 <= moment["step"] <= step:
        raise CheckpointError(f"{path} counts {moment['step']:g} updates of {where}, expected are 1 to {step}")


def check_scaler(path: Path, state: Mapping[str, Any]) -> None:
    """The scaler of precision fp16 must be one of torch with its usual factors, and its scale a positive number.

    Raises:
        CheckpointError: Naming the file and the entry that is wrong.
    """
    found, usual = state.get("scaler"), torch.amp.GradScaler("cpu").state_dict()
    if not isinstance(found, dict) or found.keys() != usual.keys():
        held = ", ".join(map(str, found)) or "nothing" if isinstance(found, dict) else "no scaler"
        raise CheckpointError(f"{path} has no scaler, which precision fp16 needs: it holds {held:.200}")
    fits = {
        "scale": type(found["scale"]) is float and 0 < found["scale"] < math.inf,
        "_growth_tracker": type(found["_growth_tracker"]) is int
        and 0 <= found["_growth_tracker"] < usual["growth_interval"],
    }
    for name, value in found.items():
        if not fits.get(name, type(value) is type(usual[name]) and value == usual[name]):
            raise CheckpointError(f"{path} holds a scaler that no training writes: its {name} is {shown(value)}")


def _tensors(value: Any, name: str = "") -> Iterable[tuple[str, Tensor]]:
    """All tensors in nested dicts, with their names."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}.{key}" if name else str(key))


def _good(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())


def _kind(value: Any) -> str:
    """Shape and type of a tensor in words, like 3 x 4 float32."""
    if not isinstance(value, Tensor):
        return f"no tensor but {type(value).__name__}"
    return f"{' x '.join(map(str, value.shape)) or 'one'} {str(value.dtype).removeprefix('torch.')}"
