"""A widget over a folder of runs: filter, compare, plot, look into a run, delete with confirmation.

Controls -> functions of `runs.table` -> HTML tables and the PNG bytes of one Image widget. It works without a browser
as well: set a control's `value`, call a button's `click()`, read `listing.value` or `message.value`.
"""

import base64
import html
import io
import json
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import ipywidgets as widgets
import pandas as pd

from toco_lab.explorers.controls import ControlBox, button, wide, wrapped_row
from toco_lab.figures import printed
from toco_lab.figures.colours import assign_colours
from toco_lab.figures.plotly_style import CONFIG
from toco_lab.runs.glance import alike, departing_fields
from toco_lab.runs.listing import read_runs, runs_below
from toco_lab.runs.run_dir import RunDir
from toco_lab.runs.table import (
    cell_text,
    compare_runs,
    deletion_notice,
    filter_runs,
    metric_columns,
    overview,
    relate,
    run_files,
    size_text,
    sort_runs,
)
from toco_lab.words import counted, program

if TYPE_CHECKING:
    from toco_lab.figures.pictures import Figure

TABS = ("Compare", "Plot", "Open", "Delete")
NO_COLOUR = "(none)"
ALL_RUNS = "all runs, alike or not"
NO_FIGURE = "(choose a figure)"
_CHOSEN = "background: rgba(33, 150, 243, 0.3)"  # over white and over black


