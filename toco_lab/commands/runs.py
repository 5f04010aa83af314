"""The command `runs`: list, compare, plot, open, log and delete runs."""

import shutil
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import tyro

from toco_lab.commands.parser import Commands
from toco_lab.files import atomic_write
from toco_lab.trackers.tracker import TrackerName
from toco_lab.words import counted

runs = Commands()


@runs.command(name="list", is_default=True)
def list_(
    root: Path = Path("results"),
    where: str = "",
    columns: tuple[str, ...] = (),
    sort: str = "run",
    descending: bool = False,
    wide: bool = False,
    csv: Path | None = None,
) -> None:
    """List the runs below a folder: name, state, scores, and what differs. This is what `runs` alone does.

    On a terminal no line is longer than the terminal is wide; what was left out for that is named.

    Args:
        root: Folder that holds the runs, at any depth.
        where: A condition on columns, like 'w_ptc > 0 and cam_mIoU > 0.5' or '"demo" in run'.
        columns: Columns to show; any config field, score or last training metric.
        sort: Column that orders the rows.
        descending: Largest first.
        wide: Show every field that differs, steps, seconds and dates too, however long the lines.
        csv: Write all columns of these runs into this file as well.
    """
    from toco_lab.runs import glance
    from toco_lab.runs import table as run_table
    from toco_lab.runs.listing import runs_below

    table = run_table.filter_runs(runs_below(root, everything=True), where)
    table = run_table.sort_runs(table, sort, descending=descending)
    left_out: list[str] = []
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if columns:
        names = [run_table.check_column(table.columns, name) for name in dict.fromkeys(("run", *columns))]
        shown = table[names].map(run_table.cell_text)
    elif wide:
        shown = run_table.overview(table).map(run_table.cell_text)
    else:
        shown, left_out = glance.within(glance.glance(table), width)
    if len(shown):
        print(shown.to_string(index=False))
    nowhere = "" if root.exists() else ": there is no such folder (--root names another)"
    print(f"{counted(len(shown), 'run')} below {root}{nowhere}")
    if left_out and width:
        named = textwrap.fill(f"not shown: {', '.join(left_out)}", width, subsequent_indent="  ")
        print(f"{named}\n(--wide shows them, --columns chooses)")
    if csv is not None:
        with atomic_write(csv, "w") as file:
            table.to_csv(file, index=False, lineterminator="\n")
        print(csv)


@runs.command
def compare(runs: tyro.conf.Positional[tuple[str, ...]], root: Path = Path("results")) -> None:
    """Show in which config fields runs differ, and what was measured.

    Args:
        runs: Folders, or names below `root`; two or more.
        root: Folder that holds the runs.
    """
    from toco_lab.runs import table as run_table
    from toco_lab.runs.listing import read_runs

    if len(set(runs)) < 2:
        raise ValueError("give two runs or more, `runs list` shows them")
    table = read_runs({name: run_table.find_run(root, name).path for name in runs}, everything=True)
    print(run_table.compare_runs(table, list(dict.fromkeys(runs))).map(run_table.cell_text).to_string())


@runs.command
def plot(
    metric: tyro.conf.Positional[str],
    parameter: tyro.conf.Positional[str],
    root: Path = Path("results"),
    where: str = "",
    colour: str | None = None,
    out: Path = Path("plot.html"),
) -> None:
    """Plot a metric against a parameter: every run, and mean and standard deviation over runs of equal parameter.

    Args:
        metric: Column of numbers, like cam_mIoU or total_loss.
        parameter: Column, like w_ptc; words become categories.
        root: Folder that holds the runs, at any depth.
        where: Which runs, as in `runs list`.
        colour: Column that splits the runs into groups.
        out: The file: .html (works offline) or .png.
    """
    from toco_lab.figures import across_runs, assign_colours
    from toco_lab.figures.plotly_style import CONFIG
    from toco_lab.runs import table as run_table
    from toco_lab.runs.glance import alike
    from toco_lab.runs.listing import runs_below

    if out.suffix not in (".html", ".png"):
        raise ValueError(f"out must end in .html or .png, got {out}")
    table = run_table.filter_runs(runs_below(root, everything=True), where)
    found = run_table.relate(table, metric, parameter, colour=colour)
    if not len(found.points):
        raise ValueError(f"none of {counted(len(table), 'run')} below {root} has values of {metric} and {parameter}")
    groups = list(alike(table[table["run"].isin(found.points["run"])]))
    unlike = f", of {len(groups)} data sets or protocols: choose one by --where" if len(groups) > 1 else ""
    note = f"{found.note}{unlike}" if unlike else f"{groups[0]}: {found.note}"
    shared: dict[str, Any] = {"metric": metric, "parameter": parameter, "colour": colour, "note": note}
    if out.suffix == ".html":
        figure = across_runs.metric_by_parameter(found.points, found.means, **shared)
        text = figure.to_html(include_plotlyjs=True, config=CONFIG)
        with atomic_write(out, "w") as file:
            file.write(text)
    else:
        from toco_lab.figures import printed

        colours = assign_colours(found.means["group"])
        figure = printed.metric_by_parameter(found.points, found.means, colours=colours, **shared)
        with atomic_write(out) as file:
            figure.savefig(file, format="png", dpi=150)
    print(f"{out}: {found.note}{unlike}")


