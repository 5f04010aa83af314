"""Token explorers on offline pages: the fragments of HTML, and their JavaScript driven in a real browser."""

import base64
import io
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from helpers.browser import offline_page, running_browser
from helpers.token_records import GRID, LAYERS, others, two_images, two_models
from PIL import Image

from toco_lab.explorers.browser_data import pack_for_browser
from toco_lab.explorers.token_explorer import MODULE, TokenExplorer, similarity_maps
from toco_lab.explorers.token_page import explorer_element_html, explorer_html
from toco_lab.tokens.token_maps import TokenMaps


@pytest.fixture(scope="module")
def maps() -> list[TokenMaps]:
    return two_models()


def minus(text: str) -> str:
    """With the minus sign a reader sees, and plain spaces."""
    return text.replace("-", "\N{MINUS SIGN}").replace("\xa0", " ")


# --- fragments of HTML ------------------------------------------------------------------------------------------------


class Scripts(HTMLParser):
    """Text of every script element, as a browser would split them."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.inside = [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append((dict(attrs).get("id"), ""))

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)


def test_the_module_is_embedded_unchanged_and_once(maps):
    page = explorer_html(maps, element_id="first") + explorer_element_html(maps[:2], "second", right=1)
    scripts = dict(Scripts(page).scripts)
    assert json.loads(scripts["token-explorer-module"]) == MODULE
    assert page.count("function mount") == 1
    meta, state = json.loads(scripts["first-meta"])
    assert meta["images"] == ["cat", "</script>dog"] and state == {}
    assert json.loads(scripts["second-meta"])[1] == {"right": 1}
    assert len(Scripts(page).scripts) == 2 + 3 + 3
    assert zlib.decompress(base64.b64decode(scripts["second-data"])) == pack_for_browser(maps[:2]).tokens


def test_bad_ids_and_states_are_refused(maps):
    with pytest.raises(ValueError, match="element_id must be"):
        explorer_html(maps, element_id='a"><script>')
    with pytest.raises(ValueError, match="unknown state rigth; there is image"):
        explorer_html(maps, rigth=1)


def test_the_module_asks_the_network_for_nothing():
    source = MODULE
    assert not re.search(r"\bimport\b[\s(]|\bfetch\(|XMLHttpRequest", source)
    assert set(re.findall(r"https?://[^\"' ]+", source)) == {"http://www.w3.org/2000/svg"}


# --- browser ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def page_file(maps, tmp_path_factory):
    """Two explorers on one page: both images with both models, and one model at one step."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    alone = replace(maps[3], image_name="alone")
    path.write_text(
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><link rel="icon" href="data:,"><title>t</title>'
        "</head><body>" + explorer_html(maps, element_id="first")
        + explorer_element_html([alone], "second", patch=0, layer=0) + "</body></html>",
        encoding="utf-8",
    )  # fmt: skip
    return path


@pytest.fixture
def page(browser, page_file):
    with offline_page(browser, page_file, viewport={"width": 1000, "height": 900}) as page:
        yield page