class RunBrowser(ControlBox):
    """Every run below a folder in a filtered table; for the chosen ones what differs, their files, and deletion.

    Example:
        `RunBrowser("results")` as the last line of a cell.

    Attributes:
        where: Filter, as in `table.filter_runs`.
        sort, descending: Order of the table.
        reload_button: Reads the folder again.
        picker: The runs; several may be chosen.
        listing: HTML table of the same runs, the chosen ones marked.
        tabs: One of `TABS`.
        comparison: HTML table of what differs between the chosen runs.
        among: Which runs the plot compares: those of one data set and protocol, or all.
        metric, parameter, colour, picture: The plot of these runs.
        files, figure_picker, figure_area: The files of the first chosen run.
        delete_button, notice, confirm_button, cancel_button: Deletion, in two steps.
        message: What went wrong and what to do about it, or what was done.
        table: All runs, as a DataFrame of `list_runs(root, everything=True)`.
        shown: The rows that the filter leaves, sorted.
    """

    def __init__(self, root: Path | str = "results", *, where: str = "") -> None:
        """Reads the folder.

        Args:
            root: Folder that holds runs, at any depth; it may not exist yet.
            where: First filter.
        """
        super().__init__()
        self.root = Path(root)
        self._doomed: tuple[str, ...] = ()  # runs that the confirm button deletes
        self.table = self.shown = read_runs({}, everything=True)
        self._make_list_controls(where)
        self._make_plot_controls()
        self._make_file_controls()
        self._make_deletion_controls()
        self._arrange_all()
        self._observe()
        self.reload()

    # --- for a program ------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Read the folder again."""
        with self._working("reading the runs"):
            self.table = runs_below(self.root, everything=True)
            self._filter()

    def overview(self) -> pd.DataFrame:
        """The table that is shown."""
        return overview(self.shown)

    def figure(self) -> "Figure":
        """The plot, as a matplotlib Figure."""
        colour = None if self.colour.value == NO_COLOUR else self.colour.value
        relation = relate(self._alike(), self.metric.value, self.parameter.value, colour=colour)
        note = f"{self.among.value}: {relation.note}; diamonds: mean and standard deviation"
        return printed.metric_by_parameter(
            relation.points, relation.means, metric=self.metric.value, parameter=self.parameter.value, colour=colour,
            colours=assign_colours(relation.means["group"]), note=note,
        )  # fmt: skip

    # --- controls -----------------------------------------------------------------------------------------------

    def _make_list_controls(self, where: str) -> None:
        self.where = widgets.Text(
            where, description="where", placeholder='w_ptc > 0 and cam_mIoU > 0.5 and "demo" in run',
            tooltip="a condition on columns; Enter applies it", continuous_update=False, **wide(520),
        )  # fmt: skip
        self.sort = widgets.Dropdown(
            options=["run"], description="sort by", tooltip="column that orders the table", **wide(300)
        )
        self.descending = widgets.Checkbox(
            value=False, indent=False, description="descending", tooltip="largest first", layout={"width": "110px"}
        )
        self.reload_button = button("Reload", "refresh", "read the folder again")
        self.picker = widgets.SelectMultiple(
            description="runs", tooltip="Ctrl or Shift chooses several", rows=12, **wide(300)
        )
        self.picker.layout.height = "300px"
        self.listing = widgets.HTML()

    def _make_plot_controls(self) -> None:
        self.among = widgets.Dropdown(description="compare", tooltip="runs of one data set, scored alike", **wide(300))
        self.metric = widgets.Dropdown(description="metric", tooltip="vertical axis", **wide(300))
        self.parameter = widgets.Dropdown(description="parameter", tooltip="horizontal axis", **wide(300))
        self.colour = widgets.Dropdown(description="colour", tooltip="splits the runs into groups", **wide(300))
        self.picture = widgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain"})

    def _make_file_controls(self) -> None:
        self.comparison, self.files, self.figure_area = widgets.HTML(), widgets.Output(), widgets.Output()
        self.figure_picker = widgets.Dropdown(
            options=[NO_FIGURE], description="figure", tooltip="a saved figure of this run", **wide(300)
        )

    def _make_deletion_controls(self) -> None:
        self.delete_button = button("Delete chosen runs ...", "trash", "asks once more")
        self.delete_button.layout = {"width": "auto", "align_self": "flex-start"}
        self.notice = widgets.HTML()
        self.confirm_button = button("Yes, delete", "trash", "this cannot be undone", button_style="danger")
        self.confirm_button.layout.width = "auto"
        self.cancel_button = button("Keep them", "undo", "delete nothing")
        self.confirmation = widgets.VBox([self.notice, widgets.HBox([self.confirm_button, self.cancel_button])])

    def _arrange_all(self) -> None:
        listing = widgets.Box([self.listing], layout={"overflow": "auto", "max_height": "300px", "flex": "1 1 400px"})
        self.tabs = widgets.Tab(
            [
                widgets.VBox([self.comparison]),
                widgets.VBox([wrapped_row(self.among, self.metric, self.parameter, self.colour), self.picture]),
                widgets.VBox([self.files, self.figure_picker, self.figure_area]),
                widgets.VBox([self.delete_button, self.confirmation]),
            ],
            titles=TABS,
            selected_index=0,
        )
        self._arrange(
            wrapped_row(self.where, self.sort, self.descending, self.reload_button),
            self.message,
            wrapped_row(self.picker, listing),
            self.tabs,
        )

    def _observe(self) -> None:
        self.reload_button.on_click(lambda _: self.reload())
        for control in (self.where, self.sort, self.descending):
            control.observe(lambda _: self._filter_changed(), "value")
        self.picker.observe(lambda _: self._choose(), "value")
        self.among.observe(lambda _: self._offer_axes(), "value")
        for control in (self.metric, self.parameter, self.colour):
            control.observe(lambda _: self._plot(), "value")
        self.figure_picker.observe(lambda _: self._show_figure(), "value")
        self.delete_button.on_click(lambda _: self._ask_to_delete())
        self.confirm_button.on_click(lambda _: self._delete())
        self.cancel_button.on_click(lambda _: self._cancel_deletion())

    # --- reactions ----------------------------------------------------------------------------------------------

    def _filter_changed(self) -> None:
        if not self._quiet:
            with self._working("filtering"):
                self._filter()

    def _filter(self) -> None:
        """Make table, picker and menus follow the filter. A bad filter raises and leaves them all as they were."""
        shown = filter_runs(self.table, self.where.value)
        shown = sort_runs(shown, self.sort.value, descending=self.descending.value)
        self.shown, chosen = shown, self.picker.value
        names = shown["run"].tolist()
        with self._quietly():
            _offer(self.sort, overview(shown).columns.tolist())
            self.picker.options = names
            self.picker.value = [run for run in chosen if run in names]
            _offer(self.among, [*alike(shown), ALL_RUNS])
        self._choose()
        self._offer_axes()
        if not len(self.table):
            there = "" if self.root.exists() else f"there is no folder {self.root}, and so "
            self._say(f"{there}there are no runs below {self.root}; `{program()} demo` makes two")

    def _alike(self) -> pd.DataFrame:
        """The rows that the plot compares."""
        return alike(self.shown).get(self.among.value, self.shown)

    def _offer_axes(self) -> None:
        """Make the menus of the plot follow the runs that it compares."""
        if self._quiet:
            return
        rows = self._alike()
        parameters = list(dict.fromkeys([*departing_fields(rows), "seed"]))
        with self._quietly():
            _offer(self.metric, metric_columns(rows) or ["seconds"])
            _offer(self.parameter, parameters)
            _offer(self.colour, [NO_COLOUR, *parameters])
        self._plot()

    def _choose(self) -> None:
        """Show what belongs to the chosen runs."""
        if self._quiet:
            return
        with self._working("showing the chosen runs"):
            self._cancel_deletion()
            chosen, seen = self.picker.value, self.overview()
            self.listing.value = _html_table(seen.columns, seen.itertuples(index=False), marked=set(chosen))
            self.comparison.value = "<p>Choose runs in the list (Ctrl or Shift for several).</p>"
            if chosen:
                compared = compare_runs(self.shown, chosen)
                rows = ([name, *values] for name, values in zip(compared.index, compared.to_numpy(), strict=True))
                self.comparison.value = _html_table(["", *chosen], rows)
            self._list_files()

    def _plot(self) -> None:
        if self._quiet:
            return
        with self._working("plotting"):
            file = io.BytesIO()
            self.figure().savefig(file, format="png", dpi=100)
            self.picture.value = file.getvalue()

    def _list_files(self) -> None:
        """Links to the files of the first chosen run, and a menu of its figures."""
        files, head = [], ""
        if self.picker.value:
            run = self._run(self.picker.value[0])
            files, head = run_files(run), f"<p>{html.escape(str(run.path))}</p>"
        rows = []
        for file in files:
            name = html.escape(file.path.name)
            link = name if file.kind == "checkpoint" else f'<a href="{_link(file.path)}">{name}</a>'
            rows.append(f"<tr><td>{file.kind}</td><td>{link}</td><td>{size_text(file.size)}</td></tr>")
        text = f"{head}<table>{''.join(rows)}</table>" if files else f"{head}<p>Nothing to open.</p>"
        self.files.outputs = (_output({"text/html": text}),)
        pictures = [(file.path.name, file.path) for file in files if file.path.parent.name == "figures"]
        with self._quietly():
            self.figure_picker.options = [(NO_FIGURE, None), *pictures]
            self.figure_picker.value = None
        self.figure_area.outputs = ()

    def _show_figure(self) -> None:
        path = self.figure_picker.value
        if self._quiet:
            return
        with self._working("showing a figure"):
            if path is None:
                self.figure_area.outputs = ()
            elif path.suffix == ".png":
                self.figure_area.outputs = (_output({"image/png": base64.b64encode(path.read_bytes()).decode()}),)
            else:
                figure = json.loads(path.read_text(encoding="utf-8"))
                self.figure_area.outputs = (_output({"application/vnd.plotly.v1+json": figure | {"config": CONFIG}}),)

    def _ask_to_delete(self) -> None:
        """First step of two: say what would be deleted, and offer the button that does it."""
        with self._working("deleting"):
            chosen = self.picker.value
            if not chosen:
                raise ValueError("choose the runs in the list first")
            runs = list(map(self._run, chosen))
            for run in runs:
                run.check_deletable(self.root)
            lines = "".join(f"<li>{html.escape(deletion_notice(run))}</li>" for run in runs)
            self.notice.value = f"<p>This would be deleted for good:</p><ul>{lines}</ul>"
            self.confirm_button.description = f"Yes, delete {counted(len(chosen), 'run')}"
            self._doomed, self.confirmation.layout.display = chosen, ""

    def _cancel_deletion(self) -> None:
        self._doomed, self.notice.value, self.confirmation.layout.display = (), "", "none"

    def _delete(self) -> None:
        """Second step of two."""
        doomed, gone = self._doomed, list[str]()  # choosing runs anew, as `_filter` does, forgets the doomed ones
        with self._working("deleting"):
            try:
                for name in doomed:  # all or none
                    self._run(name).check_deletable(self.root)
                for name in doomed:
                    self._run(name).delete(self.root)
                    gone.append(name)
            finally:
                self.table = runs_below(self.root, everything=True)
                self._filter()
            if gone:
                self._say(f"deleted {counted(len(gone), 'run')}: {', '.join(gone)}")

    # --- inside -------------------------------------------------------------------------------------------------

    def _run(self, name: str) -> RunDir:
        return RunDir(self.root / name)

    @contextmanager
    def _working(self, what: str) -> Iterator[None]:
        """Forgets the last message, and says what went wrong now."""
        self._say("")
        with self._saying_errors(what):
            yield


