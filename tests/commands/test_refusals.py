"""What the operating system refuses is one line with the file and the remedy, exit code 2, and leaves nothing half."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.refusing import fill_disk, limited

from toco_lab.commands.app import main
from toco_lab.files import in_words
from toco_lab.runs import run_dir
from toco_lab.runs.run_dir import RunDir
from toco_lab.training import loop

SMOKE = ["train", "smoke", "--name", "a", "--device", "auto"]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("[Errno 28] No space left on device: 'a/b'", "a/b: No space left on device. Free some space"),
        ("[Errno 24] Too many open files", r"^Too many open files. .*ulimit -n"),
        ('cell 3: [Errno 13] Permission denied: "it\'s" (at once)', r"cell 3: it's: .*permissions.* \(at once\)$"),
        ("[Errno 36] File name too long: 'x' -> 'y'", r"^x: File name too long. Choose a shorter name -> 'y'$"),
        ("nothing of the system: [Errno what]", r"^nothing of the system: \[Errno what\]$"),
        ("[Errno 99] Cannot assign requested address", "^Cannot assign requested address$"),
    ],
)
def test_the_text_of_a_refusal_gets_its_remedy(message: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        raise ValueError(in_words(message))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture):
    """Run a command that must fail; gives its one line."""

    def one_line(*command: object) -> str:
        assert main([str(word) for word in command]) == 2
        error = capsys.readouterr().err.rstrip("\n").rpartition("\n")[2]  # bars of progress come before
        assert error.startswith("error: ") and "Traceback" not in error and "[Errno" not in error
        return error

    return one_line


# --- a file where a folder is needed, a folder where a file is needed, links that lead nowhere ------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["train", "smoke", "--root", "FILE"],
        ["demo", "--preset", "smoke", "--root", "FILE"],
        ["sweep", "docs/smoke.yaml", "--root", "FILE"],
        ["run", "notebooks/00_start_here.ipynb", "--output", "FILE"],
        ["pseudo-labels", "RUN", "--out", "FILE"],
        ["report", "RUN", "--out", "FILE/report.html"],
        ["data", "check", "smoke", "--out", "FILE/data.png"],
        ["data", "show", "smoke", "--out", "FILE/data.png"],
        ["runs", "--root", "FILE"],
        ["runs", "list", "--csv", "FILE/runs.csv"],
    ],
)
def test_a_file_where_a_folder_is_needed(command: list[str], refused, smoke_run: RunDir, tmp_path: Path) -> None:
    for name, remedy in (("file", "A folder is needed there"), ("link", "It is a link that leads nowhere")):
        place = tmp_path / name
        place.symlink_to(tmp_path / "nowhere") if name == "link" else place.write_text("mine")
        error = refused(*(word.replace("FILE", str(place)).replace("RUN", str(smoke_run.path)) for word in command))
        if (name, command[0]) == ("link", "train") or name == "file":
            assert str(place) in error
        assert remedy in error
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"], "nothing half is left"


@pytest.mark.parametrize("command", [["report", "RUN"], ["data", "check", "smoke"], ["data", "show", "smoke"]])
def test_a_folder_where_a_file_is_needed(command: list[str], refused, smoke_run: RunDir, tmp_path: Path) -> None:
    (out := tmp_path / ("out.png" if command[0] == "data" else "out.html")).mkdir()
    error = refused(*(word.replace("RUN", str(smoke_run.path)) for word in command), "--out", out)
    assert f"{out}: Is a directory. A file is needed there" in error
    assert list(out.iterdir()) == [] and list(tmp_path.iterdir()) == [out]


def test_links_in_a_circle(refused, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "loop" in (error := refused(*SMOKE, "--root", tmp_path / "loop")) and "mend" in error


# --- no rights --------------------------------------------------------------------------------------------------------


def test_folders_that_may_not_be_read_are_not_empty(refused, smoke_run, tmp_path, monkeypatch, capsys) -> None:
    """Root may read all, so the system's answer is put in at the one place."""
    shutil.copytree(smoke_run.path, tmp_path / "a")
    closed = tmp_path / "closed"
    closed.mkdir()
    scandir, listdir = os.scandir, os.listdir

    def refuse(really):
        def read(path="."):
            if Path(path) == closed:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return really(path)

        return read

    monkeypatch.setattr(os, "scandir", refuse(scandir))
    monkeypatch.setattr(os, "listdir", refuse(listdir))
    assert main(["runs", "--root", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "unreadable" in printed and "closed" in printed and "2 runs" in printed
    assert f"{closed}: Permission denied. Change its permissions" in refused("runs", "--root", closed)
    closed = tmp_path / "a" / "checkpoints"  # without them it would be trained from the start
    metrics = (tmp_path / "a" / "metrics.csv").read_bytes()
    assert f"{closed}: Permission denied" in refused(*SMOKE, "--root", tmp_path)
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == metrics


# --- a full disk, limits ----------------------------------------------------------------------------------------------


def same_run(one: RunDir, other: RunDir) -> bool:
    """Whether two finished runs have the same bytes, but for times."""
    names = ("metrics.csv", "evaluation.csv", "gallery.npz", "protocol.json")
    files = [Path(name) for name in names] + [path.relative_to(one.path) for path in one.checkpoints()]
    return all((one.path / name).read_bytes() == (other.path / name).read_bytes() for name in files)


@pytest.mark.parametrize("name", ["config.json", "env.json", "status.json"])
def test_a_run_that_cannot_begin_leaves_no_folder(name, refused, tmp_path, monkeypatch, smoke_run) -> None:
    with monkeypatch.context() as patch:
        fill_disk(patch, name)
        error = refused(*SMOKE, "--root", tmp_path)
    assert f"{tmp_path / 'a' / name}: No space left on device. Free some space" in error
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()  # as a sweep has made it
    (tmp_path / "a" / "output.txt").touch()
    with monkeypatch.context() as patch:
        fill_disk(patch, name)
        refused(*SMOKE, "--root", tmp_path)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["output.txt"]


def test_a_limit_on_file_size_during_the_checkpoint(refused, smoke_run: RunDir, tmp_path: Path) -> None:
    size = smoke_run.checkpoints()[0].stat().st_size
    with limited("RLIMIT_FSIZE", size // 2):
        error = refused(*SMOKE, "--root", tmp_path)
    assert "checkpoints/step_" in error and "File too large. A limit on the size of files is set: raise it" in error
    status = RunDir(tmp_path / "a").status()
    assert status["state"] == "failed" and "File too large" in status["error"]
    assert list((tmp_path / "a").rglob(".*.tmp")) == []
    assert main([*SMOKE, "--root", str(tmp_path)]) == 0
    assert same_run(smoke_run, RunDir(tmp_path / "a"))


@pytest.mark.parametrize("name", ["step_00000004.pt", "status.json", "evaluation.csv", "protocol.json", "gallery.npz"])
def test_a_full_disk_and_then_the_same_bytes(name, refused, smoke_run, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        really = loop._fit

        def begun(*arguments, **options):  # the folder is made, then the disk is full
            fill_disk(patch, name)
            return really(*arguments, **options)

        patch.setattr(loop, "_fit", begun)
        assert f"{name}: No space left on device. Free some space" in refused(*SMOKE, "--root", tmp_path)
    assert list((tmp_path / "a").rglob(".*.tmp")) == []
    assert main([*SMOKE, "--root", str(tmp_path)]) == 0
    if name == "gallery.npz":  # the protocol was there: the run counts as evaluated
        assert main(["evaluate", str(tmp_path / "a")]) == 0
    assert same_run(smoke_run, RunDir(tmp_path / "a"))


def test_a_full_disk_in_the_middle_of_a_row(refused, smoke_run, tmp_path, monkeypatch) -> None:
    def half(path: Path, text: str) -> None:
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(text[: len(text) - 9])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(run_dir, "append_text", half)
        assert "metrics.csv: No space left on device. Free some space" in refused(*SMOKE, "--root", tmp_path)
    assert main([*SMOKE, "--root", str(tmp_path)]) == 0
    assert same_run(smoke_run, RunDir(tmp_path / "a"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_or_closed_standard_output(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "toco_lab", "runs", "--root", str(tmp_path)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: the standard output: No space left on device")
    reading, writing = os.pipe()
    os.close(reading)  # as `head` does once it has seen enough
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
