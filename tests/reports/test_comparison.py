"""Which runs belong together: by config, by sweep, and whatever is damaged."""

import pytest
from helpers.finished_runs import make_run

from toco_lab.reports.comparison import MANY, compare, compare_folders
from toco_lab.reports.tables import ablation_table, asked_table, differences_table, environment_table, results_tables
from toco_lab.runs.run_dir import RunDir
from toco_lab.sweeps.grid import Grid


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A finished sweep: two rows, four seeds each, as folders."""
    root = tmp_path_factory.mktemp("sweeps")
    grid = Grid(
        name="terms", preset="toy", about="Does PTC help?", rows={"without": {"w_ptc": 0.0}, "with": {"w_ptc": 1.0}},
        seeds=4, reference="without",
    )  # fmt: skip
    for one in grid.runs(root):
        level = (0.4 if one.row == "without" else 0.6) + one.seed / 100
        make_run(one.folder.parent, name=one.folder.name, level=level, w_ptc=one.config.w_ptc, seed=one.seed)
    (root / "terms").mkdir(exist_ok=True)
    (root / "terms" / "grid.yaml").write_text(grid.to_text())
    return root / "terms"


def test_a_sweep_keeps_the_names_of_its_rows(sweep):
    found = compare_folders([sweep])
    assert len(found.runs) == 8 > MANY and found.about == "terms: Does PTC help?"
    assert found.title == "Report on terms" and found.progress == "8 runs, 8 finished"
    assert {row: len(runs) for row, runs in found.groups.items()} == {"without": 4, "with": 4}
    assert found.grouped and [run.config.seed for run in found.first_seeds().values()] == [0, 0]
    table, summary = ablation_table(found)
    cam = summary[(summary["row"] == "with") & (summary["score"] == "cam_mIoU")].iloc[0]
    assert cam["difference"] == pytest.approx(0.2) and cam["reference"] == "without" and cam["pairs"] == 4
    assert table.frame.iloc[1, 0] == "with" and "61.5 ± 1.3" in table.frame.iloc[1].tolist()
    assert table.protocols()[0].startswith("Data toy")
    fields = differences_table(found)
    assert list(fields.frame) == ["run", "w_ptc", "seeds"]
    assert fields.frame.to_numpy().tolist() == [["without", "0.0", "0, 1, 2, 3"], ["with", "1.0", "0, 1, 2, 3"]]
    scores = results_tables(found)[0][0]
    assert scores.frame["CAM, mIoU"].tolist() == ["40.0", "41.0", "42.0", "43.0", "60.0", "61.0", "62.0", "63.0"]


def test_few_runs_are_shown_one_by_one(sweep):
    paths = [run.run.path for run in compare_folders([sweep]).runs][:MANY]
    found = compare_folders(paths)
    assert not found.grouped and list(found.groups) == found.names
    assert found.names[0] == "without, seed 0" and set(found.rows.values()) == {"without", "with"}
    both = compare_folders([sweep, make_run(sweep.parent, name="other", w_ptc=0.5).path])
    assert len(both.runs) == 9 and both.rows["other"] == "other"  # a name that somebody gave


def test_one_run_is_no_ablation(sweep):
    found = compare([compare_folders([sweep]).runs[0].run])
    assert ablation_table(found) is None and differences_table(found) is None


def test_a_damaged_run_keeps_its_place(sweep, tmp_path):
    runs = [make_run(tmp_path, name=f"r{seed}", seed=seed) for seed in range(MANY + 1)]
    (runs[2].path / "status.json").write_text("{")
    found = compare(runs)
    assert found.rows["r2"] == "-" and found.rows["r1"] == "toy"
    assert found.groups["toy"] == [run for run in found.runs if run.name != "r2"]
    assert [run.name for run in found.groups["r2"]] == ["r2"]
    assert found.runs[2].status == {} and "of unknown state" in found.runs[2].absence("x", "y")


def test_a_run_whose_config_is_damaged_is_left_out_by_name(tmp_path):
    runs = [make_run(tmp_path, name=name) for name in "ab"]
    (runs[0].path / "config.json").write_text("{")
    found = compare(runs)
    assert found.names == ["b"] and f"left out: {runs[0].path / 'config.json'} cannot be read" in found.progress
    with pytest.raises(ValueError, match=r"a/config.json cannot be read"):
        compare(runs[:1])


def test_a_killed_run_is_stopped_in_every_table(tmp_path):
    run = make_run(tmp_path, name="killed")
    run.set_status("running", step=3)
    run._lock = None  # its process is gone
    found = compare([RunDir(run.path)])
    assert found.frame["state"].tolist() == ["stopped"] and found.progress.startswith("1 run, 0 finished;")
    assert asked_table(found).frame["state"].tolist() == ["stopped"]
    assert "The run is stopped, at step 3" in found.runs[0].absence("x", "y")


def test_what_is_wrong_with_a_table_is_said_in_its_place(tmp_path):
    run = make_run(tmp_path, name="one")
    (run.path / "evaluation.csv").write_text("target,class,iou\ncam,mIoU,much\n")
    record = compare([run]).runs[0]
    assert record.evaluation is None
    assert "evaluation.csv is damaged: a number in row 2, column iou was expected" in record.absence(
        "s", "evaluation.csv"
    )


def test_runs_of_one_environment_share_a_column(tmp_path):
    runs = [make_run(tmp_path, name=name) for name in "abc"]
    (record,) = runs[2].read_json("env")
    runs[2].write_json("env", [record | {"python": "2.7"}, record | {"python": "2.7"}])
    frame = environment_table(compare(runs)).frame.set_index("")
    assert list(frame) == ["a, b", "c"]
    assert frame.loc["python"].tolist()[1] == "2.7" and frame.loc["starts"].tolist() == ["2", "2"]


def test_a_folder_that_is_nothing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        compare_folders([tmp_path])
    (tmp_path / "grid.yaml").write_text(Grid(name="x", preset="toy").to_text())
    with pytest.raises(FileNotFoundError, match="has begun; `python -m toco_lab sweep`"):
        compare_folders([tmp_path])
    with pytest.raises(ValueError, match="at least one run"):
        compare_folders([])
    run = make_run(tmp_path, name="a")
    with pytest.raises(ValueError, match="different folder names"):
        compare_folders([run.path, RunDir(run.path).path])
