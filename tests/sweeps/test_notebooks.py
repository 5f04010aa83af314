"""Strict execution of notebooks: what is refused before a kernel starts, what a failure leaves; strip and lint."""

import json
from pathlib import Path

import nbformat
import papermill
import pytest
from helpers.notebook_rules import lint_notebook
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from toco_lab.sweeps.notebooks import (
    NotebookError,
    NotebookJob,
    execute_notebook,
    is_done,
    read_record,
    run_notebooks,
)
from toco_lab.sweeps.parameters import check_parameters, declared_parameters
from toco_lab.sweeps.strip import strip_notebook

PARAMETERS = """preset: str = "smoke"  # named Config
overrides: dict = {}  # any Config field
run_dir: str = "results/scratch"  # folder
scales: tuple = (1.0, 0.5)  # image scales
count: int = 3  # a number
rate: float = 0.5  # another
loud: bool = False  # a switch"""


def write(path: Path, *sources: str, parameters: str = PARAMETERS) -> Path:
    """A small notebook that keeps the rules; `sources` are its code cells after the parameters."""
    cells = [new_markdown_cell("# Title\n\nWhy?\n\nWhat you should see: nothing."), new_code_cell(parameters)]
    cells += [new_code_cell(source) for source in sources]
    cells[1].metadata["tags"] = ["parameters"]
    for name, cell in zip(["title", "parameters", "first", "second", "third"], cells, strict=False):
        cell.id = name
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)
    strip_notebook(path)
    return path


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if execution is tried at all."""
    monkeypatch.setattr(papermill, "execute_notebook", lambda *a, **k: pytest.fail("a kernel was started"))


@pytest.mark.usefixtures("no_kernel")
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"presett": "toy"}, "no parameter 'presett', did you mean 'preset'"),
        ({"count": "3"}, "'count' .* must be int, got '3'"),
        ({"count": 3.0}, "'count' .* must be int"),
        ({"count": True}, "'count' .* must be int, got True"),
        ({"loud": 1}, "'loud' .* must be bool"),
        ({"scales": "(1.0, 0.5)"}, "'scales' .* must be tuple"),
        ({"overrides": {"scales": {1.0}}}, "cannot hold {1.0}"),
        ({"preset": "toi"}, "unknown preset 'toi', did you mean 'toy'"),
        ({"overrides": {"w_ptk": 0}}, "unknown config field 'w_ptk', did you mean 'w_ptc'"),
        ({"overrides": {"w_ptc": "0"}}, "'w_ptc' must be float"),
        ({"preset": "toy", "overrides": {"low_threshold": 0.9}}, "low_threshold must be below high_threshold"),
        ({"rate": float("nan")}, "'rate' cannot hold nan"),
        ({"scales": [1.0, float("inf")]}, "'scales' cannot hold inf"),
        ({"overrides": {"w_ptc": float("nan")}}, "'overrides' cannot hold nan"),
    ],
)
def test_bad_parameters_start_no_kernel(tmp_path: Path, parameters: dict, message: str) -> None:
    notebook = write(tmp_path / "a.ipynb", "1 / 0")
    with pytest.raises(ValueError, match=message):
        execute_notebook(notebook, tmp_path / "out.ipynb", parameters)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ipynb"]


def test_defaults_with_an_equals_sign_are_understood(tmp_path: Path) -> None:
    cell = """title: str = "a=b"  # x = y
