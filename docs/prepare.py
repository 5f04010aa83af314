"""Make the pages that come from code: executed notebooks, tables of settings and metrics, a page for each module.

    python docs/prepare.py

Notebooks run on the `smoke` preset, in seconds each; one that did not change since is not executed again. What they
leave lies in `docs/_build`, the pages in `docs/notebooks`, `docs/generated` and `docs/api`: none of it is part of the
repository.
"""

import dataclasses
import json
import re
from pathlib import Path

import nbformat
import plotly.io
from nbformat import NotebookNode
from plotly.offline import get_plotlyjs
from sphinx.ext.apidoc import main as apidoc

from toco_lab.config import Config
from toco_lab.explorers.saved_explorer import SAVED
from toco_lab.figures.saved import PLOTLY
from toco_lab.presets import PRESETS
from toco_lab.smoothing.catalogue import metric_table
from toco_lab.sweeps.notebooks import NotebookJob, execute_notebook, is_done
from toco_lab.sweeps.saved_outputs import WIDGET

DOCS = Path(__file__).resolve().parent
NOTEBOOKS = sorted((DOCS.parent / "notebooks").glob("*.ipynb"))
STATIC = "*An interactive panel stands here when the notebook runs in Jupyter; this page shows its figures.*"


def main() -> None:
    """All of it."""
    for path in NOTEBOOKS:
        parameters = {"preset": "smoke", "run_dir": "docs/_build/run"}
        job = NotebookJob(path, DOCS / "_build" / "executed" / path.name, parameters)
        if not is_done(job):
            print(f"executing {path.name}", flush=True)
            execute_notebook(job.notebook, job.output, job.parameters, progress=False)
        page = for_the_site(nbformat.read(job.output, as_version=4))
        write(DOCS / "notebooks" / path.name, nbformat.writes(page))
    write(DOCS / "_static" / "plotly.min.js", get_plotlyjs())
    write(DOCS / "generated" / "settings.md", settings())
    write(DOCS / "generated" / "metrics.md", metrics())
    pages = ["-q", "--force", "--remove-old", "--separate", "--module-first", "--no-toc", "--templatedir"]
    apidoc([*pages, str(DOCS / "_templates"), "--output-dir", str(DOCS / "api"), str(DOCS.parent / "toco_lab")])


def for_the_site(notebook: NotebookNode) -> NotebookNode:
    """The notebook with its figures as plain HTML: one copy of plotly.js serves all pages, widgets become a line.

    Its links to the documents, `../docs/peers.md` in the repository, start from where the page lies.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [shown for output in cell.outputs for shown in [as_html(output)] if shown]
        else:
            cell.source = cell.source.replace("](../docs/", "](../")
    notebook.metadata.pop("widgets", None)
    return notebook


def as_html(output: NotebookNode) -> NotebookNode | None:
    """One output of a cell for the site; None where it is no more than a script."""
    data = output.get("data", {})
    if PLOTLY in data:
        figure = plotly.io.from_json(json.dumps(data[PLOTLY]), skip_invalid=True)
        body = plotly.io.to_html(figure, full_html=False, include_plotlyjs=False, config={"responsive": True})
        shown = {"text/html": f'<script src="../_static/plotly.min.js"></script>{body}'}
    elif SAVED in data.get("text/html", ""):
        shown = {"text/html": data["text/html"]}
    elif WIDGET in data:
        shown = {"text/markdown": STATIC}
    elif "<script" in data.get("text/html", ""):
        return None
    else:
        for downloads in ("text/csv", "application/x-tex"):  # the report's tables as files
            data.pop(downloads, None)
        return output
    return nbformat.v4.new_output("display_data", shown)


def settings() -> str:
    """Every field of Config with the value of each preset that differs."""
    rows = []
    for field in dataclasses.fields(Config):
        found: dict[str, list[str]] = {}
        for preset, values in PRESETS.items():
            if values.get(field.name, field.default) != field.default:
                found.setdefault(f"`{values[field.name]!r}`", []).append(preset)
        other = "; ".join(f"{value}: {', '.join(names)}" for value, names in found.items())
        rows.append((f"`{field.name}`", f"`{field.default!r}`", field.metadata["help"], other))
    return (
        "# Every setting\n\nA field of `Config` is an option of `train` (`w_ptc` is `--w-ptc`), an override in a "
        "notebook, an axis of a sweep and a column of the table of runs. The defaults are those for PASCAL VOC.\n\n"
        + table(("field", "default", "what it means", "presets that differ"), rows)
    )


def metrics() -> str:
    """Every over-smoothing metric with its source."""
    shown = ("row", "metric", "variant", "limit", "sees", "source")
    rows = metric_table()[list(shown)].itertuples(index=False)
    head = ("row", "metric", "variant", "when tokens become alike", "what it sees, or its trap", "source")
    return "# Every metric\n\n" + table(head, rows)


def table(head, rows) -> str:
    """Markdown; `|` in a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [
        [re.sub(r"([|*])", r"\\\1", str(cell)) if "`" not in str(cell) else str(cell) for cell in row] for row in lines
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells) + "\n"


def write(path: Path, text: str) -> None:
    """Only where something changed, so that Sphinx reads no page again without need."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
