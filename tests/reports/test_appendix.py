"""The Markdown report: every link leads to a file, figures are of print resolution, nothing breaks out of its place."""

import csv
import re
from urllib.parse import unquote

import pytest
from helpers.finished_runs import make_gallery, make_run
from PIL import Image

from toco_lab.evaluation.gallery import save_gallery
from toco_lab.reports.appendix import DPI, build_appendix
from toco_lab.reports.sections import WARNINGS
from toco_lab.reports.tables import markdown_text
from toco_lab.runs.run_dir import RunDir


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    made = [make_run(root, level=0.6), make_run(root, level=0.45, w_ptc=0.0, seed=3)]
    for run, level in zip(made, (0.2, 0.8), strict=True):
        save_gallery(run, make_gallery(level), "0123456789ab")
        run.write_table("layer_cams", quality(run))
    return made


def quality(run):
    """mIoU of two layers, at one threshold."""
    import pandas as pd

    columns = ["site", "layer", "threshold", "miou", "own", "best", "images", "trained_on"]
    rows = [("after block", layer, 0.5, layer / 10, True, True, 4, 8) for layer in (1, 2)]
    return pd.DataFrame([*rows, ("final norm", 2, 0.5, 0.3, True, True, 4, 8)], columns=columns)


@pytest.fixture(scope="module")
def text(runs):
    return build_appendix(runs, runs[0].path.parent / "out" / "my report.md").read_text(encoding="utf-8")


def test_every_link_leads_to_a_file_and_every_file_is_linked(runs, text):
    folder = runs[0].path.parent / "out"
    links = [unquote(link) for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert {str(path.relative_to(folder)) for path in folder.glob("*/*")} == set(links)
    assert {f"my report_files/{name}" for name in (
        "scores.csv", "scores.tex", "cosines.csv", "runs.tex", "differences.csv", "ablation.tex", "environment.csv",
        "iou_per_class.csv", "training.png", "similarity_per_layer.png", "pairs_per_layer.png", "gallery_CAM.png",
        "gallery_auxiliary_CAM.png", "gallery_segmentation.png", "ablation.png", "cam_quality_per_layer.png",
    )} <= set(links)  # fmt: skip
    for path in folder.glob("*/*.png"):
        with Image.open(path) as picture:
            assert picture.info["dpi"][0] == pytest.approx(DPI, abs=1) and picture.width > 3 * DPI, path.name


def test_headings_numbers_and_protocol(runs, text):
    headings = re.findall(r"(?m)^## (.*)$", text)
    assert headings[0] == "What was asked" and headings[-1] == "How to repeat this" and "Ablation" in headings
    assert re.search(r"(?m)^\| CAM, mIoU \| 60\.0 \| 45\.0 \|$", text)
    assert re.search(r"(?m)^- .*split val · images 100", text)
    assert re.search(rf"(?m)^- {re.escape(markdown_text(runs[1].name))}: checkpoint 0123456789ab · seed 3$", text)
    assert "```sh\n# " in text and "--w-ptc 0.0 --seed 3" in text
    assert all(markdown_text(warning) in text for warning in WARNINGS)
    folder = runs[0].path.parent / "out" / "my report_files"
    with (folder / "iou_per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    disc = next(row for row in rows if (row["quantity"], row["class"]) == ("CAM", "disc"))
    assert disc[runs[0].name] == "65.0"  # level + 1/20
    assert r"\caption{Scores in per cent." in (folder / "scores.tex").read_text()


def test_hostile_names_stay_text(tmp_path):
    evil = "a|b](x) `c` *d* <img> $x_{$"
    run = make_run(tmp_path, name="r")
    run = RunDir(run.path.rename(tmp_path / evil))
    save_gallery(run, make_gallery(0.5), "abc")
    run.set_status("failed", error="```\n# heading | x")
    run.write_table("evaluation", run.read_table("evaluation").replace("disc", evil))
    (run.path / "figures" / "cam_gallery.png").rename(run.path / "figures" / "x](y).png")
    (run.path / "figures" / "broken.png").write_text("no picture")
    run.write_json("figures/curve", {"data": [], "layout": {}})
    text = build_appendix([run], tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "<img>" not in text.partition("```")[0] and "# heading" not in re.findall("(?m)^#.*$", text)
    assert "broken.png cannot be shown" in text and "curve, " in text and "in the HTML report" in text
    tables = re.findall(r"(?m)(?:^\|.*\n)+", text)
    assert tables and all(len({len(re.findall(r"(?<!\\)\|", line)) for line in t.splitlines()}) == 1 for t in tables)
    links = [unquote(link) for link in re.findall(r"(?<!\\)\]\(([^)]+)\)", text.partition("```")[0])]
    assert links and all((tmp_path / "out" / link).is_file() for link in links)
    fence = re.search(r"(?m)^(`{3,})sh$", text)[1]
    assert text.count(f"\n{fence}") == 2


def test_a_run_without_anything_is_told_of(tmp_path):
    from toco_lab.config import Config

    text = build_appendix([RunDir.create(Config.preset("smoke"), tmp_path)], tmp_path / "r.md").read_text()
    assert text.count("> **") >= 5 and "has no metrics.csv" in markdown_unescaped(text)


def markdown_unescaped(text):
    return re.sub(r"\\(.)", r"\1", text)
