"""Studies: what a folder of results/studies says, that its table is its summary, and how one is made and continued."""

import functools
import json
import re
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.in_process import Here

from toco_lab.commands.app import main
from toco_lab.config import Config, config_differences
from toco_lab.data.classes import class_names
from toco_lab.data.readers import open_dataset
from toco_lab.evaluation.clip_scores import measure_clips
from toco_lab.peers.build import build_model
from toco_lab.reports import studies
from toco_lab.reports.ablation import summarise, wide_table
from toco_lab.reports.studies import (
    Study,
    all_studies,
    findings,
    markdown_lines,
    open_study,
    write_results,
    write_study,
)
from toco_lab.runs.run_dir import RunDir
from toco_lab.runs.scores import SHOWN
from toco_lab.sweeps import sweep, worker
from toco_lab.sweeps.grid import Grid
from toco_lab.training.checkpoints import initial_model, load_run_model

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "results" / "studies"
MADE = sorted(path.parent.name for path in KEPT.glob("*/table.csv"))
OWN = {path.parent.name: runpy.run_path(str(path)) for path in sorted(KEPT.glob("*/make.py"))}
OWN_TABLE = {name for name, made in OWN.items() if "markdown" in made}  # the others add to the table of every study
toy_table, remedies = OWN["toy_table"], OWN["remedies"]


def study_of(folder: Path, name: str = "question", **changes) -> Study:
    """A study on the smoke preset: one row with PTC, one without, two seeds."""
    rows = {"without PTC": {"w_ptc": 0.0}, "with PTC": {}}
    grid = Grid(**{"name": name, "preset": "smoke", "about": "Why?\n\nBecause.", "rows": rows, "seeds": 2} | changes)
    (folder / name).mkdir(parents=True)
    (folder / name / "grid.yaml").write_text(grid.to_text())
    return open_study(name, folder)


def finish(run, score: float, similarity: float) -> None:
    """What a finished run leaves, with made-up numbers."""
    made = RunDir.create(run.config, run.folder.parent, name=run.folder.name)
    made.write_table("evaluation", pd.DataFrame([{"target": "cam", "class": "mIoU", "iou": score}]))
    line = ("after block", "pairwise cosine", "absolute, off-diagonal", 4, similarity)
    made.write_table("smoothing", pd.DataFrame([line], columns=["site", "metric", "variant", "layer", "value"]))
    made.write_json("protocol", {})
    made.set_status("done", seconds=3.0, total_seconds=5.0)


# --- the studies of this project --------------------------------------------------------------------------------------


@pytest.mark.parametrize("study", all_studies(KEPT), ids=lambda study: study.name)
def test_every_study_asks_a_question_and_its_grid_has_the_rows_of_its_table(study):
    assert study.name == study.folder.name and study.question
    if study.name not in MADE:
        assert study.state() == "planned" and "planned" in study.question
        return
    table, runs = study.table(), study.grid.runs()
    assert {run.row for run in runs} <= set(table["row"]) and study.runs_kept() <= len(runs)
    if "run" in table:  # a config that has changed its meaning since has another name
        names = {(run.row, run.seed): run.folder.name for run in runs}
        made = table.dropna(subset="run")[["row", "seed", "run"]]  # other lines read another map of these runs
        assert all(names[row, seed] == run for row, seed, run in made.itertuples(index=False))


