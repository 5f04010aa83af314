"""Grids: which runs a sweep makes. Rows of an ablation, a product of axes, seeds; from YAML or from Python.

    grid = Grid.from_yaml("docs/smoke.yaml")         # or Grid(name="weights", preset="toy", axes={"w_ptc": [0, 0.2]})

Every Config is built, and so checked, with the grid.
"""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from toco_lab.config import Config
from toco_lab.data.own_folder import complete_config
from toco_lab.data.unused import refuse_unused
from toco_lab.fields import check_one, shown
from toco_lab.files import did_you_mean
from toco_lab.strict_yaml import read_yaml
from toco_lab.sweeps.parameters import plain

ROOT = Path("results/sweeps")
MOST_RUNS = 100_000  # of one grid; more is taken for a slip, and is refused before anything is built
NOT_SWEPT = {"seed": "give `seeds`", "preset_name": "give `preset`"}  # fields of Config that no grid may change


@dataclass(frozen=True)
class PlannedRun:
    """A run that a grid asks for: its row, seed, Config, and folder (rows with equal configs share one)."""

    row: str
    seed: int
    config: Config
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rows (an ablation) times axes (a product) times seeds. Every Config is built, and so checked, with the grid.

    Attributes:
        name: Name of the sweep and of its folder.
        preset: Preset every run starts from.
        about: What is asked, for readers.
        folder: Folder of the runs, if not `name`: grids with the same one share their runs.
        reference: Row the others are compared with, or row -> its own reference; None takes the first row.
        overrides: Config fields of every run; rows and axes win over them. Beside them `released: true` switches on
            every quirk of the authors' released code, like `train --released`; fields that are given win over it.
        rows: Named overrides, in the order of the table; `released: true` is allowed here as well.
        axes: Field -> values; all combinations are run, for each row.
        seeds: Some seeds, or their number n for 0 to n - 1.
        notebook: Notebook to execute, from the current folder; None trains, evaluates and measures over-smoothing.
        parameters: The notebook's own parameters; preset, overrides and run_dir are given by the grid.

    Raises:
        ValueError: For anything that makes no run; row and field are named.
    """

    name: str
    preset: str
    about: str = ""
    folder: str = ""
    reference: str | Mapping[str, str] | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    seeds: Sequence[int] | int = 1
    notebook: str | Path | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Bring the fields into one form and build every run."""
        for word in (self.name, self.folder or self.name):
            if not isinstance(word, str) or not re.fullmatch(r"\w[\w.-]{0,99}", word):
                raise ValueError(
                    "the name of a grid names a folder: up to 100 letters, digits, _ . and - (in quotes where YAML "
                    f"reads something else, like yes), got {shown(word)}"
                )
        self._require(isinstance(self.about, str), f"about must be text, in quotes say, got {shown(self.about)}")
        self._set("rows", {row: fields or {} for row, fields in self._named("rows", self.rows).items()})
        self._set("axes", {axis: self._values(axis, given) for axis, given in self._named("axes", self.axes).items()})
        self._set("seeds", self._listed_seeds())
        self._check_fields("overrides", self.overrides)
        self._check_fields("axes", self.axes)
        for row, fields in self.rows.items():
            self._check_fields(f"row {row!r}", fields)
            for name in fields:
                self._require(name not in self.axes, f"{name} is set by row {row!r} and by an axis")
        self._require(
            self.notebook is None or isinstance(self.notebook, str | Path),
            f"notebook must be the path of a file, got {self.notebook!r}",
        )
        given = set(self._named("parameters", self.parameters))
        for name, value in self.parameters.items():
            plain(name, value)
        self._require(bool(self.notebook) or not given, "parameters need a notebook")
        reserved = sorted(given & {"preset", "overrides", "run_dir"})
        self._require(not reserved, f"the grid itself gives the notebook its {', '.join(reserved)}")
        self._require_few(math.prod([len(self.rows) or 1, *map(len, self.axes.values()), len(self._listed_seeds())]))
        planned = self.runs()
        rows = list(dict.fromkeys(run.row for run in planned))
        self._set("reference", rows[0] if self.reference is None else self.reference)
        pairs = self.reference.items() if isinstance(self.reference, Mapping) else [(self.reference, self.reference)]
        for name in itertools.chain(*pairs):
            self._require(name in rows, f"reference: {name!r} is no row; there are: {', '.join(rows)}")

    @classmethod
    def from_yaml(cls, path: Path | str) -> Self:
        """Read a grid from a YAML file with the attributes as keys; `docs/smoke.yaml` is a short one.

        Raises:
            ValueError: For a file that is no YAML, an unknown, missing or repeated key, or what makes no run.
        """
        given = read_yaml(path)
        if not isinstance(given, dict):
            raise ValueError(f"{path} must hold `key: value` lines, got {type(given).__name__}")
        known = {one.name: one for one in dataclasses.fields(cls)}
        for key in given:
            if key not in known:
                hint = did_you_mean(str(key), known) or f"; there are: {', '.join(known)}"
                raise ValueError(f"{path}: unknown key {key!r}{hint}")
        given = {key: value for key, value in given.items() if value is not None}  # the same as no key
        missing = {"name", "preset"} - set(given)
        if missing:
            raise ValueError(f"{path}: no {' and no '.join(sorted(missing))}")
        try:
            return cls(**given)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def runs(self, root: Path | str = ROOT) -> list[PlannedRun]:
        """Every run: by row, then by the axes (the last one fastest), then by seed."""
        made = []
        base = Config.preset(self.preset)
        for name, fields in self._points():
            for seed in self._listed_seeds():
                try:
                    cfg = self._config(base, {**self.overrides, **fields, "seed": seed})
                except ValueError as error:
                    where = f", {name}" if name else ""
                    raise ValueError(f"grid {self.name!r}{where}: {error}") from error
                folder = Path(root) / (self.folder or self.name) / cfg.run_name()
                made.append(PlannedRun(name or self.preset, seed, cfg, folder))
        return made

    def _points(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name of each row at each point of the axes, and the fields that it sets."""
        rows: Mapping[str, Mapping[str, Any]] = self.rows or {"": {}}
        for (row, fields), values in itertools.product(rows.items(), itertools.product(*self.axes.values())):
            point = dict(zip(self.axes, values, strict=True))
            name = ", ".join([*([row] if row else []), *(f"{key}={value}" for key, value in point.items())])
            yield name, {**fields, **point}

    def references(self) -> dict[str, str]:
        """Row -> the row it is compared with, for the rows that have one."""
        if not isinstance(self.reference, str):
            return dict(self.reference or {})
        names = [name or self.preset for name, _ in self._points()]
        return {name: self.reference for name in names if name != self.reference}

    def to_text(self) -> str:
        """The grid as text that `from_yaml` reads (JSON is YAML)."""
        plain = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        return json.dumps(
            plain, indent=1, default=lambda value: value.tolist() if hasattr(value, "tolist") else str(value)
        )

    def _config(self, base: Config, changes: dict[str, Any]) -> Config:
        """The preset with some fields changed, as `train` has it: `released` comes first, the fields win over it."""
        base = base.released() if changes.pop("released", False) else base
        cfg = base.replace(**changes)
        refuse_unused(cfg, changes)
        return complete_config(cfg)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _require(self, holds: bool, message: str) -> None:
        if not holds:
            raise ValueError(f"grid {self.name!r}: {message}")

    def _require_few(self, runs: int) -> None:
        self._require(
            runs <= MOST_RUNS, f"{_count(runs)} runs asked for; rows, axes and seeds may make {MOST_RUNS:,} at most"
        )

    def _named(self, place: str, given: Any) -> Mapping[str, Any]:
        named = isinstance(given, Mapping) and all(isinstance(key, str) and key for key in given)
        self._require(
            named, f"{place} must be names with their values, got {shown(given)} (quote words like no and on)"
        )
        return given

    def _check_fields(self, place: str, given: Any) -> None:
        """Refuse what is no name, and what a grid gives otherwise; Config itself checks the rest."""
        for name, value in self._named(place, given).items():
            self._require(name not in NOT_SWEPT, f"{place} may not set {name}; {NOT_SWEPT.get(name)}")
            wrong = name == "released" and not isinstance(value, bool)
            self._require(not wrong, f"{place}: released is true or false, of one row or of all, got {shown(value)}")

    def _listed_seeds(self) -> tuple[int, ...]:
        given = self.seeds
        if isinstance(given, int):
            self._require_few(given)
        seeds: Sequence[int] = range(given if type(given) is int else 0) if isinstance(given, int) else given
        self._require(
            isinstance(seeds, Sequence) and len(seeds) > 0 and all(type(seed) is int for seed in seeds),
            f"seeds must be a number of seeds, at least 1, or a list of whole numbers, got {shown(given)}",
        )
        self._require(len(set(seeds)) == len(seeds), f"a seed is given twice: {shown(list(seeds))}")
        return tuple(seeds)

    def _values(self, axis: str, given: Any) -> list[Any]:
        values = given.tolist() if hasattr(given, "tolist") else given  # np.linspace(0, 1, 5)
        listed = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
        self._require(listed, f"axis {axis!r} must be a list of values, got {shown(given)}")
        held = [repr(_as_field(axis, value)) for value in values]
        self._require(len(set(held)) == len(values), f"axis {axis!r} has a value twice: {shown(values)}")
        return list(values)


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**15 else "more than 10**15"


def _as_field(name: str, value: Any) -> Any:
    """The value as the config will hold it, so that 1 and 1.0 are seen to be one; what Config refuses stays."""
    try:
        return check_one(Config, name, value)
    except (KeyError, ValueError):
        return value