class Driver:
    """One explorer of a page."""

    def __init__(self, page, element_id="first"):
        self.page = page
        self.root = page.locator(f"#{element_id} .toco-token-explorer")
        self.root.wait_for()
        self.pictures = self.root.locator(".picture")

    def find(self, selector):
        return self.root.locator(selector)

    def state(self, **expected):
        """What is drawn, once it is as expected."""
        for _ in range(100):
            state = json.loads(self.root.get_attribute("data-state"))
            if all(state[key] == value for key, value in expected.items()):
                return state
            self.page.wait_for_timeout(20)
        raise AssertionError(f"{state} is not {expected}")

    def click(self, row, column, *, side=0, grid=GRID, action="click"):
        box = self.pictures.nth(side).bounding_box()
        place = {"x": box["width"] * (column + 0.5) / grid[1], "y": box["height"] * (row + 0.5) / grid[0]}
        getattr(self.pictures.nth(side), action)(position=place)

    def pixels(self, side=0) -> np.ndarray:
        """The map's canvas, (h, w, 3)."""
        data = (
            self.pictures.nth(side)
            .locator("canvas")
            .evaluate("c => [c.height, c.width, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
        )
        return np.array(data[2:]).reshape(data[0], data[1], 4)[..., :3]


def same_as_python(maps, state, driver) -> list:
    """Every number and colour on the page against the arrays of Python."""
    panels = similarity_maps(maps, state)
    for side, (name, panel) in enumerate(zip(("left", "right"), panels, strict=False)):
        values = others(panel)
        expected = {"minimum": values.min(), "mean": values.mean(), "maximum": values.max()}
        assert state["similarity"][name] == pytest.approx(expected, abs=1e-3)
        colours = matplotlib.colormaps["viridis"](panel["map"].astype(float).clip(0, 1))[..., :3] * 255
        assert np.abs(driver.pixels(side) - colours).max() < 5  # anchors of the scale are rounded
    return panels


@pytest.mark.browser
def test_a_click_draws_what_python_computes(page, maps):
    driver = Driver(page)
    state = driver.state(row=3, column=4, layer="final norm", step=20, left="a", right=None)  # seen at once
    same_as_python(maps, state, driver)
    driver.click(1, 6)
    state = driver.state(row=1, column=6, patch=14)
    (panel,) = same_as_python(maps, state, driver)
    assert panel["map"].min() < 0 < panel["map"].max()  # both ends of the scale were compared
    assert float(driver.root.get_attribute("data-draw-ms")) >= 0
    other = Driver(page, "second").state(image="alone", row=0, layer="block 1")  # untouched by the first
    assert other["left"] == "b"


@pytest.mark.browser
def test_drag_and_keys_move_the_patch_and_the_layer(page, maps):
    driver = Driver(page)
    box = driver.pictures.first.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.2, steps=3)
    driver.state(row=1, column=2)
    page.mouse.move(box["x"] + box["width"] * 3, box["y"] - 50)  # leaves the picture: the nearest patch
    driver.state(row=0, column=7)
    page.mouse.up()
    page.mouse.move(5, 5)
    driver.state(row=0, column=7)
    for key, expected in (
        ("ArrowUp", {"row": 0}),
        ("ArrowRight", {"column": 7}),
        ("ArrowDown", {"row": 1, "column": 7}),
        ("ArrowLeft", {"row": 1, "column": 6}),
        ("Home", {"layer": "block 1"}),
        ("PageDown", {"layer": "block 1"}),
        ("PageUp", {"layer": "block 2"}),
        ("]", {"layer": "block 3"}),
        ("[", {"layer": "block 2"}),
        ("End", {"layer": "final norm"}),
    ):
        driver.pictures.first.press(key)
        state = driver.state(**expected)
    same_as_python(maps, state, driver)
    driver.pictures.first.press("Home")
    driver.pictures.first.press("Space")
    seen = driver.find("button[aria-label='Pause through layers'], button[aria-label='Pause layers']")
    seen.wait_for()
    page.wait_for_function("state => !state.dataset.state.includes('\"block 1\"')", arg=driver.root.element_handle())
    driver.pictures.first.press("Space")
    driver.find("button[aria-label='Play through layers']").wait_for()
    rests = driver.state()["layer"]  # block 2, or a later one on a slow machine
    page.wait_for_timeout(900)
    assert driver.state()["layer"] == rests != "block 1"


@pytest.mark.browser
def test_sliders_plot_and_menus(page, maps):
    driver = Driver(page)
    layer, step = driver.find("label:has-text('Layer')"), driver.find("label:has-text('Training step')")
    assert layer.count() == step.count() == 1
    sliders = driver.find(".sliders input")
    sliders.nth(0).focus()
    page.keyboard.press("ArrowLeft")
    state = driver.state(layer="block 3", row=3, column=4)  # arrow keys belong to the slider now
    assert sliders.nth(0).get_attribute("aria-valuetext") == "block 3"
    same_as_python(maps, state, driver)
    sliders.nth(1).focus()
    page.keyboard.press("ArrowLeft")
    same_as_python(maps, driver.state(step=10), driver)
    driver.find(".plot rect.hit").nth(0).click()
    same_as_python(maps, driver.state(layer="block 1", step=10), driver)
    circles = driver.find(".plot circle")
    assert circles.count() == len(LAYERS)
    heights = [float(circles.nth(i).get_attribute("cy")) for i in range(4)]
    means = [others(similarity_maps(maps, driver.state() | {"layer": name})[0]).mean() for name in LAYERS]
    slope, offset = np.polyfit(np.clip(means, 0, 1), heights, 1)
    assert slope < 0 and np.allclose(slope * np.clip(means, 0, 1) + offset, heights, atol=0.5)
    driver.find(".thumbs button").nth(1).click()
    same_as_python(maps, driver.state(image="</script>dog", layer="block 1"), driver)
    second = Driver(page, "second")
    assert not second.find("label:has-text('Training step')").is_visible()  # one step, one image, one model
    assert not second.find(".head").is_visible()


