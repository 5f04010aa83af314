"""Files are whole or not there, names have neighbours, and a notebook finds the project's folder."""

from pathlib import Path

import pytest

from toco_lab import files
from toco_lab.files import atomic_write, did_you_mean, enter_project, here_or_shipped, project_root

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("mode", "content"), [("wb", b"\x00\r\n\xff"), ("w", "a line\r\nä\n")])
def test_a_file_is_written_as_it_is_and_its_folder_is_made(tmp_path: Path, mode: str, content: bytes | str) -> None:
    path = tmp_path / "deep" / "er" / "file"
    with atomic_write(path, mode) as file:
        file.write(content)
        assert not path.exists(), "it takes its name only when it is complete"
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "file.txt"
    with atomic_write(path, "w") as file:
        file.write("old")
    with atomic_write(path, "w") as file:
        file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path, "w") as file:
        file.write("new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_write(path, "w") as first, atomic_write(path, "w") as second:
        first.write("first")
        second.write("second")
    assert path.read_text() == "first", "the last one to end"
    assert list(tmp_path.iterdir()) == [path]


def test_only_a_near_name_is_offered() -> None:
    assert did_you_mean("w_ptcc", ["w_ctc", "w_ptc", "steps"]) == ", did you mean 'w_ptc'?"
    assert did_you_mean("zebra", ["w_ctc", "w_ptc", "steps"]) == did_you_mean("zebra", []) == ""
    assert did_you_mean(7, ["cat"]) == "", "a key of a YAML file may be a number"


def test_a_notebook_finds_the_project_from_its_own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT / "notebooks")
    assert enter_project() == Path.cwd() == ROOT
    assert enter_project() == ROOT
    monkeypatch.chdir(tmp_path)
    assert enter_project() == Path.cwd() == tmp_path, "outside a checkout nothing changes"


def test_an_installed_package_carries_its_part_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert project_root() == ROOT
    (carried := tmp_path / "site-packages" / "toco_lab" / "_data").mkdir(parents=True)
    monkeypatch.setattr(files, "__file__", str(carried.parent / "files.py"))
    assert project_root() == carried


def test_what_is_not_here_is_taken_from_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert here_or_shipped("docs/smoke.yaml") == ROOT / "docs" / "smoke.yaml"
    assert here_or_shipped("docs/absent.yaml") == Path("docs/absent.yaml")
    Path("docs").mkdir()
    Path("docs/smoke.yaml").symlink_to("nowhere")
    assert here_or_shipped("docs/smoke.yaml") == Path("docs/smoke.yaml"), "a link that leads nowhere is to be mended"
