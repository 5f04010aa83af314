"""What the studies of class token contrast measure: against made-up files, and once from runs of a few steps."""

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from toco_lab import experiment
from toco_lab.config import Config
from toco_lab.reports.contrast import contrast_measures
from toco_lab.reports.studies import open_study, write_results, write_study
from toco_lab.runs.run_dir import RunDir
from toco_lab.sweeps.grid import Grid

STUDIES = Path(__file__).resolve().parents[2] / "results" / "studies"
PARTS = runpy.run_path(str(STUDIES / "ctc_parts" / "make.py"))


def run_with(folder: Path, over: float, cosines: dict[str, list[float]]) -> RunDir:
    """A finished run of 8 rows of metrics."""
    run = RunDir.create(Config.preset("smoke"), folder)
    lines = [("cam", "mIoU", 0.5, over), ("cam_aux", "mIoU", 0.6, over / 2), ("cam", "background", 0.9, 0.01)]
    run.write_table("evaluation", pd.DataFrame(lines, columns=["target", "class", "iou", "over_activation"]))
    for step in range(8):
        run.append_metrics({"step": step, "cls_loss": 1.0} | {name: values[step] for name, values in cosines.items()})
    return run


def test_measures_are_over_activation_and_the_cosines_at_the_end(tmp_path):
    cosines = {"ctc_positive_cosine": [0.0] * 6 + [0.5, 0.7], "ctc_negative_cosine": [0.0] * 6 + [0.1, np.nan]}
    found = contrast_measures(run_with(tmp_path / "with", 0.4, cosines))
    assert found == pytest.approx({
        "over-activation, final CAM": 0.4, "over-activation, auxiliary CAM": 0.2, "cosine of positive crops": 0.6,
        "cosine of negative crops": 0.1,
    })  # fmt: skip
    without = contrast_measures(run_with(tmp_path / "without", 0.4, {}))
    assert np.isnan(without["cosine of positive crops"]) and without.keys() == found.keys()


def small_study(folder: Path):
    """The two rows that the picture of ctc_parts shows, on the smoke preset."""
    rows = {row: dict(open_study("ctc_parts", STUDIES).grid.rows[row]) for row in PARTS["SHOWN"]}
    overrides = {"toy_world": "parts", "val_images": 2, "token_snapshots": 0}
    grid = Grid(name="small", preset="smoke", about="Why?", rows=rows, overrides=overrides)
    (folder / "small").mkdir(parents=True)
    (folder / "small" / "grid.yaml").write_text(grid.to_text())
    (folder / "small" / "make.py").write_text((STUDIES / "ctc_parts" / "make.py").read_text())
    return open_study("small", folder)


def test_the_study_of_parts_is_made_from_its_runs(tmp_path):
    study = small_study(tmp_path / "studies")
    for run in study.grid.runs(tmp_path):
        experiment.make(experiment.open_run(run.config, run.folder.parent, name=run.folder.name), progress=False)
    text = write_study(study, root=tmp_path)
    table = study.table()
    for name in ("recall on heads, final CAM", "recall on bodies, auxiliary CAM"):
        assert table[name].between(0, 1).all() and f"difference, {name}" in text
    assert (study.folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    plain = write_results(study, tmp_path)  # the same table without what only this study measures
    assert "recall on heads" not in plain and all(line in text for line in plain.splitlines() if line.startswith("| "))


def test_grids_of_class_token_contrast_change_one_thing_at_a_time():
    flags = {run.row: run.config for run in open_study("ctc_flags", STUDIES).grid.runs() if run.seed == 0}
    for row, cfg in flags.items():
        if row != "without CTC":
            kind, size, weight = row.split(", ")
            assert f"{cfg.local_crop_size} px" == size and f"weight {cfg.w_ctc:g}" == weight
            assert cfg.crop_candidates == {"clean": "not_foreground", "contradictory": "uncertain"}[kind]
    parts = open_study("ctc_parts", STUDIES).grid
    one, three = ({k: v for k, v in parts.rows.items() if k.startswith(n)} for n in "13")
    without = [[{k: v for k, v in row.items() if k != "toy_objects"} for row in half.values()] for half in (one, three)]
    assert without[0] == without[1] and {row["toy_objects"] for row in parts.rows.values()} == {1, 3}


def test_rows_of_the_path_differ_from_their_reference_in_one_thing():
    """Where it is the time, that row has its weight as well: the reference of the times is a run without CTC."""
    grid = open_study("ctc_path", STUDIES).grid
    for row, reference in grid.references().items():
        changed, kept = ({name: str(value) for name, value in grid.rows[one].items()} for one in (row, reference))
        differing = {name for name, _ in changed.items() ^ kept.items()}
        assert len(differing - {"ctc_start_step", "ctc_stop_step"}) == 1, (row, differing)
