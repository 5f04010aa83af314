"""Notebooks without what tools leave in them, so that two versions differ in what a person wrote: `make strip`."""

import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from toco_lab.sweeps.notebooks import write_notebook
from toco_lab.sweeps.parameters import tags_of

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def strip_notebook(path: Path | str) -> bool:
    """Drop outputs, execution counts, injected parameters, attachments, and all metadata but tags.

    Cell ids stay, so that a stripped notebook can be compared line by line.

    Returns:
        Whether the file changed.
    """
    path = Path(path)
    before = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(before, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in tags_of(cell)]
    for cell in notebook.cells:
        cell.metadata = NotebookNode(tags=tags_of(cell)) if tags_of(cell) else NotebookNode()
        cell.pop("attachments", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata = nbformat.from_dict(METADATA)
    changed = nbformat.writes(notebook).rstrip("\n") != before.rstrip("\n")
    if changed:
        write_notebook(notebook, path)
    return changed


if __name__ == "__main__":
    for name in sys.argv[1:]:
        strip_notebook(name)
