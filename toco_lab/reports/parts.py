"""The things a report shows, each in every language it is needed in: HTML for a screen, Markdown, PNG, CSV and LaTeX
for paper. A notebook keeps them side by side (`_repr_mimebundle_`), and `export` picks.

Words and cells may come from files that anyone wrote, so each language is escaped here.
"""

import base64
import html
import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from PIL import Image

from toco_lab.evaluation.gallery import encode_picture

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.figure import Figure

PLOTLY, LATEX = "application/vnd.plotly.v1+json", "application/x-tex"  # MIME types
DPI = 300  # of figures for paper
DIGITS = 5  # that count, of a number in a figure
BETWEEN = " · "  # two facts of a protocol
Bundle = tuple[dict[str, Any], dict[str, str]]  # contents by MIME type, and metadata

_WIDE = 6  # columns; more do not fit on a page as they are
_FEW = 6  # rows; a table of no more may be turned on its side
_FORMULA = re.compile(r"[=@]|[+-][^\W\d]|[+-][(=@]")  # what a spreadsheet would run at the beginning of a cell
_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}", "<": r"\textless{}",
    ">": r"\textgreater{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "±": r"$\pm$", "·": r"$\cdot$",
    "[": "{[}", "*": "{*}",  # at the beginning of a row, \\ would take them for its own
})  # fmt: skip


@dataclass(frozen=True, eq=False)
class Part:
    """Something a notebook cell shows.

    Attributes:
        data: MIME type -> content; pictures as base64.
        name: Stem of the files that an export writes; "" leaves the naming to the export.
        title: What a reader sees where a picture cannot be shown.
    """

    data: Mapping[str, Any] = field(repr=False)  # a notebook's file keeps the repr beside it
    name: str = ""
    title: str = ""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Bundle:
        return dict(self.data), {"filename": self.name, "title": markdown_text(self.title)}


@dataclass(frozen=True, eq=False)
class Table:
    """Text cells, and how the numbers in them were measured.

    Attributes:
        name: Stem of its files: letters, digits, hyphens.
        caption: What it shows, one sentence.
        frame: Text cells; the columns are the headings, the first column names the row.
        protocol: Heading or name of rows -> how these numbers were measured, as facts; the key "" is the whole table.
        colours: Name of a row -> its colour.
        folded: Whether a page shows it only on request.
        aside: Heading of a column of sentences, which a page shows below the table, on request.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    protocol: Mapping[str, str] = field(default_factory=dict)
    colours: Mapping[str, str] = field(default_factory=dict)
    folded: bool = False
    aside: str = ""

    def protocols(self) -> list[str]:
        """How the numbers were measured: what all share first, then what else each has."""
        facts = {name: words.split(BETWEEN) if words else [] for name, words in self.protocol.items()}
        shared = [fact for fact in next(iter(facts.values()), []) if all(fact in own for own in facts.values())]
        rest: dict[str, list[str]] = {}
        for name, own in facts.items():
            words = BETWEEN.join(fact for fact in own if fact not in shared)
            rest.setdefault(words if own else "not recorded", []).append(name)
        lines = [BETWEEN.join(shared)] if shared else []
        return lines + [f"{' / '.join(names)}: {words}" for words, names in rest.items() if words]

    def html(self) -> str:
        """A table that can be sorted by a click on a heading; the protocol stands below.

        A wide table of few rows is turned on its side: a column per row, so that it fits a screen and a page.
        """
        frame = self.frame.drop(columns=[self.aside] if self.aside else [], errors="ignore")
        grid = [[escape(name) for name in frame], *(self._html_row(dict(row)) for _, row in frame.iterrows())]
        turned = frame.shape[1] > _WIDE and len(frame) <= _FEW
        grid = [*map(list, zip(*grid, strict=True))] if turned else grid
        lines = [
            f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
            for row in grid[1:]
        ]
        heads = "".join(f'<th scope="col">{cell}</th>' for cell in grid[0])
        below = "".join(f'<p class="protocol">{escape(line)}</p>' for line in self.protocols()) + self._html_aside()
        shown = (
            f'<div class="scroll"><table class="{"turned" if turned else "sortable"}">'
            f"<caption>{escape(self.caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>{below}"
        )
        return f"<details><summary>{escape(self.caption)}</summary>{shown}</details>" if self.folded else shown

    def _html_row(self, row: Mapping[str, str]) -> list[str]:
        """The cells of a row; the first one names it."""
        name, *cells = (
            f'<span class="state {escape(cell)}">{escape(cell)}</span>' if heading == "state" else escape(cell)
            for heading, cell in row.items()
        )
        first = next(iter(row.values()))
        return [(dot(self.colours[first]) if first in self.colours else "") + f"<b>{name}</b>", *cells]

    def _html_aside(self) -> str:
        """The column of sentences, a line for each row."""
        if not self.aside or self.aside not in self.frame:
            return ""
        words = zip(self.frame.iloc[:, 0], self.frame[self.aside], strict=True)
        lines = "".join(f'<p class="protocol"><b>{escape(name)}</b>: {escape(said)}</p>' for name, said in words)
        return f"<details><summary>{escape(self.aside)}</summary>{lines}</details>"

    def markdown(self) -> str:
        """A pipe table with the caption above and the protocol below; GitHub and pandoc read it."""
        rows = [list(self.frame), ["---"] * self.frame.shape[1], *self.frame.to_numpy().tolist()]
        cells = [[cell if cell == "---" else markdown_text(cell) or " " for cell in row] for row in rows]
        lines = "\n".join(f"| {' | '.join(row)} |" for row in cells)
        below = "".join(f"\n- {markdown_text(line)}" for line in self.protocols())
        return f"**{markdown_text(self.caption)}**\n\n{lines}\n{below}"

    def csv(self) -> str:
        """Comma-separated cells that no spreadsheet runs; the protocol follows as rows of two cells."""
        rows = self.frame.map(lambda cell: f"'{cell}" if _FORMULA.match(cell) else cell)
        notes = pd.DataFrame([("protocol", line) for line in self.protocols()], columns=range(2))
        return rows.to_csv(index=False, lineterminator="\n") + notes.to_csv(
            index=False, header=False, lineterminator="\n"
        )

    def latex(self) -> str:
        """A booktabs table whose caption names the protocol.

        Needs the package booktabs and, for a table of many columns, which is scaled to the page, graphicx.
        """
        caption = " ".join(f"{line.rstrip('.')}." for line in (self.caption, *self.protocols()))
        cells = self.frame.map(latex_text).rename(columns=latex_text).style.hide(axis="index")
        text = cells.to_latex(
            hrules=True, caption=latex_text(caption), label=f"tab:{self.name}", position_float="centering",
            column_format="l" * self.frame.shape[1],
        )  # fmt: skip
        if self.frame.shape[1] <= _WIDE:
            return text
        text = text.replace(r"\begin{tabular}", r"\resizebox{\linewidth}{!}{\begin{tabular}", 1)
        return text.replace(r"\end{tabular}", r"\end{tabular}}", 1)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Bundle:
        data = {"text/html": self.html(), "text/markdown": self.markdown(), "text/csv": self.csv(), LATEX: self.latex()}
        return data, {"filename": self.name}


def paragraph(
    text: str, kind: Literal["note", "found", "protocol", "missing", "warning"] = "note", *, run: str = ""
) -> Part:
    """A sentence: what was found and how it was measured, how to read something, what is missing in a run, or what to
    be careful about.
    """
    about = f"<b>{escape(run)}</b>: " if run else "", f"**{markdown_text(run)}**: " if run else ""
    quoted = "> " if kind in ("missing", "warning") else ""
    return Part({
        "text/html": f'<p class="{kind}">{about[0]}{escape(text)}</p>',
        "text/markdown": quoted + about[1] + markdown_text(text),
    })  # fmt: skip


def heading(text: str, level: int, below: str = "") -> Part:
    """A heading, and a line below it."""
    line = f"<p>{escape(below)}</p>" if below else ""
    shown = f"{'#' * level} {markdown_text(text)}\n\n{markdown_text(below)}"
    return Part({"text/html": f"<h{level}>{escape(text)}</h{level}>{line}", "text/markdown": shown})


def shell_lines(text: str) -> Part:
    """Lines for a shell."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return Part({
        "text/html": f"<pre><code>{escape(text)}</code></pre>", "text/markdown": f"{fence}sh\n{text}\n{fence}",
    })  # fmt: skip


