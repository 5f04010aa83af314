"""The command `notebooks`: copies where one works, never over somebody's changes."""

from pathlib import Path

import pytest

from toco_lab.commands.app import main

ROOT = Path(__file__).resolve().parents[2]
NAMES = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}


def test_they_are_copied_and_a_second_call_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["notebooks"]) == 0
    copied = {path.name: path.read_bytes() for path in (tmp_path / "notebooks").iterdir()}
    assert copied == {name: (ROOT / "notebooks" / name).read_bytes() for name in NAMES}
    assert capsys.readouterr().out.splitlines() == [
        f"notebooks: {len(NAMES)} notebooks copied",
        "Open them on this machine only, by the address with a token that this prints:",
        "  python -m jupyter lab --ServerApp.ip=127.0.0.1 notebooks/00_start_here.ipynb",
    ]
    (tmp_path / "notebooks" / "03_train.ipynb").unlink()
    assert main(["notebooks"]) == 0
    assert capsys.readouterr().out.startswith(f"notebooks: 1 notebook copied, {len(NAMES) - 1} unchanged since\n")


def test_a_changed_one_stays_and_nothing_is_copied(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "my work" / "notebooks").mkdir(parents=True)
    (changed := tmp_path / "my work" / "notebooks" / "03_train.ipynb").write_text("mine")
    assert main(["notebooks", str(tmp_path / "my work")]) == 2
    assert [path.name for path in changed.parent.iterdir()] == ["03_train.ipynb"] and changed.read_text() == "mine"
    assert "03_train.ipynb differs from what would be copied, so nothing was copied" in capsys.readouterr().err
    changed.unlink()
    assert main(["notebooks", str(tmp_path / "my work")]) == 0
    assert f"'{changed.parent / '00_start_here.ipynb'}'\n" in capsys.readouterr().out, "a shell reads it as one word"


def test_in_the_project_itself_there_is_nothing_to_copy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["notebooks"]) == 0
    assert capsys.readouterr().out.startswith("notebooks is where the notebooks of this package lie: nothing to copy\n")
