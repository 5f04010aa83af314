"""Values of config fields, grids, options of the command line, parameters of notebooks."""

import dataclasses
import json
from pathlib import Path
from random import Random
from typing import Any

import yaml

from toco_lab.config import Config
from toco_lab.files import project_root
from toco_lab.presets import PRESETS
from toco_lab.runs.config_file import read_config
from toco_lab.sweeps.grid import Grid
from toco_lab.sweeps.parameters import check_parameters

from .cases import Case, by_command
from .mutate import VALUES, dumps, spoil, spoil_json

_FIELDS = [field.name for field in dataclasses.fields(Config)]


def _value(rng: Random) -> Any:
    return rng.choice((*VALUES, [1, 2], [0.5, 2.0], [2.0, 0.5], 0.1, 7, 96, "toy", "cpu", "vit_tiny_patch16_224", "{}"))


def _unlike_config(cfg: Config, fields: dict[str, Any]) -> str:
    """A config that is accepted holds what was given, and is the same after a visit to disk."""
    for name, value in fields.items():
        held = getattr(cfg, name)
        if held != (tuple(value) if isinstance(value, list) else value):
            return f"{name} is {held!r} instead of {value!r}"
        if isinstance(value, bool) != isinstance(held, bool):
            return f"{name} is {held!r} instead of {value!r}"
    return "" if Config.from_json(cfg.to_json()) == cfg else "it is another after a visit to disk"


def config(rng: Random, folder: Path) -> Case:
    """Some fields with any value."""
    fields = {name: _value(rng) for name in rng.sample(_FIELDS, rng.randrange(1, 3))}
    base = Config.preset(rng.choice(list(PRESETS)))
    return Case(
        f"{base.preset_name} {fields!r:.200}",
        lambda: base.replace(**fields),
        list(fields),
        lambda cfg: _unlike_config(cfg, fields),
    )


def config_json(rng: Random, folder: Path) -> Case:
    """The JSON of a config, with one part replaced, dropped or renamed, or spoilt bytes."""
    text = Config.preset("smoke").to_json()
    if rng.random() < 0.6:
        what, value = spoil_json(rng, json.loads(text))
        text = dumps(value).decode()
    else:
        what, data = spoil(rng, text.encode())
        text = data.decode("latin-1")
    return Case(what, lambda: Config.from_json(text), ["config"], lambda cfg: _unlike_config(cfg, {}))


_CONFIG_FILE = {"preset": "smoke", "w_ptc": 0.5, "cam_scales": [1.0, 0.25], "device": "cpu", "seed": 3, "refine": False}


def config_file(rng: Random, folder: Path) -> Case:
    """A config file with one part replaced, dropped or renamed, or spoilt bytes."""
    path = folder / "my.yaml"
    text, way = yaml.safe_dump(_CONFIG_FILE, sort_keys=False), rng.random()
    given = {name: value for name, value in _CONFIG_FILE.items() if name != "preset"}
    if way < 0.1:
        path.write_text(text)
        return Case("sound", lambda: read_config(path), [path.name], lambda cfg: _unlike_config(cfg, given), sound=True)
    if way < 0.6:
        what, value = spoil_json(rng, _CONFIG_FILE)
        path.write_bytes(dumps(value) if rng.random() < 0.5 else _yaml(value))
    else:
        what, data = spoil(rng, text.encode())
        path.write_bytes(data)
    return Case(what, lambda: read_config(path), [path.name], lambda cfg: _unlike_config(cfg, {}))


_GRID = {
    "name": "weights",
    "preset": "smoke",
    "about": "why",
    "overrides": {"steps": 4, "w_cls": 0.5},
    "rows": {"full": {}, "plain": {"w_ptc": 0.0, "w_ctc": 0.0}},
    "axes": {"high_threshold": [0.6, 0.7]},
    "seeds": [0, 1],
}


def grid(rng: Random, folder: Path) -> Case:
    """A grid with one part replaced, dropped or renamed, or spoilt bytes."""
    path = folder / "grid.yaml"
    text = yaml.safe_dump(_GRID, sort_keys=False)
    way = rng.random()
    if way < 0.1:
        path.write_text(text)
        return Case("sound", lambda: Grid.from_yaml(path), [path.name], lambda found: _runs(found, 8), sound=True)
    if way < 0.6:
        what, value = spoil_json(rng, _GRID)
        path.write_bytes(dumps(value) if rng.random() < 0.5 else _yaml(value))
    else:
        what, data = spoil(rng, text.encode())
        path.write_bytes(data)
    if rng.random() < 0.1:
        command = by_command("sweep", str(path), "--root", str(folder / "sweeps"), "--dry-run")
        return Case(f"{what}, command", command, [path.name], lambda found: "")
    return Case(what, lambda: Grid.from_yaml(path), [path.name], lambda found: _runs(found, None))


