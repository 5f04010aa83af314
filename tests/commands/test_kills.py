"""SIGKILL in the middle of a command that reads a trained run: the same command then ends with the same bytes."""

import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from helpers.labelled_runs import SMALL, files_of, make_run
from helpers.refusing import self_killing

from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.runs.run_dir import RunDir

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")


def killed(place: str, times: int, *command: object) -> None:
    """Run a command that is killed when it calls a function for the nth time."""
    done = subprocess.run(
        [*self_killing(place, times), *map(str, command)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == -signal.SIGKILL, f"it ended before it could be killed: {done.stderr}"


def shown(folder: Path) -> dict[str, bytes]:
    """The files of a folder, but for locks, and halves that a later start takes away."""
    return {name: content for name, content in files_of(folder).items() if not Path(name).name.startswith(".")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "times"),
    [
        ("toco_lab.evaluation.evaluate:predict", 1),
        ("os:fsync", 2),  # the protocol: there are new scores without it
        ("os:fsync", 3),  # the gallery
    ],
)
def test_evaluate(place: str, times: int, smoke_run: RunDir, tmp_path: Path) -> None:
    for name in ("straight", "killed"):
        shutil.copytree(smoke_run.path, tmp_path / name)
        for file in ("evaluation.csv", "protocol.json", "gallery.npz"):
            (tmp_path / name / file).unlink()
    assert main(["evaluate", str(tmp_path / "straight"), "--device", "cpu"]) == 0
    killed(place, times, "evaluate", tmp_path / "killed", "--device", "cpu")
    assert main(["evaluate", str(tmp_path / "killed"), "--device", "cpu"]) == 0
    assert shown(tmp_path / "killed") == shown(tmp_path / "straight")


@pytest.mark.slow
def test_pseudo_labels(tmp_path: Path) -> None:
    cfg = Config.preset("smoke").replace(val_images=3, train_images=4, crop_size=48, **SMALL)
    run = make_run(cfg, tmp_path)
    command = ["pseudo-labels", run.path, "--split", "val", "--scores", "--images", "copy", "--device", "cpu"]

    def whole(out: str) -> dict[str, bytes]:
        assert main([str(word) for word in (*command, "--out", tmp_path / out)]) == 0
        return files_of(tmp_path / out)

    killed("os:fsync", 9, *command, "--out", tmp_path / "killed")
    assert list((tmp_path / "killed").rglob(".*.tmp")), "a file is half written"
    assert whole("killed") == whole("straight")


@pytest.mark.slow
def test_report(smoke_run: RunDir, tmp_path: Path) -> None:
    def page(name: str) -> str:
        """The page, but for the moment at which it was made, and the names of cells, which papermill draws."""
        assert main(["report", str(smoke_run.path), "--out", str(tmp_path / name), "--title", "T"]) == 0
        return re.sub(r"\d\d \w+ \d{4}, \d\d:\d\d \w+|cell-id=\w+", "", (tmp_path / name).read_text(encoding="utf-8"))

    before = shown(smoke_run.path)
    straight = page("straight.html")
    out = tmp_path / "killed.html"
    killed("toco_lab.reports.export:_packed_plotly", 1, "report", smoke_run.path, "--out", out, "--title", "T")
    assert not out.exists()
    assert page("killed.html") == straight
    assert shown(smoke_run.path) == before, "who reports only reads"
