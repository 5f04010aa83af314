"""Questions about many runs: conditions, comparisons, means over repeats, and what lies in a folder."""

import json
import math

import pandas as pd
import pytest
from PIL import Image

from toco_lab.commands.runs import as_page
from toco_lab.config import Config
from toco_lab.runs import table as run_table
from toco_lab.runs.listing import list_runs
from toco_lab.runs.run_dir import RunDir
from toco_lab.runs.table import compare_runs, filter_runs, find_run, overview, relate, sort_runs

NAN = float("nan")


@pytest.fixture
def table() -> pd.DataFrame:
    """Six runs: three values of w_ptc; one has no score, one could not be read."""
    rows = [
        ("a", "done", 0, 0.0, "none", 0.2, ""), ("b", "done", 1, 0.0, "none", 0.4, ""),
        ("c", "done", 0, 0.5, "none", 0.6, ""), ("d", "done", 0, 1.0, "attn_scale", 0.9, ""),
        ("e", "failed", 1, 1.0, "attn_scale", NAN, "no memory"), ("f", "unreadable", NAN, NAN, NAN, NAN, "damaged"),
    ]  # fmt: skip
    columns = "run state seed w_ptc anti_smoothing cam_mIoU error".split()
    frame = pd.DataFrame(rows, columns=columns).assign(step=4, seconds=1.5, made="", pretrained=False, total_loss=2.0)
    return frame.astype({"pretrained": object})


def names(frame: pd.DataFrame) -> str:
    return "".join(frame["run"])


# --- filter -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("", "abcdef"),
        ("  ", "abcdef"),
        ("w_ptc > 0 and cam_mIoU > 0.5", "cd"),
        ("w_ptc == 0 or state == 'failed'", "abe"),
        ("not (cam_mIoU > 0.5)", "abef"),
        ("0 < w_ptc < 1", "c"),
        ("0 < w_ptc > 0.6", "de"),
        ("w_ptc != 0", "cdef"),
        ("seed in [1, 2]", "be"),
        ("seed not in (1, 2)", "acdf"),
        ("'memory' in error", "e"),
        ("'attn' in anti_smoothing", "de"),
        ("cam_mIoU == None", "ef"),
        ("cam_mIoU != None and w_ptc >= 1.0", "d"),
        ("w_ptc <= -0.5", ""),
        ("not pretrained", "abcdef"),
        ("True", "abcdef"),
    ],
)
def test_conditions(table, where, kept):
    assert names(filter_runs(table, where)) == kept


def test_lists_of_a_config_are_compared_whole(table):
    table["cam_scales"] = [(1.0, 0.5), (1.0,), *[None] * 4]
    assert names(filter_runs(table, "cam_scales == (1.0, 0.5)")) == "a"
    assert names(filter_runs(table, "0.5 in cam_scales")) == "a"


@pytest.mark.parametrize(
    "where",
    [
        "__import__('os').system('x')", "run.__class__", "table['run']", "[x for x in run]", "lambda: 1", "f'{run}'",
        "(a := 1)", "w_ptc + 1 > 0", "w_ptc > 0 & seed > 0", "~pretrained", "{1: 2}", "w_ptc if seed else 0", "...",
        "2 ** 9999999", "1j == 1", "b'x' == run", "state is None", "-'a' == 1", "not run()",
    ],
)  # fmt: skip
def test_whatever_is_no_comparison_is_refused_also_in_an_empty_table(table, where):
    for frame in (table, table[:0]):
        with pytest.raises(ValueError, match="is not allowed; compare columns"):
            filter_runs(frame, where)


@pytest.mark.parametrize("where", ["w_ptc >", "@w_ptc > 0", "a b", "(" * 400, "import os", "w_ptc = 1", "x\0"])
def test_what_can_not_be_read_is_said(table, where):
    with pytest.raises(ValueError, match="cannot be read"):
        filter_runs(table, where)


