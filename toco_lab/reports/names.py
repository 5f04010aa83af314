"""What a report calls its runs: the row of their sweep, the name that somebody gave the folder, or the preset and what
differs from it; never the letters of a digest while words tell the runs apart.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toco_lab.config import Config, config_differences
from toco_lab.methods import METHODS
from toco_lab.presets import BASELINE, PRESETS
from toco_lab.runs.run_dir import RunDir
from toco_lab.sweeps.grid import Grid

_MOST = 2  # differences that a name spells out
_LOSSES = {
    "w_ptc": "PTC",
    "w_ctc": "CTC",
    "w_seg": "segmentation",
    "w_reg": "regularised loss",
    "w_distil": "regression",
}


def row_names(runs: Sequence[RunDir]) -> dict[str, str]:
    """Folder name of each run -> the name of its row; runs whose configs differ in the seed alone make one row."""
    configs = {run.name: run.config() for run in runs}
    digests = {name: cfg.digest() for name, cfg in configs.items()}
    members = Counter(digests.values())
    unique = {digest: configs[name] for name, digest in digests.items()}
    differing = set(config_differences(unique)) - {"seed"}
    of_grids = _rows_of_grids(runs)
    rows = {}
    for run in runs:
        cfg, digest = configs[run.name], digests[run.name]
        given = run.name if members[digest] == 1 and run.name != cfg.run_name() else ""
        rows[run.name] = of_grids.get(run.name) or given or _in_words(cfg, differing if len(unique) > 1 else None)
    meant: dict[str, set[str]] = {}
    for name, row in rows.items():
        meant.setdefault(row, set()).add(digests[name])
    return {name: row if len(meant[row]) == 1 else f"{row} ({digests[name]})" for name, row in rows.items()}


def run_names(runs: Sequence[RunDir], rows: Mapping[str, str]) -> dict[str, str]:
    """Folder name of each run -> its name: the one that somebody gave the folder, or that of its row, with the seed
    where the row has several runs.

    Args:
        runs: The runs.
        rows: Folder name -> row.
    """
    members, names = Counter(rows.values()), {}
    for run in runs:
        row, cfg = rows[run.name], run.config()
        automatic = row if members[row] == 1 else f"{row}, seed {cfg.seed}"
        names[run.name] = automatic if run.name == cfg.run_name() or row == run.name else run.name
    same = Counter(names.values())
    return {run: name if same[name] == 1 else f"{name} ({run})" for run, name in names.items()}


def _rows_of_grids(runs: Sequence[RunDir]) -> dict[str, str]:
    """The rows of those runs that lie in the folder of a sweep."""
    rows: dict[str, str] = {}
    names = {run.name for run in runs}
    for parent in dict.fromkeys(run.path.parent for run in runs):
        rows |= {name: row for name, row in _rows_of(parent).items() if name in names}
    return rows


def _rows_of(folder: Path) -> dict[str, str]:
    try:
        planned = Grid.from_yaml(folder / "grid.yaml").runs(folder.parent)
    except (OSError, ValueError):  # no sweep, or one that this version cannot read
        return {}
    rows: dict[str, list[str]] = {}
    for run in planned:
        rows.setdefault(run.folder.name, []).append(run.row)
    return {name: " / ".join(dict.fromkeys(of_run)) for name, of_run in rows.items()}


def _in_words(cfg: Config, fields: set[str] | None) -> str:
    """The preset and what differs from it, of all fields or of some: "toy baseline", "toy, no PTC, steps 20"."""
    base = cfg.preset_name or "custom"
    preset = (Config.preset(base) if base in PRESETS else Config()).replace(method=cfg.method)
    values = config_differences({"preset": preset, "run": cfg})
    if cfg.method != Config.method:
        base = f"{base} {METHODS[cfg.method].title}"
    counts = {field.name for field in dataclasses.fields(Config) if field.metadata["result"]} - {"seed"}
    told = counts if fields is None else counts & fields
    changed = {name: found["run"] for name, found in values.items() if name in told}
    if all(getattr(cfg, name) == 0 for name in BASELINE) and changed.keys() & BASELINE.keys():
        base, changed = f"{base} baseline", {name: value for name, value in changed.items() if name not in BASELINE}
    order = sorted(changed, key=lambda name: name not in _LOSSES)  # stable: what is trained for comes first
    words = [_difference(name, changed[name]) for name in order]
    more = [f"{len(words) - _MOST} more"] if len(words) > _MOST else []
    return ", ".join([base, *words[:_MOST], *more])


def _difference(name: str, value: Any) -> str:
    if name in _LOSSES:
        return f"{_LOSSES[name]} weight {value:g}" if value else f"no {_LOSSES[name]}"
    words = name.replace("_", " ")
    if isinstance(value, bool):
        return words if value else f"no {words}"
    shown = value if not isinstance(value, tuple) else " ".join(map(str, value))
    return f"{words} {shown}".strip() if value not in (None, "") else f"no {words}"
