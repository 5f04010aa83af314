"""Notebooks without a screen: strict execution by papermill.

papermill only logs an unknown parameter, injects a tuple as a string, passes wrong types on, and saves a notebook that
timed out as if every cell had completed. So names, types and Config overrides are checked before a kernel starts, and
success is the absence of an exception, kept in a record of our own beside the executed notebook.
"""

import contextlib
import hashlib
import json
import re
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbformat import NotebookNode

from toco_lab.files import atomic_write, in_words
from toco_lab.progress import draws_bars, is_quiet
from toco_lab.runs.small_files import read_json_file
from toco_lab.sweeps.parameters import check_parameters
from toco_lab.sweeps.saved_outputs import make_readable
from toco_lab.sweeps.warm_kernels import WarmKernelManager

CELL_TIMEOUT = 3600  # seconds one cell may take unless told otherwise
_TRACEBACK_LINES = 12


class NotebookError(RuntimeError):
    """A notebook failed; the message names the cell and ends with the last lines of its traceback."""


@dataclass(frozen=True)
class NotebookJob:
    """One notebook to execute, see `execute_notebook`."""

    notebook: Path | str
    output: Path | str
    parameters: dict[str, Any] = field(default_factory=dict)


_KERNEL_START = 300  # seconds: papermill's 60 are too few where a machine is busy


def execute_notebook(
    notebook: Path | str,
    output: Path | str,
    parameters: Mapping[str, Any],
    *,
    timeout: float = CELL_TIMEOUT,
    progress: bool = True,
) -> Path:
    """Execute a notebook with other parameters, in the current folder.

    Args:
        notebook: Stripped notebook with one cell tagged `parameters`.
        output: Where the executed notebook goes; its record takes the same name with `.json` (see `read_record`).
        parameters: Values by name. Tuples are passed as lists.
        timeout: Seconds one cell may take.
        progress: Show papermill's progress bar, where one can be drawn.

    Returns:
        `output`.

    Raises:
        ValueError: For an unknown or ill-typed parameter, preset or override, before a kernel starts.
        NotebookError: If a cell fails or times out. What was executed so far lies in `output` all the same.
    """
    notebook, output = Path(notebook), Path(output)
    parameters = check_parameters(notebook, parameters)
    record = {"notebook": notebook.name, "digest": _digest(notebook), "parameters": parameters}
    began = time.perf_counter()
    _write_record(output, record | {"state": "running", "seconds": 0.0})
    with tempfile.TemporaryDirectory() as folder:
        executed = Path(folder) / "executed.ipynb"  # papermill saves it after every cell
        try:
            papermill.execute_notebook(
                str(notebook).replace("{", "{{").replace("}", "}}"),  # papermill formats paths
                str(executed),
                parameters,
                progress_bar=progress and draws_bars() and not is_quiet(),
                execution_timeout=timeout,
                start_timeout=_KERNEL_START,
                kernel_manager_class=WarmKernelManager,
                extra_arguments=["--log-level=ERROR"],  # the kernel's, which warns about its own transport
            )
        except BaseException as error:
            failure = _describe(error, executed)
            failed = {"state": "failed", "seconds": _since(began), "error": failure}
            with contextlib.suppress(ValueError):  # half a file, where the disk was full
                _save(executed, output)
            _write_record(output, record | failed)
            if not isinstance(error, Exception):  # Ctrl-C
                raise
            where = f", cell {failure['cell']!r}" if failure["cell"] else ""
            said = f"{notebook}{where}: {failure['name']}: {failure['message']}"
            trace = f"\n{failure['traceback']}\n" if failure["traceback"] else "; "
            raise NotebookError(f"{said}{trace}executed so far: {output}") from error
        _save(executed, output)
    _write_record(output, record | {"state": "done", "seconds": _since(began)})
    return output


def run_notebooks(jobs: Iterable[NotebookJob], *, timeout: float = CELL_TIMEOUT, progress: bool = True) -> list[dict]:
    """Execute several notebooks in turn; one that fails does not stop the others.

    Returns:
        The record of each job. One that never started (bad parameters) has the state `failed` as well.
    """
    records = []
    for job in jobs:
        try:
            execute_notebook(job.notebook, job.output, job.parameters, timeout=timeout, progress=progress)
            records.append(read_record(job.output))
        except NotebookError:
            records.append(read_record(job.output))
        except (ValueError, OSError) as error:
            failure = {"name": type(error).__name__, "message": in_words(str(error)), "cell": "", "traceback": ""}
            records.append({"notebook": Path(job.notebook).name, "state": "failed", "seconds": 0.0, "error": failure})
    return records


def read_record(output: Path | str) -> dict[str, Any]:
    """Record of an executed notebook: notebook, digest, parameters, state (running, done, failed), seconds, error.

    Empty if there is none, or it is damaged. A record that still says `running` was left by a process that was killed.
    """
    path = Path(output).with_suffix(".json")
    with contextlib.suppress(ValueError):  # damaged: as if it had not been executed
        return read_json_file(path, {}) if path.is_file() else {}
    return {}


def is_done(job: NotebookJob) -> bool:
    """Whether this very notebook was already executed to the end with these parameters."""
    record = read_record(job.output)
    wanted = {"digest": _digest(job.notebook), "parameters": check_parameters(job.notebook, job.parameters)}
    return Path(job.output).is_file() and record.get("state") == "done" and wanted.items() <= record.items()


def _describe(error: BaseException, executed: Path) -> dict[str, str]:
    """Name, message, cell id and end of the traceback of what stopped a notebook; no traceback if it was the system."""
    if not isinstance(error, papermill.PapermillExecutionError):
        return {"name": type(error).__name__, "message": in_words(str(error).strip()), "cell": "", "traceback": ""}
    cells = nbformat.read(executed, as_version=4).cells
    cells = [cell for cell in cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])]  # added markers
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
    message = in_words(error.evalue)
    return {
        "name": error.ename,
        "message": message,
        "cell": cells[error.cell_index].id,
        "traceback": "\n".join(text.splitlines()[-_TRACEBACK_LINES:]) if message == error.evalue else "",
    }


def _save(executed: Path, output: Path) -> None:
    """Move a notebook to its place, with outputs that need no kernel; of a progress bar only its last state is kept."""
    if not executed.is_file():
        return  # the kernel did not even start
    notebook = nbformat.read(executed, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _merged(cell.outputs)
    make_readable(notebook)
    write_notebook(notebook, output)


def _merged(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Consecutive pieces of one stream as one, each line as it looked when nothing overwrote it any more."""
    merged: list[NotebookNode] = []
    for shown in outputs:
        last = merged[-1] if merged else None
        if last and shown.output_type == last.output_type == "stream" and shown.name == last.name:
            last.text += shown.text
        else:
            merged.append(shown)
    for shown in merged:
        if shown.output_type == "stream":
            shown.text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in shown.text.split("\n"))
    return merged


def write_notebook(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook that is whole or not there."""
    with atomic_write(path, "w") as file:
        nbformat.write(notebook, file)


def _write_record(output: Path, record: dict[str, Any]) -> None:
    with atomic_write(output.with_suffix(".json"), "w") as file:
        json.dump(record, file, indent=1)


def _digest(notebook: Path | str) -> str:
    return hashlib.sha256(Path(notebook).read_bytes()).hexdigest()[:12]


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 2)