def test_errors_name_the_column_or_the_types(table):
    with pytest.raises(ValueError, match=r"no column 'w_pct', did you mean 'w_ptc'\?$"):
        filter_runs(table, "state == 'done' or w_pct > 1")
    with pytest.raises(ValueError, match=r"no column 'zzz'; `.* runs --csv FILE` writes all \d+ columns"):
        filter_runs(table, "zzz > 1")
    with pytest.raises(ValueError, match=r"'state > 1' compares what has no order .*'str' and 'int'"):
        filter_runs(table, "state > 1")


# --- sort, columns ----------------------------------------------------------------------------------------------------


def test_sorting_leaves_missing_values_at_the_end(table):
    assert names(sort_runs(table, "cam_mIoU")) == "abcdef"
    assert names(sort_runs(table, "cam_mIoU", descending=True)) == "dcbaef"
    table["mixed"] = ["x", 2, None, 10, (1.0,), 1.5]
    assert names(sort_runs(table, "mixed")) == "fbdeac"
    with pytest.raises(ValueError, match="did you mean 'seed'"):
        sort_runs(table, "sed")


def test_overview_keeps_what_differs_among_the_rows(table):
    lead = ["run", "state", "step", "seconds", "made", "seed"]
    assert list(overview(table)) == [*lead, "anti_smoothing", "w_ptc", "cam_mIoU", "error"]
    assert list(overview(table[:3])) == [*lead, "w_ptc", "cam_mIoU"]
    assert list(overview(table[5:])) == [*lead, "cam_mIoU", "error"]
    assert run_table.metric_columns(table) == ["cam_mIoU", "total_loss", "seconds", "step"]
    assert run_table.metric_columns(table[4:]) == ["total_loss", "seconds", "step"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(NAN, ""), (None, ""), (0.0, "0"), (20000.0, "20000"), (1 / 3, "0.3333"), (8e-6, "8e-06"), (True, "True"),
     (math.inf, "inf"), ((1.0, 0.5), "(1.0, 0.5)"), ("x", "x")],
)  # fmt: skip
def test_cells(value, shown):
    assert run_table.cell_text(value) == shown


@pytest.mark.parametrize(
    ("size", "shown"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (44e6, "44 MB"), (5e12, "5000 GB")]
)
def test_sizes(size, shown):
    assert run_table.size_text(size) == shown


# --- compare, relate --------------------------------------------------------------------------------------------------


def test_compare_shows_differing_fields_and_measurements(table):
    compared = compare_runs(table, ["d", "a"])
    assert list(compared.columns) == ["d", "a"]
    expected = ["anti_smoothing", "w_ptc", "state", "cam_mIoU", "total_loss", "seconds", "step"]
    assert list(compared.index) == expected
    assert compared.loc["w_ptc"].tolist() == [1.0, 0.0] and compared.loc["cam_mIoU"].tolist() == [0.9, 0.2]
    assert "error" in compare_runs(table, ["a", "e"]).index and "seed" in compare_runs(table, ["a", "e"]).index
    with pytest.raises(ValueError, match="no run 'z'; there are: a, b, c"):
        compare_runs(table, ["a", "z"])


def test_repeats_are_averaged(table):
    found = relate(table, "cam_mIoU", "w_ptc")
    assert found.points[["run", "x", "y"]].to_numpy().tolist() == [
        ["a", 0.0, 0.2], ["b", 0.0, 0.4], ["c", 0.5, 0.6], ["d", 1.0, 0.9]
    ]  # fmt: skip
    assert found.means["x"].tolist() == [0.0, 0.5, 1.0] and found.means["runs"].tolist() == [2, 1, 1]
    assert found.means["mean"].tolist() == pytest.approx([0.3, 0.6, 0.9])
    assert found.means["std"][0] == pytest.approx(math.sqrt(0.02))  # ((0.1)^2 + (0.1)^2) / (2 - 1)
    assert found.means["std"][1:].isna().all()
    assert (found.left_out, found.note) == (2, "4 runs, 2 runs left out without a value")