@pytest.mark.parametrize("name", MADE)
def test_every_summary_is_that_of_its_table(name):
    study = open_study(name, KEPT)
    text = (study.folder / "table.md").read_text()
    if name in OWN_TABLE:
        made = OWN[name]["markdown"](study, study.table(), "MACHINE")
        start, end = (" ".join(part.split()) for part in made.split("MACHINE"))  # lines break where the machine ends
        assert " ".join(text.split()).startswith(start) and " ".join(text.split()).endswith(end)
    else:
        frame, own = study.table(), OWN.get(name, {})
        shown = own.get("SCORES", (*SHOWN, *own.get("BESIDE", ())))
        scores = [score for score in shown if score in frame and frame[score].notna().any()]
        wide = wide_table(summarise(frame, scores=scores)).reset_index()
        assert "\n".join(markdown_lines(wide.columns, wide.to_numpy())) in text
        assert text.startswith(study.grid.about.strip())
    assert text.endswith(f"![{text.split('![')[1].split(']')[0]}](figure.png)\n\n    {study.command}\n")
    assert (study.folder / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_documents_show_the_toy_table_that_was_made():
    made = (KEPT / "toy_table" / "table.md").read_text().splitlines()
    start = next(number for number, line in enumerate(made) if line.startswith("|"))
    table = made[start : made.index("", start)]
    shown = 0
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")]:
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if line == table[0]:
                assert lines[number : number + len(table)] == table, path
                shown += 1
    assert shown == 1


def test_no_result_is_typed_into_the_notebook_of_ablations():
    """What it says was found has settings as numbers, which stand in the grid; results come from the tables alone."""
    cells = json.loads((ROOT / "notebooks" / "06_ablation.ipynb").read_text())["cells"]
    found = [number for number, cell in enumerate(cells) if "**Found" in "".join(cell["source"])]
    assert len(found) == 9
    for number in found:
        prose, code = ("".join(cells[place]["source"]) for place in (number, number + 1))
        names = re.findall(r'study\("(\w+)"', code)
        assert names and cells[number + 1]["cell_type"] == "code"
        grids = " ".join((KEPT / name / "grid.yaml").read_text() for name in names)
        settings = set(re.findall(r"\d+(?:\.\d+)?", grids)) | {"0"}
        assert set(re.findall(r"\d+(?:\.\d+)?", prose)) <= settings, prose


def test_the_example_of_a_sweep_works(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["sweep", "docs/smoke.yaml", "--dry-run", "--root", "no/such/folder"]) == 0
    assert "4 runs, 0 done, 4 to do with 1 worker" in capsys.readouterr().out


# --- the toy table's own findings -------------------------------------------------------------------------------------


def frame_with(cams: dict[str, float], tuned: dict[str, float] | None = None) -> pd.DataFrame:
    """Five seeds of every row; final CAM as given (others 40), at the tuned threshold too where nothing else is given;
    last-block similarity 0.8, with PTC 0.7.
    """
    tuned = tuned or {}
    rows = []
    for row in {run.row: None for run in open_study("toy_table", KEPT).grid.runs()}:
        for seed in range(5):
            noise = 0.1 * np.sin(7 * seed + len(row))
            ptc = "PTC" in row or "full" in row
            rows.append({
                "row": row, "seed": seed, "final CAM": cams.get(row, 40.0) + noise, "auxiliary CAM": 60.0,
                "final CAM, tuned threshold": tuned.get(row, cams.get(row, 40.0)) + noise,
                "auxiliary CAM, tuned threshold": 61.0,
                "segmentation": 50.0 + noise, "similarity, first block": 0.5,
                "similarity, last block": 0.7 if ptc else 0.8, "cosine of positive pairs": 0.9,
                "cosine of negative pairs": 0.4,
            })  # fmt: skip
    return pd.DataFrame(rows)


def verdicts(frame: pd.DataFrame) -> dict[str, bool]:
    """(a), (b) at both thresholds, first (c), second (c), (d) in CAM at both thresholds, (d) in segmentation."""
    lines = toy_table["findings"](frame)
    return dict(zip("a b b-tuned c1 c2 d1 d1-tuned d2".split(), ["**holds**" in line for line in lines], strict=True))


def test_findings_hold_when_they_do():
    found = verdicts(frame_with({"baseline": 30.0, "+ PTC": 45.0, "full ToCo": 50.0}))
    missing = dict.fromkeys(("c2", "d2"), False)
    assert found == dict.fromkeys(("a", "b", "b-tuned", "c1", "d1", "d1-tuned"), True) | missing


def test_findings_do_not_hold_when_they_do_not():
    frame = frame_with({"baseline": 57.0, "+ PTC": 45.0})
    frame.loc[(frame["row"] == "+ PTC + seg + reg") & (frame["seed"] == 3), "similarity, last block"] = 0.9
    assert verdicts(frame) == dict.fromkeys(verdicts(frame), False) | {"a": True}


def test_a_gain_that_a_fair_threshold_takes_away_does_not_hold():
    cams = {"baseline": 30.0, "+ PTC": 45.0, "full ToCo": 50.0}
    found = verdicts(frame_with(cams, tuned={"baseline": 58.0, "+ PTC": 58.0, "full ToCo": 57.0}))
    assert found["b"] and not found["b-tuned"] and not found["c1"] and found["d1"] and not found["d1-tuned"]


def test_rows_of_the_toy_table_differ_only_in_their_switches():
    configs = {(run.row, run.seed): run.config for run in open_study("toy_table", KEPT).grid.runs()}
    base = Config.preset("toy").replace(token_snapshots=0)
    assert configs["full ToCo", 0] == base
    assert configs["full ToCo, released quirks", 0] == base.released()
    baseline = configs["baseline", 2]
    assert (baseline.w_ptc, baseline.w_ctc, baseline.w_seg, baseline.w_reg, baseline.seed) == (0, 0, 0, 0, 2)
    assert baseline.replace(w_ptc=base.w_ptc, w_ctc=base.w_ctc, w_seg=base.w_seg, w_reg=base.w_reg, seed=0) == base


def test_remedies_differ_only_in_the_remedy():
    configs = {run.row: run.config for run in open_study("remedies", KEPT).grid.runs() if run.seed == 0}
    assert set(config_differences(configs)) == {"w_ptc", "anti_smoothing"}
    assert [cfg.w_ptc > 0 for cfg in configs.values()] == [False, False, False, True]
    assert all(cfg.w_ctc == cfg.w_seg == cfg.w_reg == 0 for cfg in configs.values())


@pytest.mark.parametrize("method", ["tscam", "mct", "mct_plus", "getam"])
def test_parts_of_a_map_are_what_the_comparison_of_methods_says(method):
    cfg = Config.preset("smoke").replace(method=method)
    torch.manual_seed(0)
    model, image = build_model(cfg).eval(), torch.randn(2, 3, 48, 48)
    make, titles = OWN["peers"]["PARTS"][method]
    part = make(cfg).eval()
    part.load_state_dict(model.state_dict())
    (whole, other), (first, second) = model.raw_maps(image), part.raw_maps(image)
    if method == "getam":  # the upper half is half of what is summed
        assert (model.start, part.start) == (2, 0) and not torch.allclose(whole, first)
    elif method == "tscam":
        assert torch.equal(second, other) and torch.allclose(first * second, whole)
    else:
        product = first * second
        assert torch.allclose(product.sqrt() if method == "mct_plus" else product, other)
    assert set(titles) <= {"cam", "cam_aux"}


def test_common_classes_of_the_photographs_are_those_that_enough_training_images_show():
    cfg = Config.preset("toy").replace(train_images=80)
    reader = open_dataset(cfg, "train")
    masks = [reader.mask(index) for index in range(len(reader))]
    counts = [sum(bool((mask == number).any()) for mask in masks) for number in range(1, 7)]
    made = OWN["photographs"]
    assert list(made["images_of_classes"](cfg).items()) == list(zip(class_names(cfg), counts, strict=True))
    common = [name for name, count in zip(class_names(cfg), counts, strict=True) if count >= made["COMMON"]]
    assert made["common_classes"](cfg) == ["background", *common] and 0 < len(common) < 6


def test_how_alike_patches_are_to_a_marked_one_is_the_cosine_of_final_tokens(smoke_run):
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    found = OWN["photographs"]["alike"](smoke_run, image, (24, 40, 32, 48))  # the patch of row 5, column 3
    model, _ = load_run_model(smoke_run)
    pixels = (torch.from_numpy(image).movedim(2, 0) / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / (
        torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    )
    with torch.no_grad():
        tokens = model.encode(pixels[None]).patch_tokens[0]
    cosine = torch.nn.functional.cosine_similarity(tokens, tokens[:, 5, 3, None, None], dim=0).abs().numpy()
    assert found.shape == (96, 96) and abs(found.mean() - cosine.mean()) < 0.01
    assert np.corrcoef(found[4::8, 4::8].flat, cosine.flat)[0, 1] > 0.99


def test_boxes_of_a_run_are_measured_from_each_map_it_has(smoke_run):
    found = OWN["boxes"]["measures"](smoke_run)
    asked = ["CorLoc", "AP50 of masks, components", "AP50 of masks, peaks"]
    headings = {", ".join([one.split(", ")[0], map_, *one.split(", ")[1:]]) for one in asked for map_ in ("cam", "seg")}
    assert set(found) == headings | {"CorLoc, whole image"} and all(0 <= value <= 1 for value in found.values())
    assert OWN["boxes"]["sources"](smoke_run.config().replace(w_seg=0.0)) == ("cam",)


def test_clips_are_scored_by_each_way_to_fuse(smoke_run, monkeypatch):
    small = functools.partial(measure_clips, clips=1, frames=3, threshold="configured")
    monkeypatch.setitem(OWN["video"]["measures"].__globals__, "measure_clips", small)
    found, table = OWN["video"]["measures"](smoke_run), small(*load_run_model(smoke_run), progress=False).table
    for fusion, miou, consistency in zip(table["fusion"], table["miou"], table["consistency"], strict=True):
        assert found[f"mIoU of clips, {fusion}"] == miou and found[f"consistency, {fusion}"] == consistency
    assert len(found) == 2 * len(table) == 10
    monkeypatch.setitem(OWN["video_training"]["measures"].__globals__, "measure_clips", small)
    alone = OWN["video_training"]["measures"](smoke_run)
    assert alone["mIoU of clips, final CAM"] == found["mIoU of clips, per frame"] and len(alone) == 4
    assert alone["consistency, segmentation"] == found["consistency, segmentation, per frame"]


def test_domains_are_measured_beside_the_grid_with_a_row_of_otsu_for_each_world(smoke_run, tmp_path, monkeypatch):
    made, study = OWN["domains"], open_study("domains")
    found = made["measures"](smoke_run)  # its scenes are never empty
    assert set(found) == {made["AUC"], *(f"Dice, {title}" for title in made["TITLES"].values())}
    worlds = {run.config.toy_world: run.config for run in study.grid.runs()}
    assert {name: cfg.num_classes for name, cfg in worlds.items()} == {"tissue": 1, "land": 4}
    assert [len(class_names(cfg)) for cfg in worlds.values()] == [1, 4] and len(study.grid.runs()) == 8 * 5
    own = study_of(tmp_path / "studies", preset="toy_tissue", overrides={"val_images": 6, "threshold_images": 4})
    for run in own.grid.runs(tmp_path):
        finish(run, 0.5, 0.5)
    monkeypatch.setitem(made["write"].__globals__, "measures", lambda run: made["scores_of"]("segmentation", 0.4, 0.1))
    otsu = made["otsu_line"](worlds["tissue"].replace(val_images=6, threshold_images=4)) | {"Dice, segmentation": 0.3}
    monkeypatch.setitem(made["write"].__globals__, "otsu_line", lambda cfg: otsu)
    text = made["write"](own, tmp_path)
    assert "| tissue, Otsu | 1 | 0.30 |" in text and "| with PTC | 2 | 0.40 ± 0.00 |" in text


@pytest.mark.parametrize("preset", ["toy_tissue", "toy_land"])
def test_otsu_finds_something_on_empty_images_and_little_of_the_class(preset):
    cfg = Config.preset(preset).replace(val_images=20, threshold_images=10)
    line = OWN["domains"]["otsu_line"](cfg)
    assert line["row"] == f"{cfg.toy_world}, Otsu" and 0 < line["Dice, final CAM"] < 0.5
    assert line["area on empty images, final CAM, own labels"] > 0.05


@pytest.mark.slow
def test_masks_teach_a_linear_map_of_frozen_tokens_what_image_labels_cannot():
    """The upper mark of the study on photographs, on toy scenes: well above a map of constant background."""
    cfg = Config.preset("toy").replace(train_images=60, val_images=10)
    score = OWN["photographs"]["taught_by_masks"](initial_model(cfg).eval(), cfg)
    assert 0.3 < score < 1  # 0.11: all is background


# --- how a study is made ----------------------------------------------------------------------------------------------


def test_a_study_is_planned_then_made_from_its_finished_runs(tmp_path):
    study = study_of(tmp_path / "studies")
    assert (study.question, study.state()) == ("Why?", "planned")
    with pytest.raises(FileNotFoundError, match="no table yet; make it with `python -m toco_lab study question`"):
        study.table()
    with pytest.raises(ValueError, match="no run of question is finished"):
        write_study(study, root=tmp_path)
    for run, score in zip(study.grid.runs(tmp_path), (0.30, 0.34, 0.50, 0.58), strict=True):
        finish(run, score, similarity=0.8 - score)
    text = write_study(study, root=tmp_path)
    assert study.state() == "4 of 4 runs" and text == (study.folder / "table.md").read_text()
    assert study.table()["cam_mIoU"].tolist() == [0.30, 0.34, 0.50, 0.58]
    # differences 0.20 and 0.24: half the interval is 12.706 * 0.0283 / sqrt(2) = 0.254
    assert text.startswith("Why?\n\nBecause.\n") and "| with PTC | 2 | 54.0 ± 5.7 | +22.0 [-3.4, +47.4] |" in text
    words = " ".join(text.split())  # where a line ends depends on the name of the machine
    assert "5 s a run on one thread, evaluation included (" in words and "torch " in words
    assert (study.folder / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_lines_about_other_maps_of_the_runs_stand_in_the_same_table(tmp_path):
    study = study_of(tmp_path / "studies")
    for run in study.grid.runs(tmp_path):
        finish(run, 0.5, 0.5)
    more = [{"row": "with PTC: a part", "reference": "with PTC", "seed": seed, "cam_mIoU": 0.6} for seed in (0, 1)]
    text = write_results(study, tmp_path, further_rows=pd.DataFrame(more), scores=("cam_mIoU", "seg_mIoU"))
    assert "| with PTC: a part | 2 | with PTC | 60.0 ± 0.0 | +10.0 [+10.0, +10.0]* |" in text
    assert "similarity, last block |" not in text and study.state() == "4 of 4 runs"
    assert len(study.table()) == 6


def test_a_finished_study_is_not_lost_by_an_unfinished_one(tmp_path, monkeypatch):
    study = study_of(tmp_path / "studies")
    for run in study.grid.runs(tmp_path / "first"):
        finish(run, 0.5, 0.5)
    write_study(study, root=tmp_path / "first")
    before = (study.folder / "table.csv").read_bytes()
    finish(study.grid.runs(tmp_path / "second")[0], 0.1, 0.1)
    with pytest.raises(ValueError, match="has 4 lines and stays as it is: there are 1 so far"):
        write_study(study, root=tmp_path / "second")
    monkeypatch.setattr(studies, "run_sweep", None)
    with pytest.raises(ValueError, match="a table of 4 runs, these would be 2: give more seeds"):
        studies.make_study(open_study("question", tmp_path / "studies", seeds=1), root=tmp_path / "third")
    assert (study.folder / "table.csv").read_bytes() == before


def test_an_extended_study_keeps_the_lines_whose_runs_are_elsewhere_and_makes_the_others(tmp_path, monkeypatch):
    """Two seeds on one machine, a third one later on another: one table of three."""
    for run in study_of(tmp_path / "studies").grid.runs(tmp_path / "first"):
        finish(run, 0.5 + 0.1 * run.seed, 0.5)
    study = open_study("question", tmp_path / "studies")
    write_results(study, tmp_path / "first", measures=lambda run: {"length": 2.0 + len(run.name)})
    before = study.table()
    study = open_study("question", tmp_path / "studies", seeds=3, extend=True)
    assert study.kept_lines()["run"].tolist() == before["run"].tolist()
    made = [run for run in study.grid.runs(tmp_path / "second") if run.seed == 2]

    def sweep_of(grid, *, root, leave_out, **options):
        assert {run.folder.name for run in grid.runs(root)} - set(leave_out) == {run.folder.name for run in made}
        for run in made:
            finish(run, 0.9, 0.5)

    monkeypatch.setattr(studies, "run_sweep", sweep_of)
    (study.folder / "make.py").write_text(
        "from toco_lab.reports.studies import write_results\n"
        "def write(study, root):\n"
        "    return write_results(study, root, measures=lambda run: {'length': 2.0 + len(run.name)})\n"
    )
    text = studies.make_study(study, root=tmp_path / "second")
    table = study.table()
    assert list(zip(table["row"], table["seed"], strict=True)) == [(run.row, run.seed) for run in study.grid.runs()]
    assert table["cam_mIoU"].tolist() == [0.5, 0.6, 0.9] * 2
    pd.testing.assert_frame_equal(table[table["seed"] < 2].reset_index(drop=True)[list(before.columns[:-1])],
                                  before[list(before.columns[:-1])])  # fmt: skip
    assert "4 runs of them made earlier" in " ".join(text.split()) and "| without PTC | 3 |" in text
    # a table of a time when none named its runs stands for none, and rows of equal configs share a line
    (study.folder / "table.csv").write_text(table.drop(columns="run").to_csv(index=False))
    assert study.kept_lines().empty
    (study.folder / "table.csv").write_text(table.to_csv(index=False))
    rows = {"without PTC": {"w_ptc": 0.0}, "with PTC": {}, "as before": {"log_every": 2}}
    shared = replace(study, grid=replace(study.grid, rows=rows))
    assert shared.kept_lines()["row"].tolist() == [row for row in rows for _ in range(3)]
    assert shared.kept_lines()["cam_mIoU"].tolist() == [0.5, 0.6, 0.9] * 3
    # a config that is another one by now has no line in the kept table
    monkeypatch.setattr(Config, "digest", lambda cfg: "other")
    assert study.kept_lines().empty


def test_a_study_of_this_project_is_read_from_every_folder_and_made_in_the_current_one(tmp_path, monkeypatch):
    """As where a wheel was installed: what the project has stays as it is."""
    there = study_of(tmp_path / "project" / "results" / "studies")
    for run in there.grid.runs(tmp_path / "runs"):
        finish(run, 0.5, 0.5)
    write_study(there, root=tmp_path / "runs")
    (there.folder / "make.py").write_text("from toco_lab.reports.studies import write_results as write\n")
    before = {path.name: path.read_bytes() for path in there.folder.iterdir()}
    monkeypatch.setattr(studies, "project_root", lambda: tmp_path / "project")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert [study.state() for study in all_studies()] == ["4 of 4 runs"]
    smaller = open_study("question", seeds=1)
    assert smaller.table()["cam_mIoU"].tolist() == [0.5] * 4 and smaller.runs_kept() == 0
    assert not Path("results").exists()
    for run in smaller.grid.runs(Path("results/sweeps")):
        finish(run, 0.25, 0.5)
    write_study(smaller, root=Path("results/sweeps"))
    assert {path.name for path in Path("results/studies/question").iterdir()} == set(before)
    assert open_study("question").table()["cam_mIoU"].tolist() == [0.25] * 2
    assert open_study("question").origin is None, "it is whole: grid and make.py came along"
    assert {path.name: path.read_bytes() for path in there.folder.iterdir()} == before


def test_a_make_py_takes_the_place_of_the_usual_table(tmp_path, monkeypatch):
    study = study_of(tmp_path)
    (study.folder / "make.py").write_text("def write(study, root):\n    return f'{study.name} in {root.name}'\n")
    asked = []
    monkeypatch.setattr(studies, "run_sweep", lambda grid, **options: asked.append((grid.name, options["workers"])))
    assert studies.make_study(study, root=tmp_path / "runs", workers=3) == "question in runs"
    assert asked == [("question", 3)]


def test_findings_come_from_the_table():
    lines = [("plain", 0, 0.30, 0.9), ("plain", 1, 0.34, 0.8), ("ptc", 0, 0.50, 0.7), ("ptc", 1, 0.58, 0.7)]
    frame = pd.DataFrame(lines, columns=["row", "seed", "cam_mIoU", "similarity_last"])
    told = findings(frame, {"ptc": ["cam_mIoU", "similarity_last"], "plain": ["cam_mIoU"]})
    assert told.splitlines() == [
        "- **ptc** against plain: final CAM +22.0 [-3.4, +47.4]; similarity, last block -0.15 [-0.79, +0.49]",
        "- **plain**: final CAM 32.0 ± 2.8",
    ]
    with pytest.raises(ValueError, match="no row 'ctc'; there are: plain, ptc"):
        findings(frame, {"ctc": ["cam_mIoU"]})
    with pytest.raises(ValueError, match="no score seg_mIoU"):
        findings(frame, {"ptc": ["seg_mIoU"]})


def test_the_command_lists_studies_and_names_them(tmp_path, monkeypatch, capsys):
    study_of(tmp_path / "results" / "studies")
    monkeypatch.chdir(tmp_path)
    assert main(["study"]) == 0
    assert re.search(r"(?m)^question +planned +Why\?$", capsys.readouterr().out)
    assert main(["study", "answer"]) == 2
    said = capsys.readouterr().err
    assert "no study 'answer' in results/studies; there are: " in said and " question," in said and " toy_table" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OWN_TABLE))
def test_the_command_makes_a_study_and_continues(name, tmp_path, monkeypatch, capsys):
    """The studies with tables of their own, whole, on the smoke preset; the second call finds every run finished."""

    monkeypatch.setattr(sweep, "LocalExecutor", Here)
    monkeypatch.chdir(tmp_path)
    folder = Path("results/studies") / name
    shutil.copytree(KEPT / name, folder, ignore=shutil.ignore_patterns("table.*", "figure.png"))
    grid = (folder / "grid.yaml").read_text().replace("preset: toy", "preset: smoke")
    (folder / "grid.yaml").write_text(grid.replace("token_snapshots: 0", "token_snapshots: 0, val_images: 2"))
    assert main(["study", name, "--seeds", "2"]) == 0
    first, text = (folder / "table.csv").read_text(), (folder / "table.md").read_text()
    rows = {run.row for run in open_study(name, seeds=2).grid.runs()}
    assert all(f"| {row} | " in text for row in rows) and text.strip() in capsys.readouterr().out
    assert (folder / "figure.png").stat().st_size > 1000
    monkeypatch.setattr(worker, "work", None)
    assert main(["study", name, "--seeds", "2", "--tables"]) == 0
    assert (folder / "table.csv").read_text() == first
    assert ("(d) full ToCo" in text) == (name == "toy_table")


def test_curves_of_a_few_masks_are_the_means_of_the_table():
    study = open_study("few_masks")
    table, made = study.table(), OWN["few_masks"]
    points = made["curves"](table)
    segmented = points[points["panel"].str.startswith("segmentation")].set_index(["line", "masks"])
    of_row = table.groupby("row")["seg_mIoU"]
    for row, place in (
        ("masks alone, 32", ("masks alone", "32")),
        ("masks and labels, all", ("masks and labels", "all")),
    ):
        assert segmented.loc[place, "mean"] == pytest.approx(100 * of_row.mean()[row])
        assert segmented.loc[place, "high"] == pytest.approx(100 * (of_row.mean()[row] + of_row.std()[row]))
    level = segmented.loc["image labels alone (ToCo)"]
    assert list(level.index) == ["8", "16", "32", "64", "128", "all"] and level["mean"].nunique() == 1
    assert "masks alone" not in set(points.loc[points["panel"].str.startswith("final CAM"), "line"])  # it has no CAM
    titles = [axes.get_title() for axes in made["picture"](table).axes]
    assert titles == ["segmentation, mIoU", "final CAM, tuned threshold, mIoU"]
