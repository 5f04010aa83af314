"""The notebook executed and exported: read back as HTML and Markdown, and driven in a real browser."""

import base64
import csv
import gzip
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from helpers.browser import offline_page, running_browser
from helpers.finished_runs import make_gallery, make_run
from helpers.page_checks import cut_parts
from PIL import Image
from plotly.offline import get_plotlyjs

from toco_lab.evaluation.gallery import save_gallery
from toco_lab.reports.export import build_report, plot_html
from toco_lab.reports.parts import DPI
from toco_lab.runs.run_dir import RunDir
from toco_lab.tokens.token_maps import load_run_maps, load_token_maps, save_token_maps

HEADINGS = (
    "What was found",
    "Where the runs look",
    "Tokens to click on",
    "The runs",
    "Rows compared",
    "Results",
    "Training",
    "IoU per class",
    "Similarity of tokens per layer",
    "CAM quality and all metrics per layer",
    "Pictures",
    "Environment",
    "How to repeat this",
)
EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Tags with attributes, and the text outside of scripts and styles."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.words, self.inside = [], [], None
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag if tag in ("script", "style") else self.inside

    def handle_endtag(self, tag):
        self.inside = None if tag == self.inside else self.inside

    def handle_data(self, data):
        if self.inside is None:
            self.words.append(data)


def layer_quality():
    """mIoU of the CAM of two layers, at one threshold."""
    import pandas as pd

    columns = ["site", "layer", "threshold", "miou", "own", "best", "images", "trained_on"]
    rows = [("after block", layer, 0.5, layer / 10, True, True, 4, 8) for layer in (1, 2)]
    return pd.DataFrame([*rows, ("final norm", 2, 0.5, 0.3, True, True, 4, 8)], columns=columns)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    made = [make_run(root, level=0.6), make_run(root, level=0.45, w_ptc=0.0, seed=3)]
    for run, level in zip(made, (0.2, 0.8), strict=True):
        save_gallery(run, make_gallery(level), "0123456789ab")
        run.write_table("layer_cams", layer_quality())
        shutil.copyfile(run.path / "figures" / "cam_gallery.png", run.path / "figures" / "scene.png")
    return made


@pytest.fixture(scope="module")
def files(runs):
    out = runs[0].path.parent / "out"
    return build_report(runs, out / "report.html", out / "my report.md", title="With & without PTC")


@pytest.fixture(scope="module")
def page(files):
    return Page(files[0])


@pytest.fixture(scope="module")
def text(files):
    return files[1].read_text(encoding="utf-8")


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_section_is_there_and_in_the_contents(page):
    assert re.findall(r'<h2 id="[^"]+">([^<]+)', page.source) == list(HEADINGS)
    assert re.findall(r'<li><a href="#[^"]+">([^<]+)', page.source) == list(HEADINGS)
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    targets = {f"#{attrs['id']}" for _, attrs in page.tags if "id" in attrs}
    assert links <= targets and len(links) >= len(HEADINGS)
    assert page.text.count("With & without PTC") == 3  # title, heading and the command that repeats it
    assert "What you should see" not in page.text and "display(" not in page.text  # for who sits at the notebook


@pytest.mark.slow
def test_nothing_is_requested_and_plotly_is_there_once(page):
    for tag, attrs in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base") or attrs.get("href") == "data:,"
        for key in ("src", "href", "srcset", "action"):
            assert not re.match(r"(?:https?:)?//", attrs.get(key) or ""), (tag, attrs)
    packed = re.findall(r'<script type="text/plain" id="plotly">([^<]*)</script>', page.source)
    assert len(packed) == 1 and gzip.decompress(base64.b64decode(packed[0])).decode() == get_plotlyjs()
    images = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert images and all(source.startswith("data:image/webp;base64,") for source in images)


def test_numbers_in_figures_are_rounded_and_never_nan():
    import plotly.graph_objects as go

    from toco_lab.reports.parts import plain_figure

    figure = go.Figure(go.Scatter(y=[1 / 3, float("nan")], name="</script>"), layout={"height": 10})
    html = plot_html(plain_figure(figure))
    assert '"y":[0.33333,null]' in html and "min-height:10px" in html
    assert html.count("</script>") == 1


