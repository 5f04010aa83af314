"""A config as a file: written complete, with the meaning of each field, and read again; a run's config.json as well."""

import json
import re
import textwrap
from pathlib import Path
from typing import Any

from toco_lab.config import Config, field_help
from toco_lab.fields import check_one
from toco_lab.files import atomic_write, check_writable, did_you_mean, read_text
from toco_lab.presets import PRESETS
from toco_lab.strict_yaml import read_yaml

SUFFIXES = (".yaml", ".yml", ".json")
_WIDTH = 100  # of the comments


def read_config(path: Path | str, *, preset: str | None = None) -> Config:
    """The config that a file stands for.

    Args:
        path: YAML of lines `field: value`, of which one is `preset: NAME` (the fields that are not there have its
            values); or the config.json of a run, or the folder of a run.
        preset: For a file that names none.

    Raises:
        ValueError: Naming the file and the line: an unknown field (with the nearest name), a value that does not fit,
            a preset that is missing, or another one than `preset`.
        OSError: If it cannot be read.
    """
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    if path.suffix == ".json":
        try:
            cfg = Config.from_json(read_text(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        _check_same(path, preset, cfg.preset_name)
        return cfg
    values = read_yaml(path)
    if not isinstance(values, dict) or not values:
        raise ValueError(f"{path} must hold lines like `preset: toy` and `w_ptc: 0.2`, one for each field")
    _check_values(path, values)
    named = values.pop("preset", values.pop("preset_name", preset))
    if named is None:
        raise ValueError(f"{path} names no preset to start from: add a line like `preset: folder`; there are: "
                         f"{', '.join(PRESETS)}")  # fmt: skip
    _check_same(path, preset, named)
    try:
        base = Config.preset(named) if named else Config()
        return base.replace(**values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_same(path: Path, preset: str | None, named: str) -> None:
    if preset is not None and preset != named:
        raise ValueError(f"two presets given: {preset!r}, and {named!r} in {path}. Leave one out")


def _check_values(path: Path, values: dict[Any, Any]) -> None:
    """Every line by itself, so that an error has its number; what several lines make together is looked at later."""
    known = [*field_help(), "preset"]
    if {"preset", "preset_name"} <= values.keys():
        raise ValueError(f"{path} has both `preset` and `preset_name`, which are the same. Leave one out")
    for name, value in values.items():
        where = f"{path}{_line_of(path, name)}"
        if name not in known:
            raise ValueError(f"{where}: unknown config field {name!r}{did_you_mean(name, known)}")
        try:
            check_one(Config, "preset_name" if name == "preset" else name, value)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def _line_of(path: Path, name: Any) -> str:
    """`, line 3`, where the field stands at the beginning of that line."""
    pattern = re.compile(rf"[{{\s]*['\"]?{re.escape(str(name))}['\"]?\s*:")
    lines = (number for number, line in enumerate(read_text(path).split("\n"), 1) if pattern.match(line))
    return next((f", line {number}" for number in lines), "")


def check_config_name(path: Path) -> None:
    """Raises ValueError for a name that no config file has, OSError where it could not be written."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"a config file ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, got {path}")
    check_writable(path)


def write_config(path: Path, cfg: Config) -> None:
    """Write every field: YAML with its meaning above each line, or the JSON of a run; whole or not at all.

    Raises:
        ValueError: For a name that does not end in one of `SUFFIXES`.
        OSError: If the system refuses.
    """
    check_config_name(path)
    text = cfg.to_json() + "\n" if path.suffix == ".json" else _as_yaml(json.loads(cfg.to_json()), field_help())
    with atomic_write(path, "w") as file:
        file.write(text)


def write_changes(path: Path, preset: str, changes: dict[str, tuple[Any, str]], head: str) -> None:
    """Write a short YAML file: the fields in which a config differs from a preset, and why.

    Args:
        path: The file.
        preset: Its name.
        changes: Of each field its value and the reason.
        head: Comment at the top.
    """
    check_config_name(path)
    values = {"preset": preset} | {name: value for name, (value, _) in changes.items()}
    text = _as_yaml(values, {name: reason for name, (_, reason) in changes.items()})
    with atomic_write(path, "w") as file:
        file.write(f"{_comment(head)}\n{text}")


def _as_yaml(values: dict[str, Any], comments: dict[str, str]) -> str:
    """A line for each value, in the form that JSON gives it, which is YAML too; comments stand above."""
    lines = []
    for name, value in values.items():
        if comments.get(name):
            lines.append(f"\n{_comment(comments[name])}")
        lines.append(f"{name}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}")
    return "\n".join(lines).lstrip("\n") + "\n"


def _comment(text: str) -> str:
    return "\n".join(f"# {line}" for line in textwrap.wrap(text, _WIDTH))
