"""Panels in a page: cut out of the one picture, arranged by the width there is, described for who cannot see them."""

import base64
import io
import json

import numpy as np
import pytest
from helpers.browser import offline_page, running_browser
from PIL import Image

from toco_lab.explorers.panel_picture import PanelPicture
from toco_lab.explorers.panels import Panel, draw_panels

PAGE = """<!DOCTYPE html><html lang="en">
<head><meta charset="utf-8"><link rel="icon" href="data:,"><title>t</title></head>
<body style="margin:8px"><div id="here"></div><script type="module">{source}
const traits = {traits}, listeners = {{}};
traits.value = new DataView(Uint8Array.from(atob(traits.value), (letter) => letter.charCodeAt(0)).buffer);
export_default.render({{ model: {{ get: (name) => traits[name], on: (name, f) => (listeners[name] = f), off() {{}} }},
    el: document.getElementById("here") }});
</script></body></html>"""


def picture_of(runs: int, views: int) -> tuple[PanelPicture, list[np.ndarray]]:
    """Every panel is of one grey; the last view is shared. Returns the widget, and the colour of each panel."""
    image, greys = np.zeros((60, 80, 3), np.uint8), iter(range(20, 250, 15))
    rows = [
        [
            Panel(
                f"view {view}", np.full_like(image, next(greys)), note=f"note {run}", heading=f"run {run}",
                details="" if view else "measured",
            )
            if view < views - 1 or run == 0 else None
            for view in range(views)
        ]
        for run in range(runs)
    ]  # fmt: skip
    columns = min(views, 4)
    places = [panel for row in rows for panel in [*row, *[None] * (-views % columns)]]
    picture = PanelPicture()
    picture.show(draw_panels(image, places, columns=columns, side=290), rows, columns)
    return picture, [panel.array[0, 0, 0] for row in rows for panel in row if panel]


def test_the_places_of_panels_are_where_they_are_drawn():
    picture, greys = picture_of(2, 5)
    assert [(one["run"], one["view"], one["shared"]) for one in picture.panels] == [
        *((0, view, view == 4) for view in range(5)), *((1, view, False) for view in range(4)),
    ]  # fmt: skip
    pixels = np.asarray(Image.open(io.BytesIO(picture.value)))
    for one, grey in zip(picture.panels, greys, strict=True):
        left, top, width, height = one["box"]
        assert (width, height) == (240, 180)
        assert (pixels[top : top + height, left : left + width] == grey).all()
    assert picture.panels[1]["words"] == "run 0, view 1 (note 0)"
    assert picture.panels[0]["words"] == "run 0, view 0 (note 0; measured)"


@pytest.fixture(scope="module")
def browser():
    with running_browser() as browser:
        yield browser


@pytest.mark.browser
@pytest.mark.parametrize(
    ("runs", "views", "width", "expected"),
    [
        (1, 4, 1280, [[0, 1, 2, 3]]),
        (1, 4, 420, [[0, 1], [2, 3]]),
        (2, 4, 1280, [[0, 1, 2, 3], [4, 5, 6]]),
        (2, 4, 420, [[0, 4], [1, 5], [2, 6], [3]]),  # the runs beside each other, what they share below
        (2, 5, 1280, [[0, 5, 1, 6], [2, 7, 3, 8], [4]]),
        (1, 1, 420, [[0]]),
    ],
)
def test_panels_stand_in_as_many_columns_as_fit(browser, tmp_path, runs, views, width, expected):
    picture, greys = picture_of(runs, views)
    source = PanelPicture._esm if isinstance(PanelPicture._esm, str) else str(PanelPicture._esm)
    source = source.replace("export default", "const export_default =").replace("export function", "function")
    traits = {"value": base64.b64encode(picture.value).decode(), "panels": picture.panels, "legend": picture.legend}
    path = tmp_path / "page.html"
    path.write_text(PAGE.format(source=source, traits=json.dumps(traits)), encoding="utf-8")
    with offline_page(browser, path, viewport={"width": width, "height": 900}) as page:
        page.locator("canvas[role=img]").first.wait_for()
        drawn = page.locator("canvas[role=img]")
        assert drawn.count() == len(greys)
        boxes = [drawn.nth(i).bounding_box() for i in range(len(greys))]
        tops = sorted({round(box["y"]) for box in boxes})
        rows = [[i for i, box in enumerate(boxes) if round(box["y"]) == top] for top in tops]
        assert [sorted(row, key=lambda i: boxes[i]["x"]) for row in rows] == expected
        for i, grey in enumerate(greys):
            seen = drawn.nth(i).evaluate("c => [...c.getContext('2d').getImageData(120, 90, 1, 1).data]")
            assert seen == [grey, grey, grey, 255]
            assert drawn.nth(i).get_attribute("aria-label") == picture.panels[i]["words"]
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
        assert page.locator("figcaption").first.inner_text().split("\n") == ["run 0", "view 0", "note 0", "measured"]
