"""One offline HTML file about some runs: numbers with their protocol, curves, pictures, and how to repeat it all.

The report is made from the run folders alone: no model, no data, no network. Everything a browser needs is inside the
file. What a run does not have is said in its place, with the reason.
"""

import base64
import gzip
import html
import io
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from functools import singledispatchmethod
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from toco_lab.data.classes import PALETTE
from toco_lab.evaluation.gallery import encode_picture
from toco_lab.explorers.token_maps import TokenMaps, thin_steps
from toco_lab.figures import pictures
from toco_lab.files import atomic_write
from toco_lab.reports.comparison import Comparison, compare_runs
from toco_lab.reports.parts import Code, Galleries, Part, Pictures, Plot, Points, Text, Tokens
from toco_lab.reports.sections import Report
from toco_lab.reports.tables import Table, html_table
from toco_lab.runs.run_dir import RunDir

TOKEN_BYTES = 1_500_000  # of tokens in one page; more snapshots than fit are thinned out evenly
TEMPLATE = Path(__file__).parent / "static" / "report.html"
_DIGITS = 5  # that count, of a number in a figure


def build_report(runs: list[RunDir] | Comparison, out: Path | str, *, title: str | None = None) -> Path:
    """Write the report of some runs as one HTML file that works offline.

    Args:
        runs: Runs to compare, in the order they are shown, or what `findings.compare` made of folders; failed and
            unfinished ones are welcome.
        out: The HTML file; written atomically.
        title: Heading; the names of the runs by default.

    Returns:
        The path written.

    Raises:
        ValueError: If there are no runs or two have the same folder name.
    """
    report = Report(runs if isinstance(runs, Comparison) else compare_runs(runs), title)
    writer = _Page(report.colours)
    body, contents = [], []
    for number, section in enumerate(report.sections, start=1):
        contents.append(f'<li><a href="#s{number}">{section.heading}</a></li>')
        written = "\n".join(writer.write(part) for part in section.parts)
        body.append(f'<section id="s{number}"><h2>{section.heading}</h2>\n{written}\n</section>')
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=_e(report.title),
        plotly=_packed_plotly(),
        contents="".join(contents),
        body="\n".join(body),
        date=datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z"),
        lead=report.lead,
    )
    with atomic_write(out, "w") as file:
        file.write(page)
    return Path(out)


class _Page:
    """Writes parts as HTML."""

    def __init__(self, colours: Mapping[str, str]) -> None:
        self.colours, self.explorers = colours, 0

    @singledispatchmethod
    def write(self, part: Part) -> str:
        """HTML of a part."""
        raise TypeError(f"a report has no part {type(part).__name__}")

    @write.register
    def _(self, part: Text) -> str:
        about = f"<b>{_e(part.run)}</b>: " if part.run else ""
        return f'<p class="{part.kind}">{about}{_e(part.text)}</p>'

    @write.register
    def _(self, part: Points) -> str:
        return '<ul class="warning">' + "".join(f"<li>{_e(line)}</li>" for line in part.lines) + "</ul>"

    @write.register
    def _(self, part: Code) -> str:
        return f"<pre><code>{_e(part.text)}</code></pre>"

    @write.register
    def _(self, part: Table) -> str:
        return html_table(part, colours=self.colours)

    @write.register
    def _(self, part: Plot) -> str:
        return plot_html(part.screen().to_json())

    @write.register
    def _(self, part: Pictures) -> str:
        shown = "".join(
            f"<figure>{_picture(path, name)}<figcaption>{_e(name)}</figcaption></figure>"
            for name, path in part.files.items()
        )
        return f"<h3>{_e(part.title)}</h3>{shown}"

    @write.register
    def _(self, part: Galleries) -> str:
        """An image per group of rows, a kind of map per row, a run per column."""
        heads = "".join(f"<th>{_dot(self.colours[label])}{_e(label)}</th>" for label in part.runs)
        groups, seen = [], set()
        for row in part.rows:
            known = [("image", row.image)] + ([] if row.truth is None else [("truth", _label(row.truth))])
            shown = "".join(_tag(pixels, f"{what} of {row.name}") for what, pixels in known)
            first, lines = f'<td rowspan="{len(row.maps)}">{shown}{_e(row.name)}</td>', []
            for kind, maps in row.maps.items():
                cells = ""
                for name in part.runs.values():
                    shown = "-"
                    if name in maps:
                        of_labels = np.issubdtype(maps[name].dtype, np.integer)
                        seen |= set(np.unique(maps[name]).tolist()) if of_labels else set()
                        pixels = _label(maps[name]) if of_labels else pictures.cam_pixels(row.image, maps[name])
                        shown = _tag(pixels, f"{kind} of {row.name}, {name}")
                    cells += f"<td>{shown}</td>"
                lines.append(f'<tr>{first}<th class="kind">{_e(kind)}</th>{cells}</tr>')
                first = ""
            groups.append(f"<tbody>{''.join(lines)}</tbody>")
        classes = "".join(
            f"<span>{_dot(f'rgb{tuple(PALETTE[value].tolist())}')}{_e(part.names[value])}</span>"
            for value in sorted(seen)
            if value < len(part.names)
        )
        scale = f"linear-gradient(to right, {', '.join(pictures.colour_scale())})"
        return (
            f'<div class="legend"><span>CAM score 0<span class="scale" style="background:{scale}"></span>1</span>'
            f'{classes}</div><div class="scroll gallery"><table><thead><tr><th></th><th></th>{heads}</tr></thead>'
            f"{''.join(groups)}</table></div>"
        )

    @write.register
    def _(self, part: Tokens) -> str:
        """The token explorer: one for all runs that kept tokens of the same probe images."""
        from toco_lab.explorers.token_page import explorer_element_html, explorer_module_html

        groups: dict[tuple[str, ...], list[TokenMaps]] = {}
        for label, run in part.runs.items():
            same = tuple(f"{one.image_name} {one.image.shape}" for one in run.tokens)
            groups.setdefault(same, []).extend(replace(one, model=label) for one in run.tokens)
        budget = TOKEN_BYTES // sum(map(len, groups.values()))
        written = explorer_module_html()
        for maps in groups.values():
            self.explorers += 1
            compared = {"right": 1} if len({one.model for one in maps}) > 1 else {}
            thinned = [thin_steps(one, budget) for one in maps]
            state = _last_state(thinned) | compared
            written += explorer_element_html(thinned, f"tokens-{self.explorers}", colours=self.colours, **state)
        return written + self.write(
            Text(
                "Click a patch, or move with the arrow keys: how alike is it to every other patch? Slide through the "
                "layers, and through training where a run kept snapshots. All of it works without a network."
            )
        )


