"""What the guard of a box of controls does in a page, on the elements that ipywidgets makes."""

import pytest
from helpers.browser import offline_page, running_browser

from toco_lab.explorers.controls import KeyboardGuard

PAGE = """<!DOCTYPE html><html lang="en">
<head><meta charset="utf-8"><link rel="icon" href="data:,"><title>t</title></head><body><div id="box">
<div class="widget-slider"><label class="widget-label">low</label><div role="slider" tabindex="0">o</div></div>
<button class="widget-toggle-button mod-active">CAM</button><button class="widget-toggle-button">truth</button></div>
<button id="outside">x</button><script type="module">{source}
const el = document.createElement("div");
window.end = guard.render({{ el }});
document.getElementById("box").append(el);
</script></body></html>"""


@pytest.mark.browser
def test_sliders_have_names_and_toggle_buttons_a_state(tmp_path):
    path = tmp_path / "page.html"
    source = KeyboardGuard._esm.replace("export default", "const guard =")
    path.write_text(PAGE.format(source=source), encoding="utf-8")
    with running_browser() as browser, offline_page(browser, path) as page:
        page.locator("[role=slider][aria-label=low]").wait_for()
        pressed = page.locator(".widget-toggle-button[aria-pressed=true]")
        assert pressed.all_inner_texts() == ["CAM"]
        page.locator("text=truth").evaluate("node => node.classList.add('mod-active')")
        page.locator("[aria-pressed=true]", has_text="truth").wait_for()
        kept_away = "node => node.hasAttribute('data-lm-suppress-shortcuts')"
        for place, key, expected in (("[role=slider]", "b", True), ("[role=slider]", "Control+s", False)):
            page.locator(place).press(key)
            assert page.locator(place).evaluate(kept_away) == expected
        page.locator("#outside").press("b")
        assert not page.locator("#outside").evaluate(kept_away)
        page.evaluate("window.end()")
        page.locator("[role=slider]").press("b")
        assert not page.locator("[role=slider]").evaluate(kept_away)
