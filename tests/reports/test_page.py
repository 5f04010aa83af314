"""The report: read back as HTML, from complete, broken and hostile run folders, and once in a real browser."""

import base64
import gzip
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers.browser import offline_page, running_browser
from helpers.finished_runs import make_gallery, make_run
from matplotlib import colormaps
from PIL import Image
from plotly.offline import get_plotlyjs

from toco_lab.config import Config
from toco_lab.evaluation.gallery import save_gallery
from toco_lab.explorers.token_maps import load_run_maps, load_token_maps, save_token_maps
from toco_lab.reports import page as page_module
from toco_lab.reports.page import build_report, plot_html
from toco_lab.reports.sections import WARNINGS, train_command
from toco_lab.runs.run_dir import RunDir


class Page(HTMLParser):
    """Tags with attributes, the text outside of scripts and styles, and the plotly figures (JSON)."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.words, self.data, self.inside = [], [], [], None
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag if tag in ("script", "style") else self.inside
        self.json = attrs and dict(attrs).get("type") == "application/json"

    def handle_endtag(self, tag):
        self.inside = None if tag == self.inside else self.inside

    def handle_data(self, data):
        if self.inside is None:
            self.words.append(data)
        elif self.json and data.startswith('{"data"'):
            self.data.append(data)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    return [make_run(root, level=0.6), make_run(root, level=0.45, w_ptc=0.0, seed=3)]


@pytest.fixture(scope="module")
def page(runs):
    return Page(build_report(runs, runs[0].path.parent / "report.html", title="With & without PTC"))


# --- content ----------------------------------------------------------------------------------------------------------


def test_every_section_is_there_and_in_the_contents(page):
    headings = [
        "What was asked",
        "Ablation",
        "Results",
        "Differences between the runs",
        "Training",
        "IoU per class",
        "Pictures",
        "Similarity of tokens per layer",
        "Tokens to click on",
        "Environment",
        "How to repeat this",
    ]
    for heading in headings:
        assert page.text.count(heading) == 2, heading  # heading and table of contents
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    assert links == {f"#{attrs['id']}" for tag, attrs in page.tags if tag == "section"}


def test_numbers_stand_with_their_protocol(page, runs):
    row = re.search(r"CAM, mIoU (.*?) auxiliary CAM, mIoU", page.text)[1]
    assert "60.0" in row and "45.0" in row
    for words in (
        "split val",
        "images 100",
        "scales 1, 0.5, 1.5",
        "flip",
        "true labels mask cam",
        "no crf",
        "miou over present",
        "checkpoint 0123456789ab",
        "seed 0",
        "seed 3",
    ):
        assert words in row, words
    assert row.count("split val") == 1  # said once where all runs agree
    assert row.count("checkpoint 0123456789ab") == 2  # said for each number
    assert "background threshold" not in row  # does not apply
    assert re.search(r"image labels, F1 .*? 90\.0", page.text)
    first = 1 / 15 * 0.7 + 0.02  # mean over images 0..4 in the run of level 0.6
    assert "Similarity, first block" in page.text and f"{first:.3f} ±" in page.text
    assert re.search(r"\|cos\| of negative pairs, in training .*? 0\.300 0\.225 ", page.text)
    assert "Not measured in the same way" not in page.text


def test_differences_commands_and_warnings(page, runs):
    assert re.search(rf"w_ptc {Config.preset('toy').w_ptc} 0\.0", page.text)
    assert "python -m toco_lab train toy --w-ptc 0.0 --seed 3" in page.text
    assert f"python -m toco_lab evaluate {runs[1].path}" in page.text
    for warning in WARNINGS:
        assert warning in page.text
    assert page.text.count("With & without PTC") == 2


def test_nothing_is_requested_and_plotly_is_there_once(page, runs):
    for tag, attrs in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base") or attrs.get("href") == "data:,"
        for key in ("src", "href", "srcset", "action"):
            assert not re.match(r"(?:https?:)?//", attrs.get(key) or ""), (tag, attrs)
    source = (runs[0].path.parent / "report.html").read_text(encoding="utf-8")
    packed = re.findall(r'<script type="text/plain" id="plotly">([^<]*)</script>', source)
    assert len(packed) == 1 and gzip.decompress(base64.b64decode(packed[0])).decode() == get_plotlyjs()
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 2 and all(attrs["src"].startswith("data:image/webp;base64,") for attrs in images)


def test_different_protocols_are_pointed_out(runs, tmp_path):
    copy = RunDir(shutil.copytree(runs[0].path, tmp_path / "copy"))
    protocol = copy.read_json("protocol")
    protocol["cam"]["true_labels_mask_cam"] = False
    copy.write_json("protocol", protocol)
    text = Page(build_report([runs[0], copy], tmp_path / "r.html")).text
    assert "Not measured in the same way in all runs: CAM, mIoU." in text
    assert "no true labels mask cam" in text


def test_runs_are_compared_by_row(page):
    """Two configs with one seed each, 0 and 3: no seed is common, so there is no difference."""
    row = re.search(r"difference, final CAM (.*?) Data toy", page.text)[1]
    assert "w_ptc=1.5 1 60.0 70.0 50.0" in row and "w_ptc=0.0 1 45.0 70.0 35.0" in row and "seed" not in row


def test_galleries_show_each_image_once_with_a_column_per_run(runs, tmp_path):
    copies = [RunDir(shutil.copytree(run.path, tmp_path / name)) for run, name in zip(runs, "ab", strict=True)]
    for run, level in zip(copies, (0.25, 0.75), strict=True):
        save_gallery(run, make_gallery(level), "0123456789ab")
    made = Page(build_report(copies, tmp_path / "report.html"))
    pictures = {attrs["alt"]: attrs["src"] for tag, attrs in made.tags if tag == "img"}
    for name in ("one", "two"):
        for alt in (f"image of {name}", f"truth of {name}", f"CAM of {name}, a", f"auxiliary CAM of {name}, b"):
            assert alt in pictures, alt
    assert "CAM as label of one, a" not in pictures  # was not saved
    assert not any("cam_gallery" in alt for alt in pictures)  # the notebook's picture shows the same
    data = base64.b64decode(pictures["CAM of two, b"].partition(",")[2])
    pixel = np.asarray(Image.open(io.BytesIO(data)))[4, 6] / 255
    wanted = 0.55 * np.array(colormaps["inferno"](0.75)[:3]) + 0.45 * 130 / 255
    assert pixel == pytest.approx(wanted, abs=0.03)


def test_many_seeds_become_one_curve_and_tables_have_a_row_per_run(tmp_path):
    """Two configs with four seeds each."""
    runs = [
        make_run(tmp_path, name=f"{kind}-{seed}", level=level + seed / 100, w_ptc=weight, seed=seed)
        for kind, level, weight in (("plain", 0.4, 0.0), ("full", 0.6, 1.5))
        for seed in range(4)
    ]
    made = Page(build_report(runs, tmp_path / "report.html"))
    row = re.search(r"w_ptc=1\.5 4 (.*?) Data toy", made.text)[1]
    assert row.startswith("61.5 ± 1.3 +20.0 [+20.0, +20.0]*")  # mean and sd of 60..63; each seed gains 20
    assert re.search(r"full-3 checkpoint 0123456789ab · seed 3 63\.0 70\.0", made.text)
    assert made.text.count("Of runs that differ only in the seed, the first is shown.") == 1  # pictures
    figures = [json.loads(text) for text in made.data]
    training = next(figure for figure in figures if any("total loss" in str(a) for a in notes(figure)))
    assert {trace["name"] for trace in training["data"] if trace.get("showlegend")} == {"w_ptc=0.0", "w_ptc=1.5"}
    curve = next(t for t in training["data"] if t["name"] == "w_ptc=1.5" and t["y"][0] == pytest.approx(0.3075))
    assert curve["x"][0] == 10  # the mean of PTC terms 0.5 * level over the seeds


def notes(figure):
    return [note["text"] for note in figure["layout"].get("annotations", [])]


def test_numbers_in_figures_are_rounded_and_never_nan():
    html = plot_html(json.dumps({"data": [{"y": [1 / 3, float("nan")], "name": "</script>"}], "layout": {"height": 9}}))
    assert '"y":[0.33333,null]' in html and "min-height:9px" in html
    assert html.count("</script>") == 1


# --- missing and hostile parts ----------------------------------------------------------------------------------------


def test_failed_run_says_what_is_not_there_and_why(tmp_path):
    run = RunDir.create(Config.preset("smoke"), tmp_path)
    run.set_status("failed", step=2, error="TrainingError: loss ptc is not finite at step 3")
    text = Page(build_report([run], tmp_path / "report.html")).text
    for what, name in (
        ("scores", "evaluation.csv"),
        ("training curves", "metrics.csv"),
        ("pictures", "figures"),
        ("similarity per layer", "smoothing.csv"),
        ("scores per class", "evaluation.csv"),
        ("tokens of probe images", "tokens"),
    ):
        assert f": {what} not there because its folder has no {name}" in text, what
    assert text.count("failed: TrainingError: loss ptc is not finite at step 3, at step 2") == 6
    assert "There is one run only" in text
    assert "1 run, 0 finished; 1 unfinished or failed" in text


def test_damaged_files_do_not_stop_the_report(runs, tmp_path):
    run = RunDir(shutil.copytree(runs[0].path, tmp_path / "damaged"))
    for name in ("protocol.json", "env.json", "status.json"):
        (run.path / name).write_text("{")
    (run.path / "smoothing.csv").write_text("")
    (run.path / "figures" / "cam_gallery.png").write_text("no picture")
    (run.path / "figures" / "curve.json").write_text("[1")
    text = Page(build_report([run], tmp_path / "report.html")).text
    assert "smoothing.csv is empty or cannot be read" in text
    assert "cam_gallery.png cannot be shown" in text and "curve.json cannot be shown" in text
    assert "60.0" in text


def test_text_from_files_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    run = make_run(tmp_path)
    run = RunDir(run.path.rename(tmp_path / "<script>alert(1)"))
    run.set_status("failed", error=evil)
    table = run.read_table("evaluation").replace("disc", evil)
    run.write_table("evaluation", table)
    run.write_json("protocol", {"cam": {"split": evil, "note": [evil]}})
    run.write_table("smoothing", run.read_table("smoothing").assign(weights=evil, site=evil, token_set=evil))
    (run.path / "figures" / "cam_gallery.png").rename(run.path / "figures" / "<script>.png")
    out = build_report([run], tmp_path / "report.html", title=evil)
    page, source = Page(out), out.read_text(encoding="utf-8")
    assert "<script>alert" not in source and "</script>alert" not in source
    assert "alert(1)</script>" not in source
    assert page.text.count(evil) >= 4  # title, heading, error, protocol, as text
    assert sum(tag == "script" for tag, _ in page.tags) == source.count("</script>")


def test_runs_must_be_told_apart(runs, tmp_path):
    with pytest.raises(ValueError, match="at least one run"):
        build_report([], tmp_path / "r.html")
    with pytest.raises(ValueError, match="different folder names"):
        build_report([runs[0], runs[0]], tmp_path / "r.html")


def test_train_command():
    cfg = Config.preset("smoke").replace(refine=False, cam_scales=(1.0, 0.75), weights="my file", embed_dim=None)
    assert train_command(cfg) == (
        "python -m toco_lab train smoke --weights 'my file' --embed-dim None --cam-scales 1.0 0.75 --no-refine"
    )
    assert train_command(Config()).startswith("python -m toco_lab train voc_deit_b")


# --- browser ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    with running_browser() as started:
        yield started


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_draws_in_a_browser_without_a_network(page, runs, browser, scheme):
    with offline_page(browser, runs[0].path.parent / "report.html", color_scheme=scheme) as tab:
        tab.wait_for_selector(".bars path", state="attached")
        counts = [tab.locator(name).count() for name in (".plotly-graph-div", "figure img")]
        lines = tab.locator(".scatterlayer .trace").count()
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        overflow = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert counts == [5, 2]
    assert lines > 10
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    assert overflow == 0


@pytest.mark.browser
@pytest.mark.slow
def test_a_browser_that_can_not_unpack_is_told_so(page, runs, browser, tmp_path):
    (tmp_path / "blank.html").write_text('<link rel="icon" href="data:,">')
    with offline_page(browser, tmp_path / "blank.html") as tab:
        tab.add_init_script("delete window.DecompressionStream")
        tab.goto((runs[0].path.parent / "report.html").as_uri())
        said = tab.locator(".plotly-graph-div").first.inner_text()
    assert "need a newer browser" in said and "Firefox 113" in said


@pytest.mark.browser
@pytest.mark.slow
def test_a_patch_can_be_clicked_in_the_report_without_a_network(smoke_run, browser, tmp_path):
    """Two runs side by side, and the number that must stand there in the end."""
    other = RunDir(shutil.copytree(smoke_run.path, tmp_path / "other"))
    for path in (path for image in other.token_maps() for path in image):
        save_token_maps(path, replace(load_token_maps(path), model="other"))
    made = build_report([smoke_run, other], tmp_path / "report.html")
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
    assert (state["left"], state["right"], state["layer"], state["step"]) == ("smoke", "other", "block 4", 4)
    similarity = np.delete(load_run_maps(smoke_run)[0].tokens.similarity(2, 3, 4 * 12 + 8), 4 * 12 + 8)
    assert state["similarity"]["left"]["mean"] == pytest.approx(similarity.mean(), abs=1e-3)


def test_many_snapshots_are_thinned_to_the_size_of_a_page(smoke_run, tmp_path, monkeypatch):
    whole = build_report([smoke_run], tmp_path / "whole.html").stat().st_size
    monkeypatch.setattr(page_module, "TOKEN_BYTES", 2 * 2 * 5 * 144 * 24)  # two steps of each of two images
    thin = build_report([smoke_run], tmp_path / "thin.html").stat().st_size
    assert whole - thin == pytest.approx(2 * 5 * 144 * 24 * 4 / 3, rel=0.1)  # one step of three is gone, as base64
