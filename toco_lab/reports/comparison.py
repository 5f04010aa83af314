"""Read run folders for a report: numbers with their protocol, and which runs are seeds of one config.

No model and no data are needed. A file that is missing or damaged is None here; the report says so in its place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd

from toco_lab.evaluation.gallery import Gallery, load_gallery
from toco_lab.reports.names import row_names, run_names
from toco_lab.runs import scores
from toco_lab.runs.run_dir import RunDir
from toco_lab.sweeps.grid import Grid
from toco_lab.sweeps.sweep import sweep_table
from toco_lab.tokens.token_maps import TokenMaps, load_run_maps
from toco_lab.vocabulary import (
    AFTER_BLOCK,
    F1,
    FINAL_NORM,
    MEAN_ABSOLUTE_COSINE,
    MEAN_SCORES,
    MIOU,
    NEGATIVE_COSINE,
    POSITIVE_COSINE,
    TITLES,
)
from toco_lab.words import counted, program

MANY = 6  # of more runs than this, seeds of one config are drawn as one curve
PAIRS = (POSITIVE_COSINE, NEGATIVE_COSINE)
OVER = "over-activation (low is good)"
EDGES = "boundary IoU"
_UNDEFINED = {
    OVER: "no foreground class is predicted",
    F1: "no image was scored",
    MIOU: "a class is in neither truth nor prediction",
    EDGES: "a class is in neither truth nor prediction",
}  # why a score is NaN

Read = TypeVar("Read")


@dataclass(frozen=True)
class Number:
    """A number as text, with everything that defines it."""

    text: str
    protocol: Mapping[str, Any]


class RunRecord:
    """What one run left in its folder, each file read once and only when it is asked for."""

    def __init__(self, run: RunDir) -> None:
        """Read config.json: without it there is no run. The name, which readers see, is the folder's until given."""
        self.run, self.name, self.config = run, run.name, run.config()
        self.damages: list[str] = []  # what is wrong with the files that were read so far

    @cached_property
    def status(self) -> dict[str, Any]:
        """Content of status.json; empty if it is damaged."""
        return self._readable(self.run.status) or {}

    @cached_property
    def state(self) -> str:
        """As `RunDir.state`, or `unknown`."""
        return self.run.state() if self.status else "unknown"

    @cached_property
    def metrics(self) -> pd.DataFrame | None:
        """Rows of metrics.csv, one per logged step; None if there is none."""
        table = self._readable(self.run.metrics)
        return None if table is None or table.empty else table

    @cached_property
    def evaluation(self) -> pd.DataFrame | None:
        """Rows of evaluation.csv: target, class, iou, ..."""
        return self._table("evaluation")

    @cached_property
    def smoothing(self) -> pd.DataFrame | None:
        """Rows of smoothing.csv, with the run as the model."""
        table = self._table("smoothing")
        return None if table is None else table.assign(model=self.name)

    @cached_property
    def layer_cams(self) -> pd.DataFrame | None:
        """Rows of layer_cams.csv, with the run as the model."""
        table = self._table("layer_cams")
        return None if table is None or table.empty else table.assign(model=self.name)

    @cached_property
    def thresholds(self) -> pd.DataFrame | None:
        """Rows of thresholds.csv: the mIoU of each CAM at every threshold; None if there are none."""
        table = self._table("thresholds")
        return None if table is None or table.empty else table

    @cached_property
    def protocol(self) -> dict[str, dict[str, Any]]:
        """Target -> protocol record; empty if there is none."""
        return self._readable(self.run.read_json, "protocol") or {}

    @cached_property
    def environments(self) -> list[dict[str, Any]]:
        """One record per start of the run; empty if there is none."""
        return self._readable(self.run.environments) or []

    @cached_property
    def gallery(self) -> Gallery | None:
        """Maps of a few images."""
        return self._readable(load_gallery, self.run)

    @cached_property
    def tokens(self) -> list[TokenMaps]:
        """Tokens of the probe images; empty if there are none."""
        return self._readable(load_run_maps, self.run) or []

    @cached_property
    def numbers(self) -> dict[str, Number]:
        """All that a table of results shows, by quantity."""
        return _scores(self) | _pairs_in_training(self) | _cosines(self)

    def absence(self, what: str, name: str) -> str:
        """A sentence on what the run lacks, and why."""
        error = self.status.get("error")
        said = f"failed: {error}" if error else f"is {self.state}" if self.status else "is of unknown state"
        there = (self.run.path / name).exists()
        reason = f"{name} is empty or cannot be read" if there else f"its folder has no {name}"
        reason = next((damage for damage in self.damages if str(self.run.path / name) in damage), reason)
        return f"{what} not there because {reason}. The run {said}, at step {self.status.get('step', 0)}."

    def _table(self, name: str) -> pd.DataFrame | None:
        return self._readable(self.run.read_table, name)

    def _readable(self, read: Callable[..., Read], *arguments: Any) -> Read | None:
        """What is read, or None where the file is missing or damaged, which is then noted."""
        try:
            return read(*arguments)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self.damages.append(" ".join(str(error).split()))
            return None