@pytest.mark.browser
def test_two_models_side_by_side(page, maps):
    driver = Driver(page)
    driver.find("text=Compare").click()
    state = driver.state(left="a", right="b")
    _, right = same_as_python(maps, state, driver)
    assert right["title"] == "b, final norm, step 14"  # nearest to 20
    assert driver.find("figure .title").nth(1).inner_text().split("\n") == ["b", "final norm, step 14"]
    driver.click(4, 1, side=1)
    same_as_python(maps, driver.state(row=4, column=1), driver)
    driver.find(".thumbs button").nth(1).click()
    driver.state(image="</script>dog")
    driver.click(5, 11, side=1, grid=(12, 16))  # the finer grid of b
    _, right = same_as_python(maps, driver.state(row=2, column=5), driver)
    assert right["patch"] == (5, 11)
    driver.find("select").nth(0).select_option(label="b")
    driver.find("select").nth(1).select_option(label="a")
    state = driver.state(left="b", right="a")
    same_as_python(maps, state, driver)
    driver.find("text=Compare").click()
    driver.state(left="b", right=None)


@pytest.fixture(scope="module")
def images() -> list[TokenMaps]:
    return two_images()


@pytest.fixture
def pair_page(browser, images, tmp_path):
    path = tmp_path / "page.html"
    head = '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><link rel="icon" href="data:,"><title>t</title>'
    path.write_text(f"{head}</head><body>{explorer_html(images, element_id='first')}</body></html>", encoding="utf-8")
    with offline_page(browser, path, viewport={"width": 1000, "height": 900}) as page:
        yield page


@pytest.mark.browser
def test_a_patch_is_looked_for_in_a_second_image(pair_page, images):
    driver = Driver(pair_page)
    driver.state(other=None)
    driver.find("text=Compare").click()  # one model: the next image
    driver.click(1, 2)
    state = driver.state(image="cat", other="dog", asked=0, row=1, column=2, right=None)
    _, there = same_as_python(images, state, driver)
    row, column = there["patch"]
    best = minus(f"most alike: row {row + 1}, column {column + 1} ({there['map'].max():.2f})")
    pair_page.mouse.move(2, 2)
    assert minus(driver.find(".panels .readout").nth(1).inner_text()).startswith(best)
    assert [title.split("\n")[0] for title in driver.find("figure .title").all_inner_texts()] == ["cat", "dog"]
    driver.click(4, 5, side=1, grid=(5, 7))  # and the other way round
    state = driver.state(image="cat", other="dog", asked=1, row=4, column=5)
    same_as_python(images, state, driver)
    assert driver.find(".panels .mark").evaluate_all("all => all.map((n) => n.classList.contains('found'))") == [
        True,
        False,
    ]
    driver.pictures.nth(1).press("ArrowUp")
    same_as_python(images, driver.state(row=3, column=5), driver)
    driver.find(".sliders input").first.press("Home")
    same_as_python(images, driver.state(layer="block 1"), driver)
    circles = driver.find(".plot circle")
    heights = [
        float(circles.nth(i).get_attribute("cy")) for i in range(4)
    ]  # two layers of the first image, then of the second
    means = [
        others(similarity_maps(images, driver.state() | {"layer": layer})[side]).mean()
        for side in range(2) for layer in ("block 1", "final norm")
    ]  # fmt: skip
    slope, offset = np.polyfit(np.clip(means, 0, 1), heights, 1)
    assert slope < 0 and np.allclose(slope * np.clip(means, 0, 1) + offset, heights, atol=0.5)
    driver.find(".thumbs button").nth(1).click()  # the second one: they change places
    same_as_python(images, driver.state(image="dog", other="cat", asked=0, row=3, column=5), driver)
    driver.find("text=Compare").click()
    driver.state(image="dog", other=None)


@pytest.mark.browser
def test_images_that_were_not_kept_together_are_not_on_offer(browser, maps, tmp_path):
    path = tmp_path / "page.html"
    alone = [one for one in maps if one.model == "a"]
    path.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,">{explorer_html(alone, other=1)}',
        encoding="utf-8",
    )
    with offline_page(browser, path) as page:
        driver = Driver(page, "token-explorer")
        driver.state(other=None)
        button = driver.find("text=Compare")
        assert button.is_disabled() and "keep them again" in button.get_attribute("title")