def drawing(name: str, title: str, screen: "go.Figure", paper: "Figure | None" = None) -> Part:
    """A figure: plotly's for a screen, and matplotlib's for paper where there is one."""
    on_paper = {"text/markdown": ""} if paper is None else {"image/png": _png(paper)}
    return Part({PLOTLY: plain_figure(screen)} | on_paper, name, title)


def print_only(name: str, title: str, paper: "Figure") -> Part:
    """A figure for paper; a screen shows the same in another way."""
    return Part({"text/html": "", "image/png": _png(paper)}, name, title)


def picture(path: Path, run: str, *, paper: bool = False) -> Part:
    """A figure that a notebook left in a run's folder, a PNG or plotly's JSON; a sentence if it is damaged."""
    title = f"{path.stem} of {run}"
    try:
        raw = path.read_bytes()
        if path.suffix == ".png":
            with Image.open(io.BytesIO(raw), formats=["PNG"]) as image:
                small = encode_picture(image.convert("RGB"))
            kind, data = ("webp", small) if len(small) < len(raw) else ("png", raw)
            shown = f"<figure>{image_tag(data, kind, title)}<figcaption>{escape(run)}</figcaption></figure>"
            on_paper = {"image/png": base64.b64encode(raw).decode()} if paper else {}
            return Part({"text/html": shown} | on_paper, title=title)
        import plotly.graph_objects as go

        words = f"{title}: an interactive figure, in the HTML report."
        figure = plain_figure(go.Figure(json.loads(raw)))
        return Part({PLOTLY: figure, "text/markdown": markdown_text(words)}, title=title)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return paragraph(f"{path.name} cannot be shown: {error}", "missing", run=run)


def plain_figure(figure: "go.Figure") -> dict[str, Any]:
    """A plotly figure as JSON, its numbers rounded."""
    return _rounded(json.loads(figure.to_json()))


def _rounded(value: Any) -> Any:
    """A JSON value with floats of `DIGITS` digits; what is not finite becomes null."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def image_tag(data: bytes, kind: str, alternative: str) -> str:
    """A picture inside of the page."""
    return f'<img alt="{escape(alternative)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def dot(colour: str) -> str:
    """A mark of a colour."""
    return f'<span class="dot" style="background:{colour}"></span>'


def escape(value: Any) -> str:
    """Text that stays text in HTML."""
    return html.escape(str(value))


def markdown_text(value: Any) -> str:
    """Text that stays text in Markdown, in one line."""
    text = html.escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", text)


def latex_text(value: Any) -> str:
    """Text that stays text in LaTeX, in one line."""
    letters = "".join(letter for letter in str(value) if letter.isprintable() or letter.isspace())
    return " ".join(letters.split()).translate(_LATEX)


def _png(figure: "Figure") -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return base64.b64encode(file.getvalue()).decode()
