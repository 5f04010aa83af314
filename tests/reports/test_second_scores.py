"""The scores at a tuned threshold in tables of runs, studies and reports."""

import numpy as np
import pandas as pd
from helpers.finished_runs import make_run

from toco_lab.reports.ablation import protocol_text, summarise, wide_table
from toco_lab.reports.comparison import compare
from toco_lab.reports.sections import Report
from toco_lab.reports.studies import KEPT
from toco_lab.reports.tables import ablation_table, results_tables
from toco_lab.runs.listing import list_runs
from toco_lab.runs.scores import rows_of_runs, run_scores


def tuned_run(root, name, *, score, threshold, source="100 training images", **changes):
    """A finished run whose CAM has a second score; without a threshold it has the reason `source` instead."""
    run = make_run(root, name=name, **changes)
    table, protocol = run.read_table("evaluation"), run.read_json("protocol")
    table.loc[len(table)] = ("cam_tuned", "mIoU", score)
    run.write_table("evaluation", table)
    said = {"threshold_from" if threshold else "not_defined": source, "background_threshold": threshold}
    protocol["cam"]["background_threshold"] = 0.5
    run.write_json("protocol", protocol | {"cam_tuned": protocol["cam"] | {"target": "cam_tuned"} | said})
    rows = [
        ("cam", split, split == "train", 100, one, one, one == 0.5, one == threshold)
        for split in ("train", "val")
        for one in (0.3, 0.4, 0.5)
    ]
    columns = "target split tuned_on images threshold miou configured chosen".split()
    run.write_table("thresholds", pd.DataFrame(rows, columns=columns))
    return run


def words(section):
    return " ".join(part.data["text/html"] for part in section if "text/html" in getattr(part, "data", {}))


def test_runs_have_the_second_score_and_the_threshold_it_is_at(tmp_path):
    run = tuned_run(tmp_path, "one", score=0.7, threshold=0.3)
    old = make_run(tmp_path, name="old", w_ptc=0.0)
    scores = run_scores(run)
    assert (scores["cam_tuned_mIoU"], scores["cam_threshold"]) == (0.7, 0.3) and "cam_aux_threshold" not in scores
    assert not {"cam_tuned_mIoU", "cam_threshold"} & set(run_scores(old))
    table = list_runs(tmp_path).set_index("run")
    assert table.loc["one", "cam_tuned_mIoU"] == 0.7 and pd.isna(table.loc["old", "cam_tuned_mIoU"])
    assert {"cam_tuned_mIoU", "cam_aux_tuned_mIoU", "cam_refined_tuned_mIoU", "cam_threshold"} <= set(KEPT)


def test_ablations_show_both_columns_and_say_what_they_are(tmp_path):
    runs = [
        tuned_run(tmp_path, "plain", score=0.5, threshold=0.3, level=0.3, w_ptc=0.0),
        tuned_run(tmp_path, "ToCo", score=0.65, threshold=0.5, level=0.6),
    ]
    frame = rows_of_runs(runs)
    cells = wide_table(summarise(frame, scores=["cam_mIoU", "cam_tuned_mIoU", "cam_threshold"]))
    assert cells["final CAM, tuned threshold"].tolist() == ["50.0", "65.0"]
    assert cells["difference, final CAM"].tolist() == ["", "+30.0 (one seed)"]
    assert cells["difference, final CAM, tuned threshold"].tolist() == ["", "+15.0 (one seed)"]
    assert cells["tuned threshold, final CAM"].tolist() == ["0.30", "0.50"]
    said = "the one of 0.05 to 0.80 that is best on 100 images of train, never on those that are scored"
    configs = [run.config() for run in runs]
    assert said in protocol_text(configs, frame)
    assert "tuned" not in protocol_text(configs, frame.drop(columns="cam_tuned_mIoU"))
    table, summary = ablation_table(compare(runs))
    assert "final CAM, tuned threshold" in table.frame and "cam_tuned_mIoU" in set(summary["score"])


