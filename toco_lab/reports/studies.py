"""Studies: a question, the grid that asks it, its table and its figure, together in one folder of `results/studies`.

    study = open_study("loss_terms")
    make_study(study, workers=2)         # makes the runs that are missing, then table.csv, table.md and figure.png
    findings(study.table(), {"+ PTC": ["cam_mIoU", "similarity_last"]})

Most studies are said by their grid alone. One that measures more than a run does has a `make.py` in its folder, whose
`write(study, root)` takes the place of `write_results`.

The studies of this project can be read and made from every folder. What is made goes into `results/studies` of the
current folder, where one's own studies lie as well.
"""

import dataclasses
import runpy
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from toco_lab.config import Config
from toco_lab.figures import printed
from toco_lab.files import atomic_write, project_root
from toco_lab.reports.ablation import protocol_text, summarise, wide_table
from toco_lab.runs.run_dir import RunDir
from toco_lab.runs.scores import BY_SIZE, SCORED_IMAGES, SCORES, SHOWN, SMOOTHING_IMAGES, TITLES
from toco_lab.runs.small_files import Columns, read_table_file
from toco_lab.sweeps.grid import ROOT, Grid
from toco_lab.sweeps.sweep import run_sweep, sweep_table
from toco_lab.vocabulary import MEAN_SCORES
from toco_lab.words import counted

STUDIES = Path("results/studies")
GRID, MAKE, TABLE = "grid.yaml", "make.py", "table.csv"  # files of a study; table.md and figure.png are for readers
KEPT = (
    "row",
    "reference",
    "seed",
    "seconds",
    *SCORES,
    *BY_SIZE,
    SCORED_IMAGES,
    SMOOTHING_IMAGES,
    "run",
)  # columns of table.csv


@dataclass(frozen=True)
class Study:
    """A folder with `grid.yaml`, and, once runs were made, `table.csv`, `table.md` and `figure.png`.

    Attributes:
        folder: Where table and figure are written.
        grid: What is asked.
        origin: Where the study comes from, if not from `folder`: its table is read as long as `folder` has none.
        extends: Whether lines of the kept table stand for their runs, which may lie on another machine or be deleted:
            they are not made again, and stay in the table beside those that are made now.
    """

    folder: Path
    grid: Grid
    origin: Path | None = None
    extends: bool = False

    @property
    def name(self) -> str:
        """Name of the study, of its folder and of its grid."""
        return self.grid.name

    @property
    def question(self) -> str:
        """The first line of what the grid says about itself."""
        return self.grid.about.strip().partition("\n")[0]

    @property
    def command(self) -> str:
        """What makes or continues it."""
        return f"python -m toco_lab study {self.name}"

    def table(self) -> pd.DataFrame:
        """The kept table: one line per run with row, seed and scores.

        Raises:
            FileNotFoundError: If no run of the study was made yet.
            ValueError: Naming table.csv, and its column or row that is wrong, if it is damaged.
        """
        path = self._readable
        if not path.is_file():
            raise FileNotFoundError(f"{self.folder} has no table yet; make it with `{self.command}`")
        return self._read(path)

    def _read(self, path: Path) -> pd.DataFrame:
        remedy = f"Bring back a copy, or delete it and make it anew with `{self.command}`"
        columns = Columns(text=("row",), numbers=("seed",), more_numbers=("seconds", *SCORES, *BY_SIZE))
        return read_table_file(path, columns, text=("run", "reference"), remedy=remedy)

    def kept_lines(self) -> pd.DataFrame:
        """The lines of the kept table that stand for runs of the grid, by the names of its rows today.

        There are none unless the study `extends` its table.
        """
        names = ["row", "reference", "seed", "run"]
        references = self.grid.references()
        planned = [(run.row, references.get(run.row, ""), run.seed, run.folder.name) for run in self.grid.runs()]
        table = self._read(self._readable) if self.extends and self._readable.is_file() else pd.DataFrame()
        if "run" not in table:  # none, or of a time when tables did not name their runs
            return pd.DataFrame(columns=names)
        scores = table.dropna(subset="run").drop_duplicates("run").drop(columns=names[:-1], errors="ignore")
        return pd.DataFrame(planned, columns=names).merge(scores, on="run")  # rows of equal configs share a run

    def runs_kept(self) -> int:
        """How many runs the table in `folder` has; lines about models that are no runs of the grid do not count."""
        return self._runs_in(self._path) if self._path.is_file() else 0

    def state(self) -> str:
        """How many runs of its grid the table has, or "planned" without one."""
        path = self._readable
        return f"{self._runs_in(path)} of {counted(len(self.grid.runs()), 'run')}" if path.is_file() else "planned"

    def _runs_in(self, path: Path) -> int:
        rows = {run.row for run in self.grid.runs()}
        return int(self._read(path)["row"].isin(rows).sum())

    def keep(self, frame: pd.DataFrame, text: str, figure: Figure | None = None, *, dpi: int = 80) -> None:
        """Write table, summary and figure into `folder`, and what the study is made from, so that it is whole.

        Raises:
            ValueError: If the table that is there has more lines: nobody loses a finished study by an unfinished one.
        """
        if self._path.is_file() and (lines := len(self._read(self._path))) > len(frame):
            kept = counted(lines, "line")
            raise ValueError(f"{self._path} has {kept} and stays as it is: there are {len(frame)} so far")
        for name in (GRID, MAKE):
            if self.origin is not None and (self.origin / name).is_file():
                with atomic_write(self.folder / name) as file:
                    file.write((self.origin / name).read_bytes())
        with atomic_write(self._path, "w") as file:
            frame.to_csv(file, index=False, lineterminator="\n")
        with atomic_write(self.folder / "table.md", "w") as file:
            file.write(text)
        if figure is not None:
            with atomic_write(self.folder / "figure.png") as file:
                printed.write_png(file, figure, dpi=dpi)

    @property
    def made_from(self) -> Path:
        """The folder of its grid and, if it has one, its `make.py`."""
        return self.folder if self.origin is None else self.origin

    @property
    def _path(self) -> Path:
        return self.folder / TABLE

    @property
    def _readable(self) -> Path:
        return self._path if self._path.is_file() else self.made_from / TABLE