def components(tokens: list[np.ndarray]) -> list[np.ndarray]:
    """The first three principal components of unit tokens as bytes, of all of them together: (N, 3) for each image."""
    pooled = np.concatenate(tokens)
    centred = pooled - pooled.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:3]
    axes *= np.sign(axes[np.arange(3), np.abs(axes).argmax(1)])[:, None]
    placed = centred @ axes.T
    place = np.sort(placed, axis=0)
    low, high = place[round(0.02 * (len(placed) - 1))], place[round(0.98 * (len(placed) - 1))]
    bytes_of = (255 * (placed - low) / (high - low)).clip(0, 255)
    return np.split(bytes_of, np.cumsum([len(one) for one in tokens])[:-1])


@pytest.mark.browser
def test_components_are_colours_of_each_image_or_of_all(pair_page, images):
    driver = Driver(pair_page)
    driver.find("text=Compare").click()
    unit = [one.tokens.unit_tokens(1, 1) for one in images]
    for show, expected in (
        ("colours", [components([one])[0] for one in unit]),
        ("shared colours", components(unit)),
    ):
        driver.find("label:has-text('Map') select").select_option(show)
        driver.state(show=show, other="dog", layer="final norm", step=10)
        for side, (colours, one) in enumerate(zip(expected, images, strict=True)):
            assert np.abs(driver.pixels(side) - colours.reshape(*one.grid, 3)).max() <= 1.5
        assert driver.find(".bar").evaluate("n => getComputedStyle(n).visibility") == "hidden"
    assert np.abs(expected[0] - components([unit[0]])[0]).max() > 20  # the two differ


@pytest.mark.browser
def test_lengths_are_shown_with_the_share_of_artifacts(pair_page, images):
    driver = Driver(pair_page)
    driver.find("label:has-text('Map') select").select_option("length")
    driver.find(".thumbs button").nth(1).click()
    driver.state(show="length", image="dog")
    lengths = images[1].tokens.token_lengths(1, 1)
    scaled = (np.log(lengths) - np.log(lengths.min())) / np.log(lengths.max() / lengths.min())
    colours = matplotlib.colormaps["viridis"](scaled.reshape(5, 7))[..., :3] * 255
    assert np.abs(driver.pixels() - colours).max() < 5
    pair_page.mouse.move(2, 2)
    told = driver.find(".readout").first.inner_text().replace("\xa0", " ")
    assert told.startswith(f"artifacts: {100 * 3 / 35:.1f} % of the tokens, longer than ")
    assert np.sort(lengths)[-4] < float(told.split()[-1]) < np.sort(lengths)[-3]
    assert driver.find(".plot text").first.inner_html() == "share of artifact tokens, by layer"
    heights = [float(driver.find(".plot circle").nth(i).get_attribute("cy")) for i in range(2)]
    assert heights[1] < heights[0]  # none after the first block
    assert driver.find(".gradient span").last.inner_text() == f"{lengths.max():.3g}"
    driver.click(0, 0, grid=(5, 7), action="hover")
    assert driver.find(".readout").first.inner_text() == f"row 1, column 1: length {lengths[0]:.3g}"
    driver.find(".thumbs button").nth(0).click()
    pair_page.mouse.move(2, 2)
    driver.state(image="cat")
    assert driver.find(".readout").first.inner_text() == "no artifacts: the lengths have one mode"


@pytest.mark.browser
def test_readout_follows_the_pointer_in_both_panels(page, maps):
    driver = Driver(page)
    driver.find("text=Compare").click()
    state = driver.state(right="b")
    driver.find(".sliders input").first.press("Home")
    state = driver.state(layer="block 1")
    left, right = similarity_maps(maps, state)
    for row, column in (np.argwhere(left["map"] < -0.2)[0], np.argwhere(left["map"] > 0.2)[0]):
        driver.click(row, column, action="hover")
        for side, panel in enumerate((left, right)):
            value = panel["map"][row, column]
            shown = minus(f"row {row + 1}, column {column + 1}: {value:.2f}")
            shown += " (negative: below the colour scale)" * bool(value < 0)
            assert driver.find(".panels .readout").nth(side).inner_text() == shown
    page.mouse.move(2, 2)
    share = 100 * (others(left) > 0.8).mean()
    assert minus(driver.find(".readout").nth(0).inner_text()) == minus(
        f"mean {others(left).mean():.2f} · {share:.0f} % of the other patches above 0.8"
    )


