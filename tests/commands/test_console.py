"""The program as a person calls it: its name, version, help, completion, and how much it says."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import toco_lab as tl
from toco_lab.commands.app import main
from toco_lab.commands.parser import asked_for_help
from toco_lab.commands.train import USUAL_FIELDS
from toco_lab.config import field_help
from toco_lab.words import program

ROOT = Path(__file__).resolve().parents[2]


def test_the_version_stands_in_one_place(capsys: pytest.CaptureFixture) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"] and "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "toco_lab.__version__"}
    assert project["project"]["scripts"] == {"toco-lab": "toco_lab.commands.app:main"}
    assert f"version: {tl.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"toco_lab {tl.__version__}\n"


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("/home/me/.venv/bin/toco-lab", "toco-lab"),
        ("toco-lab.exe", "toco-lab"),
        ("/x/toco_lab/__main__.py", "python -m toco_lab"),
        ("/usr/bin/pytest", "python -m toco_lab"),
    ],
)
def test_messages_name_the_program_as_it_was_called(called, name, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    assert program() == name
    with pytest.raises(SystemExit):
        main(["--help"])
    assert f"usage: {name} [-h]" in capsys.readouterr().out
    assert main(["train", "smoke", "--data-root", "here"]) == 2
    assert f"`{name} train folder --data-root here`" in capsys.readouterr().err


def shown(capsys: pytest.CaptureFixture, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_shows_the_usual_options_first_and_help_all_every_field(capsys) -> None:
    short, long = (shown(capsys, "train", "smoke", asked) for asked in ("--help", "--help-all"))

    def options(text: str) -> list[str]:
        words = [line.strip("│ ").partition(" ")[0].rstrip(",") for line in text.splitlines()]
        return [word for word in words if word[:2] == "--" and word[2:3].isalpha()]

    assert "--help-all shows every field" in short and len(options(short)) == 14
    assert set(options(short)) <= set(options(long))
    every = {f"--{name.replace('_', '-')}" for name in field_help()} - {"--preset-name"}
    assert every <= set(options(long)) and len(every) > 100
    first = [word for word in options(long) if word in every][: len(USUAL_FIELDS)]
    assert first == [f"--{name.replace('_', '-')}" for name in USUAL_FIELDS]
    assert "The usual options" not in shown(capsys, "train", "--help") + long
    assert shown(capsys, "train", "smoke", "--w-ptc", "1", "-h") == short  # wherever it stands


def test_what_a_line_asks_for() -> None:
    assert asked_for_help(["runs", "list", "--where", "a", "--help-all"]) == ["runs", "list", "--help"]
    assert asked_for_help(["run", "a.ipynb", "--", "--help"]) == ["run", "a.ipynb", "--", "--help"]
    assert asked_for_help(["train", "toy"]) == ["train", "toy"]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_of_commands_presets_and_options(shell: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["toco-lab"])
    script = tmp_path / "completion"
    with pytest.raises(SystemExit) as stopped:
        main(["--tyro-write-completion", shell, str(script)])
    assert not stopped.value.code
    text = script.read_text()
    assert all(word in text for word in ("toco-lab", "pseudo-labels", "voc_vit_b", "--high-threshold-end", "lis"))
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(script)], check=True, timeout=60)


def test_quiet_leaves_progress_out_and_a_pipe_has_no_bars(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("toco_lab.progress.LINE_SECONDS", 0.0)
    command = ["train", "smoke", "--no-evaluate", "--root", str(tmp_path), "--steps", "3", "--name"]
    assert main([*command, "said"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"said: step {step} of 3" for step in (1, 2, 3)]
    assert "loss" in lines[2] and "to go" in lines[1] and not any("\r" in line or "%" in line for line in lines)
    assert main([*command, "quiet", "--quiet"]) == 0
    found = capsys.readouterr()
    assert found.err == "" and "done: " in found.out
