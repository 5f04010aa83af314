"""Parameters of a notebook: what its cell declares, and the check of values before a kernel starts.

papermill reads the cell line by line and takes the last `=` for the assignment, so that a text like "a=b" hides its
parameter; here Python's own parser reads it.
"""

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toco_lab.config import Config
from toco_lab.files import did_you_mean

if TYPE_CHECKING:
    from nbformat import NotebookNode

PARAMETER_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
    "list": list,
    "tuple": list,
    "dict": dict,
}


@dataclass(frozen=True)
class Declared:
    """A parameter as the notebook's cell declares it: its annotation ("" without one) and its default as code."""

    annotation: str
    default: ast.expr


def check_parameters(notebook: Path | str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as they will reach the notebook, checked against its annotations and against Config.

    Raises:
        ValueError: For an unknown name (the closest one is in the message), a value of another type than the annotation
            or one that no notebook cell can hold, an unknown preset, or overrides that make no Config.
    """
    known = declared_parameters(notebook)
    checked = {}
    for name, value in parameters.items():
        if name not in known:
            hint = did_you_mean(name, known) or f"; there are: {', '.join(known)}"
            raise ValueError(f"{notebook} has no parameter {name!r}{hint}")
        checked[name] = plain(name, value)
        annotation = known[name].annotation
        if annotation not in PARAMETER_TYPES:
            raise ValueError(
                f"parameter {name!r} of {notebook} needs an annotation, one of {', '.join(PARAMETER_TYPES)}"
            )
        if not isinstance(checked[name], PARAMETER_TYPES[annotation]) or (
            isinstance(value, bool) and annotation != "bool"
        ):
            raise ValueError(f"parameter {name!r} of {notebook} must be {annotation}, got {value!r}")
    settings = {
        name: checked[name] if name in checked else _literal(notebook, name, known[name].default)
        for name in ("preset", "overrides")
        if name in known
    }
    if settings.get("preset"):  # "" is the config of the run that `run_dir` holds
        Config.preset(settings["preset"]).replace(**settings.get("overrides", {}))
    return checked


def declared_parameters(notebook: Path | str) -> dict[str, Declared]:
    """What the cell tagged `parameters` declares, by name; empty without such a cell.

    Raises:
        ValueError: For a file that is missing or no notebook, or a cell that is no Python.
    """
    if not Path(notebook).is_file():
        raise ValueError(f"there is no notebook {notebook}")
    import nbformat  # a sweep that trains needs none of Jupyter

    try:
        cells = nbformat.read(notebook, as_version=4).cells
        source = next((cell["source"] for cell in cells if "parameters" in tags_of(cell)), "")
    except Exception as error:  # nbformat raises whatever a damaged file leads to
        raise ValueError(f"{notebook} cannot be read as a notebook: {error!r}") from error
    try:
        body = ast.parse(source, type_comments=True).body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{notebook}: the cell with the parameters is no plain Python: {error}") from error
    declared = {}
    for line in body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None:
            declared[line.target.id] = Declared(_annotation(line.annotation), line.value)
        elif isinstance(line, ast.Assign):
            for target in line.targets:
                if isinstance(target, ast.Name):
                    declared[target.id] = Declared(line.type_comment or "", line.value)
    return declared


def plain(name: str, value: Any) -> Any:
    """`value` in the types that papermill writes into a cell unharmed; tuples become lists, paths text.

    Raises:
        ValueError: For another type, and for NaN and infinity, which JSON does not have.
    """
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [plain(name, item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(name, item) for key, item in value.items()}
    if type(value) is float and not math.isfinite(value):
        raise ValueError(f"parameter {name!r} cannot hold {value}, which no notebook can store; give a finite number")
    if value is None or type(value) in (str, bool, int, float):
        return value
    kind = type(value).__name__
    raise ValueError(f"parameter {name!r} cannot hold {value!r} ({kind}); give numbers, text, lists or dicts")


def tags_of(cell: "NotebookNode") -> list[str]:
    """Tags of a cell, like `parameters`."""
    return cell.metadata.get("tags", [])


def _annotation(node: ast.expr) -> str:
    """`dict` of `dict`, `dict[str, int]` and `"dict"`."""
    text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)
    return text.partition("[")[0].strip()


def _literal(notebook: Path | str, name: str, default: ast.expr) -> Any:
    try:
        return ast.literal_eval(default)
    except ValueError as error:
        code = ast.unparse(default)
        raise ValueError(f"{notebook}: the default of {name!r} must be a plain value, not code like {code}") from error