def plot_html(figure: str) -> str:
    """The place of a plotly figure, given as JSON, with its numbers rounded."""
    plain = _rounded(json.loads(figure))
    height = plain.get("layout", {}).get("height", 450)
    data = json.dumps({key: plain.get(key) for key in ("data", "layout")}, separators=(",", ":"))
    data = data.replace("<", "\\u003c")  # nothing in it can end the element
    return (
        f'<div class="plot"><div class="plotly-graph-div" style="min-height:{int(height)}px"></div>'
        f'<script type="application/json">{data}</script></div>'
    )


def _rounded(value: Any) -> Any:
    """A JSON value with floats of `_DIGITS` digits; what is not finite becomes null."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _packed_plotly() -> str:
    """plotly.js, gzip and base64; the page unpacks it."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def _last_state(maps: list[TokenMaps]) -> dict[str, int]:
    """Open at the last block of the last step, where over-smoothing is strongest."""
    return {"layer": len(maps[0].layers) - 2, "step": max(one.steps[-1] for one in maps)}


def _picture(path: Path, run: str) -> str:
    """A PNG as WebP where that is smaller, a plotly figure as a plot; a line of text where the file is neither."""
    try:
        raw = path.read_bytes()
        if path.suffix == ".png":
            with Image.open(io.BytesIO(raw), formats=["PNG"]) as picture:
                small = encode_picture(picture.convert("RGB"))
            kind, data = ("webp", small) if len(small) < len(raw) else ("png", raw)
            return _image(data, kind, f"{path.stem} of {run}")
        import plotly.graph_objects as go

        return plot_html(go.Figure(json.loads(raw)).to_json())
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f'<p class="missing">{_e(path.name)} cannot be shown: {_e(error)}</p>'


def _label(label: np.ndarray) -> np.ndarray:
    return pictures.label_pixels(label, PALETTE)


def _tag(pixels: np.ndarray, alternative: str) -> str:
    """A small picture of its own, (H, W, 3) uint8."""
    return _image(encode_picture(pixels), "webp", alternative)


def _image(data: bytes, kind: str, alternative: str) -> str:
    return f'<img alt="{_e(alternative)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def _dot(colour: str) -> str:
    return f'<span class="dot" style="background:{colour}"></span>'


def _e(value: Any) -> str:
    """Escaped text: everything that comes from a file goes through here."""
    return html.escape(str(value))