def all_studies(folder: Path | str = STUDIES) -> list[Study]:
    """Every study of a folder, by name; with those of this project where no other folder is given."""
    return [_opened(grid, Path(folder)) for _, grid in sorted(_grids(Path(folder)).items())]


def open_study(name: str, folder: Path | str = STUDIES, *, seeds: int | None = None, extend: bool = False) -> Study:
    """One study by its name, with another number of seeds where one is given; `extend` as in `Study.extends`.

    Raises:
        ValueError: If there is none of this name; those that are there are named.
    """
    grids = _grids(Path(folder))
    if name not in grids:
        raise ValueError(f"no study {name!r} in {folder}; there are: {', '.join(sorted(grids)) or 'none'}")
    study = dataclasses.replace(_opened(grids[name], Path(folder)), extends=extend)
    return dataclasses.replace(study, grid=dataclasses.replace(study.grid, seeds=seeds)) if seeds else study


def _grids(folder: Path) -> dict[str, Path]:
    """Name of a study -> its grid: those of the folder, and of this project's where `folder` is `STUDIES`."""
    folders = [project_root() / STUDIES, folder] if folder == STUDIES else [folder]
    return {path.parent.name: path for one in folders for path in one.glob(f"*/{GRID}")}


def _opened(grid: Path, folder: Path) -> Study:
    """The study of a grid; `folder` is where those lie that are made."""
    own = folder / grid.parent.name
    return Study(own, Grid.from_yaml(grid), origin=None if grid.parent == own else grid.parent)


def make_study(study: Study, *, root: Path | str = ROOT, workers: int = 1, progress: bool = True) -> str:
    """Make the runs that are missing, then the table, its summary and the figure. Killed, the same call continues.

    Args:
        study: What to make.
        root: Folder that holds the runs.
        workers: Runs at a time.
        progress: Show a table that is kept up to date.

    Returns:
        The summary, as in table.md.

    Raises:
        ValueError: As `run_sweep`, and if that makes fewer runs than the kept table has.
    """
    if (few := len(study.grid.runs())) < study.runs_kept():
        raise ValueError(
            f"{study.name} has a table of {counted(study.runs_kept(), 'run')}, these would be {few}: give more seeds"
        )
    run_sweep(study.grid, root=root, workers=workers, progress=progress, leave_out=set(study.kept_lines()["run"]))
    return write_study(study, root=root)


def write_study(study: Study, *, root: Path | str = ROOT) -> str:
    """Table, summary and figure of the finished runs; makes no run. Arguments and errors as in `make_study`."""
    make = study.made_from / MAKE
    write = runpy.run_path(str(make))["write"] if make.is_file() else write_results
    return write(study, Path(root))


def labels_and_activation(run: RunDir) -> dict[str, float]:
    """Measures of a study: F1 of the image labels, and how much background the CAMs light (`over_activation`)."""
    table = run.read_table("evaluation")
    means = table[table["class"].isin(MEAN_SCORES)].set_index("target")
    return {
        "F1 of image labels": float(means.loc["labels", "iou"]),
        "over-activation, final CAM": float(means.loc["cam", "over_activation"]),
        "over-activation, auxiliary CAM": float(means.loc["cam_aux", "over_activation"]),
    }


