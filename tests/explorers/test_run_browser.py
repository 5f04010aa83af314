"""The run browser: first without a browser (set a control, read what is shown), then in JupyterLab."""

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest
from helpers.browser import running_browser
from helpers.jupyter import IN_KERNEL, PATIENCE, executed, jupyter_lab, until
from PIL import Image

from toco_lab.config import Config
from toco_lab.explorers.run_browser import NO_COLOUR, TABS, RunBrowser
from toco_lab.runs.run_dir import RunDir

ROOT = Path(__file__).resolve().parents[2]


def make_run(folder: Path, name: str, score: float | None = None, **changes) -> RunDir:
    cfg = Config.preset("smoke").replace(**changes)
    run = RunDir.create(cfg, folder, name=name)
    run.set_status("done", step=4)
    if score is not None:
        run.write_table("evaluation", pd.DataFrame({"target": ["cam"], "class": ["mIoU"], "iou": [score]}))
    return run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_run(tmp_path, "plain", 0.25, w_ptc=0.0)
    make_run(tmp_path / "demo", "contrast", 0.75, w_ptc=0.5)
    make_run(tmp_path / "demo", "unscored", w_ptc=0.5, seed=1)
    return tmp_path


def text(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_shows_every_run_with_scores_and_what_differs(root):
    browser = RunBrowser(root)
    assert browser.message.value == ""
    assert browser.picker.options == ("demo/contrast", "demo/unscored", "plain")
    assert list(browser.overview().columns) == "run state step seconds made seed w_ptc cam_mIoU".split()
    assert re.search(r"demo/contrast done 4 0 \S+ \S+ 0 0.5 0.75 demo/unscored", text(browser.listing.value))
    assert browser.tabs.titles == TABS


def test_the_filter_and_the_order(root):
    browser = RunBrowser(root, where="w_ptc > 0")
    assert browser.picker.options == ("demo/contrast", "demo/unscored")
    browser.where.value = 'cam_mIoU > 0 and "e" in preset_name'  # a field that is the same everywhere
    assert browser.picker.options == ("demo/contrast", "plain")
    browser.where.value = ""
    browser.sort.value = "cam_mIoU"
    assert browser.picker.options == ("plain", "demo/contrast", "demo/unscored")
    browser.descending.value = True
    assert browser.picker.options == ("demo/contrast", "plain", "demo/unscored")


def test_a_bad_filter_is_said_and_changes_nothing(root):
    browser = RunBrowser(root, where="w_ptc > 0")
    browser.picker.value = ("demo/contrast",)
    browser.where.value = "w_pct < 1"
    assert "no column &#x27;w_pct&#x27;, did you mean &#x27;w_ptc&#x27;" in browser.message.value
    assert browser.picker.options == ("demo/contrast", "demo/unscored")
    assert browser.picker.value == ("demo/contrast",)
    browser.where.value = ""
    assert browser.message.value == "" and len(browser.picker.options) == 3
    assert browser.picker.value == ("demo/contrast",)  # kept


def test_chosen_runs_are_marked_and_compared(root):
    browser = RunBrowser(root)
    assert "Choose runs" in browser.comparison.value
    browser.picker.value = ("plain", "demo/contrast")
    shown = text(browser.comparison.value)
    assert shown.startswith("plain demo/contrast w_ptc 0 0.5 state done done cam_mIoU 0.25 0.75")
    assert browser.listing.value.count("<tr style=") == 2


def test_the_plot_follows_its_menus(root):
    browser = RunBrowser(root)
    assert (browser.metric.value, browser.parameter.value) == ("cam_mIoU", "w_ptc")
    axes = browser.figure().axes[0]
    points = np.concatenate([line.get_xydata() for line in axes.lines if line.get_marker() == "o"])
    assert points.tolist() == [[0, 0.25], [0.5, 0.75]]
    assert axes.get_title().startswith("toy shapes val: 2 runs, 1 run left out without a value")
    before = browser.picture.value
    browser.metric.value = "step"
    browser.colour.value = "seed"
    assert browser.picture.value != before and np.asarray(Image.open(io.BytesIO(browser.picture.value))).std() > 10
    assert browser.figure().axes[0].get_ylabel() == "step"
    browser.where.value = '"plain" in run'  # nothing differs any more
    assert browser.parameter.options == ("seed",) and browser.colour.value == "seed"
    assert browser.colour.options == (NO_COLOUR, "seed") and browser.message.value == ""


def test_files_of_the_first_chosen_run_and_its_figures(root, monkeypatch):
    run = RunDir(root / "plain")
    for name in ("figures/a b.png", "notebooks/04_evaluate.ipynb", "checkpoints/step_00000004.pt"):
        path = run.path / name
        path.parent.mkdir()
        path.write_bytes(b"12345")
    (run.path / "figures" / "curve.json").write_text('{"data": [], "layout": {}}')
    monkeypatch.chdir(root / "demo")
    browser = RunBrowser(root)
    browser.picker.value = ("plain",)
    shown = browser.files.outputs[0]["data"]["text/html"]
    assert '<a href="../plain/figures/a%20b.png">a b.png</a></td><td>5 bytes' in shown
    assert "../plain/notebooks/04_evaluate.ipynb" in shown
    assert "<td>step_00000004.pt</td>" in shown  # nothing to look at: no link
    assert [name for name, _ in browser.figure_picker.options[1:]] == ["a b.png", "curve.json"]
    browser.figure_picker.index = 1
    assert browser.figure_area.outputs[0]["data"] == {"image/png": "MTIzNDU="}
    browser.figure_picker.index = 2
    (shown,) = browser.figure_area.outputs[0]["data"].values()
    assert shown.pop("config")["showSendToCloud"] is False and shown == {"data": [], "layout": {}}
    (run.path / "figures" / "curve.json").write_text("{")
    browser.figure_picker.index = 0
    assert browser.figure_area.outputs == ()
    browser.figure_picker.index = 2
    assert "showing a figure failed" in browser.message.value
    browser.picker.value = ()
    assert "Nothing to open" in browser.files.outputs[0]["data"]["text/html"]


def test_deletion_takes_two_steps(root):
    browser = RunBrowser(root)
    browser.delete_button.click()
    assert "choose the runs in the list first" in browser.message.value
    browser.picker.value = ("plain",)
    browser.delete_button.click()
    assert "plain: done, step 4" in browser.notice.value and "0 checkpoints" in browser.notice.value
    assert browser.confirm_button.description == "Yes, delete 1 run"
    assert browser.confirmation.layout.display == "" and (root / "plain").is_dir()
    browser.picker.value = ("plain", "demo/contrast")  # others: asked anew
    assert browser.confirmation.layout.display == "none"
    browser.confirm_button.click()
    assert (root / "plain").is_dir()
    browser.delete_button.click()
    browser.cancel_button.click()
    browser.confirm_button.click()
    assert (root / "plain").is_dir()
    browser.delete_button.click()
    browser.confirm_button.click()
    assert "deleted 2 runs: plain, demo/contrast" in browser.message.value
    assert browser.picker.options == ("demo/unscored",)
    assert sorted(path.name for path in root.rglob("*") if path.is_dir()) == ["demo", "unscored"]


def test_a_run_in_use_is_not_deleted(root):
    run = RunDir(root / "plain")
    run.set_status("running")
    run.write_json("env", [])
    (run.path / "env.json").unlink()  # who is at work is not known, and it was written to just now
    browser = RunBrowser(root)
    browser.picker.value = ("plain", "demo/contrast")
    browser.delete_button.click()
    assert "plain is in use" in browser.message.value
    browser.confirm_button.click()
    assert run.path.is_dir() and (root / "demo/contrast").is_dir()


def test_what_became_of_a_run_meanwhile_is_seen_on_reload(root):
    browser = RunBrowser(root)
    shutil.rmtree(root / "plain")
    browser.picker.value = ("plain",)
    assert "no config.json" in browser.message.value
    browser.reload_button.click()
    assert browser.picker.options == ("demo/contrast", "demo/unscored") and browser.message.value == ""


def test_damaged_runs_and_odd_names_are_shown_as_text(root):
    (root / "plain" / "config.json").write_text("<b>{")
    (root / "demo").rename(root / "<i>")
    browser = RunBrowser(root)
    assert "<b>" not in browser.listing.value and "<i>" not in browser.listing.value
    assert "plain unreadable" in text(browser.listing.value) and re.search(
        "can ?not be read", text(browser.listing.value)
    )
    browser.picker.value = browser.picker.options
    assert browser.message.value == "" and "<i>" not in browser.comparison.value + str(browser.files.outputs)


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_without_runs(tmp_path, made):
    browser = RunBrowser(tmp_path if made else tmp_path / "absent")
    assert "there are no runs below" in browser.message.value
    assert browser.overview().empty
    assert [one.get_text() for one in browser.figure().axes[0].texts] == ["no run has values of both"]


def test_tooltips_are_on_widgets_with_a_description_only(root):
    """Any other is replaced by "Click to show javascript error" in the browser."""
    found = [RunBrowser(root)]
    for widget in found:
        found += getattr(widget, "children", ())
    described = [widget for widget in found if getattr(widget, "tooltip", None)]
    assert len(described) > 10 and all(widget.description for widget in described)


# --- in JupyterLab ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, smoke_run: RunDir) -> Iterator[tuple]:
    """(browser, address, folder): the folder holds the notebook and, below `runs`, two runs."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(smoke_run.path, folder / "runs/trained")
    figures = folder / "runs/trained/figures"
    figures.mkdir(exist_ok=True)
    Image.new("RGB", (40, 30), "green").save(figures / "square.png")
    make_run(folder / "runs/others", "worse", 0.01, w_ptc=0.0)
    source, copy = str(ROOT / "notebooks/07_runs.ipynb"), str(folder / "07_runs.ipynb")
    parameters = {"preset": "smoke", "run_dir": str(folder / "scratch/run"), "root": "runs"}
    papermill.execute_notebook(source, copy, parameters, prepare_only=True, progress_bar=False)
    with jupyter_lab(folder) as address, running_browser() as browser:
        yield browser, address, folder


@pytest.mark.slow
@pytest.mark.browser
def test_choose_open_and_delete_in_jupyterlab(lab: tuple) -> None:
    folder = lab[2]

    def in_kernel(code: str) -> str:
        return page.evaluate(IN_KERNEL, code).strip()

    def tab(name: str) -> None:
        page.get_by_role("tab", name=name, exact=True).click()

    with executed(lab, "07_runs") as page:
        cells = page.locator(".jp-Notebook .jp-Cell")
        picker = page.locator("select[multiple]")
        picker.wait_for()
        until(page, lambda: in_kernel("print(browser.picker.options)"), "('others/worse', 'trained')")
        count = cells.count()
        picker.select_option("others/worse")
        picker.focus()
        page.keyboard.press("b")  # in JupyterLab: a new cell below
        page.keyboard.press("ArrowDown")
        until(page, lambda: in_kernel("print(browser.picker.value)"), "('trained',)")
        assert cells.count() == count

        tab("Open")
        page.get_by_role("link", name="square.png").click()
        page.locator(".jp-ImageViewer img").wait_for()
        page.evaluate("() => window.jupyterapp.commands.execute('application:close')")
        page.locator(".jp-ImageViewer").wait_for(state="detached")

        page.locator(".widget-text input").fill("w_ptc == 0")
        page.keyboard.press("Enter")
        until(page, lambda: in_kernel("print(browser.picker.options)"), "('others/worse',)")
        picker.select_option("others/worse")
        tab("Delete")
        page.get_by_role("button", name="Delete chosen runs").click()
        page.get_by_text("worse: done, step 4").wait_for()
        page.get_by_role("button", name="Yes, delete 1 run").click()
        page.get_by_text("deleted 1 run: others/worse").wait_for(timeout=PATIENCE)
        assert not (folder / "runs/others/worse").exists() and json.loads(
            (folder / "runs/trained/config.json").read_text()
        )
