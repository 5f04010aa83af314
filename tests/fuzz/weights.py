"""Checkpoints of training and files of weights: spoilt bytes, and sound files that hold something else."""

import functools
import io
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from toco_lab.backbones.weights import load_backbone_weights
from toco_lab.config import Config
from toco_lab.method.model import ToCo
from toco_lab.training.checkpoints import load_checkpoint, save_checkpoint
from toco_lab.training.learner import Learner
from toco_lab.training.released import export_released, import_released

from .cases import Case
from .mutate import VALUES, spoil

CFG = Config.preset("smoke").replace(
    embed_dim=8, decoder_width=4, head_hidden=8, head_bottleneck=4, head_out=8, par_iterations=1
)
_STEP = 2


@functools.cache
def _trained() -> tuple[ToCo, Learner, bytes]:
    """A model, its optimiser with moments, and their checkpoint."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = ToCo(CFG)
    learner = Learner.of(model, CFG)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner.optimizer.step()
    file = io.BytesIO()
    torch.save(dict(learner.state()) | {"step": _STEP, "config": CFG.to_json()}, file)
    return model, learner, file.getvalue()


def _unlike(found: Any, wanted: Any, name: str = "") -> str:
    """The first place in which two states differ, in words."""
    if isinstance(wanted, Tensor):
        same = isinstance(found, Tensor) and found.dtype == wanted.dtype and torch.equal(found, wanted)
        return "" if same else f"{name} differs"
    if isinstance(wanted, dict):
        if not isinstance(found, dict) or found.keys() != wanted.keys():
            return f"{name} has other names"
        return next((fault for key in wanted if (fault := _unlike(found[key], wanted[key], f"{name}.{key}"))), "")
    if isinstance(wanted, list | tuple):
        pairs = enumerate(zip(found, wanted, strict=True))
        return next((fault for place, pair in pairs if (fault := _unlike(*pair, f"{name}.{place}"))), "")
    return "" if found == wanted else f"{name} is {found!r}, not {wanted!r}"


def _case(what: str, path: Path, *, sound: bool = False, spoilt: bool = False) -> Case:
    model, learner, data = _trained()

    def load() -> dict[str, Any]:
        return load_checkpoint(path, CFG, model=model, optimizer=learner.optimizer)

    def wrong(found: dict[str, Any]) -> str:
        if not (sound or spoilt):
            return "it is loaded"
        return _unlike(found, torch.load(io.BytesIO(data), weights_only=True))

    return Case(what, load, [path.name], wrong, sound)


def checkpoint_spoilt(rng: Random, folder: Path) -> Case:
    """Spoilt bytes: refused, or the same numbers."""
    path = folder / f"step_{_STEP:08d}.pt"
    if rng.random() < 0.05:
        save_checkpoint(path, _trained()[1].state(), _STEP, CFG)
        return _case("sound", path, sound=True)
    what, data = spoil(rng, _trained()[2])
    path.write_bytes(data)
    return _case(what, path, spoilt=True)


def checkpoint_unfit(rng: Random, folder: Path) -> Case:
    """A sound file of which one part is another."""
    path = folder / f"step_{_STEP:08d}.pt"
    state = torch.load(io.BytesIO(_trained()[2]), weights_only=True)
    part = rng.choice(("model", "optimizer", "step", "config", "all"))
    way = {"model": _spoil_model, "optimizer": _spoil_optimizer, "config": _spoil_config}.get(part)
    if way is not None:
        what = way(rng, state)
    elif part == "step":
        state["step"] = rng.choice([value for value in VALUES if value != _STEP])
        what = f"step is {state['step']!r:.40}"
    else:
        name = rng.choice(list(state))
        state[name] = rng.choice([value for value in VALUES if name != "model" or not isinstance(value, dict)])
        what = f"{name} is {state[name]!r:.40}"
    torch.save(state, path)
    return _case(what, path)


def _spoil_model(rng: Random, state: dict[str, Any]) -> str:
    weights = state["model"]
    name = rng.choice([name for name, value in weights.items() if value.is_floating_point() and value.numel() > 1])
    return f"{name} {_spoil_tensor(rng, weights, name)}"


def _spoil_tensor(rng: Random, holder: dict, name: Any) -> str:
    value: Tensor = holder[name]
    number = rng.choice((float("nan"), float("inf"), -float("inf")))
    spoilt = value.clone()
    spoilt.view(-1)[rng.randrange(value.numel())] = number
    ways: dict[str, Callable[[], Any]] = {
        "is missing": lambda: holder.pop(name),
        "has another name": lambda: holder.update({f"{name}_": holder.pop(name)}),
        "is one more": lambda: holder.update({"other": value}),
        f"holds {number}": lambda: holder.update({name: spoilt}),
        "has one row less": lambda: holder.update({name: value[:-1]}),
        "has another shape": lambda: holder.update({name: value.reshape(1, -1)}),
        "is of doubles": lambda: holder.update({name: value.double()}),
        "is of halves": lambda: holder.update({name: value.half()}),
        "is of whole numbers": lambda: holder.update({name: value.long()}),
        "is complex": lambda: holder.update({name: value.to(torch.complex64)}),
        "is sparse": lambda: holder.update({name: value.to_sparse()}),
        "is on no device": lambda: holder.update({name: value.to("meta")}),
        "is empty": lambda: holder.update({name: value.flatten()[:0]}),
        "is no tensor": lambda: holder.update({name: rng.choice(VALUES)}),
    }
    way = rng.choice(list(ways))
    ways[way]()
    return way


def _spoil_optimizer(rng: Random, state: dict[str, Any]) -> str:
    optimizer = state["optimizer"]
    number = rng.choice(list(optimizer["state"]))
    moments, group = optimizer["state"][number], rng.choice(optimizer["param_groups"])
    part = rng.choice(("moment", "moment", "moment", "step", "group", "group", "state"))
    if part == "moment":
        name = rng.choice(("exp_avg", "exp_avg_sq"))
        return f"{name} of {number} {_spoil_tensor(rng, moments, name)}"
    if part == "step":
        moments["step"] = rng.choice((torch.tensor(-1.0), torch.tensor(float("nan")), torch.zeros(2), 3, None, "1"))
        return f"step of {number} is {moments['step']!r}"
    if part == "group":
        name = rng.choice([name for name in group if name != "lr"])  # it is set before each step
        group[name] = rng.choice([value for value in VALUES if value != group[name]])
        return f"{name} of a group is {group[name]!r:.40}"
    optimizer["state"] = rng.choice(VALUES)
    return f"state is {optimizer['state']!r:.40}"


def _spoil_config(rng: Random, state: dict[str, Any]) -> str:
    changed = rng.choice(({"seed": 1}, {"w_ptc": 0.3}, {"depth": 5}, {"crop_size": 128}, {"steps": 5}))
    texts = {
        str(changed): CFG.replace(**changed).to_json(),
        "no json": "{",
        "an unknown field": '{"what": 1}',
        "a list": "[]",
        "a wrong value": '{"steps": -1}',
        "nothing": "",
    }
    what = rng.choice(list(texts))
    state["config"] = texts[what]
    return f"config: {what}"


# --- weights of a backbone, and the authors' files --------------------------------------------------------------------


def weights(rng: Random, folder: Path) -> Case:
    """A file of backbone weights, spoilt or of something else. Safetensors have no checksum."""
    encoder = _trained()[0].encoder
    state: dict[str, Any] = {name: value.clone() for name, value in encoder.state_dict().items()}
    kind = rng.choice(("safetensors", "pth"))
    path = folder / f"vit.{kind}"
    what, spoilt = "", rng.random() < 0.5
    if not spoilt:
        what = _spoil_model(rng, {"model": state})
    try:
        if kind == "pth":
            torch.save(rng.choice((state, {"model": state}, {"state_dict": state})), path)
        else:
            safetensors.torch.save_file(state, path)
    except Exception:  # what safetensors cannot hold at all
        torch.save(state, path := folder / "vit.pth")
    if spoilt:
        what, data = spoil(rng, path.read_bytes())
        path.write_bytes(data)
    target = ToCo(CFG).encoder

    def load() -> dict[str, Tensor]:
        load_backbone_weights(target, path)
        return target.state_dict()

    def wrong(found: dict[str, Tensor]) -> str:
        if spoilt and path.suffix == ".pth":
            return _unlike(dict(found), dict(encoder.state_dict()))
        finite = all(bool(value.isfinite().all()) for value in found.values())
        if spoilt or what.rpartition(" is ")[2] in ("of doubles", "of halves"):
            return "" if finite else "numbers that are not finite"
        return "it is loaded"

    return Case(f"{path.suffix}: {what}", load, [path.name], wrong)


def released(rng: Random, folder: Path) -> Case:
    """A file of the authors, of which one tensor is another."""
    path = folder / "released.pth"
    state = {f"module.{name}": value.clone() for name, value in export_released(_trained()[0]).items()}
    if rng.random() < 0.5:
        what = _spoil_model(rng, {"model": state})
        torch.save(state, path)
    else:
        torch.save(state, path)
        what, data = spoil(rng, path.read_bytes())
        path.write_bytes(data)
    target = ToCo(CFG)

    def wrong(found: Any) -> str:
        told = bool(found.missing or found.unexpected)
        differs = _unlike(dict(target.state_dict()), dict(_trained()[0].state_dict()))
        lossless = what.endswith(("is of doubles", "is of halves"))
        return differs if differs and not told and not lossless else ""

    return Case(what, lambda: import_released(target, path), [path.name], wrong)
