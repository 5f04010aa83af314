"""Forked kernels: torch is there at once, and in all else each is a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from toco_lab.sweeps import forked, warm_kernels
from toco_lab.sweeps.notebooks import NotebookError, execute_notebook

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux alone")
REPORT = """import sys
before = "torch" in sys.modules, "marked" in vars(sys), "matplotlib" in sys.modules
import os, numpy, torch
sys.marked = True
print([*before, os.getpid(), os.getcwd(), os.environ.get("SAID"), torch.rand(1).item(), numpy.random.rand()])"""


def write(path: Path, *sources: str) -> Path:
    cells = [new_code_cell("count: int = 1", metadata={"tags": ["parameters"]}), *map(new_code_cell, sources)]
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)
    return path


def executed(notebook: Path) -> list:
    """What the last cell printed."""
    output = execute_notebook(notebook, notebook.with_suffix(".out.ipynb"), {}, progress=False)
    return eval(nbformat.read(output, 4).cells[-1].outputs[0].text)  # a list of plain values, of our own notebook


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_ended(*pids: int, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(is_running, pids))


def test_kernels_share_imports_and_nothing_else(tmp_path, monkeypatch):
    notebook = write(tmp_path / "report.ipynb", REPORT)
    first = executed(notebook)
    monkeypatch.setenv("SAID", "hello")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    second = executed(notebook)
    assert first[:3] == second[:3] == [True, False, False]  # torch there, no trace of the kernel before, no backend set
    assert first[3] != second[3] and not is_running(first[3]) and not is_running(second[3])
    assert second[4:6] == [str(tmp_path / "elsewhere"), "hello"] and first[5] is None
    assert first[6] != second[6] and first[7] != second[7]  # generators


def test_a_module_beside_the_notebook_is_found(tmp_path, monkeypatch):
    (tmp_path / "own_helpers.py").write_text("ANSWER = 42")
    monkeypatch.chdir(tmp_path)
    assert executed(write(tmp_path / "own.ipynb", "from own_helpers import ANSWER\nprint([ANSWER])")) == [42]


def test_a_kernel_that_is_killed_stops_no_other(tmp_path):
    with pytest.raises(NotebookError, match="DeadKernelError"):
        executed(write(tmp_path / "dies.ipynb", "import os\nos.kill(os.getpid(), 9)"))
    assert executed(write(tmp_path / "lives.ipynb", "print([1])")) == [1]


def test_without_its_server_a_kernel_ends_and_the_next_has_a_new_one(tmp_path):
    (pid,) = executed(write(tmp_path / "parent.ipynb", "import os\nprint([os.getppid()])"))
    assert pid == forked._server_for(os.environ)._process.pid
    with pytest.raises(NotebookError, match="DeadKernelError"):
        executed(write(tmp_path / "alone.ipynb", f"import os, time\nos.kill({pid}, 9)\ntime.sleep(60)"))
    assert executed(write(tmp_path / "again.ipynb", "import os\nprint([os.getppid()])")) != [pid]


def test_nothing_is_left_behind_by_a_killed_process(tmp_path):
    """`kill -9` of the process that executes a notebook ends its server and its kernel.

    A file of the current folder that is named as a module does not stand in its way.
    """
    (tmp_path / "torch.py").write_text("raise SystemExit('not this one')")
    note = f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{os.getppid()}}')"
    cell = f"import os, sys, time\nsys.modules['torch'].rand(1)\n{note}\ntime.sleep(600)"
    code = "import sys; from toco_lab.sweeps.notebooks import execute_notebook as e; e(sys.argv[1], sys.argv[2], {})"
    files = [str(write(tmp_path / "long.ipynb", cell)), str(tmp_path / "out.ipynb")]
    process = subprocess.Popen([sys.executable, "-P", "-c", code, *files], cwd=tmp_path)
    pids = tmp_path / "pids"
    end = time.monotonic() + 240
    while not (pids.is_file() and len(pids.read_text().split()) == 2) and time.monotonic() < end:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until_ended(*map(int, pids.read_text().split()))


def test_another_kernel_starts_as_always(tmp_path, monkeypatch):
    """One that is not this Python's: here because of an option of its interpreter."""
    monkeypatch.setattr(warm_kernels, "_LAUNCHER", ["another"])
    notebook = write(tmp_path / "cold.ipynb", "import os, sys\nprint([os.getppid(), 'torch' in sys.modules])")
    assert executed(notebook) == [os.getpid(), False]