@dataclass(frozen=True, eq=False)
class Comparison:
    """The runs of a report and how they belong together.

    Attributes:
        runs: In the order shown.
        frame: One line per run: row, seed, run, scores (of `ablation.rows_of_runs` or `sweep.sweep_table`).
        reference: Row, or row -> row, that differences are taken to.
        about: What was asked, where a sweep says it.
        paths: Folders that were given.
        left_out: Why runs without a readable config.json are not among them.
    """

    runs: list[RunRecord]
    frame: pd.DataFrame
    reference: str | Mapping[str, str] | None = None
    about: str = ""
    paths: tuple[Path, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """What readers see of each run (see `names.run_names`)."""
        return [run.name for run in self.runs]

    @property
    def title(self) -> str:
        """What a report on these runs is called where nobody gave it a title."""
        if self.about:
            return f"Report on {self.about.partition(':')[0]}"
        return "Report on " + (", ".join(self.names) if len(self.names) <= 3 else counted(len(self.names), "run"))

    @property
    def progress(self) -> str:
        """How many runs there are and how many are done."""
        done, count = sum(run.state == "done" for run in self.runs), len(self.runs)
        rest = "" if done == count else f"; {count - done} unfinished or failed"
        left_out = f"; left out: {'; '.join(self.left_out)}" if self.left_out else ""
        return f"{counted(count, 'run')}, {done} finished{rest}{left_out}"

    @cached_property
    def rows(self) -> dict[str, str]:
        """Run name -> its row (rows of equal configs share a run), or - where it could not be read."""
        of_run = self.frame.groupby("run")["row"].agg(" / ".join).to_dict()
        return {name: of_run.get(name, "-") for name in self.names}

    @cached_property
    def groups(self) -> dict[str, list[RunRecord]]:
        """What gets a curve: every run by its name; of many runs every row, with the runs of all its seeds."""
        by_name = {run.name: run for run in self.runs}
        rows = {
            row: [by_name[name] for name in dict.fromkeys(part["run"]) if name in by_name]
            for row, part in self.frame.groupby("row", sort=False)
        }
        alone = {name: [run] for name, run in by_name.items()}
        if len(self.runs) <= MANY or all(len(members) < 2 for members in rows.values()):
            return alone
        known = {run.name for members in rows.values() for run in members}
        rest = {name: members for name, members in alone.items() if name not in known}
        return {row: members for row, members in rows.items() if members} | rest

    @property
    def grouped(self) -> bool:
        """Whether seeds of one config are drawn as one curve."""
        return list(self.groups) != self.names

    def first_seeds(self) -> dict[str, RunRecord]:
        """One run of each group, where every run would be too much: the first one."""
        return {label: members[0] for label, members in self.groups.items()}


def compare_folders(paths: Sequence[Path | str]) -> Comparison:
    """Open run folders and sweep folders (those with a grid.yaml, whose rows keep the names of the grid).

    Raises:
        FileNotFoundError: If a folder is neither, or no run of a sweep has begun.
        ValueError: If there is nothing, or two runs have one folder name.
    """
    if len(paths) == 1 and (Path(paths[0]) / "grid.yaml").is_file():
        return _of_sweep(Path(paths[0]))
    runs: list[RunDir] = []
    left_out: list[str] = []
    for path in map(Path, paths):
        if (path / "grid.yaml").is_file():
            sweep = _of_sweep(path)
            runs += [file.run for file in sweep.runs]
            left_out += sweep.left_out
        else:
            runs.append(RunDir(path))
    found = compare(runs)
    return replace(found, paths=tuple(map(Path, paths)), left_out=(*left_out, *found.left_out))


def compare(runs: Sequence[RunDir]) -> Comparison:
    """Runs that belong together by their configs alone.

    Raises:
        ValueError: If there is none, two have the same folder name, or no config.json can be read.
    """
    names = [run.name for run in runs]
    if not runs or len(set(names)) < len(names):
        raise ValueError(f"a report needs at least one run and different folder names, got {names}")
    records, left_out = _records(runs)
    frame = _rows([record.run for record in records])
    rows = row_names([record.run for record in records])
    frame = _named(records, frame.assign(row=frame["run"].map(rows)), rows)
    return Comparison(records, frame, paths=tuple(run.path for run in runs), left_out=left_out)


def _named(records: list[RunRecord], frame: pd.DataFrame, rows: Mapping[str, str]) -> pd.DataFrame:
    """Give the records their names, and return the frame with these in its column `run`."""
    names = run_names([record.run for record in records], rows)
    for record in records:
        record.name = names[record.run.name]
    return frame.assign(run=frame["run"].map(names))


def _records(runs: Sequence[RunDir]) -> tuple[list[RunRecord], tuple[str, ...]]:
    """The runs whose config.json can be read, and what is wrong with that of the others; ValueError if none can."""
    records, wrong = [], []
    for run in runs:
        try:
            records.append(RunRecord(run))
        except (OSError, ValueError) as error:
            wrong.append(error)
    if not records:
        raise wrong[0]
    return records, tuple(" ".join(str(error).split()) for error in wrong)


def _rows(runs: Sequence[RunDir]) -> pd.DataFrame:
    """`rows_of_runs` of those runs whose files can be read."""
    try:
        return scores.rows_of_runs(runs)
    except (OSError, ValueError, KeyError, TypeError):
        if len(runs) == 1:
            return pd.DataFrame(columns=["row", "seed", "state", "run"])
        return scores.rows_of_runs([run for run in runs if len(_rows([run]))])


def _of_sweep(folder: Path) -> Comparison:
    grid = Grid.from_yaml(folder / "grid.yaml")
    folders = dict.fromkeys(one.folder for one in grid.runs(folder.parent))
    begun = [RunDir(path) for path in folders if (path / "config.json").is_file()]
    if not begun:
        raise FileNotFoundError(f"no run of the sweep {folder} has begun; `{program()} sweep` makes them")
    frame = sweep_table(folder.parent, grid)
    about = f"{grid.name}: {grid.about}" if grid.about else grid.name
    records, left_out = _records(begun)
    of_run = frame.groupby("run", sort=False)["row"].agg(lambda rows: " / ".join(dict.fromkeys(rows)))
    rows = {record.run.name: of_run[record.run.name] for record in records}
    frame = _named(records, frame, rows)
    return Comparison(records, frame, grid.reference, about, (folder,), left_out)


# --- numbers with their protocol --------------------------------------------------------------------------------------


def _scores(run: RunRecord) -> dict[str, Number]:
    """Mean scores of evaluation.csv."""
    table = run.evaluation
    if table is None:
        return {}
    means = table[table["class"].isin(MEAN_SCORES)]
    rows = [*zip(means["target"], means["class"], means["iou"], strict=True)]
    over = means[means["class"] == MIOU]
    for kind, column in ((OVER, "over_activation"), (EDGES, "boundary_iou")):
        if column in over:
            measured = over[over[column].notna()] if kind == EDGES else over  # targets of an older evaluation lack it
            rows += [(target, kind, value) for target, value in zip(measured["target"], measured[column], strict=True)]
    return {
        f"{TITLES.get(target, target)}, {kind}": Number(
            f"{100 * value:.1f}" if pd.notna(value) else "-",
            {key: item for key, item in run.protocol.get(target, {}).items() if key not in _left_out(kind)}
            | ({} if pd.notna(value) else {"not_defined": _reason(run, target, kind)})
            | {"seed": run.config.seed},
        )
        for target, kind, value in rows
    }


def _left_out(kind: str) -> tuple[str, ...]:
    """Keys of a protocol that say nothing of a kind of score."""
    return ("target",) if kind == EDGES else ("target", "boundary_width")


def _reason(run: RunRecord, target: str, kind: str) -> str:
    """Why a score is NaN: what its protocol says, or what such a score lacks."""
    return str(run.protocol.get(target, {}).get("not_defined") or _UNDEFINED[kind])


def _cosines(run: RunRecord) -> dict[str, Number]:
    """Similarity of the first and last block, and the pairs' cosines after the norm, from smoothing.csv."""
    table = run.smoothing
    if table is None or table.empty:
        return {}
    blocks, found = table.loc[table["site"] == AFTER_BLOCK, "layer"], {}
    wanted = [
        (MEAN_ABSOLUTE_COSINE, AFTER_BLOCK, blocks.min(), "Similarity, first block"),
        (MEAN_ABSOLUTE_COSINE, AFTER_BLOCK, blocks.max(), "Similarity, last block"),
        (MEAN_ABSOLUTE_COSINE, FINAL_NORM, blocks.max(), "Similarity, after the final norm"),
    ]
    for pair in PAIRS:
        wanted.append((pair, FINAL_NORM, blocks.max(), f"|cos| of {pair[0].split()[0]} pairs, after the final norm"))
    for (metric, variant), site, layer, quantity in wanted:
        chosen = (table["metric"] == metric) & (table["variant"] == variant)
        part = table[chosen & (table["site"] == site) & (table["layer"] == layer)]
        if len(part):
            first = part.iloc[0]
            protocol = {"variant": first["variant"], "images": part["image"].nunique(), "layer": int(layer)}
            protocol |= {key: first[key] for key in ("norm", "token_set", "weights")}
            if "tokens" in part:
                protocol["N"] = " to ".join(dict.fromkeys(map(str, (part["tokens"].min(), part["tokens"].max()))))
            spread = f" ± {part['value'].std():.3f}" if len(part) > 1 else ""
            found[quantity] = Number(f"{part['value'].mean():.3f}{spread}", protocol)
    return found


def _pairs_in_training(run: RunRecord) -> dict[str, Number]:
    """|cos| of PTC's pairs in the last logged training steps."""
    table, found = run.metrics, {}
    for kind in ("positive", "negative"):
        if table is not None and f"{kind}_cosine" in table and table[f"{kind}_cosine"].notna().any():
            last = table.dropna(subset=[f"{kind}_cosine"]).iloc[-1]
            protocol = {"step": int(last["step"]), "labels": "thresholded auxiliary CAM of training batches"}
            found[f"|cos| of {kind} pairs, in training"] = Number(f"{last[f'{kind}_cosine']:.3f}", protocol)
    return found


def kind_of(quantity: str) -> Literal["scores", "boundary", "over_activation", "cosines"]:
    """The table that a quantity stands in."""
    if quantity.startswith(("Similarity", "|cos|")):
        return "cosines"
    if quantity.endswith(EDGES):
        return "boundary"
    return "over_activation" if quantity.endswith(OVER) else "scores"
