"""The command `images`: finished runs looked at image by image."""

from pathlib import Path
from typing import TYPE_CHECKING

import tyro

if TYPE_CHECKING:
    from toco_lab.evaluation.object_size import SizeBounds
    from toco_lab.evaluation.run_gains import GainsOfRuns
    from toco_lab.runs.run_dir import RunDir


def images(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    rows: tuple[str, ...] = (),
    target: str = "cam",
    bounds: tuple[float, ...] = (),
    shown: int = 4,
    out: Path | None = None,
    split: str | None = None,
    device: str = "auto",
) -> None:
    """Score runs by the size of objects, or show which images gain from one run to another.

    One RUN: every class by size. Two: which images gain from the first to the second, and what goes with it. The folder
    of a SWEEP: mIoU by size over its rows and seeds; with --rows A B, which images gain from row A to row B. The pixel
    counts of each image are kept in images.csv of each run; `docs/questions.md` says how to read the numbers.

    Args:
        runs: Folders of one or two runs, or of one sweep.
        rows: Two rows of the sweep, which are compared seed by seed.
        target: Label map: cam, cam_tuned, cam_aux, cam_aux_tuned, cam_refined, seg ...
        bounds: Shares of the image from which on an object is middle and large; none given takes thirds of the split.
        shown: How many images of the largest gains and of the largest losses are drawn.
        out: Folder to write: sizes.csv, or gains.csv, relations.csv and gains.png; None takes the folder of the last
            run, or of the sweep.
        split: List of images; None takes the one of the config.
        device: auto, cpu, cuda ...
    """
    from toco_lab.runs.run_dir import RunDir

    chosen = _bounds(bounds)
    if len(runs) == 1 and (runs[0] / "grid.yaml").is_file():
        _of_sweep(runs[0], rows, target, chosen, shown, out or runs[0], split, device)
        return
    if rows:
        raise ValueError("--rows are those of a sweep: give its folder, the one with grid.yaml")
    opened = [RunDir(run) for run in runs]
    if len(opened) == 1:
        _sizes_of_run(opened[0], target, chosen, out or runs[0], split, device)
    elif len(opened) == 2:
        from toco_lab.evaluation.run_gains import gains_of_runs

        _show(gains_of_runs(*opened, target=target, split=split, device=device), shown, out or runs[-1])
    else:
        raise ValueError(f"images needs one RUN, two, or one SWEEP, got {len(runs)}")


def _bounds(bounds: tuple[float, ...]) -> "SizeBounds | None":
    from toco_lab.evaluation.object_size import SizeBounds

    if len(bounds) not in (0, 2):
        raise ValueError(f"--bounds are two shares, from where on middle and large begin, got {len(bounds)}")
    return SizeBounds(*bounds) if bounds else None


def _sizes_of_run(
    run: "RunDir", target: str, bounds: "SizeBounds | None", out: Path, split: str | None, device: str
) -> None:
    from toco_lab.evaluation.image_counts import images_of_run
    from toco_lab.evaluation.object_size import bounds_of, scores_by_size
    from toco_lab.vocabulary import base_target

    counts = images_of_run(run, targets=(base_target(target),), split=split, device=device).of(target)
    bounds = bounds or bounds_of(counts)
    table = scores_by_size(counts, bounds)
    wide = table.pivot(index="class", columns="size", values="iou")
    print((100 * wide.loc[list(dict.fromkeys(table["class"])), list(dict.fromkeys(table["size"]))]).to_string(
        float_format="{:.1f}".format, na_rep="-"
    ))  # fmt: skip
    print(f"IoU in per cent of {target}; {bounds}")
    _write(out / "sizes.csv", table.to_csv(index=False, lineterminator="\n"))


def _of_sweep(
    folder: Path,
    rows: tuple[str, ...],
    target: str,
    bounds: "SizeBounds | None",
    shown: int,
    out: Path,
    split: str | None,
    device: str,
) -> None:
    from toco_lab.reports.ablation import summarise, wide_table
    from toco_lab.reports.by_image import gains_of_rows, sizes_of_sweep
    from toco_lab.sweeps.grid import Grid
    from toco_lab.vocabulary import MIOU

    grid, root = Grid.from_yaml(folder / "grid.yaml"), folder.parent
    if split is not None:
        raise ValueError("a sweep is looked at on the split of its config: give single runs with --split")
    if len(rows) not in (0, 2):
        raise ValueError(f"--rows are two rows, the second against the first, got {len(rows)}")
    if rows:
        _show(gains_of_rows(grid, rows[0], rows[1], root, target=target, device=device), shown, out)
        return
    frame = sizes_of_sweep(grid, root, targets=(target,), bounds=bounds, device=device)
    print(wide_table(summarise(frame, scores=[name for name in frame if str(name).endswith(MIOU)])).T.to_string())
    _write(out / "sizes.csv", frame.to_csv(index=False, lineterminator="\n"))


def _show(gains: "GainsOfRuns", shown: int, out: Path) -> None:
    """Print what was found, and write tables and picture."""
    from toco_lab.data.classes import PALETTE
    from toco_lab.figures.pictures import cam_gallery
    from toco_lab.files import atomic_write

    print(f"\n{gains}")
    for name, frame in (("gains", gains.frame), ("relations", gains.relations)):
        _write(out / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
    figure = cam_gallery(
        gains.pictures(shown), palette=PALETTE, class_names=gains.class_names, names=gains.captions(shown),
        title=f"{gains.after} against {gains.before}: the largest gains, then the largest losses",
    )  # fmt: skip
    with atomic_write(out / "gains.png") as file:
        figure.savefig(file, format="png", dpi=90)
    print(out / "gains.png")


def _write(path: Path, text: str) -> None:
    from toco_lab.files import atomic_write

    with atomic_write(path, "w") as file:
        file.write(text)
    print(path)