def test_runs_must_be_told_apart_and_files_have_a_known_kind(tmp_path):
    with pytest.raises(ValueError, match="at least one run"):
        build_report([], tmp_path / "r.html")
    run = make_run(tmp_path)
    with pytest.raises(ValueError, match="different folder names"):
        build_report([run, run.path], tmp_path / "r.html")
    with pytest.raises(ValueError, match=r"a file \.html or \.md, got .*r\.pdf"):
        build_report([run], tmp_path / "r.html", tmp_path / "r.pdf")
    with pytest.raises(ValueError, match="got no name"):
        build_report([run])
    assert not (tmp_path / "r.html").exists()


# --- on paper ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_link_leads_to_a_file_and_every_file_is_linked(files, text):
    folder = files[1].parent
    links = [unquote(link) for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert {str(path.relative_to(folder)) for path in folder.glob("*/*")} == set(links)
    assert {f"my report_files/{name}" for name in (
        "scores.csv", "scores.tex", "cosines.csv", "runs.tex", "differences.csv", "ablation.tex", "environment.csv",
        "iou_per_class.csv", "training.png", "similarity_per_layer.png", "pairs_per_layer.png", "gallery_CAM.png",
        "gallery_auxiliary_CAM.png", "gallery_segmentation.png", "ablation_rows.png", "cam_quality_per_layer.png",
    )} <= set(links)  # fmt: skip
    drawn = [path for path in folder.glob("*/*.png") if not path.name.startswith("my report_")]
    assert len(drawn) == 8  # and two pictures of notebooks, as they were saved
    for path in drawn:
        with Image.open(path) as picture:
            assert picture.info["dpi"][0] == pytest.approx(DPI, abs=1) and picture.width > 3 * DPI, path.name


@pytest.mark.slow
def test_headings_numbers_and_protocol(runs, files, text):
    assert re.findall(r"(?m)^## (.*)$", text) == list(HEADINGS)
    assert text.startswith("# With &amp; without PTC\n\n2 runs, 2 finished.")
    found = text.partition("## What was found\n\n")[2].splitlines()[0].replace("\u00a0", " ")
    assert found.startswith('With "toy, no PTC", the final CAM scores 45.0 % mIoU')
    row = r"(?m)^\| toy, no PTC \| 45\.0 \| .*checkpoint 0123456789ab · seed 3 \|$"
    assert re.search(row, text) and re.search(r"(?m)^- .*split val · images 100", text)
    assert "```sh\n# " in text and "--w-ptc 0.0 --seed 3" in text
    assert "The final LayerNorm changes these numbers abruptly" in text
    folder = files[1].parent / "my report_files"
    with (folder / "iou_per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    disc = next(row for row in rows if (row["quantity"], row["class"]) == ("CAM", "disc"))
    assert disc["toy"] == "65.0"  # level + 1/20
    assert r"\caption{Scores in per cent. " in (folder / "scores.tex").read_text()


# --- hostile run folders ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Whatever a file may hold is text: names of runs and pictures, titles, errors, classes, protocols."""
    root = tmp_path_factory.mktemp("hostile")
    run = RunDir(make_run(root, name="r").path.rename(root / "a|b](x) `c` *d* <script>alert(1) $x_{$"))
    save_gallery(run, make_gallery(0.5), "abc")
    run.set_status("failed", error=f"{EVIL}\n```\n# heading | x")
    run.write_table("evaluation", run.read_table("evaluation").replace("disc", EVIL))
    run.write_json("protocol", {"cam": {"split": EVIL, "note": [EVIL]}})
    run.write_table("smoothing", run.read_table("smoothing").assign(weights=EVIL, site=EVIL, token_set=EVIL))
    (run.path / "figures" / "cam_gallery.png").rename(run.path / "figures" / "<script>x](y).png")
    (run.path / "figures" / "broken.png").write_text("no picture")
    run.write_json("figures/curve", {"data": [], "layout": {}})
    return build_report([run], root / "out" / "report.html", root / "out" / "report.md", title=f"{EVIL} | `x`")


@pytest.mark.slow
def test_text_from_files_is_escaped_on_the_page(hostile):
    page = Page(hostile[0])
    assert "<script>alert" not in page.source and "alert(1)</script>" not in page.source
    assert "<script>x]" not in page.source
    assert page.text.count(EVIL) >= 4  # title, heading, error, protocol, as text
    assert sum(tag == "script" for tag, _ in page.tags) == page.source.count("</script>")
    assert "broken.png cannot be shown" in page.text


@pytest.mark.slow
def test_text_from_files_stays_text_in_markdown(hostile):
    text = hostile[1].read_text(encoding="utf-8")
    before = text.partition("```")[0]
    assert "<script>" not in before and "# heading" not in re.findall("(?m)^#.*$", text)
    assert "broken.png cannot be shown" in text and "curve of a" in text and "in the HTML report" in text
    tables = re.findall(r"(?m)(?:^\|.*\n)+", text)
    assert tables and all(len({len(re.findall(r"(?<!\\)\|", line)) for line in t.splitlines()}) == 1 for t in tables)
    links = [unquote(link) for link in re.findall(r"(?<!\\)\]\(([^)]+)\)", before)]
    assert links and all((hostile[1].parent / link).is_file() for link in links)
    fence = re.search(r"(?m)^(`{3,})sh$", text)[1]
    assert text.count(f"\n{fence}") == 2


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    with running_browser() as started:
        yield started


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("scheme, width", [("light", 1200), ("dark", 1200), ("light", 420)])
def test_report_draws_in_a_browser_without_a_network(files, browser, scheme, width):
    with offline_page(browser, files[0], color_scheme=scheme, viewport={"width": width, "height": 900}) as tab:
        tab.wait_for_function(
            "() => [...document.querySelectorAll('.plotly-graph-div')].every((one) => one.querySelector('svg'))"
        )
        counts = [tab.locator(name).count() for name in (".plotly-graph-div", "figure img", ".gallery img")]
        lines = tab.locator(".scatterlayer .trace").count()
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        cut = cut_parts(tab)
    assert counts == [6, 18, 16]
    assert lines > 10
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    assert cut == []


@pytest.mark.browser
@pytest.mark.slow
def test_a_heading_sorts_its_table_by_mouse_and_by_keyboard(runs, files, browser):
    with offline_page(browser, files[0]) as tab:
        table = tab.locator("table.sortable", has=tab.locator("caption", has_text="Scores in per cent"))
        heading = table.locator("th", has_text=re.compile("^CAM, mIoU"))
        column = "rows => rows.map((row) => row.cells[1].textContent)"
        found = []
        for press in (heading.locator("button").click, lambda: tab.keyboard.press("Enter")):
            press()
            found.append((heading.get_attribute("aria-sort"), table.locator("tbody tr").evaluate_all(column)))
        classes = tab.locator("details", has_text="IoU per class in per cent")
        classes.locator("summary").click()
        classes.locator("th button").nth(2).click()
        values = classes.locator("tbody tr").evaluate_all(
            "rows => rows.map((row) => parseFloat(row.cells[2].textContent))"
        )
    assert found == [("ascending", ["45.0", "60.0"]), ("descending", ["60.0", "45.0"])]
    assert len(values) == 15 and values == sorted(values)


@pytest.mark.browser
@pytest.mark.slow
def test_numbers_sort_as_numbers_and_missing_ones_stay_last(files, browser):
    cells = ["10.5", "-", "9", "-2", "+3 [1, 4]", "", "word"]
    code = """cells => {
        const table = document.querySelector("table.sortable"), body = table.tBodies[0];
        const row = body.rows[0];
        body.replaceChildren(...cells.map((text) => {
            const copy = row.cloneNode(true);
            copy.cells[0].textContent = text;
            return copy;
        }));
        const read = () => [...body.rows].map((row) => row.cells[0].textContent);
        const button = table.querySelector("button");
        return [1, 2].map(() => { button.click(); return read(); });
    }"""
    with offline_page(browser, files[0]) as tab:
        up, down = tab.evaluate(code, cells)
    assert up[:5] == ["-2", "+3 [1, 4]", "9", "10.5", "word"]
    assert down[:5] == up[4::-1] and set(up[5:]) == set(down[5:]) == {"-", ""}


@pytest.mark.browser
@pytest.mark.slow
def test_a_picture_opens_in_full_size_and_the_keyboard_leads_back(files, browser):
    with offline_page(browser, files[0]) as tab:
        dialog, small = (
            tab.locator("dialog"),
            tab.locator(".gallery button", has=tab.locator("img[alt='truth of two']")),
        )
        assert small.get_attribute("aria-label") == "truth of two, in full size"
        before = small.locator("img").bounding_box()["width"]
        small.click()
        assert dialog.evaluate("one => one.open") and dialog.locator("figcaption").inner_text() == "truth of two"
        assert dialog.locator("img").bounding_box()["width"] > 3 * before
        tab.keyboard.press("Escape")
        assert not dialog.evaluate("one => one.open")
        assert tab.evaluate("document.activeElement.getAttribute('aria-label')") == "truth of two, in full size"
        tab.keyboard.press("Enter")
        assert dialog.evaluate("one => one.open")
        tab.keyboard.press("Enter")  # on Close, which has the focus
        assert not dialog.evaluate("one => one.open")


@pytest.mark.browser
@pytest.mark.slow
def test_a_browser_that_cannot_unpack_is_told_so(files, browser, tmp_path):
    (tmp_path / "blank.html").write_text('<link rel="icon" href="data:,">')
    with offline_page(browser, tmp_path / "blank.html") as tab:
        tab.add_init_script("delete window.DecompressionStream")
        tab.goto(files[0].as_uri())
        said = tab.locator(".plotly-graph-div").first.inner_text()
    assert "need a newer browser" in said and "Firefox 113" in said


@pytest.mark.browser
@pytest.mark.slow
def test_ten_real_runs_make_a_page_whose_tokens_answer_a_click(smoke_run, browser, tmp_path):
    """The number that must stand there in the end, and the size of the page."""
    copies = [copy_run(smoke_run, tmp_path / f"run-{number}", w_ptc=number / 10) for number in range(10)]
    (made,) = build_report(copies, tmp_path / "report.html")
    assert made.stat().st_size < 15e6
    with offline_page(browser, made, viewport={"width": 1200, "height": 900}) as tab:
        explorer = tab.locator(".toco-token-explorer")
        explorer.scroll_into_view_if_needed()
        picture = explorer.locator(".picture").first
        box = picture.bounding_box()
        picture.click(position={"x": box["width"] * 8.5 / 12, "y": box["height"] * 4.5 / 12})
        tab.wait_for_function(
            """() => {
                const state = JSON.parse(document.querySelector(".toco-token-explorer").dataset.state ?? "{}");
                return state.row === 4 && state.column === 8;
            }"""
        )
        state = json.loads(explorer.get_attribute("data-state"))
    assert (state["left"], state["right"], state["layer"], state["step"]) == ("run-0", "run-1", "block 4", 4)
    similarity = np.delete(load_run_maps(smoke_run)[0].tokens.similarity(2, 3, 4 * 12 + 8), 4 * 12 + 8)
    assert state["similarity"]["left"]["mean"] == pytest.approx(similarity.mean(), abs=1e-3)


def copy_run(run: RunDir, folder: Path, **changes) -> RunDir:
    """The same run under another name, as if made by another config."""
    copy = RunDir(shutil.copytree(run.path, folder))
    (folder / "config.json").write_text(run.config().replace(**changes).to_json())
    for path in (path for image in copy.token_maps() for path in image):
        save_token_maps(path, replace(load_token_maps(path), model=folder.name))
    return copy
