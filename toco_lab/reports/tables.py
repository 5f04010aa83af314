"""Tables for readers: built once as text with the protocol of their numbers, written as HTML, Markdown, CSV and LaTeX.

Cells may come from files that anyone wrote: each writer escapes for its own language.
"""

import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}", "<": r"\textless{}",
    ">": r"\textgreater{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "±": r"$\pm$", "·": r"$\cdot$",
}  # fmt: skip
_FORMULA = re.compile(r"[=@]|[+-][^\W\d]|[+-][(=@]")  # what a spreadsheet would run at the beginning of a cell


_SHORT = 24  # letters; a cell of no more is not broken into lines
_WIDE = 6  # columns; more do not fit on a page of LaTeX as they are
BETWEEN = " · "  # two facts of a protocol


@dataclass(frozen=True, eq=False)
class Table:
    """Text cells with all that belongs to them.

    Attributes:
        name: Stem of its files: letters, digits, hyphens.
        caption: What it shows, one sentence.
        frame: Text cells; the columns are the headings, the first column names the row.
        protocol: Row name or heading -> how these numbers were measured, as facts; the key "" is the whole table.
        details: Frame of the same shape: the facts of one number alone; in the first column, of the whole row.
        whole: First words of those details that are the same for a whole run, as its checkpoint.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    protocol: Mapping[str, str] = field(default_factory=dict)
    details: pd.DataFrame | None = None
    whole: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, caption: str, rows: Iterable[Mapping[str, Any]], **more: Any) -> "Table":
        """From rows of any values; a missing one is shown as -."""
        frame = pd.DataFrame(list(rows)).astype(object)
        return cls(name, caption, frame.where(frame.notna(), "-").map(str), **more)

    def turned(self, corner: str) -> "Table":
        """Columns as rows, for a page that is long rather than wide; `corner` heads the new first column.

        What holds for a whole run is then said once, of its row.
        """
        first, names = self.frame.columns[0], self.frame.iloc[:, 0]

        def turn(frame: pd.DataFrame) -> pd.DataFrame:
            turned = frame.drop(columns=first).set_axis(names).T.rename_axis(index=corner, columns=None)
            return turned.reset_index()

        if self.details is None:
            return replace(self, frame=turn(self.frame))
        details = turn(self.details)
        facts = details.iloc[:, 1:].map(lambda words: words.split(BETWEEN) if words else [])
        of_run = facts.apply(
            lambda row: dict.fromkeys(fact for own in row for fact in own if self._of_whole(fact)), axis=1
        )
        details.iloc[:, 1:] = facts.map(lambda own: BETWEEN.join(fact for fact in own if not self._of_whole(fact)))
        details[corner] = of_run.map(BETWEEN.join)
        return replace(self, frame=turn(self.frame), details=details)

    def _of_whole(self, fact: str) -> bool:
        return fact.partition(" ")[0] in self.whole

    @property
    def of_rows(self) -> bool:
        """Whether the protocol is one of rows, rather than of columns or of all."""
        return bool(self.protocol) and not set(self.protocol) - set(self.frame.iloc[:, 0])

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

    def particulars(self) -> list[str]:
        """A line for each run of what holds for its numbers alone."""
        if self.details is None:
            return []
        cells = self.details.set_axis(self.frame.iloc[:, 0])
        lines = []
        for run, own in (cells.iloc[:, 1:] if self.of_rows else cells.T).items():
            facts: dict[str, list[str]] = {}
            for quantity, words in own.items():
                for fact in filter(None, words.split(BETWEEN)):
                    facts.setdefault(fact, []).append(quantity)
            said = [
                fact if self._of_whole(fact) else f"{fact} ({' / '.join(quantities)})"
                for fact, quantities in facts.items()
            ]
            lines += [f"{run}: {BETWEEN.join(said)}"] if said else []
        return lines


def html_table(table: Table, *, colours: Mapping[str, str] | None = None) -> str:
    """For the report's page. A name with a colour gets a dot of it, a state its badge."""

    def shown(value: str, heading: str, own: str) -> str:
        text, short = html.escape(value), ' class="short"' * (len(value) <= _SHORT)
        if heading == "state":
            text = f'<span class="state {text}">{text}</span>'
        elif heading == table.frame.columns[0]:
            dot = f'<span class="dot" style="background:{colours[value]}"></span>' if value in (colours or {}) else ""
            text = f"<b{short}>{dot}{text}</b>"
        elif table.details is not None:
            text = f'<span class="value">{text}</span>'
        below = f'<br><span class="protocol">{html.escape(own)}</span>' if own else ""
        return f"<td{'' if own else short}>{text}{below}</td>"

    by_row, head, lines = table.of_rows, [html.escape(str(name)) for name in table.frame], []
    details = table.frame.map(lambda _: "") if table.details is None else table.details
    for cells, own in zip(table.frame.to_numpy().tolist(), details.to_numpy().tolist(), strict=True):
        line = [shown(*cell) for cell in zip(cells, table.frame.columns, own, strict=True)]
        if by_row:
            words = html.escape(table.protocol.get(cells[0]) or "not recorded")
            line.insert(1, f'<td><span class="protocol">{words}</span></td>')
        lines.append(f"<tr>{''.join(line)}</tr>\n")
    if by_row:
        head.insert(1, "protocol")
    heads = "".join(f"<th>{cell}</th>" for cell in head)
    below = [] if by_row else table.protocols()
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>\n{"".join(lines)}</tbody></table></div>'
        + "".join(f'<p class="protocol">{html.escape(line)}</p>' for line in below)
    )