def _offer(menu: widgets.Dropdown, options: Sequence[str]) -> None:
    """Give a menu other options; the chosen one is kept if it is still there."""
    chosen = menu.value
    menu.options = options
    menu.value = chosen if chosen in options else options[0]


def _html_table(head: Sequence[str], rows: Any, *, marked: Collection[str] = ()) -> str:
    """An HTML table; rows whose first cell is marked are coloured."""
    style = "border-collapse: collapse; line-height: 1.6; white-space: nowrap; font-variant-numeric: tabular-nums"
    lines = ["<tr>" + "".join(f"<th align='left'>{html.escape(name)}</th>" for name in head) + "</tr>"]
    for row in rows:
        cells = "".join(f"<td>{html.escape(cell_text(cell))}</td>" for cell in row)
        lines.append(f"<tr style='{_CHOSEN}'>{cells}</tr>" if row[0] in marked else f"<tr>{cells}</tr>")
    return f"<table cellpadding='6' style='{style}'>{''.join(lines)}</table>"


def _output(data: dict[str, Any]) -> dict[str, Any]:
    return {"output_type": "display_data", "data": data, "metadata": {}}


def _link(path: Path) -> str:
    """Address of a file relative to the notebook's folder, in which its kernel starts; JupyterLab opens it."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    start = shell.user_ns["_dh"][0] if shell is not None else Path.cwd()
    return quote(Path(os.path.relpath(path.resolve(), Path(start).resolve())).as_posix())