def test_words_and_groups_keep_their_order(table):
    table = table.iloc[::-1]
    found = relate(table, "cam_mIoU", "anti_smoothing", colour="w_ptc")
    assert found.points["x"].tolist() == ["attn_scale", "none", "none", "none"]
    assert found.means[["group", "x", "runs"]].to_numpy().tolist() == [
        ["0", "none", 2], ["0.5", "none", 1], ["1", "attn_scale", 1]
    ]  # fmt: skip
    assert relate(table, "cam_mIoU", "pretrained").points["x"].tolist() == ["False"] * 4  # no number


def test_relate_refuses_words_as_metric_and_takes_an_empty_table(table):
    with pytest.raises(ValueError, match="'state' is not; there are: cam_mIoU, total_loss"):
        relate(table, "state", "w_ptc")
    with pytest.raises(ValueError, match="did you mean 'cam_mIoU'"):
        relate(table, "cam_miou", "w_ptc")
    assert relate(table[:0], "seconds", "seed", colour="w_ptc").note == "0 runs"


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> RunDir:
    run = RunDir.create(Config.preset("smoke"), tmp_path / "demo", name="mine")
    for folder in ("notebooks", "figures", "checkpoints"):
        (run.path / folder).mkdir()
    return run


def test_find_run_by_name_and_by_path(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("demo/mine", run.path):
        assert find_run(tmp_path, name).path == run.path
    assert find_run("elsewhere", "demo/mine").path.resolve() == run.path
    with pytest.raises(ValueError, match=r"demo/mime is no run folder.*did you mean 'demo/mine'"):
        find_run(tmp_path, "demo/mime")
    with pytest.raises(ValueError, match="did you mean 'demo/mine'"):
        find_run(tmp_path, "mine")
    with pytest.raises(ValueError, match=r"config.json; `runs list` shows the 1 run below"):
        find_run(tmp_path, "xyz")


def test_run_files_and_the_notice(run):
    (run.path / "notebooks/03_train.ipynb").write_text("{}")
    (run.path / "notebooks/03_train.json").write_text("{}")  # its record is nothing to look at
    (run.path / "figures/a.png").write_bytes(b"123")
    (run.path / "figures/b.json").write_text("{}")
    (run.path.parent / "report.html").write_text("x")
    (run.path / "checkpoints/step_00000002.pt").write_bytes(b"1234")
    found = [(file.path.name, file.kind, file.size) for file in run_table.run_files(run)]
    assert found == [
        ("03_train.ipynb", "notebook", 2), ("a.png", "picture", 3), ("b.json", "plotly figure", 2),
        ("report.html", "report", 1), ("step_00000002.pt", "checkpoint", 4),
    ]  # fmt: skip
    size = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    assert run_table.deletion_notice(run) == f"{run.path}: new, step 0, {size / 1000:.1f} kB, 1 checkpoint"
    (run.path / "status.json").write_text("[")
    assert "mine: unreadable, " in run_table.deletion_notice(run)


def test_pages_for_a_web_browser(run):
    Image.new("RGB", (2, 2)).save(picture := run.path / "figures/a.png")
    assert as_page(picture) == picture
    (figure := run.path / "figures/b.json").write_text('{"data": [{"type": "bar", "y": [3]}], "layout": {}}')
    page = as_page(figure).read_text()
    assert '"y":[3]' in page and len(page) > 1_000_000  # plotly is inside
    cell = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# Seen and heard"}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (path := run.path / "notebooks/n.ipynb").write_text(json.dumps(notebook))
    made = as_page(path)
    assert "Seen and heard" in made.read_text() and made.suffix == ".html" and run.path not in made.parents


def test_on_real_folders(tmp_path):
    for seed in (0, 1):
        RunDir.create(Config.preset("smoke").replace(seed=seed, w_ptc=0.5), tmp_path / "s", name=f"r{seed}")
    table = list_runs(tmp_path, everything=True)
    assert names(filter_runs(table, "w_ptc == 0.5 and seed == 1 and mlp_ratio == None")) == "s/r1"
    assert list(overview(table)) == "run state step seconds made seed".split()