def _yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")


def _runs(found: Grid, count: int | None) -> str:
    runs = found.runs()
    if not runs or (count is not None and len(runs) != count):
        return f"{len(runs)} runs"
    faults = (_unlike_config(run.config, {}) for run in runs)
    return next((fault for fault in faults if fault), "")


_WORDS = (
    "nan", "inf", "-1", "0", "1", "2.5", "1e400", "", " ", "None", "True", "x", "é", "[1]", "{}", "9" * 30, "a=b", "--",
)  # fmt: skip


def command(rng: Random, folder: Path) -> Case:
    """`train --dry-run` with any option, and commands with arguments that mean nothing."""
    root = str(folder / "runs")
    name = rng.choice(_FIELDS[1:])
    option, word = f"--{name.replace('_', '-')}", rng.choice(_WORDS)
    dry = ("train", "smoke", "--dry-run", "--no-measure", "--root", root)
    missing, plot = str(folder / "missing"), ("--root", root, "--out", str(folder / "a.html"))
    lines: dict[tuple[str, ...], list[str]] = {
        (*dry, option, word): [
            name,
            option,
            word or "''",
            "rgument",
        ],
        (*dry, option + "x", word): [option, "rgument"],
        ("train", word, "--dry-run"): ["rgument", "train", "preset"],
        ("evaluate", missing): [missing],
        ("report", missing): [missing],
        ("pseudo-labels", missing): [missing],
        ("data", "check", missing): [missing],
        ("data", "labels", missing): [missing],
        ("import-released", "voc_vit_b", missing, "--root", root): [missing],
        ("import-released", word, missing, "--root", root): ["preset", "rgument"],
        ("runs", "compare", missing, missing + "2"): [missing],
        ("runs", "open", missing): [missing],
        ("runs", "delete", missing, "--yes"): [missing],
        ("runs", "list", "--root", root, "--where", word or "x"): ["where", "column", "condition"],
        ("runs", "list", "--root", root, "--sort", "what"): ["what"],
        ("runs", "plot", word or "x", "w_ptc", *plot): [
            root,
            "rgument",
            "column",
        ],
        ("sweep", missing): [missing],
        ("run", missing): [missing],
        ("study", word or "x"): ["stud", "rgument"],
        (word or "x",): ["rgument", "command"],
    }
    words = list(rng.choice([next(iter(lines))] * 6 + list(lines)))
    names = lines[tuple(words)]
    return Case(" ".join(words).replace(str(folder), "."), by_command(*words), names, _accepts(name, word, words))


def _accepts(name: str, word: str, words: list[str]) -> Any:
    """A dry run that goes on shows the value that was given, if it differs from the default; others end in an error."""

    def wrong(found: str) -> str:
        if "list" in words or word in ("", " ", "--") or words == ["study", "None"]:  # which lists all of them
            return ""
        if "--dry-run" not in words:
            return f"it ends without an error: {found[:200]}"
        return "" if "run folder:" in found else f"no outlook: {found[:200]}"

    return wrong


def notebook(rng: Random, folder: Path) -> Case:
    """Parameters of a notebook."""
    path = project_root() / "notebooks" / rng.choice(("03_train.ipynb", "04_evaluate.ipynb", "05_over_smoothing.ipynb"))
    if rng.random() < 0.3:
        copied = folder / "spoilt.ipynb"
        what, data = spoil(rng, path.read_bytes())
        copied.write_bytes(data)
        return Case(what, lambda: check_parameters(copied, {"preset": "smoke"}), [copied.name, "preset"], lambda _: "")
    name = rng.choice(("preset", "overrides", "run_dir", "what"))
    value: Any = _value(rng)
    if name == "overrides" and rng.random() < 0.8:
        value = {rng.choice(_FIELDS): _value(rng)}
    names = [name, *(value if isinstance(value, dict) else ()), "config field"]

    def wrong(found: dict[str, Any]) -> str:
        stored = json.dumps(found, allow_nan=False)
        return "" if name != "what" and json.loads(stored)[name] == value else f"accepted as {found}"

    return Case(f"{path.name} {name}={value!r:.80}", lambda: check_parameters(path, {name: value}), names, wrong)
