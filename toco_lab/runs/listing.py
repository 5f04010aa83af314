"""All runs below a folder as one table."""

import math
import os
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from toco_lab.config import config_differences
from toco_lab.files import in_words, read_text
from toco_lab.runs.run_dir import CONFIG_FIELDS, METRICS_REMEDY, RunDir
from toco_lab.runs.small_files import TABLES, complete_lines, damaged, number_in, read_rows
from toco_lab.vocabulary import BOUNDARY, MEAN_SCORES

SCORED_IMAGES = "scored_images"  # column: over how many images the scores of a run are
_NUMBERS = ("iou", "boundary_iou")  # columns of evaluation.csv that are read here
RUN_COLUMNS = ("run", "state", "step", "seconds", "made", "seed")  # of `list_runs`, before config fields and scores


def find_runs(root: Path | str = "results") -> list[Path]:
    """Folders of the runs anywhere below `root`. Not searched: the folder of a run, and hidden folders.

    A folder that may not be read counts as a run, so that it is not missing from a list without a word.

    Raises:
        OSError: If `root` is no folder, or may not be read. One that is not there yet holds no runs.
    """
    found, seen = [], set()

    def refused(error: OSError) -> None:
        if Path(error.filename) != Path(root):
            found.append(Path(error.filename))
        elif not isinstance(error, FileNotFoundError) or Path(root).is_symlink():
            raise error

    for folder, inner, files in os.walk(root, followlinks=True, onerror=refused):
        real = Path(folder).resolve()
        if real in seen:  # a link back would be followed for ever
            inner.clear()
        elif "config.json" in files:
            found.append(Path(folder))
            inner.clear()
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        seen.add(real)
    return found


def list_runs(root: Path | str = "results", *, everything: bool = False) -> pd.DataFrame:
    """One row per run anywhere below `root`, see `read_runs`; a run is named by its path from there.

    Warns:
        UserWarning: If there is no such folder.
    """
    if not Path(root).exists():
        warnings.warn(f"there is no folder {root}, so it holds no runs: is the path right?", stacklevel=2)
    return runs_below(root, everything=everything)


def runs_below(root: Path | str, *, everything: bool = False) -> pd.DataFrame:
    """`list_runs` of a folder that need not be there yet."""
    root = Path(root)
    return read_runs({path.relative_to(root).as_posix(): path for path in find_runs(root)}, everything=everything)


def read_runs(paths: Mapping[str, Path | str], *, everything: bool = False) -> pd.DataFrame:
    """One row per run: `RUN_COLUMNS`, config fields that differ, scores like `cam_mIoU`, over how many images these are
    (`scored_images`), error of a failed one.

    A folder that cannot be read (damaged, or written by another version) has the state "unreadable", and says why.

    Args:
        paths: Folder of each run, by the name it has in the column `run`.
        everything: Also the config fields that are the same in all runs, and the last values of metrics.csv.
    """
    rows, configs = {}, {}
    for name, path in paths.items():
        try:
            run = RunDir(path)
            cfg, status = run.config(), run.status()
            lead = {
                "run": name, "state": run.state(), "step": status.get("step", 0),
                "seconds": status.get("total_seconds", status.get("seconds")), "made": _made(run), "seed": cfg.seed,
            }  # fmt: skip
            found = final_scores(run) | images_evaluated(run) | (_last_metrics(run) if everything else {})
            rows[name] = lead | {key: value for key, value in found.items() if key not in CONFIG_FIELDS}
            rows[name]["error"] = str(status.get("error", "")).partition("\n")[0]
            configs[name] = cfg
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            rows[name] = {"run": name, "state": "unreadable", "error": " ".join(in_words(str(error)).split())}
    fields = [key for key in (CONFIG_FIELDS if everything else config_differences(configs)) if key != "seed"]
    for name, cfg in configs.items():
        rows[name] |= {key: getattr(cfg, key) for key in fields}
    measured = [key for row in rows.values() for key in row if key not in (*RUN_COLUMNS, *fields, "error")]
    columns = [*RUN_COLUMNS, *fields, *dict.fromkeys(measured), "error"]
    return pd.DataFrame(list(rows.values()), columns=columns)


def final_scores(run: RunDir) -> dict[str, float]:
    """Mean scores of evaluation.csv as {"cam_mIoU": ..., "labels_F1": ...}; empty without an evaluation.

    Raises:
        ValueError: Naming the file, if it is damaged.
    """
    return {f"{row['target']}_{row['class']}": row["iou"] for row in _mean_rows(run)}


def boundary_scores(run: RunDir) -> dict[str, float]:
    """Mean boundary IoU of each target, {"cam_boundary": ...}; empty where an older version evaluated the run.

    Raises:
        ValueError: Naming the file, if it is damaged.
    """
    found = {f"{row['target']}_{BOUNDARY}": row.get("boundary_iou", math.nan) for row in _mean_rows(run)}
    return {name: value for name, value in found.items() if not math.isnan(value)}


def _mean_rows(run: RunDir) -> list[dict[str, Any]]:
    """The rows of evaluation.csv that are means, the columns of `_NUMBERS` as numbers; none without an evaluation."""
    path = run.path / "evaluation.csv"
    if not path.is_file():
        return []
    # hundreds of runs are listed: pandas takes far longer
    try:
        text = read_text(path)
    except ValueError as error:
        raise damaged(path, "text", error) from error
    return [
        {**row, **{name: number_in(path, row, name, number) for name in _NUMBERS if name in row}}
        for number, row in enumerate(read_rows(path, text, TABLES["evaluation"]), 2)
        if row["class"] in MEAN_SCORES
    ]


def images_evaluated(run: RunDir) -> dict[str, int | str]:
    """Over how many images the scores of a run are, {"scored_images": 100}, or "20 to 100" where targets differ.

    Empty where no protocol says it.
    """
    try:
        counts = [record["images"] for record in run.read_json("protocol").values() if "images" in record]
    except (OSError, ValueError, AttributeError, TypeError):  # not there or damaged: the scores are shown without
        return {}
    return {SCORED_IMAGES: count_range(counts)} if counts else {}


def count_range(counts: Collection[int]) -> int | str:
    """5, or "2 to 5"."""
    return min(counts) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _last_metrics(run: RunDir) -> dict[str, float]:
    """The last value of each column of metrics.csv but `step`; validation scores are not in every row."""
    last: dict[str, float] = {}
    path = run.path / "metrics.csv"
    text = complete_lines(path, METRICS_REMEDY)
    for number, row in enumerate(read_rows(path, text, TABLES["metrics"], METRICS_REMEDY) if text else [], 2):
        number_in(path, row, "step", number, METRICS_REMEDY)
        told = [key for key, value in row.items() if key != "step" and value not in ("", "nan")]
        last |= {key: number_in(path, row, key, number, METRICS_REMEDY) for key in told}
    return last


def _made(run: RunDir) -> str:
    """When the run was started first, like 2026-01-31 12:00:00; empty if that was not written down."""
    records = run.environments() if (run.path / "env.json").is_file() else []
    return records[0]["start"][:19].replace("T", " ") if records else ""
