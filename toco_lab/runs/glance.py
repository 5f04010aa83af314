"""Runs at a glance: the few columns one looks at first, within a width, and which runs are alike enough to compare."""

from collections.abc import Sequence

import pandas as pd

from toco_lab.config import Config
from toco_lab.presets import PRESETS
from toco_lab.runs.listing import SCORED_IMAGES
from toco_lab.runs.run_dir import CONFIG_FIELDS
from toco_lab.runs.table import cell_text, differing_fields, is_missing
from toco_lab.vocabulary import MEAN_SCORES
from toco_lab.words import counted

LONGEST_NAME = 44  # of a run, where the width is limited
_GAP = 1  # between two columns, as pandas prints them

# which images a score is over and how it is computed: runs that differ in one of them are no repeats
PROTOCOL = (
    "dataset", "toy_world", "toy_objects", "data_root", "val_split", "val_images", "num_classes", "crowds",
    "background_threshold", "cam_scales", "eval_cam_size", "eval_seg_scales", "eval_seg_flip", "eval_fusion",
    "miou_over",
)  # fmt: skip


def glance(table: pd.DataFrame) -> pd.DataFrame:
    """Name, state, scores, then what differs between these rows, and errors if any.

    Fields that follow from a run's preset stand for themselves by its name: a field has a column if some run departs
    from its preset in it. Those that change no number come last.

    Args:
        table: Of `list_runs(..., everything=True)`.
    """
    scores = [name for name in table if name.endswith(MEAN_SCORES) and table[name].notna().any()]
    counts = [SCORED_IMAGES] * (bool(scores) and SCORED_IMAGES in table and table[SCORED_IMAGES].nunique() > 1)
    errors = ["error"] if (table["error"] != "").any() else []
    shown = table[["run", "state", *scores, *departing_fields(table), *counts, *errors]].copy()
    shown["state"] = [
        state if state in ("done", "new", "unreadable") else f"{state}, step {cell_text(step)}"
        for state, step in zip(table["state"], table["step"], strict=True)
    ]
    return shown


def departing_fields(table: pd.DataFrame) -> list[str]:
    """The preset, if there are several, and the fields that differ and in which some run departs from its preset."""
    known = table[table["state"] != "unreadable"]
    presets = ["preset_name"] if known["preset_name"].nunique() > 1 else []
    bases = {name: Config.preset(name) if name in PRESETS else Config() for name in set(known["preset_name"])}
    fields = [
        field
        for field in differing_fields(table)
        if any(
            (None if is_missing(value) else value) != getattr(bases[preset], field)
            for preset, value in zip(known["preset_name"], known[field], strict=True)
        )
    ]
    return presets + sorted(fields, key=lambda field: not CONFIG_FIELDS[field].metadata["result"])


def within(shown: pd.DataFrame, width: int | None) -> tuple[pd.DataFrame, list[str]]:
    """The cells of a table as text, of which no line is longer than `width`; and the columns that are left out.

    The name and the state always stay. Then come the first score, what differs, the other scores and errors, as long
    as they fit; long names of runs are shortened in the middle. None is no limit.
    """
    cells = shown.map(cell_text)
    if width is None:
        return cells, []
    cells["run"] = cells["run"].map(lambda name: _shortened(name, min(LONGEST_NAME, max(12, width // 2))))
    scores = [name for name in shown if name.endswith(MEAN_SCORES)]
    rest = [name for name in shown if name not in ("run", "state", *scores)]
    kept, room = ["run", "state"], width - _width(cells, "run") - _width(cells, "state")
    for name in (*scores[:1], *rest, *scores[1:]):
        if _width(cells, name) <= room:
            kept.append(name)
            room -= _width(cells, name)
    left_out = [name for name in shown if name not in kept]
    return cells[[name for name in shown if name in kept]], left_out


def _width(cells: pd.DataFrame, name: str) -> int:
    return _GAP + max(len(name), *map(len, cells[name]), 0)


def _shortened(name: str, most: int) -> str:
    half = (most - 2) // 2
    return name if len(name) <= most else f"{name[: most - 2 - half]}..{name[-half:]}"


def alike(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Runs that may be compared: of one data set, scored by one protocol. By title, the largest group first."""
    known = table[table["state"] != "unreadable"]
    counts = known[SCORED_IMAGES].map(cell_text) if SCORED_IMAGES in known else pd.Series("", index=known.index)
    keys = known[list(PROTOCOL)].map(repr).assign(**{SCORED_IMAGES: counts})
    groups = [known.loc[rows.index] for _, rows in keys.groupby(list(keys), sort=False)]
    groups.sort(key=lambda rows: -len(rows))  # stable
    titles = [_title(rows, counts[rows.index[0]]) for rows in groups]
    return {
        title + (_apart(rows, groups) if titles.count(title) > 1 else ""): rows
        for title, rows in zip(titles, groups, strict=True)
    }


def _title(rows: pd.DataFrame, images: str) -> str:
    first = rows.iloc[0]
    world = f" {first['toy_world']}" if first["dataset"] == "toy" else ""
    over = f", {counted(images, 'image')}" if images else ""
    return f"{first['dataset']}{world} {first['val_split']}{over}"


def _apart(rows: pd.DataFrame, groups: Sequence[pd.DataFrame]) -> str:
    """What tells a group from others of its title."""
    first = rows.iloc[0]
    fields = [name for name in PROTOCOL if len({repr(group.iloc[0][name]) for group in groups}) > 1]
    return "".join(f", {name} {cell_text(first[name])}" for name in fields if name not in ("dataset", "toy_world"))
