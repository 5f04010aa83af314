"""The command `video`: a toy run measured on toy clips, and a folder of frames predicted."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from toco_lab.commands.app import main
from toco_lab.data.toy_clips import make_clip
from toco_lab.runs.run_dir import RunDir


def test_a_toy_run_is_measured_on_toy_clips(smoke_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(smoke_run.path, tmp_path / "run")
    command = ["video", str(tmp_path / "run"), "--clips", "1", "--clip-frames", "3", "--device", "cpu"]
    assert main([*command, "--threshold", "configured", "--window", "1"]) == 0
    said = capsys.readouterr().out
    run = RunDir(tmp_path / "run")
    table = run.read_table("video").set_index("fusion")
    for fusion, row in table.iterrows():
        shown = next(line for line in said.splitlines() if line.startswith(str(fusion)))
        assert shown.split()[-3:] == [f"{100 * value:.1f}" for value in row]
    assert "1 toy clip of 3 frames, 1 neighbour on each side" in said and "threshold 0.5 (the config)" in said
    with Image.open(run.path / "figures" / "video.gif") as moving, Image.open(run.path / "figures/video.png") as strip:
        assert moving.size == (2 * (7 * 96 + 6 * 4), 192) and moving.n_frames == 3
        assert strip.size == (3 * 96 + 2 * 4, 7 * (96 + 14))
    assert main([*command, "--window", "0"]) == 2
    assert "error: window must be at least 1 frame, got 0" in capsys.readouterr().err


def test_a_folder_of_frames_is_predicted(smoke_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "clip").mkdir()
    for number, image in enumerate(make_clip(1, 0, frames=3).image):
        Image.fromarray(image[:80]).save(tmp_path / "clip" / f"{number}.png")
    command = ["video", str(smoke_run.path), str(tmp_path / "clip"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*command, "--classes", "ringed egg", "--scales", "1.0", "--no-flip"]) == 0
    said = capsys.readouterr().out
    assert said == f"model: smoke\n{tmp_path / 'out'}: 3 frames predicted; ringed egg\n"
    for number in range(3):
        with Image.open(tmp_path / "out" / "masks" / f"{number}.png") as mask:
            assert mask.size == (96, 80)
    assert {"animation.gif", "strip.png", "protocol.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert main(["video", str(smoke_run.path), str(tmp_path / "nothing")]) == 2
    assert f"error: no frames at {tmp_path / 'nothing'}: give a folder of images" in capsys.readouterr().err
