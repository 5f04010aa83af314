"""The page in a real browser: at every width, in both themes and on paper nothing is cut, pale or without a name."""

import json
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from helpers.browser import offline_page, running_browser
from helpers.finished_runs import make_gallery, make_run
from helpers.page_checks import cut_parts, nameless_parts, pale_texts

from toco_lab.evaluation.gallery import save_gallery
from toco_lab.reports.comparison import compare
from toco_lab.reports.export import NOTEBOOK, write_page
from toco_lab.reports.sections import Report

pytestmark = [pytest.mark.browser, pytest.mark.slow]
DRAWN = "() => [...document.querySelectorAll('.plotly-graph-div')].every((one) => one.querySelector('.main-svg'))"
LONG = "a_run_whose_name_somebody_made_from_all_of_its_settings_without_any_space"


def page_of(runs, out):
    """The notebook's cells with what they show, without a kernel, as a page."""
    report, cells = Report(compare(runs)), []
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        section = getattr(report, cell.id, None)
        if cell.cell_type == "code" and section:
            bundles = [part._repr_mimebundle_() for part in section()]
            made = [nbformat.v4.new_output("display_data", data=data, metadata=about) for data, about in bundles]
            cells.append(
                nbformat.v4.new_code_cell(
                    cell.source, outputs=list(map(nbformat.from_dict, json.loads(json.dumps(made))))
                )
            )
        elif cell.cell_type == "markdown":
            cells.append(cell)
    write_page(nbformat.v4.new_notebook(cells=cells), out, report.title)
    return out


def with_everything(run, level):
    """A gallery and threshold curves as well."""
    save_gallery(run, make_gallery(level), "0123456789ab")
    rows = [
        (target, split, split == "train", 100, one, level, one == 0.5, one == 0.3)
        for target in ("cam", "cam_aux")
        for split in ("train", "val")
        for one in (0.3, 0.4, 0.5)
    ]
    columns = "target split tuned_on images threshold miou configured chosen".split()
    run.write_table("thresholds", pd.DataFrame(rows, columns=columns))
    return run


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Two runs, one of an endless name, and two rows over five seeds."""
    root = tmp_path_factory.mktemp("pages")
    two = [make_run(root, level=0.6), make_run(root, name=LONG, level=0.45, w_ptc=0.0, w_ctc=0.0)]
    ten = [make_run(root, level=0.5, w_ptc=weight, seed=seed) for weight in (0.5, 1.0) for seed in range(5)]
    for run in (*two, *ten):
        with_everything(run, 0.5)
    return {"two": page_of(two, root / "two.html"), "ten": page_of(ten, root / "ten.html")}


@pytest.fixture(scope="module")
def browser():
    with running_browser() as started:
        yield started


def shown(browser, path: Path, width: int, scheme: str = "light"):
    return offline_page(browser, path, color_scheme=scheme, viewport={"width": width, "height": 900})


@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize("name", ["two", "ten"])
def test_nothing_is_cut_at_any_width(pages, browser, name, width):
    with shown(browser, pages[name], width) as tab:
        tab.wait_for_function(DRAWN, timeout=60_000)
        for part in tab.locator("main details").all():
            part.evaluate("part => { part.open = true; }")
        tab.wait_for_timeout(100)
        assert cut_parts(tab) == []


def test_a_window_that_becomes_narrow_is_filled_anew(pages, browser):
    with shown(browser, pages["two"], 1280) as tab:
        tab.wait_for_function(DRAWN, timeout=60_000)
        tab.set_viewport_size({"width": 390, "height": 900})
        tab.wait_for_function("() => [...document.querySelectorAll('.main-svg')].every((one) => one.clientWidth < 390)")
        assert cut_parts(tab) == []


def test_nothing_is_cut_on_paper(pages, browser):
    """A4 between margins of a centimetre is 718 pixels wide; what is folded is opened for it, and folded again."""
    with shown(browser, pages["two"], 1280, "dark") as tab:
        tab.wait_for_function(DRAWN, timeout=60_000)
        folded = tab.locator("main details:not([open])").count()
        tab.emulate_media(media="print")
        tab.evaluate("dispatchEvent(new Event('beforeprint'))")
        tab.set_viewport_size({"width": 718, "height": 1040})
        tab.wait_for_timeout(300)
        assert folded >= 2 and tab.locator("main details:not([open])").count() == 0
        assert cut_parts(tab) == [] and pale_texts(tab) == []
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert max(tab.locator(".plotly-graph-div").evaluate_all("all => all.map((one) => one.clientHeight)")) <= 1040
        tab.emulate_media(media="screen")
        tab.evaluate("dispatchEvent(new Event('afterprint'))")
        assert tab.locator("main details:not([open])").count() == folded


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read_and_everything_has_a_name(pages, browser, scheme):
    with shown(browser, pages["two"], 1280, scheme) as tab:
        tab.wait_for_function(DRAWN, timeout=60_000)
        assert pale_texts(tab) == [] and nameless_parts(tab) == []


def test_the_keyboard_passes_the_figures_by(pages, browser):
    with shown(browser, pages["two"], 1280) as tab:
        tab.wait_for_function(DRAWN, timeout=60_000)
        assert tab.locator(".modebar-btn").count() >= 8
        tab.locator("table.sortable th button").last.focus()
        for _ in range(12):
            tab.keyboard.press("Tab")
            assert "modebar" not in tab.evaluate("document.activeElement.className")


def test_a_panel_keeps_its_heading_where_panels_are_stacked(pages, browser):
    titles = """plot => {
        const inside = (box, x) => box.left <= x && x <= box.right, found = {};
        for (const one of plot.layout.annotations ?? []) {
            const number = Object.keys(plot._fullLayout._plots).map((key) => plot._fullLayout._plots[key])
                .find(({xaxis, yaxis}) => Math.abs(yaxis.domain[1] - one.y) < 1e-6
                    && inside({left: xaxis.domain[0], right: xaxis.domain[1]}, one.x));
            found[one.text] = plot.data.find((trace) => (trace.xaxis ?? "x") === number.xaxis._id).y.length;
        }
        return found;
    }"""
    found = []
    for width in (1280, 390):
        with shown(browser, pages["two"], width) as tab:
            tab.wait_for_function(DRAWN, timeout=60_000)
            plot = tab.locator("section, .output_area", has=tab.locator("[aria-label='Training curves']")).last
            found.append(plot.locator(".plotly-graph-div").evaluate(titles))
    assert len(found[0]) >= 4 and found[0] == found[1]


def test_the_checks_see_what_they_are_for(pages, browser):
    """A table that is cut, a text that is pale, a figure without a label, a button that uploads: each is found."""
    with shown(browser, pages["two"], 768) as tab:
        tab.wait_for_function(DRAWN, timeout=60_000)
        tab.evaluate("document.querySelector('.scroll table').style.setProperty('min-width', '2000px', 'important')")
        assert any("scroll 2000 >" in one for one in cut_parts(tab))
        tab.add_style_tag(content=".note{color:#999!important}.plot .main-svg text{fill:#bbb!important}")
        pale = pale_texts(tab)
        assert any(one.startswith("P ") for one in pale) and any(one.startswith("text ") for one in pale)
        tab.evaluate("document.querySelector('.plotly-graph-div').removeAttribute('aria-label')")
        tab.evaluate("document.querySelector('tbody th').removeAttribute('scope')")
        tab.evaluate("document.querySelector('.modebar-btn').dataset.title = 'Share chart'")
        said = " ".join(nameless_parts(tab))
        assert "figure without role" in said and "without scope" in said and "uploads" in said