def markdown_table(table: Table) -> str:
    """Pipe table with the caption above and the protocols below; GitHub and pandoc read it."""

    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(markdown_text(cell) or " " for cell in cells) + " |"

    rows = [line(table.frame.columns), "|" + " --- |" * table.frame.shape[1]]
    rows += [line(cells) for cells in table.frame.to_numpy().tolist()]
    protocols = [f"- {markdown_text(words)}" for words in table.protocols() + table.particulars()]
    parts = [f"**{markdown_text(table.caption)}**", "\n".join(rows)]
    return "\n\n".join(parts + ["\n".join(protocols)] * bool(protocols))


def csv_table(table: Table) -> str:
    """Comma-separated cells; the protocol is a last column or row, what holds for one number a column beside it."""
    frame = table.frame
    if table.details is not None:
        own = table.details.add_suffix(", measured with")
        frame = pd.concat([frame, own.loc[:, (own != "").any()]], axis=1)
    if table.of_rows:
        frame = frame.assign(protocol=[table.protocol.get(name, "") for name in frame.iloc[:, 0]])
    elif table.protocol:
        cells = {frame.columns[0]: "protocol"} | {
            key or frame.columns[1]: words for key, words in table.protocol.items()
        }
        frame = pd.concat([frame, pd.DataFrame([cells])], ignore_index=True).fillna("")
    harmless = frame.map(lambda cell: f"'{cell}" if _FORMULA.match(cell) else cell)
    return harmless.to_csv(index=False, lineterminator="\n")


def latex_table(table: Table) -> str:
    """A booktabs table whose caption names the protocol; what holds for single runs stands below it in small print.

    Needs the packages booktabs and, for a table of many columns, which is scaled to the page, graphicx.
    """
    width = table.frame.shape[1]
    lines = [" & ".join(map(latex_text, table.frame.columns))]
    lines += [" & ".join(map(latex_text, cells)) for cells in table.frame.to_numpy().tolist()]
    head, *body = (f"  {{}}{line} \\\\" for line in lines)  # {}: \\ would take a [ or * that follows it for its own
    caption, below = (
        latex_text(" ".join(f"{line.rstrip('.')}." for line in said))
        for said in ((table.caption, *table.protocols()), table.particulars())
    )
    opened, closed = (r"\resizebox{\linewidth}{!}{", "}") if width > _WIDE else ("", "")
    return "\n".join([
        r"\begin{table}", r"  \centering\small", f"  \\caption{{{caption}}}", f"  \\label{{tab:{table.name}}}",
        f"  {opened}\\begin{{tabular}}{{{'l' * width}}}", r"  \toprule", head, r"  \midrule", *body,
        r"  \bottomrule", rf"  \end{{tabular}}{closed}",
        *([rf"  \par\smallskip\footnotesize {below}"] if below else []), r"\end{table}", "",
    ])  # fmt: skip


def markdown_text(value: Any) -> str:
    """Text that stays text in Markdown, in one line."""
    text = html.escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", text)


def latex_text(value: Any) -> str:
    """Text that stays text in LaTeX, in one line."""
    text = "".join(letter for letter in str(value) if letter.isprintable() or letter.isspace())
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))
