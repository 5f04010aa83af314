"""From run folders to files: notebook 08 is executed, and exported as an offline page or as Markdown for a paper.

    build_report(["results/demo/baseline", "results/demo/toco"], "report.html", "report.md")

The page asks for nothing from a network. Beside `report.md` lies the folder `report_files` with each figure as a PNG of
print resolution and each table as CSV and LaTeX; GitHub shows it as it is, and pandoc makes a PDF of it.
"""

import base64
import gzip
import html
import json
import re
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from string import Template
from typing import Any

import nbformat
from nbformat import NotebookNode
from traitlets.config import Config

from toco_lab.files import atomic_write, check_writable, project_root
from toco_lab.reports.comparison import compare_folders
from toco_lab.reports.parts import LATEX, PLOTLY
from toco_lab.runs.run_dir import RunDir
from toco_lab.sweeps.notebooks import execute_notebook

NOTEBOOK = project_root() / "notebooks" / "08_report.ipynb"
STATIC = Path(__file__).parent / "static"
_HEADING, _PANEL_TITLE = 50, 34  # pixels of a drawing that its heading takes, and those above its first panels
_FOR_READERS = {  # nbconvert's settings: results without code, and without what is said to somebody at the keyboard
    "TemplateExporter": {"exclude_input": True, "exclude_input_prompt": True, "exclude_output_prompt": True},
    "TagRemovePreprocessor": {"enabled": True, "remove_cell_tags": ["at-the-keyboard"]},
}
_MARKDOWN = """{% extends 'markdown/index.md.j2' %}
{% block data_png %}
![{{ output.metadata.title }}]({{ output.metadata.filenames['image/png'] | path2url }})
{% endblock %}
{% block data_markdown scoped %}
{{ super() }}
{% set files = output.metadata.get('filenames', {}) %}
{% if 'text/csv' in files %}
The table as [CSV]({{ files['text/csv'] | path2url }}) and [LaTeX]({{ files['application/x-tex'] | path2url }}).
{% endif %}
{% endblock %}
"""


def build_report(runs: Sequence[RunDir | Path | str], *out: Path | str, title: str | None = None) -> list[Path]:
    """Write the report of some runs into one file or several.

    Args:
        runs: Runs to compare, in the order they are shown, or folders of runs or of sweeps; failed and unfinished runs
            are welcome.
        *out: Files to write: .html is one page that works offline; .md is Markdown with a folder of files beside it.
        title: Heading; None takes the names of the runs.

    Returns:
        The files of `out`.

    Raises:
        FileNotFoundError: If a folder is neither a run nor a sweep.
        ValueError: If there are no runs, two have the same folder name, or a file is neither .html nor .md.
        OSError: Before the work, if a file of `out` cannot be written.
    """
    files = [Path(path) for path in out]
    wrong = [path for path in files if path.suffix not in (".html", ".md")]
    if wrong or not files:
        raise ValueError(f"a report is a file .html or .md, got {wrong[0] if wrong else 'no name'}")
    paths = [run.path if isinstance(run, RunDir) else Path(run) for run in runs]
    title = title or compare_folders(paths).title
    for path in files:
        check_writable(path)
    parameters = {
        "runs": [str(path.resolve()) for path in paths],
        "title": title,
        "paper": any(path.suffix == ".md" for path in files),
    }
    with tempfile.TemporaryDirectory() as folder:
        executed = execute_notebook(NOTEBOOK, Path(folder) / "report.ipynb", parameters, progress=False)
        notebook = nbformat.read(executed, as_version=4)
    for path in files:
        (write_page if path.suffix == ".html" else write_markdown)(notebook, path, title)
    return files


def write_page(notebook: NotebookNode, out: Path, title: str) -> None:
    """Export an executed notebook as one HTML file; plotly is in it once, compressed."""
    from nbconvert import HTMLExporter

    for output in _outputs(notebook):
        if PLOTLY in output.data:
            output.data["text/html"] = plot_html(output.data[PLOTLY], html.unescape(output.metadata.get("title", "")))
    exporter = HTMLExporter(template_name="basic", config=Config(_FOR_READERS))
    body, _ = exporter.from_notebook_node(notebook)
    contents = re.findall(r'<h2 id="([^"]+)">([^<]+)', body)
    page = Template((STATIC / "report.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        style=(STATIC / "report.css").read_text(encoding="utf-8"),
        script=(STATIC / "report.js").read_text(encoding="utf-8"),
        plotly=_packed_plotly(),
        contents="".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading in contents),
        body=body,
        date=datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z"),
    )
    with atomic_write(out, "w") as file:
        file.write(page)


def write_markdown(notebook: NotebookNode, out: Path, title: str) -> None:
    """Export an executed notebook as Markdown, and its figures and tables into the folder `<name>_files` beside it."""
    from nbconvert import MarkdownExporter

    settings = _FOR_READERS | {
        "NbConvertBase": {"display_data_priority": ["text/markdown", "image/png"]},
        "ExtractOutputPreprocessor": {"extract_output_types": {"image/png", "text/csv", LATEX}},
    }
    exporter = MarkdownExporter(config=Config(settings), raw_template=_MARKDOWN)
    text, resources = exporter.from_notebook_node(
        notebook, {"output_files_dir": f"{out.stem}_files", "unique_key": out.stem}
    )
    for name, content in resources["outputs"].items():
        with atomic_write(out.parent / name) as file:
            file.write(content)
    with atomic_write(out, "w") as file:
        file.write(re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")


def plot_html(figure: dict[str, Any], name: str = "figure") -> str:
    """The place of a plotly figure, its heading as words of the page, which wrap, and its numbers.

    Args:
        figure: plotly's data and layout.
        name: What it is called where it has no heading.
    """
    layout = dict(figure.get("layout") or {})
    title = layout.pop("title", None) or {}
    lines = _plain_lines(title.get("text") if isinstance(title, dict) else title)
    margin = dict(layout.get("margin") or {})
    if lines and "t" in margin:  # the heading leaves room in the drawing
        freed = min(_HEADING, margin["t"] - _PANEL_TITLE)
        layout |= {"height": layout.get("height", 450) - freed, "margin": margin | {"t": margin["t"] - freed}}
    data = json.dumps({"data": figure.get("data"), "layout": layout}, separators=(",", ":"))
    data = data.replace("<", "\\u003c")  # nothing in it can end the element
    words = [html.escape(line) for line in lines]
    caption = f"<figcaption>{'<br>'.join([f'<b>{words[0]}</b>', *words[1:]])}</figcaption>" if words else ""
    label = html.escape(". ".join(lines) or name)
    return (
        f'<figure class="plot" aria-label="{label}">{caption}<div class="plotly-graph-div" role="img" '
        f'aria-label="{label}" style="min-height:{int(layout.get("height") or 450)}px"></div>'
        f'<script type="application/json">{data}</script></figure>'
    )


def _plain_lines(text: str | None) -> list[str]:
    """The lines of a heading of plotly's without their markup."""
    lines = [html.unescape(re.sub(r"<[^>]*>", "", line)).strip() for line in re.split(r"<br ?/?>", text or "")]
    return [line for line in lines if line]


def _outputs(notebook: NotebookNode) -> list[NotebookNode]:
    """Whatever the cells display."""
    return [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]


def _packed_plotly() -> str:
    """plotly.js, gzip and base64; the page unpacks it."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