where: 'str' = 'depth == 4 and "a" in run'
table: dict[str, str] = {"key": "x=1"}
text: str = '''one
two=2'''
old = 3  # type: int
bare = "c=d"
preset: str = "smoke"
overrides: dict = {"backbone_args": '{"drop_rate": 0.5}', "val_split": "a=b"}"""
    notebook = write(tmp_path / "a.ipynb", parameters=cell)
    known = declared_parameters(notebook)
    assert [(name, one.annotation) for name, one in known.items()] == [
        ("title", "str"), ("where", "str"), ("table", "dict"), ("text", "str"), ("old", "int"), ("bare", ""),
        ("preset", "str"), ("overrides", "dict"),
    ]  # fmt: skip
    given = {"title": "c=d", "where": "", "table": {}, "text": "=", "old": 4}
    assert check_parameters(notebook, given) == given
    with pytest.raises(ValueError, match=r"'bare' of .*a.ipynb needs an annotation"):
        check_parameters(notebook, {"bare": "x"})


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("preset: str = ", "a.ipynb: the cell with the parameters is no plain Python"),
        ("%matplotlib inline", "a.ipynb: the cell with the parameters is no plain Python"),
        ('preset: str = "smoke"\noverrides: dict = dict(steps=4)', "default of 'overrides' must be a plain value"),
    ],
)
def test_a_cell_that_declares_nothing_readable_is_named(tmp_path: Path, cell: str, message: str) -> None:
    notebook = write(tmp_path / "b.ipynb")
    content = nbformat.read(notebook, as_version=4)
    content.cells[1].source = cell
    nbformat.write(content, tmp_path / "a.ipynb")
    with pytest.raises(ValueError, match=message):
        check_parameters(tmp_path / "a.ipynb", {})


@pytest.mark.parametrize("content", [b"", b"no json", b"[1]", b"{}", b'{"cells": 3}', b"\xff\xfe"])
def test_a_file_that_is_no_notebook_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.ipynb").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.ipynb cannot be read as a notebook"):
        check_parameters(tmp_path / "a.ipynb", {})


def test_good_parameters_are_made_plain(tmp_path: Path) -> None:
    notebook = write(tmp_path / "a.ipynb")
    given = {"scales": (1, 0.5), "rate": 1, "run_dir": Path("x/y"), "overrides": {"cam_scales": (1.0, 0.5)}}
    assert check_parameters(notebook, given) == {
        "scales": [1, 0.5],
        "rate": 1,
        "run_dir": "x/y",
        "overrides": {"cam_scales": [1.0, 0.5]},
    }
    with pytest.raises(ValueError, match="needs an annotation"):
        check_parameters(write(tmp_path / "b.ipynb", parameters="count = 3"), {"count": 4})
    with pytest.raises(ValueError, match="there is no notebook"):
        check_parameters(tmp_path / "c.ipynb", {})


@pytest.mark.slow
def test_a_good_notebook(tmp_path: Path) -> None:
    bar = "import sys, time\nfor i in range(3):\n    print(f'\\r{i} of 3', end='', file=sys.stderr, flush=True)\n"
    bar += "    time.sleep(0.5)\n"  # pieces that arrive one by one are stored one by one
    progress = bar + "print(scales, count)"
    job = NotebookJob(write(tmp_path / "a.ipynb", progress), tmp_path / "sub {x}" / "out.ipynb", {"scales": (1.0,)})
    assert not is_done(job)
    assert execute_notebook(job.notebook, job.output, job.parameters, progress=False) == job.output
    record = read_record(job.output)
    assert record["state"] == "done" and record["parameters"] == {"scales": [1.0]} and record["seconds"] > 0
    outputs = nbformat.read(job.output, as_version=4).cells[-1].outputs
    assert sorted(out.text for out in outputs) == ["2 of 3", "[1.0] 3\n"]
    assert is_done(job)
    assert not is_done(NotebookJob(job.notebook, job.output, {"count": 1}))
    write(Path(job.notebook), "pass")
    assert not is_done(job), "the notebook has changed"


@pytest.mark.slow
def test_failures_leave_what_was_executed_and_stop_no_other(tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.ipynb", "print('so far')", "1 / 0", "print('never')")
    jobs = [
        NotebookJob(bad, tmp_path / "o" / "1.ipynb"),
        NotebookJob(write(tmp_path / "good.ipynb"), tmp_path / "o" / "2.ipynb", {"presett": "toy"}),
        NotebookJob(tmp_path / "good.ipynb", tmp_path / "o" / "3.ipynb"),
    ]
    records = run_notebooks(jobs, progress=False)
    assert [record["state"] for record in records] == ["failed", "failed", "done"]
    error = records[0]["error"]
    assert (error["name"], error["message"], error["cell"]) == ("ZeroDivisionError", "division by zero", "second")
    assert "1 / 0" in error["traceback"] and "\x1b" not in error["traceback"]
    assert json.loads((tmp_path / "o" / "1.json").read_text()) == records[0]
    text = (tmp_path / "o" / "1.ipynb").read_text()
    assert "so far" in text and "ZeroDivisionError" in text
    assert "did you mean 'preset'" in records[1]["error"]["message"]
    with pytest.raises(NotebookError, match=r"bad.ipynb, cell 'second': ZeroDivisionError: division by zero\n"):
        execute_notebook(jobs[0].notebook, jobs[0].output, {}, progress=False)


@pytest.mark.slow
def test_a_time_out_is_a_failure(tmp_path: Path) -> None:
    notebook = write(tmp_path / "a.ipynb", "import time\ntime.sleep(60)")
    with pytest.raises(NotebookError, match="Timeout"):
        execute_notebook(notebook, tmp_path / "out.ipynb", {}, timeout=2, progress=False)
    assert read_record(tmp_path / "out.ipynb")["state"] == "failed"


def test_strip_drops_traces_and_keeps_ids_and_tags(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ipynb", "1 + 1")
    clean = path.read_text()
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["widgets"], notebook.metadata["papermill"] = {"state": {}}, {"duration": 1}
    cell = notebook.cells[2]
    cell.outputs, cell.execution_count = [new_output("stream", text="2")], 7
    cell.metadata["papermill"] = {"status": "completed"}
    injected = new_code_cell("preset = 'toy'")
    injected.metadata["tags"] = ["injected-parameters"]
    notebook.cells.insert(2, injected)
    nbformat.write(notebook, path)
    problems = "\n".join(lint_notebook(path))
    for word in ("metadata.widgets", "metadata.papermill", "outputs or an execution count", "traces of papermill"):
        assert word in problems
    assert strip_notebook(path)
    assert path.read_text() == clean
    assert not strip_notebook(path)
    assert lint_notebook(path) == []


@pytest.mark.parametrize(
    ("sources", "parameters", "problem"),
    [
        (["\n".join(["x = 1"] * 13)], PARAMETERS, "13 lines, at most 12"),
        (
            ["def f():\n    a = 1\n    b = 2\n    c = 3\n    d = 4\n    return a"],
            PARAMETERS,
            "f is longer than 5 lines",
        ),
        (["x ="], PARAMETERS, "no valid Python"),
        ([], PARAMETERS.replace("preset", "presets"), "must begin with preset, overrides, run_dir"),
        ([], PARAMETERS.replace("count: int", "count"), "nothing but lines"),
        ([], PARAMETERS.replace("  # a number", ""), "is not of the form"),
        ([], PARAMETERS + "\nmore: int = 1  # too many", "5 parameters of its own"),
    ],
)
def test_lint_finds(tmp_path: Path, sources: list[str], parameters: str, problem: str) -> None:
    assert problem in "\n".join(lint_notebook(write(tmp_path / "a.ipynb", *sources, parameters=parameters)))


def test_lint_finds_ids_tags_and_missing_prose(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ipynb", "%matplotlib inline\n1", "2")
    assert lint_notebook(path) == []
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].id = "3f2a9bcd"
    notebook.cells[0].source, notebook.cells[1].metadata = "no title", {}
    notebook.cells += [new_code_cell("1") for _ in range(13)]
    nbformat.write(notebook, path)
    problems = "\n".join(lint_notebook(path))
    for words in (
        "id must be words",
        "with a title",
        "no 'What you should see'",
        "16 code cells, at most 15",
        "0 cells tagged",
    ):
        assert words in problems


@pytest.mark.parametrize("content", ["", "{", "[]", "\0"])
def test_a_damaged_record_counts_as_not_executed(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    assert read_record(tmp_path / "a.ipynb") == {}
