"""The explorer notebooks in JupyterLab, as a person uses them: run all, click, slide, and look what the kernel knows.

Nothing here waits for "a change": each step waits for the value it must end with.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import papermill
import pytest
from helpers.browser import running_browser
from helpers.jupyter import IN_KERNEL, PATIENCE, executed, jupyter_lab, until
from PIL import Image

from toco_lab.data.toy import make_scene
from toco_lab.explorers.cam_explorer import CamExplorer
from toco_lab.runs.run_dir import RunDir
from toco_lab.tokens.token_maps import load_run_maps

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, smoke_run: RunDir) -> Iterator[tuple]:
    """(browser, address, folder): the folder holds copies of the smoke run and of the explorer notebooks set to it."""
    folder = tmp_path_factory.mktemp("lab")
    run = shutil.copytree(smoke_run.path, folder / "runs" / smoke_run.name)  # notebooks write into their run
    parameters = {"preset": "smoke", "run_dir": str(run)}
    for name, more in (("01_cam_explorer", {}), ("05_over_smoothing", {"num_images": 2, "num_train": 4})):
        source, copy = (str(where / f"{name}.ipynb") for where in (ROOT / "notebooks", folder))
        papermill.execute_notebook(source, copy, parameters | more, prepare_only=True, progress_bar=False)
    with jupyter_lab(folder) as address, running_browser() as browser:
        yield browser, address, folder


def drawn(page, **wanted) -> dict:
    """What the token explorer shows, once it shows what is wanted."""
    page.wait_for_function(
        """(wanted) => {
            const text = document.querySelector(".toco-token-explorer")?.dataset.state;
            const state = text ? JSON.parse(text) : {};
            return Object.entries(wanted).every(([key, value]) => state[key] === value);
        }""",
        arg=wanted,
    )
    return json.loads(page.locator(".toco-token-explorer").get_attribute("data-state"))


def mean_to_others(maps, step: int, layer: int, patch: int) -> float:
    return float(np.delete(maps.tokens.similarity(step, layer, patch), patch).mean())


def test_the_token_explorer_follows_mouse_keys_and_kernel(lab: tuple, smoke_run: RunDir) -> None:
    maps = load_run_maps(smoke_run)[0]
    h, w = maps.grid
    with executed(lab, "05_over_smoothing") as page:
        explorer = page.locator(".toco-token-explorer")
        explorer.wait_for()
        explorer.scroll_into_view_if_needed()
        picture = explorer.locator(".picture").first
        box = picture.bounding_box()
        picture.click(position={"x": box["width"] * 3.5 / w, "y": box["height"] * 2.5 / h})
        state = drawn(page, row=2, column=3, layer="final norm", step=4)
        assert state["similarity"]["left"]["mean"] == pytest.approx(mean_to_others(maps, 2, 4, 2 * w + 3), abs=1e-3)

        explorer.locator("input[type=range]").first.focus()
        page.keyboard.press("Home")
        state = drawn(page, row=2, column=3, layer="block 1")
        assert state["similarity"]["left"]["mean"] == pytest.approx(mean_to_others(maps, 2, 0, 2 * w + 3), abs=1e-3)

        picture.focus()
        page.keyboard.press("ArrowRight")
        drawn(page, row=2, column=4, layer="block 1")
        deadline = time.monotonic() + PATIENCE / 1000
        code = "print(explorer.selection['row'], explorer.selection['column'], explorer.selection['layer'])"
        while (said := page.evaluate(IN_KERNEL, code).strip()) != "2 4 block 1":  # behind the cells still running
            assert time.monotonic() < deadline, said

        picture.focus()
        for _ in range(6):  # each press comes just when the kernel answers the one before, and none may be lost
            page.keyboard.press("ArrowRight")
            page.wait_for_timeout(155)
        drawn(page, row=2, column=10)

        page.evaluate(IN_KERNEL, "explorer.select(5, 6, layer='block 3', step=0)")  # and the way back
        state = drawn(page, row=5, column=6, layer="block 3", step=0)
        assert state["similarity"]["left"]["mean"] == pytest.approx(mean_to_others(maps, 0, 2, 5 * w + 6), abs=1e-3)


SHOWN = """async () => {  // SHA-256 of the picture in the page
    const image = document.querySelector(".jp-OutputArea .toco-panels img");
    if (!image?.src) return "";
    const bytes = await (await fetch(image.src)).arrayBuffer();
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}"""

RECORD_COMMANDS = """() => {
    window.commandsRun = [];
    window.jupyterapp.commands.commandExecuted.connect((_, { id }) => window.commandsRun.push(id));
}"""


def test_the_cam_explorer_follows_a_slider_and_takes_an_upload(lab: tuple, smoke_run: RunDir, tmp_path: Path) -> None:
    local = CamExplorer(smoke_run, num_images=24)  # the same explorer without a browser: what must be seen

    def seen_at(settings: dict) -> str:
        local.apply(settings)
        return hashlib.sha256(local.picture.value).hexdigest()

    def settings() -> dict:
        return json.loads(page.evaluate(IN_KERNEL, "import json; print(json.dumps(explorer.settings()))"))

    with executed(lab, "01_cam_explorer") as page:
        page.locator(".toco-panels canvas").first.wait_for()
        before = settings()  # answered behind all cells, which move the widget as well
        until(page, lambda: page.evaluate(SHOWN), seen_at(before))

        page.locator(".widget-slider", has_text="low").locator(".noUi-handle").focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        until(page, lambda: round(settings()["low"] - before["low"], 2), 0.03)
        until(page, lambda: page.evaluate(SHOWN), seen_at(before | {"low": settings()["low"]}))

        cells = page.locator(".jp-Cell").count()
        page.keyboard.press("b")  # JupyterLab's "a new cell below"; the slider still has the focus
        page.keyboard.press("ArrowRight")
        settings()  # a round trip: whatever the keys did is in the page
        assert page.locator(".jp-Cell").count() == cells
        until(page, lambda: round(settings()["low"] - before["low"], 2), 0.04)
        page.evaluate(RECORD_COMMANDS)
        page.keyboard.press("Control+s")  # but keys with a modifier are JupyterLab's
        page.wait_for_function("() => window.commandsRun.includes('docmanager:save')")

        page.get_by_role("button", name="CAM label", exact=True).click()
        wanted = before | {"low": settings()["low"], "views": [*before["views"], "CAM label"]}
        until(page, lambda: page.evaluate(SHOWN), seen_at(wanted))

        photograph = tmp_path / "mine.png"
        Image.fromarray(make_scene(7, 1).image).save(photograph)
        with page.expect_file_chooser() as chooser:
            page.locator("button.widget-upload").click()
        chooser.value.set_files(photograph)
        until(page, lambda: settings()["image"], "upload 1: mine.png")
        page.locator("text=predicted by the model, for nobody gave them").wait_for()
        content = photograph.read_bytes()
        file = {"name": "mine.png", "type": "image/png", "size": len(content), "content": memoryview(content)}
        local.upload.value = (file | {"last_modified": datetime(2024, 1, 1, tzinfo=UTC)},)
        until(page, lambda: page.evaluate(SHOWN), seen_at(settings()))