@pytest.mark.browser
def test_scale_opacity_and_error_are_named(page, maps):
    driver = Driver(page)
    assert [text.strip() for text in driver.find(".gradient span").all_inner_texts()] == [
        "1.0", "0.8", "0.6", "0.4", "0.2", "≤ 0.0",
    ][::-1]  # fmt: skip
    one = maps[0].tokens
    note = (
        f"Largest error against full precision {one.error:.3f}; tokens projected to {one.widths[2, 3]} of 24 dimensions"
    )
    assert note in driver.find(".small").first.inner_text()
    driver.find("select").last.select_option("signed")
    driver.find(".gradient span").get_by_text(minus("-1.0")).wait_for()
    (panel,) = similarity_maps(maps, driver.state())
    colours = matplotlib.colormaps["RdBu_r"](panel["map"].astype(float) / 2 + 0.5)[..., :3] * 255
    assert np.abs(driver.pixels() - colours).max() < 7
    driver.find("input[type=range]").last.fill("1")
    driver.find("input[type=checkbox]").check()
    style = driver.find(".picture canvas").first.evaluate("c => [c.style.opacity, getComputedStyle(c).imageRendering]")
    assert style == ["1", "auto"]
    driver.find("input[type=checkbox]").uncheck()
    shot = np.asarray(Image.open(io.BytesIO(driver.pictures.first.screenshot())).convert("RGB")).astype(float)
    for row, column in ((0, 0), (5, 7), (2, 6)):  # far from the chosen patch, seen through the browser's own enlarging
        seen = shot[int((row + 0.5) / 6 * shot.shape[0]), int((column + 0.5) / 8 * shot.shape[1])]
        assert np.abs(seen - driver.pixels()[row, column]).max() <= 2


