"""A report for a paper's appendix: Markdown with PNGs at print resolution, and every table as CSV and LaTeX as well.

Beside `report.md` lies the folder `report_files`. GitHub shows it as it is; pandoc makes a PDF of it.
"""

import re
import shutil
import textwrap
from collections.abc import Iterator
from functools import singledispatchmethod
from pathlib import Path
from typing import Any
from urllib.parse import quote

from toco_lab.data.classes import PALETTE
from toco_lab.evaluation.gallery import MAPS
from toco_lab.figures import pictures
from toco_lab.files import atomic_write
from toco_lab.reports.comparison import Comparison, compare_runs
from toco_lab.reports.parts import Code, Galleries, Part, Pictures, Plot, Points, Text, Tokens
from toco_lab.reports.sections import Report
from toco_lab.reports.tables import Table, csv_table, latex_table, markdown_table, markdown_text
from toco_lab.runs.run_dir import RunDir

DPI = 300
_RUNS_ABREAST = 5  # columns of a gallery that a page of paper holds beside image and truth
_PICTURE = 1.15  # side of a picture in a gallery, in inches
_PNG = b"\x89PNG\r\n\x1a\n"


def build_appendix(runs: list[RunDir] | Comparison, out: Path | str, *, title: str | None = None) -> Path:
    """Write the report of some runs as Markdown, and its files into the folder `<name>_files` beside it.

    Args:
        runs: As in `report.build_report`.
        out: The Markdown file.
        title: Heading; the names of the runs by default.

    Returns:
        The path written.

    Raises:
        ValueError: If there are no runs or two have the same folder name.
    """
    out = Path(out)
    report = Report(runs if isinstance(runs, Comparison) else compare_runs(runs), title)
    writer = _Appendix(out.parent / f"{out.stem}_files", report.colours)
    blocks = [f"# {markdown_text(report.title)}", f"{report.lead}."]
    for section in report.sections:
        written = [block for part in section.parts for block in writer.write(part)]
        blocks += [f"## {section.heading}", *written]
    with atomic_write(out, "w") as file:
        file.write("\n\n".join(blocks) + "\n")
    return out


class _Appendix:
    """Writes parts as blocks of Markdown, and their files."""

    def __init__(self, folder: Path, colours: dict[str, str]) -> None:
        self.folder, self.colours, self.names = folder, colours, set()

    @singledispatchmethod
    def write(self, part: Part) -> Iterator[str]:
        """Blocks of a part."""
        raise TypeError(f"a report has no part {type(part).__name__}")

    @write.register
    def _(self, part: Text) -> Iterator[str]:
        about = f"**{markdown_text(part.run)}**: " if part.run else ""
        yield ("" if part.kind == "note" else "> ") + about + markdown_text(part.text)

    @write.register
    def _(self, part: Points) -> Iterator[str]:
        yield "\n".join(f"- {markdown_text(line)}" for line in part.lines)

    @write.register
    def _(self, part: Code) -> Iterator[str]:
        longest = max(map(len, re.findall("`+", part.text)), default=0)
        fence = "`" * max(3, longest + 1)
        yield f"{fence}sh\n{part.text}\n{fence}"

    @write.register
    def _(self, part: Table) -> Iterator[str]:
        yield markdown_table(part)
        links = []
        for kind, text in (("csv", csv_table(part)), ("tex", latex_table(part))):
            path = self._path(part.name, kind)
            with atomic_write(path, "w") as file:
                file.write(text)
            links.append(f"[{path.name}]({self._link(path)})")
        yield f"The table as {' and '.join(links)}."

    @write.register
    def _(self, part: Plot) -> Iterator[str]:
        drawn = part.paper()
        if isinstance(drawn, Table):
            yield from self.write(drawn)
        else:
            yield self._figure(drawn, part.name, part.title)

    @write.register
    def _(self, part: Galleries) -> Iterator[str]:
        labels = list(part.runs)
        for kind in (kind for kind in MAPS if any(kind in row.maps for row in part.rows)):
            for start in range(0, len(labels), _RUNS_ABREAST):
                columns = {
                    textwrap.fill(pictures.plain_text(label), 18): part.runs[label]
                    for label in labels[start : start + _RUNS_ABREAST]
                }
                rows = [
                    {"image": row.image, "truth": row.truth}
                    | {column: row.maps.get(kind, {}).get(name) for column, name in columns.items()}
                    for row in part.rows
                ]
                figure = pictures.cam_gallery(rows, palette=PALETTE, class_names=part.names, size=_PICTURE, title=kind)
                yield self._figure(figure, f"gallery_{kind}_{start}" if start else f"gallery_{kind}", kind)

    @write.register
    def _(self, part: Pictures) -> Iterator[str]:
        yield f"### {markdown_text(part.title)}"
        for run, path in part.files.items():
            about = f"{markdown_text(part.title)}, {markdown_text(run)}"
            if path.suffix != ".png":
                yield f"{about}: an interactive figure, in the HTML report."
            elif not path.read_bytes().startswith(_PNG):
                yield f"> {about}: {markdown_text(path.name)} cannot be shown, it is not a PNG file."
            else:
                copy = self._path(f"{part.stem}_{run}", "png")
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
                yield f"![{about}]({self._link(copy)})"

    @write.register
    def _(self, part: Tokens) -> Iterator[str]:
        yield "The tokens can be clicked on in the HTML report."

    def _figure(self, figure: Any, name: str, title: str) -> str:
        path = self._path(name, "png")
        with atomic_write(path) as file:
            figure.savefig(file, format="png", dpi=DPI)
        return f"![{markdown_text(title)}]({self._link(path)})"

    def _path(self, name: str, kind: str) -> Path:
        """A file of plain letters that no other part has."""
        plain = re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("._") or "file"
        number = next(n for n in range(1, 10_000) if (f"{plain}_{n}" * (n > 1) or plain, kind) not in self.names)
        plain = f"{plain}_{number}" * (number > 1) or plain
        self.names.add((plain, kind))
        return self.folder / f"{plain}.{kind}"

    def _link(self, path: Path) -> str:
        return quote(f"{self.folder.name}/{path.name}")