@runs.command(name="open")
def open_(run: tyro.conf.Positional[str], root: Path = Path("results"), show: str | None = None) -> None:
    """Say what lies in a run: notebooks, figures, reports, checkpoints, with their sizes.

    Args:
        run: Folder, or name below `root`.
        root: Folder that holds the runs.
        show: Name of one of them, like cam_gallery or 04_evaluate, to be shown in the web browser.
    """
    from toco_lab.runs import table as run_table

    found = run_table.find_run(root, run)
    files = run_table.run_files(found)
    if show is None:
        print(run_table.deletion_notice(found))
        for file in files:
            print(f"{file.kind:14}{run_table.size_text(file.size):>10}  {file.path}")
        return
    pages = [file.path for file in files if file.kind != "checkpoint"]
    chosen = [path for path in pages if show in (path.stem, path.name)]
    if not chosen:
        raise ValueError(f"{found.path} has no {show!r} to show; there are: {', '.join(path.name for path in pages)}")
    import webbrowser

    page = as_page(chosen[0]).resolve()
    opened = webbrowser.open(page.as_uri())
    print(page if opened else f"no web browser could be started; the page is {page}")


def as_page(path: Path) -> Path:
    """A figure, notebook or report as a file a web browser can show; what has to be converted goes to a new folder."""
    if path.suffix in (".png", ".html"):
        return path
    page = Path(tempfile.mkdtemp(prefix="toco_lab_")) / f"{path.stem}.html"
    with atomic_write(page, "w") as file:
        if path.suffix == ".ipynb":
            from nbconvert import HTMLExporter

            file.write(HTMLExporter().from_filename(str(path))[0])
        else:
            import plotly.io

            from toco_lab.figures.plotly_style import CONFIG

            figure = plotly.io.from_json(path.read_text(encoding="utf-8"))
            file.write(figure.to_html(include_plotlyjs=True, config=CONFIG))
    return page


@runs.command
def log(
    runs: tyro.conf.Positional[tuple[str, ...]], log_to: tuple[TrackerName, ...], root: Path = Path("results")
) -> None:
    """Send runs to trackers from their files. What a tracker has already is not sent again.

    Args:
        runs: Folders, or names below `root`.
        log_to: The trackers; each needs its package, see docs/tracking.md.
        root: Folder that holds the runs.
    """
    from toco_lab.runs import table as run_table
    from toco_lab.trackers.logbook import log_run
    from toco_lab.trackers.tracker import check_trackers

    names = check_trackers(log_to)
    if not runs or not names:
        raise ValueError("give the runs to send, `runs list` shows them, and --log-to with a tracker")
    for found in [run_table.find_run(root, name) for name in runs]:
        log_run(found, names)
        print(f"sent {found.path} to {', '.join(names)}")


@runs.command
def delete(runs: tyro.conf.Positional[tuple[str, ...]], root: Path = Path("results"), yes: bool = False) -> None:
    """Delete runs for good: shows what would go and asks, unless `--yes`.

    Args:
        runs: Folders, or names below `root`.
        root: Folder that holds the runs.
        yes: Do not ask.
    """
    from toco_lab.runs import table as run_table

    doomed = {found.path.resolve(): found for found in (run_table.find_run(root, name) for name in runs)}
    if not doomed:
        raise ValueError("give the runs to delete, `runs list` shows them")
    for found in doomed.values():
        found.check_deletable(root)
        print(run_table.deletion_notice(found))
    if not yes:
        if not sys.stdin.isatty():
            raise ValueError("nothing deleted: there is no terminal to ask at; --yes deletes without asking")
        if input("delete for good? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing deleted")
            return
    for found in doomed.values():
        found.delete(root)
        print(f"deleted {found.path}")
