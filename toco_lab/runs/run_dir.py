"""The run directory: the only code that knows which file of a run has which name.

A process killed at any moment leaves only readable files: whole files are written through a temporary name
and `os.replace`, rows are appended, and half a last row is dropped when the table is read or continued.
"""

import contextlib
import csv
import dataclasses
import io
import json
import secrets
import shutil
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self, TypeVar

import pandas as pd
from filelock import FileLock

from toco_lab.config import Config, config_differences
from toco_lab.files import append_text, atomic_write, entries
from toco_lab.runs import in_use, locks
from toco_lab.runs.environment import environment
from toco_lab.runs.small_files import (
    SHAPES,
    TABLES,
    Columns,
    complete_lines,
    damaged,
    number_in,
    read_json_file,
    read_rows,
    read_table_file,
)

STATES = ("new", "running", "done", "failed")
CONFIG_FIELDS = {field.name: field for field in dataclasses.fields(Config)}
METRICS_REMEDY = "Bring back a copy; deleted, the rows of the steps made so far are lost, and the run goes on"
FigureLike = TypeVar("FigureLike")


class RunDir:
    """One run on disk: `RunDir.create(cfg)` makes or continues it, `RunDir(path)` opens it.

    Whoever made or continues a run works at it, as long as the object or its process lives: other processes do not
    delete it. Who only opens a run may read it at any time.

    Attributes:
        path: Folder of the run.
    """

    def __init__(self, path: Path | str) -> None:
        """Open an existing run.

        Raises:
            FileNotFoundError: If the folder holds no config.json.
            OSError: If it may not be read.
        """
        self.path = Path(path)
        self._lock: FileLock | None = None
        self._planned: Config | None = None
        if not (self.path / "config.json").is_file():
            raise FileNotFoundError(f"{self.path} is not a run folder: it has no config.json")

    @classmethod
    def create(cls, cfg: Config, root: Path | str = "results", *, name: str | None = None) -> Self:
        """Make the folder of a run, or continue the one that is there; each call adds a record to env.json.

        Fields that cannot change a number (device, workers, log interval, ...) may differ from the ones on
        disk: the new ones are kept, so that a run can be continued on another machine.

        Args:
            cfg: The run's config.
            root: Folder that holds the runs.
            name: Folder name below `root`; None takes `cfg.run_name()`.

        Raises:
            ValueError: If the folder holds a run whose config differs in a field that matters.
            OSError: If the system refuses to write. A new run is then taken away again; one that was made, and has not
                made its first step when something fails, stays and is continued by the next call.
        """
        path = Path(root) / (name or cfg.run_name())
        if (path / "config.json").is_file():
            run = cls(path)
            differing = config_differences({"there": run.config(), "wanted": cfg})
            fatal = [
                f"{key} ({values['there']!r} there, {values['wanted']!r} wanted)"
                for key, values in differing.items()
                if CONFIG_FIELDS[key].metadata["result"]
            ]
            if fatal:
                raise ValueError(
                    f"{path} holds a run with another config: {', '.join(fatal)}. Take another folder, or ask for that "
                    "config (in a notebook preset '' does)"
                )
            for temporary in path.rglob(".*.tmp"):
                if time.time() - temporary.stat().st_mtime > in_use.STALE_SECONDS:
                    temporary.unlink(missing_ok=True)
        new = not (path / "config.json").is_file()
        try:
            with atomic_write(path / "config.json", "w") as file:
                file.write(cfg.to_json())
            run = cls(path)
            run._lock = locks.take(path / locks.RUN_LOCK)
            run._begin(cfg)
        except OSError:
            if new:
                _take_away(path)
            raise
        return run

    @classmethod
    def plan(cls, cfg: Config, root: Path | str = "results", *, name: str | None = None) -> Self:
        """`create`, but a new run is none for others, since it has no config.json, until more than a figure is written.

        Raises:
            ValueError: As `create`, for a folder that holds another run.
        """
        path = Path(root) / (name or cfg.run_name())
        if (path / "config.json").is_file():
            return cls.create(cfg, root, name=name)
        run = cls.__new__(cls)
        run.path, run._lock, run._planned = path, None, cfg
        return run

    @property
    def has_begun(self) -> bool:
        """Whether there is a config.json: always, but for a planned run."""
        return self._planned is None

    def begin(self) -> None:
        """Make the folder of a planned run; one that is there is left as it is.

        Raises:
            ValueError, OSError: See `create`.
        """
        if self._planned is not None:
            made = type(self).create(self._planned, self.path.parent, name=self.path.name)
            self._lock, self._planned = made._lock, None

    def _begin(self, cfg: Config) -> None:
        """Record this start in env.json, and a state where there is none; damaged ones are written anew."""
        records, status = [], None
        try:
            records = self.environments()
        except FileNotFoundError:
            pass
        except ValueError as error:
            self.log(f"env.json is written anew: {error}")
        self.write_json("env", [*records, environment(cfg.device)])
        try:
            status = self.status() if (self.path / "status.json").is_file() else None
        except ValueError as error:
            self.log(f"status.json is written anew: {error}")
            (self.path / "status.json").unlink()
        if status is None:
            saved = self.checkpoints()
            step = int(saved[-1].stem.removeprefix("step_")) if saved else 0
            self.set_status("running" if saved else "new", step=step, steps=cfg.steps, seconds=0.0)

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    def __getstate__(self) -> dict[str, Any]:
        """A copy for another process: the lock stays with this one."""
        return vars(self) | {"_lock": None}

    @property
    def name(self) -> str:
        """Folder name, which names the run in tables and figures."""
        return self.path.resolve().name

    def config(self) -> Config:
        """The run's Config. Raises ValueError naming the file if it is damaged or of another version."""
        if self._planned is not None:
            return self._planned
        path = self.path / "config.json"
        try:
            return Config.from_json(path.read_text(encoding="utf-8"))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path} cannot be read ({error}); it is damaged or of another version of this package. Delete the "
                f"folder to make the run again"
            ) from error

    # --- state ------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """State of the run: state (one of `STATES`), step, steps, seconds, and error if it failed.

        Raises:
            ValueError: Naming status.json, if it is damaged.
        """
        if not (self.path / "status.json").is_file():
            return {"state": "new", "step": 0}
        status = self.read_json("status")
        if status["state"] not in STATES:
            expected = f"a `state` among {', '.join(STATES)}"
            raise damaged(self.path / "status.json", expected, f"it is {status['state']!r}")
        return {"step": 0} | status

    def environments(self) -> list[dict[str, Any]]:
        """A record of each start of the run, from env.json.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: Naming env.json and the field, if it is damaged.
        """
        return self.read_json("env")

    def set_status(self, state: str, **fields: Any) -> None:
        """Write a new state. Fields not given keep their value, except `error`: it belongs to one state."""
        if state not in STATES:
            raise ValueError(f"state must be one of {', '.join(STATES)}, got {state!r}")
        self.begin()
        kept = {key: value for key, value in self.status().items() if key != "error"}
        self.write_json("status", kept | {"state": state} | fields)

    def log(self, message: str) -> None:
        """Append a time-stamped line to log.txt."""
        self.begin()
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        append_text(self.path / "log.txt", f"{now} {message}\n")

    # --- metrics.csv ------------------------------------------------------------------------------

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Append one row to metrics.csv. The first row fixes the columns; a missing value stays empty.

        Raises:
            ValueError: If the row has a column that the file lacks.
        """
        self.begin()
        path = self.path / "metrics.csv"
        text = complete_lines(path, METRICS_REMEDY)
        row = {key: _plain(value) for key, value in row.items()}
        columns = self.metrics_columns() or list(row)
        unknown = [key for key in row if key not in columns]
        if unknown:
            raise ValueError(f"{path} has no column {', '.join(map(repr, unknown))}; it has {columns}")
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
        if not text:
            writer.writeheader()
        writer.writerow(row)
        if path.is_file() and path.stat().st_size != len(text.encode()):  # a killed process left half a line
            with atomic_write(path, "w") as file:
                file.write(text)
        append_text(path, buffer.getvalue())

    def metrics_columns(self) -> list[str]:
        """Columns of metrics.csv; none before the first row."""
        text = complete_lines(self.path / "metrics.csv", METRICS_REMEDY)
        return next(csv.reader([text.partition("\n")[0]])) if text else []

    def metrics(self) -> pd.DataFrame:
        """Rows of metrics.csv, one per logged step; empty before the first. Half a last line is left out.

        Raises:
            ValueError: Naming the file, and the column or row that is wrong, if it is damaged.
        """
        path = self.path / "metrics.csv"
        return read_table_file(
            path, TABLES["metrics"], whole=complete_lines(path, METRICS_REMEDY) or "step\n", remedy=METRICS_REMEDY
        )

    def truncate_metrics(self, last_step: int) -> None:
        """Drop the rows after `last_step` and half a last line, before a run continues from a checkpoint."""
        path = self.path / "metrics.csv"
        text = complete_lines(path, METRICS_REMEDY)
        rows = read_rows(path, text, TABLES["metrics"], METRICS_REMEDY) if text else []
        kept = [row for number, row in enumerate(rows, 2) if number_in(path, row, "step", number) <= last_step]
        if not kept:
            path.unlink(missing_ok=True)  # the next row may bring its own columns
            return
        with atomic_write(path, "w") as file:
            writer = csv.DictWriter(file, list(kept[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)

    # --- other files ------------------------------------------------------------------------------

    def write_table(self, name: str, frame: pd.DataFrame) -> None:
        """Write `<name>.csv` (evaluation, similarity, ...) without its index."""
        self.begin()
        with atomic_write(self.path / f"{name}.csv", "w") as file:
            frame.to_csv(file, index=False, lineterminator="\n")

    def read_table(self, name: str, *, text: Sequence[str] = ()) -> pd.DataFrame:
        """Read `<name>.csv`; an empty cell is a missing number.

        Args:
            name: Of the file.
            text: Columns of words that may look like numbers (an image named 000012).

        Raises:
            FileNotFoundError: If the run has none.
            ValueError: Naming the file, if it is damaged.
        """
        kind = name if name in TABLES else name.partition("_")[0]  # evaluation_train is one of evaluation
        return read_table_file(self.path / f"{name}.csv", TABLES.get(kind, Columns()), text=text)

    def write_json(self, name: str, obj: Any) -> None:
        """Write `<name>.json`; NumPy and torch values become numbers and lists, paths become text."""
        self.begin()
        with atomic_write(self.path / f"{name}.json", "w") as file:
            json.dump(obj, file, indent=1, default=_plain)

    def read_json(self, name: str) -> Any:
        """Read `<name>.json`.

        Raises:
            FileNotFoundError: If the run has none.
            ValueError: Naming the file and the field, if it is damaged.
        """
        kind = name if name in SHAPES else name.partition("_")[0]  # protocol_train is one of protocol
        return read_json_file(self.path / f"{name}.json", SHAPES.get(kind))

    def save_figure(self, name: str, figure: Any) -> Path:
        """Save a matplotlib figure as figures/<name>.png, a plotly one as figures/<name>.json."""
        raster = hasattr(figure, "savefig")
        path = self.path / "figures" / f"{name}.{'png' if raster else 'json'}"
        with atomic_write(path, "wb") as file:
            if raster:
                figure.savefig(file, format="png", dpi=110)
            else:
                file.write(figure.to_json().encode())
        return path

    def show(self, name: str, figure: FigureLike) -> FigureLike:
        """`save_figure`, and the figure back: the last line of a notebook's cell."""
        self.save_figure(name, figure)
        return figure

    @property
    def is_evaluated(self) -> bool:
        """Whether scores and their protocol are there; the protocol is written last."""
        return all((self.path / name).is_file() for name in ("evaluation.csv", "protocol.json"))

    @property
    def is_measured(self) -> bool:
        """Whether its over-smoothing is there."""
        return (self.path / "smoothing.csv").is_file()

    def figures(self) -> list[Path]:
        """Saved figures, by name."""
        found = entries(self.path / "figures")
        return [path for path in found if path.suffix in (".png", ".json") and not path.name.startswith(".")]

    @property
    def gallery_path(self) -> Path:
        """Name of the maps of a few validation images, written with the evaluation."""
        return self.path / "gallery.npz"

    def token_maps_path(self, image: int, step: int) -> Path:
        """Name of the tokens of probe image `image` after `step` optimiser steps."""
        return self.path / "tokens" / f"image_{image:02d}" / f"step_{step:08d}.npz"

    def token_maps(self) -> list[list[Path]]:
        """Kept tokens: for each probe image its files, by step."""
        folders = [path for path in entries(self.path / "tokens") if path.name.startswith("image_")]
        return [[path for path in entries(folder) if path.match("step_*.npz")] for folder in folders]

    def checkpoint_path(self, step: int) -> Path:
        """Name of the checkpoint after `step` optimiser steps."""
        return self.path / "checkpoints" / f"step_{step:08d}.pt"

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        found = (path for path in entries(self.path / "checkpoints") if path.match("step_*.pt"))
        steps = {path: path.stem.removeprefix("step_") for path in found}
        return sorted((path for path, step in steps.items() if step.isdecimal()), key=lambda path: int(steps[path]))

    def notebooks(self) -> list[Path]:
        """Executed notebooks, by name."""
        found = entries(self.path / "notebooks")
        return [path for path in found if path.suffix == ".ipynb" and not path.name.startswith(".")]

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.lstat().st_size for path in self.path.rglob("*") if not path.is_dir())

    # --- the end ----------------------------------------------------------------------------------

    def busy(self) -> str:
        """Which living process may be at work here, in words; empty if none is.

        A run that is done or failed is left alone, unless somebody evaluates it. Where the lock is not certain (the run
        was last started on another machine or by another user, or nobody knows where), it counts as busy if it was
        written to within the last hour. Who merely holds the run open in this very process does not count.
        """
        return in_use.busy(self)

    def state(self) -> str:
        """The state that every list, table and page shows: as in `status`, but `stopped` instead of `running` where
        no process is at it.

        Raises:
            ValueError: Naming status.json, if it is damaged.
        """
        return in_use.shown_state(self)

    def check_deletable(self, root: Path | str = "results") -> None:
        """Raises ValueError if the folder should not be deleted: busy, a link, of others, or with runs inside.

        Args:
            root: Folder that holds the runs; a path below it that leads out of it, by a link or `..`, is refused.
        """
        in_use.check_deletable(self, root)

    def delete(self, root: Path | str = "results") -> None:
        """Delete the folder. Killed half way it leaves a hidden folder, which the next deletion beside it removes.

        Args:
            root: Folder that holds the runs, see `check_deletable`.

        Raises:
            ValueError: If `check_deletable` does, or the system does not allow it.
        """
        self.check_deletable(root)
        path = self.path.resolve()
        locks.lock_of(path / locks.RUN_LOCK).release(force=True)  # a lock of this very process
        hidden = path.parent / f".{secrets.token_hex(4)}.deleted"  # without its name, which may be as long as can be
        try:
            path.rename(hidden)  # from here on it is no run
            for left in path.parent.glob(".*.deleted"):
                shutil.rmtree(left, ignore_errors=left != hidden)
        except OSError as error:
            raise ValueError(f"{self.path} cannot be deleted: {error}") from error


def _take_away(path: Path) -> None:
    """Remove what `RunDir.create` had written before it failed, and the folder if nothing else lies in it."""
    locks.lock_of(path / locks.RUN_LOCK).release(force=True)
    with contextlib.suppress(OSError):
        for name in ("config.json", "env.json", "status.json", locks.RUN_LOCK):
            (path / name).unlink(missing_ok=True)
        path.rmdir()


def _plain(value: Any) -> Any:
    """NumPy and torch scalars and arrays as Python numbers and lists; paths as text; the rest unchanged."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value) if isinstance(value, Path) else value