def write_results(
    study: Study,
    root: Path,
    *,
    measures: Callable[[RunDir], Mapping[str, float]] | None = None,
    further_rows: pd.DataFrame | None = None,
    scores: Sequence[str] = SHOWN,
    notes: Sequence[str] = (),
    picture: Callable[[pd.DataFrame], Figure] | None = None,
) -> str:
    """What a study leaves that its grid says alone: the scores of its runs, compared row by row.

    Args:
        study: What was asked.
        root: Folder that holds the runs.
        measures: Further numbers of a run, by heading: columns of table.csv, and a second table of the summary.
        further_rows: Lines about what is no run of the grid: row, seed, scores, and `reference` if there is one.
        scores: Those of the first table, where some run has them.
        notes: Lines of Markdown that the summary has below its tables.
        picture: Makes figure.png of the table; None draws every run as a dot.

    Raises:
        ValueError: If no run is finished.
    """
    table = sweep_table(root, study.grid)
    table = table[table["state"] == "done"]
    kept = study.kept_lines()
    kept = kept[~kept["run"].isin(set(table["run"]))]
    if table.empty:
        raise ValueError(f"no run of {study.name} is finished in {root}; `{study.command}` makes them")
    frame = table[[name for name in KEPT if name in table]].round(4)
    further = pd.DataFrame()
    if measures is not None:
        folders = {run.folder.name: run.folder for run in study.grid.runs(root)}
        further = pd.DataFrame([measures(RunDir(folders[name])) for name in frame["run"]], index=frame.index).round(4)
    frame = frame.join(further)
    if len(kept):
        frame = pd.concat([frame, kept[[name for name in frame if name in kept]]])
        places = [(run.row, run.seed) for run in study.grid.runs()]
        by_place = frame.set_index(["row", "seed"], drop=False)
        frame = by_place.loc[[place for place in places if place in by_place.index]].reset_index(drop=True)
    if further_rows is not None:
        frame = pd.concat([frame, further_rows.round(4)], ignore_index=True)
    summary = summarise(frame, scores=[name for name in scores if name in frame and frame[name].notna().any()])
    text = _markdown(study, frame, summary, root, len(kept), [*further_table(frame, further.columns), *notes])
    figure = printed.ablation_plot(frame, summary, titles=TITLES) if picture is None else picture(frame)
    study.keep(frame, text, figure)
    return text


def further_table(frame: pd.DataFrame, headings: Iterable[str]) -> list[str]:
    """The lines of a second Markdown table, of what a study measures beyond the scores; none without headings."""
    headings = list(headings)
    if not headings:
        return []
    wide = wide_table(summarise(frame, scores=headings)).drop(columns="images", errors="ignore").reset_index()
    return [*markdown_lines(wide.columns, wide.to_numpy()), ""]


def _markdown(
    study: Study, frame: pd.DataFrame, summary: pd.DataFrame, root: Path, kept: int, further: Sequence[str] = ()
) -> str:
    """What was asked, how it was measured, the table, its `further` lines, the figure and the command.

    `kept` lines are of runs that are not here, so that nothing is known of their machine.
    """
    runs = {run.folder.name: run for run in study.grid.runs(root)}
    made = frame["run"].dropna()
    configs: list[Config] = [runs[name].config for name in made]
    seconds = f"{frame['seconds'].mean():.0f} s a run on one thread, evaluation included"
    here = [runs[name].folder for name in made if runs[name].folder.is_dir()]
    machine = machine_of(RunDir(here[-1])) + (f"; {counted(kept, 'run')} of them made earlier" if kept else "")
    protocol = textwrap.fill(f"{protocol_text(configs, frame)} {seconds} ({machine}).", 120)
    wide = wide_table(summary).reset_index()
    parts = [
        study.grid.about.strip(), "", protocol, "", *markdown_lines(wide.columns, wide.to_numpy()), "",
        *further, "![every run a dot](figure.png)", "", f"    {study.command}", "",
    ]  # fmt: skip
    return "\n".join(parts)


def machine_of(run: RunDir) -> str:
    """Device, version of torch and commit of a run."""
    made = run.environments()[-1]
    commit = (made.get("git") or {}).get("commit", "unknown")[:9]
    torch = (made.get("packages") or {}).get("torch", "unknown")
    return f"{made.get('device', 'unknown device')}, torch {torch}, commit {commit}"


def markdown_lines(heading: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """A Markdown table, line by line."""
    names = list(heading)
    return [f"| {' | '.join(map(str, cells))} |" for cells in (names, ["---"] * len(names), *rows)]


def findings(frame: pd.DataFrame, asked: Mapping[str, Iterable[str]]) -> str:
    """The figures a text speaks of, as a Markdown list, so that none is typed.

    Args:
        frame: Table of a study.
        asked: Row -> scores to name, in this order.

    Returns:
        A line per row: its difference from its reference with the 95 % interval, or its mean where it has no reference:
        "- **+ PTC** against baseline: final CAM +26.9 [+19.9, +34.0]*; ...".

    Raises:
        ValueError: For a row or a score that the table does not have.
    """
    scores = list(dict.fromkeys(score for named in asked.values() for score in named))
    summary = summarise(frame, scores=scores)
    if missing := [row for row in asked if row not in set(summary["row"])]:
        raise ValueError(f"no row {missing[0]!r}; there are: {', '.join(dict.fromkeys(summary['row']))}")
    cells, lines = wide_table(summary), []
    for row, named in asked.items():
        other = next(iter(summary.loc[summary["row"] == row, "reference"]))
        prefix = "difference, " if other else ""
        told = "; ".join(f"{TITLES[score]} {cells.loc[row, prefix + TITLES[score]]}" for score in named)
        lines.append(f"- **{row}**{f' against {other}' if other else ''}: {told}")
    return "\n".join(lines)
