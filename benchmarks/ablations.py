"""The ablations on the toy preset: every grid in grids/ablations, its runs, its table and its picture.

    python benchmarks/ablations.py                       # all of them, for hours; killed, it continues where it was
    python benchmarks/ablations.py loss_terms teacher --seeds 3 --workers 2
    python benchmarks/ablations.py --tables              # no runs: tables of what is there

Runs go to results/sweeps/ablations; each grid leaves `<name>.csv` (a line per run), `<name>.md` (what was asked,
protocol, means with paired differences) and `<name>.png` in benchmarks/results/ablations.
"""

import argparse
import dataclasses
import textwrap
from pathlib import Path

import pandas as pd

from toco_lab.config import Config
from toco_lab.figures import printed
from toco_lab.files import atomic_write
from toco_lab.reports.ablation import protocol_text, summarise, wide_table
from toco_lab.runs.run_dir import RunDir
from toco_lab.runs.scores import SCORES, TITLES
from toco_lab.sweeps.grid import ROOT, Grid
from toco_lab.sweeps.sweep import run_sweep, sweep_table

GRIDS = Path(__file__).parents[1] / "grids" / "ablations"
OUT = Path(__file__).parent / "results" / "ablations"
KEPT = ("row", "reference", "seed", "seconds", *SCORES, "run")  # columns of the table that is kept


def write_tables(grid: Grid, root: Path, out: Path, *, command: str = "") -> str | None:
    """Table and picture of the runs of a grid that are finished; None where there are none. `command` made them."""
    table = sweep_table(root, grid)
    table = table[table["state"] == "done"]
    if table.empty:
        return None
    frame = table[[name for name in KEPT if name in table]].round(4)
    summary = summarise(frame)
    runs = {run.folder.name: run for run in grid.runs(root)}
    configs = [runs[name].config for name in frame["run"]]
    last = RunDir(runs[frame["run"].iloc[-1]].folder)
    text = markdown(grid, frame, summary, configs, last, command or f"python benchmarks/ablations.py {grid.name}")
    with atomic_write(out / f"{grid.name}.csv", "w") as file:
        frame.to_csv(file, index=False, lineterminator="\n")
    with atomic_write(out / f"{grid.name}.md", "w") as file:
        file.write(text)
    with atomic_write(out / f"{grid.name}.png") as file:
        printed.ablation_plot(frame, summary, titles=TITLES).savefig(file, format="png", dpi=80)
    return text


def markdown(
    grid: Grid, frame: pd.DataFrame, summary: pd.DataFrame, configs: list[Config], run: RunDir, command: str
) -> str:
    """What was asked, how it was measured, the table, and the command."""
    made = run.read_json("env")[-1]
    machine = f"{made['device']}, torch {made['packages']['torch']}, commit {made['git']['commit'][:9]}"
    seconds = f"{frame['seconds'].mean():.0f} s a run on one thread, evaluation included ({machine})."
    wide = wide_table(summary).reset_index()
    lines = [
        f"| {' | '.join(map(str, cells))} |" for cells in [wide.columns, ["---"] * wide.shape[1], *wide.to_numpy()]
    ]
    protocol = textwrap.fill(f"{protocol_text(configs, frame)} {seconds}", 120)
    return "\n".join(
        [grid.about.strip(), "", protocol, "", *lines, "", f"![{grid.name}]({grid.name}.png)", "", f"    {command}", ""]
    )


def main() -> None:
    """Make what is missing, grid by grid, and write the tables."""
    known = sorted(path.stem for path in GRIDS.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"grids, all by default: {', '.join(known)}")
    parser.add_argument("--seeds", type=int, help="number of seeds, instead of that of the grid")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tables", action="store_true", help="make no runs")
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if unknown := set(args.names) - set(known):
        parser.error(f"no grid {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    for name in args.names or known:
        grid = Grid.from_yaml(GRIDS / f"{name}.yaml")
        grid = dataclasses.replace(grid, seeds=args.seeds) if args.seeds else grid
        if not args.tables:
            run_sweep(grid, root=args.root, workers=args.workers)
        print(write_tables(grid, args.root, args.out) or f"{name}: no run is finished yet")


if __name__ == "__main__":
    main()
