"""The command `predict`: from images that nobody labelled to masks, one corrupt file among them."""

import csv
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import offline_page, running_browser
from helpers.labelled_runs import files_of
from helpers.refusing import self_killing
from PIL import Image

from toco_lab.commands.app import main
from toco_lab.data.toy import make_scene
from toco_lab.runs.run_dir import RunDir


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for index, size in enumerate(((96, 96), (130, 80), (96, 96))):
        Image.fromarray(make_scene(5, index, size=96).image).resize(size).save(tmp_path / f"photos/p{index}.png")
    return tmp_path / "photos"


def test_predict_writes_masks_of_the_size_of_each_image(smoke_run: RunDir, photos: Path, capsys) -> None:
    out = photos.parent / "out"
    command = ["predict", str(smoke_run.path), str(photos), "--out", str(out), "--device", "cpu", "--mask", "cam"]
    command += ["--classes", "striped disc", "ringed egg", "--crf", "--scales", "1.0", "--no-flip"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "model: smoke\nmask:  cam, asked for\n" in printed and f"{out}: 3 images predicted\n" in printed
    for path in photos.iterdir():
        with Image.open(path) as image, Image.open(out / "masks" / path.name) as mask:
            assert mask.size == image.size and set(np.unique(np.array(mask))) <= {0, 1, 4}
        assert (out / "cams" / f"{path.stem}.striped_disc.png").is_file()
    with (out / "labels.csv").open(newline="") as file:
        assert [row["present"] for row in csv.DictReader(file)] == ["striped disc;ringed egg"] * 3
    assert main(command) == 0
    assert f"{out}: 0 images predicted, 3 were there already\n" in capsys.readouterr().out


def test_a_corrupt_image_is_named_and_the_others_are_done(smoke_run: RunDir, photos: Path, capsys) -> None:
    (photos / "bad.jpg").write_bytes(b"no picture")
    out = photos.parent / "out"
    assert main(["predict", str(smoke_run.path), str(photos / "*"), "--out", str(out), "--device", "cpu"]) == 2
    found = capsys.readouterr()
    assert found.err.startswith("error: 1 image could not be predicted, the other 3 are done:\ncannot decode ")
    assert found.err.count("bad.jpg") == 1
    assert sorted(path.name for path in (out / "masks").iterdir()) == ["p0.png", "p1.png", "p2.png"]


def test_a_folder_of_runs_says_which_it_takes(smoke_run: RunDir, photos: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(smoke_run.path, tmp_path / "runs" / "only")
    command = [
        "predict",
        str(tmp_path / "runs"),
        str(photos / "p0.png"),
        "--out",
        str(tmp_path / "out"),
        "--sheet",
        "0",
    ]
    assert main([*command, "--by", "seg_mIoU", "--device", "cpu"]) == 0
    assert f"model: only, best of 1 run in {tmp_path / 'runs'} by seg_mIoU (" in capsys.readouterr().out
    assert not (tmp_path / "out" / "contact_sheet.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}"], "images"),
        (["{run}", "no/such.png"], "no image at no/such.png"),
        (["no/such", "{photos}"], "no run, checkpoint or sweep no/such"),
        (["{run}", "{photos}", "--classes", "cat"], "unknown class 'cat'; there are: striped disc"),
        (["{run}", "{photos}", "--label-threshold", "2"], "between 0 and 1, got 2"),
        (["{run}", "{photos}", "--by", "cam_mIoU"], "by (cam_mIoU) has no effect"),
        (["{run}", "{photos}", "--mask", "segm"], "mask"),
        (["{run}", "{photos}", "--sheet", "-1"], "0 for no sheet"),
    ],
)
def test_what_cannot_be_predicted_is_one_line_and_writes_nothing(
    words: list[str], message: str, smoke_run: RunDir, photos: Path, capsys
) -> None:
    out = photos.parent / "out"
    words = [word.format(run=smoke_run.path, photos=photos) for word in words]
    assert main(["predict", *words, "--out", str(out), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and not out.exists()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_killed_and_continued_gives_the_same_bytes(smoke_run: RunDir, photos: Path, tmp_path: Path) -> None:
    command = ["predict", str(smoke_run.path), str(photos), "--device", "cpu", "--label-threshold", "0.2", "--out"]
    assert main([*command, str(tmp_path / "straight")]) == 0
    killing = [*self_killing("os:fsync", 9), *command, str(tmp_path / "killed")]
    done = subprocess.run(killing, capture_output=True, text=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "killed" / "contact_sheet.html").exists()
    assert main([*command, str(tmp_path / "killed")]) == 0
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "straight")


@pytest.mark.browser
def test_the_contact_sheet_fits_its_window(smoke_run: RunDir, photos: Path, tmp_path: Path) -> None:
    command = ["predict", str(smoke_run.path), str(photos), "--device", "cpu", "--label-threshold", "0.2"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    with running_browser() as browser:
        for width in (390, 1280):
            with offline_page(
                browser, tmp_path / "out/contact_sheet.html", viewport={"width": width, "height": 800}
            ) as page:
                assert page.evaluate("document.documentElement.scrollWidth") == width
                assert page.locator("article").count() == 3
                assert page.evaluate("[...document.images].every(one => one.alt && one.naturalWidth > 0)")
