"""Runs at a glance: which columns, in what width, and which runs are alike."""

import io
import sys
from pathlib import Path

import pandas as pd
import pytest

from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.explorers.run_browser import ALL_RUNS, RunBrowser
from toco_lab.runs.glance import alike, departing_fields, glance, within
from toco_lab.runs.listing import list_runs
from toco_lab.runs.run_dir import RunDir


def make_run(folder: Path, name: str, cfg: Config, images: int = 4, **scores: float) -> None:
    run = RunDir.create(cfg, folder, name=name)
    run.set_status("done" if scores else "running", step=4 if scores else 2)
    if scores:
        run.write_table("evaluation", pd.DataFrame({"target": list(scores), "class": "mIoU", "iou": scores.values()}))
        run.write_json("protocol", {target: {"checkpoint": "0", "images": images} for target in scores})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    smoke, voc = Config.preset("smoke"), Config.preset("voc_vit_b")
    make_run(tmp_path, "plain", smoke.replace(w_ptc=0.0, num_workers=1), cam=0.25, seg=0.5)
    make_run(tmp_path, "a-long-folder-of-many-runs/with-a-very-long-name-of-its-own", smoke, cam=0.75, seg=0.5)
    make_run(tmp_path, "more", smoke, images=9, cam=0.5)
    make_run(tmp_path, "voc", voc.replace(seed=3), cam=0.125)
    make_run(tmp_path, "killed", voc)
    return tmp_path


def test_what_a_preset_stands_for_has_no_column(root: Path) -> None:
    table = list_runs(root, everything=True)
    fields = ["preset_name", "w_ptc", "seed", "num_workers"]  # the last one changes no number
    assert departing_fields(table) == fields
    shown = glance(table)
    assert list(shown) == ["run", "state", "cam_mIoU", "seg_mIoU", *fields, "scored_images"]
    assert shown.set_index("run").loc["killed", "state"] == "stopped, step 2"
    assert list(glance(table[table["preset_name"] == "voc_vit_b"])) == ["run", "state", "cam_mIoU", "seed"]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_no_line_is_longer_than_the_terminal(root: Path, width: int, monkeypatch, capsys) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main(["runs", "--root", str(root)]) == 0
    printed = sys.stdout.getvalue().replace(str(root), "ROOT")
    lines = printed.splitlines()
    assert max(map(len, lines)) <= width and "5 runs below ROOT" in lines
    assert lines[0].split()[:2] == ["run", "state"]
    assert ("not shown: " in printed) == (width <= 100) == ("(--wide shows them, --columns chooses)" in lines)
    hidden = printed.partition("not shown: ")[2].partition("\n(")[0].replace(",", " ").split()
    assert {*lines[0].split(), *hidden} == set(glance(list_runs(root, everything=True)))
    assert width == 40 or "cam_mIoU" in lines[0]  # before what differs, and that before other scores


def test_a_pipe_gets_whole_names_and_wide_every_column(root: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["runs", "list", "--root", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "a-long-folder-of-many-runs/with-a-very-long-name-of-its-own" in printed and "not shown" not in printed
    assert main(["runs", "list", "--wide", "--root", str(root)]) == 0
    head = capsys.readouterr().out.split("\n")[0].split()
    assert {"step", "seconds", "made", "crop_size", "backbone", "seg_mIoU"} <= set(head) and len(head) > 30


def test_an_empty_folder_has_no_columns_to_fit(tmp_path: Path) -> None:
    table = list_runs(tmp_path, everything=True)
    assert within(glance(table), 20)[0].empty and alike(table) == {}


def test_runs_of_one_data_set_and_protocol_are_alike(root: Path) -> None:
    make_run(root, "native", Config.preset("smoke").replace(eval_cam_size=64), cam=0.5)
    groups = {title: sorted(rows["run"]) for title, rows in alike(list_runs(root, everything=True)).items()}
    assert next(iter(groups.values())) == ["a-long-folder-of-many-runs/with-a-very-long-name-of-its-own", "plain"]
    assert sorted(map(len, groups.values())) == [1, 1, 1, 1, 2]
    assert set(groups) > {"toy shapes val, 9 images", "voc val, 4 images", "voc val"}
    assert any(title.startswith("toy shapes val, 4 images, ") and "eval_cam_size 64" in title for title in groups)


def test_the_plot_compares_like_with_like_and_says_so(root: Path) -> None:
    browser = RunBrowser(root)
    assert browser.among.options[0] == "toy shapes val, 4 images" and browser.among.options[-1] == ALL_RUNS
    assert (browser.metric.value, browser.parameter.value) == ("cam_mIoU", "w_ptc")
    assert browser.figure().axes[0].get_title().startswith("toy shapes val, 4 images: 2 runs, over 4 images;")
    browser.among.value = "voc val, 4 images"
    assert browser.parameter.options == ("seed",) and browser.figure().axes[0].get_title().startswith("voc val, 4 ima")
    browser.among.value = ALL_RUNS
    assert browser.figure().axes[0].get_title().startswith(f"{ALL_RUNS}: 4 runs, 1 run left out")


def test_a_plot_of_unlike_runs_says_so(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "p.html"
    command = ["runs", "plot", "cam_mIoU", "w_ptc", "--root", str(root), "--out", str(page)]
    assert main(command) == 0
    assert "of 3 data sets or protocols: choose one by --where" in capsys.readouterr().out
    assert main([*command, "--where", "dataset == 'toy' and scored_images == 4"]) == 0
    assert "protocols" not in capsys.readouterr().out and "toy shapes val, 4 images: 2 runs" in page.read_text()
