"""The rules that the notebooks of this project keep."""

import ast
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from toco_lab.sweeps.parameters import PARAMETER_TYPES, tags_of

FIRST_PARAMETERS = ("preset", "overrides", "run_dir")
MAX_OWN_PARAMETERS, MAX_CODE_CELLS, MAX_CELL_LINES, MAX_DEFINITION_LINES = 4, 15, 12, 5
DEFINITIONS_ALLOWED = ("02_losses_by_hand",)  # the one notebook whose subject is writing functions


def lint_notebook(path: Path | str) -> list[str]:
    """A line for each place where a notebook breaks the rules; empty if none does."""
    path = Path(path)
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    left = [key for key in ("widgets", "papermill") if key in notebook.metadata]
    problems = [f"metadata.{key} is left over; `make strip`" for key in left]
    if not notebook.cells or not notebook.cells[0].source.startswith("# "):
        problems.append("the first cell must be markdown with a title")
    for words in ("?", "What you should see"):
        if words not in prose:
            problems.append(f"the text must ask a question and say what you should see: no {words!r} in it")
    if len(code) > MAX_CODE_CELLS:
        problems.append(f"{len(code)} code cells, at most {MAX_CODE_CELLS}")
    exempt = path.stem in DEFINITIONS_ALLOWED
    problems += [f"cell {cell.id!r}: {problem}" for cell in notebook.cells for problem in _cell_problems(cell, exempt)]
    tagged = [cell for cell in code if "parameters" in tags_of(cell)]
    if len(tagged) != 1:
        return [*problems, f"{len(tagged)} cells tagged 'parameters', need exactly one"]
    return problems + list(_parameter_problems(tagged[0].source))


def _cell_problems(cell: NotebookNode, definitions_allowed: bool) -> Iterator[str]:
    if re.fullmatch(r"[0-9a-f]{8}|\d+", cell.id) or not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", cell.id):
        yield "the id must be words, like `what-is-a-cam`"
    if "papermill" in cell.metadata or "injected-parameters" in tags_of(cell):
        yield "traces of papermill; `make strip`"
    if cell.cell_type != "code":
        return
    if cell.outputs or cell.execution_count is not None:
        yield "has outputs or an execution count; `make strip`"
    if len(cell.source.splitlines()) > MAX_CELL_LINES:
        yield f"{len(cell.source.splitlines())} lines, at most {MAX_CELL_LINES}: move logic into the package"
    try:
        tree = ast.parse(re.sub(r"(?m)^\s*[%!].*$", "pass", cell.source))  # magics are no Python
    except SyntaxError as error:
        yield f"no valid Python: {error}"
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not definitions_allowed:
            if node.end_lineno - node.lineno + 1 > MAX_DEFINITION_LINES:
                yield f"{node.name} is longer than {MAX_DEFINITION_LINES} lines: move it into the package"


def _parameter_problems(source: str) -> Iterator[str]:
    body = []
    with contextlib.suppress(SyntaxError):  # reported with its cell
        body = ast.parse(source).body
    names = tuple(node.target.id for node in body if isinstance(node, ast.AnnAssign))
    if len(names) < len(body):
        yield "the parameters cell may hold nothing but lines `name: type = value  # help`"
    if names[:3] != FIRST_PARAMETERS:
        yield f"the parameters cell must begin with {', '.join(FIRST_PARAMETERS)}"
    if len(names) > 3 + MAX_OWN_PARAMETERS:
        yield f"{len(names) - 3} parameters of its own, at most {MAX_OWN_PARAMETERS}"
    for line in source.splitlines():
        if not re.fullmatch(rf"\w+: ({'|'.join(PARAMETER_TYPES)})(\[.*\])? = .+  # .+", line):
            yield f"parameter line `{line}` is not of the form `name: type = value  # help`"