def test_an_older_run_beside_a_new_one_has_a_dash(tmp_path):
    runs = [make_run(tmp_path, name="old", w_ptc=0.0), tuned_run(tmp_path, "new", score=0.65, threshold=0.4)]
    scores = results_tables(compare(runs))[0][0].frame.set_index("run")
    assert scores["CAM, tuned threshold, mIoU"].tolist() == ["-", "65.0"]
    cells = wide_table(summarise(rows_of_runs(runs)))
    assert cells["final CAM, tuned threshold"].tolist() == ["-", "65.0"]
    assert "threshold_curves" in [getattr(part, "name", "") for part in Report(compare(runs)).results()]
    assert "threshold_curves" not in [getattr(part, "name", "") for part in Report(compare(runs[:1])).results()]


def test_thresholds_of_their_own_are_no_other_way_of_measuring(tmp_path):
    runs = [
        tuned_run(tmp_path, "plain", score=0.5, threshold=0.3, w_ptc=0.0),
        tuned_run(tmp_path, "ToCo", score=0.65, threshold=0.5),
    ]
    tables, unequal = results_tables(compare(runs))
    assert unequal == []
    measured = tables[0].frame.set_index("run")["measured with"]
    assert "background threshold 0.3 (CAM, tuned threshold, mIoU)" in measured["plain"]
    aside = tables[0].html().partition("<summary>measured with</summary>")[2]  # sentences stand below the numbers
    assert "<b>plain</b>: checkpoint 0123456789ab · " in aside
    assert "threshold from 100 training images" in tables[0].protocol["CAM, tuned threshold, mIoU"]
    other = tuned_run(tmp_path, "few", score=0.6, threshold=0.5, source="7 training images", w_ptc=0.1)
    assert results_tables(compare([*runs, other]))[1] == ["CAM, tuned threshold, mIoU"]


def test_a_score_that_is_not_there_says_why(tmp_path):
    reason = "no training image of 'train' has a mask"
    runs = [tuned_run(tmp_path, "one", score=float("nan"), threshold=None, source=reason)]
    scores = results_tables(compare(runs))[0][0]
    assert scores.frame["CAM, tuned threshold, mIoU"].tolist() == ["-"]
    assert f"not defined {reason}" in scores.protocol["CAM, tuned threshold, mIoU"]
    assert "cam_tuned_mIoU" not in set(summarise(rows_of_runs(runs))["score"])  # no column of dashes alone


def test_the_report_draws_the_curve_and_names_calibration(tmp_path):
    report = Report(compare([tuned_run(tmp_path, "one", score=0.7, threshold=0.4)]), paper=True)
    section = report.results()
    figure = next(part for part in section if getattr(part, "name", "") == "threshold_curves")
    assert {"application/vnd.plotly.v1+json", "image/png"} <= set(figure.data)
    assert "calibration" in words(section)


def test_boundary_iou_has_a_table_and_an_older_run_a_dash(tmp_path):
    old, new = make_run(tmp_path, name="old", w_ptc=0.0), make_run(tmp_path, name="new")
    table = new.read_table("evaluation")
    new.write_table("evaluation", table.assign(boundary_iou=np.where(table["target"] == "cam", 0.25, np.nan)))
    protocol = new.read_json("protocol")
    protocol["cam"]["boundary_width"] = 0.02
    new.write_json("protocol", protocol)
    assert run_scores(new)["cam_boundary"] == 0.25 and "cam_boundary" not in run_scores(old)
    tables, unequal = results_tables(compare([old, new]))
    assert unequal == []
    found = next(table for table in tables if table.name == "boundary")
    assert found.frame["CAM, boundary IoU"].tolist() == ["-", "25.0"]
    assert "boundary width 0.02" in found.protocol["CAM, boundary IoU"]
    assert "boundary width" not in tables[0].html()
    cells = wide_table(summarise(rows_of_runs([old, new]), scores=["cam_mIoU", "cam_boundary"]))
    assert cells["final CAM, boundary IoU"].tolist() == ["-", "25.0"]
