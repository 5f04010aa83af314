"""Sweeps looked at image by image: mIoU by the size of objects over rows and seeds, and which images gain by a row.

Both read the pixel counts that finished runs keep (`evaluation.images_of_run`), and measure those that have none yet.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from toco_lab.evaluation.image_counts import images_of_run
from toco_lab.evaluation.object_size import SizeBounds, bounds_of, scores_by_size
from toco_lab.evaluation.run_gains import GainsOfRuns, gains_of_runs
from toco_lab.files import did_you_mean
from toco_lab.runs.run_dir import RunDir
from toco_lab.runs.scores import size_score
from toco_lab.sweeps.grid import ROOT, Grid
from toco_lab.vocabulary import CAM, CAM_TUNED, MIOU, SIZES, base_target
from toco_lab.words import counted


def sizes_of_run(
    run: RunDir,
    targets: Iterable[str] = (CAM, CAM_TUNED),
    bounds: SizeBounds | None = None,
    *,
    device: str = "auto",
) -> dict[str, float]:
    """mIoU of a finished run over what is small, middle and large, without background, by the name of the score.

    Args:
        run: Its folder.
        targets: Like cam, cam_tuned or seg; those that the run does not have are left out.
        bounds: None parts the images of the split into thirds.
        device: auto, cpu, cuda ...
    """
    targets = list(targets)
    bases = tuple(dict.fromkeys(base_target(name) for name in targets))
    counts = images_of_run(run, targets=bases, device=device, progress=False)
    table = scores_by_size(counts.table, bounds)
    means = table[table["class"] == MIOU].set_index(["target", "size"])["iou"]
    return {
        size_score(target, size): float(means[target, size])
        for target in targets
        for size in SIZES
        if (target, size) in means
    }


def sizes_of_sweep(
    grid: Grid,
    root: Path | str = ROOT,
    *,
    targets: Sequence[str] = (CAM, CAM_TUNED),
    bounds: SizeBounds | None = None,
    device: str = "auto",
) -> pd.DataFrame:
    """mIoU by size of every finished run of a sweep, as `summarise` and `ablation_plot` take it.

    Args:
        grid: What was run.
        root: Folder that holds the sweeps.
        targets: Like cam, cam_tuned or seg.
        bounds: None takes the thirds of the first run's images for all.
        device: auto, cpu, cuda ...

    Returns:
        A row per finished run: row, reference, seed, run, and cam_small_mIoU, ... in [0, 1].

    Raises:
        ValueError: If no run is finished.
    """
    references, lines = grid.references(), []
    bases = tuple(dict.fromkeys(map(base_target, targets)))
    for planned in grid.runs(root):
        if (run := _finished(planned.folder)) is None:
            continue
        if bounds is None:
            bounds = bounds_of(images_of_run(run, targets=bases, device=device, progress=False).table)
        line = {"row": planned.row, "reference": references.get(planned.row, ""), "seed": planned.seed}
        lines.append(line | {"run": run.name} | sizes_of_run(run, targets, bounds, device=device))
    if not lines:
        raise ValueError(f"no run of {grid.name} is finished in {root}")
    return pd.DataFrame(lines)


def gains_of_rows(
    grid: Grid,
    before: str,
    after: str,
    root: Path | str = ROOT,
    *,
    target: str = CAM,
    device: str = "auto",
    progress: bool = True,
) -> GainsOfRuns:
    """What every image gains from a row of a sweep to another one, over the seeds that both have finished.

    Arguments and errors as in `gains_of_runs`.

    Raises:
        ValueError: If a row is unknown, or has no finished run.
    """
    rows = {row: [planned for planned in grid.runs(root) if planned.row == row] for row in (before, after)}
    found: dict[str, list[RunDir]] = {}
    for row, planned in rows.items():
        if not planned:
            known = list(dict.fromkeys(one.row for one in grid.runs(root)))
            hint = did_you_mean(row, known) or f"; there are: {', '.join(known)}"
            raise ValueError(f"{grid.name} has no row {row!r}{hint}")
        found[row] = [run for one in planned if (run := _finished(one.folder)) is not None]
        if not found[row]:
            runs = counted(len(planned), "run")
            raise ValueError(
                f"none of the {runs} of row {row!r} is finished in {Path(root) / (grid.folder or grid.name)}"
            )
    return gains_of_runs(
        found[before], found[after], target=target, names=(before, after), device=device, progress=progress
    )


def _finished(folder: Path) -> RunDir | None:
    """The run of a folder, if it was trained and evaluated."""
    there = (folder / "config.json").is_file() and RunDir(folder).is_evaluated
    return RunDir(folder) if there else None