@pytest.mark.browser
def test_words_and_labels_for_readers_who_do_not_see_it(page, maps):
    driver = Driver(page)
    words = driver.find("[aria-live=polite]")
    driver.click(0, 2)
    (panel,) = similarity_maps(maps, driver.state(row=0, column=2))
    values = others(panel)
    page.wait_for_function(
        "([root]) => root.shadowRoot.querySelector('.words').textContent.includes('row 1 of 6, column 3 of 8')",
        arg=[driver.root.element_handle()],
    )
    text = minus(words.inner_text())
    assert text.startswith("Image cat, patch in row 1 of 6, column 3 of 8. a, final norm, step 20: mean similarity ")
    assert f"mean similarity {values.mean():.2f} ({values.min():.2f} to {values.max():.2f})" in text.replace(
        minus("-"), "-"
    )
    assert f"above 0.8 for {100 * (values > 0.8).mean():.0f} % of the other patches" in text
    names = [["top left", "top", "top right"], ["left", "centre", "right"], ["bottom left", "bottom", "bottom right"]]
    region = {}
    for row, column in np.ndindex(*GRID):
        if (row, column) != (0, 2):
            region.setdefault(names[row * 3 // 6][column * 3 // 8], []).append(panel["map"][row, column])
    best = max(region, key=lambda name: np.mean(region[name]))
    assert f"most alike {best} ({np.mean(region[best]):.2f})" in text
    for control in driver.find("input, select, button, [tabindex='0'], svg").all():
        named = control.evaluate(
            "n => n.getAttribute('aria-label') || n.labels?.[0]?.textContent || n.textContent"
            " || n.querySelector('img')?.alt"
        )
        assert named and named.strip(), control.evaluate("n => n.outerHTML")
    picture = driver.pictures.first
    assert "Image cat, similarity of patches in a" in picture.get_attribute("aria-label")
    picture.press("ArrowDown")
    assert picture.evaluate("n => getComputedStyle(n).outlineWidth") == "3px"  # the focus is seen


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)` (WCAG 2)."""
    channels = np.array([float(value) / 255 for value in re.findall(r"[\d.]+", colour)[:3]])
    return float(
        np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    )


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_schemes_and_on_a_narrow_page(browser, page_file, scheme):
    size = {"width": 340, "height": 700}
    with offline_page(browser, page_file, color_scheme=scheme, reduced_motion="reduce", viewport=size) as page:
        driver = Driver(page)
        driver.state(row=3)
        ground = luminance(driver.find(".app").evaluate("n => getComputedStyle(n).backgroundColor"))
        assert (ground < 0.1) == (scheme == "dark")
        for selector in (".words", ".small", ".readout", "label"):
            ink = luminance(driver.find(selector).first.evaluate("n => getComputedStyle(n).color"))
            assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) > 4.5, selector
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
        driver.find("text=Compare").click()
        driver.state(right="b")
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
        assert driver.pictures.nth(1).bounding_box()["width"] > 150


@pytest.mark.browser
def test_saved_files(page, maps):
    driver = Driver(page)
    driver.find("text=Compare").click()
    driver.click(2, 3)
    state = driver.state(row=2, column=3, right="b")
    with page.expect_download() as download:
        driver.find("text=Save selection").click()
    assert download.value.suggested_filename == "tokens_a_b_cat_r2_c3_final_norm_step_20.json"
    saved = json.loads(download.value.path().read_text())
    assert saved == state
    explorer = TokenExplorer(maps, patch=(2, 3), right="b")
    assert {key: saved[key] for key in saved if key != "similarity"} == {
        key: value for key, value in explorer.selection.items() if key != "similarity"
    }
    for shown, expected in zip(explorer.similarity_maps(saved), explorer.similarity_maps(), strict=True):
        assert shown["title"] == expected["title"] and np.array_equal(shown["map"], expected["map"])
    driver.find("input[type=range]").last.fill("1")
    with page.expect_download() as download:
        driver.find("text=Save PNG").click()
    assert download.value.suggested_filename == "tokens_a_b_cat_r2_c3_final_norm_step_20.png"
    picture = Image.open(download.value.path())
    assert picture.format == "PNG"
    left, right = (panel["map"].astype(float) for panel in explorer.similarity_maps())
    for start, values in ((28, left), (28 + 640 + 28, right)):  # each panel is 640 pixels wide, 480 high
        seen = picture.convert("RGB").getpixel((start + int(640 * 7.5 / 8), 64 + int(480 * 5.5 / 6)))
        wanted = np.array(matplotlib.colormaps["viridis"](values[5, 7].clip(0, 1))[:3]) * 255
        assert np.abs(np.array(seen) - wanted).max() < 6


@pytest.mark.browser
def test_traits_drive_the_picture_and_removal_leaves_nothing(page, maps):
    Driver(page).state()
    states = page.evaluate(
        """async (changes) => {
            const {mount} = await tokenExplorer, element = document.createElement("div");
            const meta = JSON.parse(document.getElementById("first-meta").textContent)[0];
            const letters = atob(document.getElementById("first-data").textContent);
            const packed = new Blob([Uint8Array.from(letters, (letter) => letter.charCodeAt(0))]);
            const stream = packed.stream().pipeThrough(new DecompressionStream("deflate"));
            const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
            const shifted = new DataView(new Uint8Array([1, 2, 3, ...bytes]).buffer, 3);  // as a kernel sends it
            const {model, remove} = mount(element, meta, shifted);
            document.body.append(element);  // a notebook attaches after rendering
            let saves = 0;
            model.save_changes = () => { saves += 1; };
            const seen = () => JSON.parse(element.firstChild.dataset.state), states = [];
            for (const [name, value] of changes) {
                model.set(name, value);
                states.push(seen());
            }
            const last = model.get("selection");
            await new Promise((done) => setTimeout(done, 400));
            remove();
            model.set("patch", 0);
            return {states, last, saves, left: element.childNodes.length, selection: model.get("selection")};
        }""",
        [["layer", 1], ["patch", 5], ["step", 12], ["right", 1], ["patch", 999], ["image", 1]],
    )
    seen = states["states"]
    assert [state["layer"] for state in seen] == ["block 2"] * 6
    assert [state["patch"] for state in seen] == [28, 5, 5, 5, 28, 28]  # none and one that is not there: the centre
    assert [state["step"] for state in seen] == [20, 20, 10, 10, 10, 10]
    assert [state["right"] for state in seen] == [None, None, None, "b", "b", "b"]
    assert states["last"] == seen[-1] == states["selection"]  # nothing is drawn after the removal
    assert states["saves"] == 1  # a kernel hears of many changes at once
    assert states["left"] == 0
    values = others(similarity_maps(maps, seen[1])[0])
    assert seen[1]["similarity"]["left"]["mean"] == pytest.approx(values.mean(), abs=1e-3)
