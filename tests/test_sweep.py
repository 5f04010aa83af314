"""Sweeps: what a grid refuses, which runs it makes, and what failures, kill -9, Ctrl-C and a second call leave."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from toco_lab import sweep
from toco_lab.__main__ import main
from toco_lab.config import PRESETS, Config
from toco_lab.runs import RunDir
from toco_lab.sweep import Grid, LocalExecutor, outlook, plan, run_sweep, seconds_left, state_of
from toco_lab.train import fit

ROOT = Path(__file__).resolve().parents[1]
QUICK = {"steps": 2, "val_images": 1, "token_snapshots": 0, "probe_images": 1}
EXPLODES = {"learning_rate": 1e30, "warmup_ratio": 1.0}  # passes every check, and ends in a loss that is NaN


def grid(**changes) -> Grid:
    return Grid(**{"name": "test", "preset": "smoke", "overrides": QUICK} | changes)


class Here:
    """An executor without processes: the same work, in this one."""

    slots = 1

    def __init__(self, workers: int = 1) -> None:
        self.tasks: list[tuple[Path, str]] = []

    def submit(self, folder: Path, text: str) -> None:
        self.tasks.append((folder, text))

    def ended(self) -> dict[Path, tuple[str, str]]:
        folder, text = self.tasks.pop(0)
        sweep._work(text)
        return {folder: ("", "")}

    def close(self) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps run in this process."""
    monkeypatch.setattr(sweep, "LocalExecutor", Here)


# --- the grid ---------------------------------------------------------------------------------------------------------


def test_rows_times_axes_times_seeds_in_order() -> None:
    rows, axes = {"plain": {"w_ctc": 0}, "full": None}, {"w_ptc": [0.0, 0.2], "aux_layer": [-2, -3]}
    made = grid(overrides={"steps": 7}, rows=rows, axes=axes, seeds=[3, 1]).runs("root")
    assert len(made) == 2 * 4 * 2
    assert [(run.row, run.seed) for run in made[:3]] == [
        ("plain, w_ptc=0.0, aux_layer=-2", 3),
        ("plain, w_ptc=0.0, aux_layer=-2", 1),
        ("plain, w_ptc=0.0, aux_layer=-3", 3),
    ]
    base = Config.preset("smoke").replace(steps=7)
    assert made[0].config == base.replace(w_ctc=0.0, w_ptc=0.0, aux_layer=-2, seed=3)
    assert made[-1].config == base.replace(w_ptc=0.2, aux_layer=-3, seed=1)
    assert made[-1].folder == Path("root/test") / made[-1].config.run_name()


def test_a_row_wins_over_the_overrides_and_is_checked_together_with_them() -> None:
    made = grid(overrides={"low_threshold": 0.9}, rows={"high": {"high_threshold": 0.95}}, seeds=3).runs()
    assert [run.seed for run in made] == [0, 1, 2]
    assert made[0].config.low_threshold == 0.9  # which the preset's high_threshold would not allow
    assert grid(overrides={"w_ptc": 0.5}, rows={"a": {"w_ptc": 0.1}}).runs()[0].config.w_ptc == 0.1


def test_a_grid_without_rows_and_axes_is_the_preset() -> None:
    (run,) = Grid(name="one", preset="smoke").runs()
    assert (run.row, run.seed, run.config) == ("smoke", 0, Config.preset("smoke"))
    assert str(run.folder.parent) == "results/sweeps/one"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "names a folder: .* got 'a/b'"),
        ({"name": ".."}, "names a folder"),
        ({"preset": "smok"}, "unknown preset 'smok', did you mean 'smoke'"),
        ({"overrides": {"w_ptk": 0}}, "unknown config field 'w_ptk', did you mean 'w_ptc'"),
        ({"overrides": [1]}, "overrides must be names"),
        ({"overrides": {"seed": 3}}, "overrides may not set seed; give `seeds`"),
        ({"rows": {"a": {"preset_name": "toy"}}}, "row 'a' may not set preset_name; give `preset`"),
        ({"rows": {"a": {"w_ptc": "0"}}}, "grid 'test', a: config field 'w_ptc' must be float, got '0'"),
        ({"rows": {"a": {}, "b": {"low_threshold": 0.9}}}, "'test', b: config: .*low_threshold"),
        ({"rows": {False: {}}}, "rows must be names .*quote words"),
        ({"rows": {"a": 3}}, "row 'a' must be names"),
        ({"axes": {"w_ptc": 0.1}}, "axis 'w_ptc' must be a list of values, got 0.1"),
        ({"axes": {"w_ptc": []}}, "axis 'w_ptc' must be a list"),
        ({"axes": {"ptc_similarity": "raw"}}, "axis 'ptc_similarity' must be a list"),
        ({"axes": {"w_ptc": [0.1, 0.1]}}, "axis 'w_ptc' has a value twice"),
        ({"axes": {"w_ptk": [0.1]}}, "did you mean 'w_ptc'"),
        ({"axes": {"seed": [1]}}, "axes may not set seed"),
        ({"axes": {"w_ptc": [0.1]}, "rows": {"a": {"w_ptc": 0.2}}}, "w_ptc is set by row 'a' and by an axis"),
        ({"seeds": 0}, "seeds must be a number of seeds, at least 1"),
        ({"seeds": True}, "seeds must be"),
        ({"seeds": "01"}, "seeds must be"),
        ({"seeds": [0, 1.5]}, "seeds must be"),
        ({"seeds": [0, 0]}, "a seed is given twice"),
        ({"seeds": [-1]}, "seed must not be negative"),
        ({"folder": "../a"}, "names a folder: .* got '../a'"),
        ({"rows": {"a": {}, "b": {}}, "reference": "c"}, "reference: 'c' is no row; there are: a, b"),
        ({"rows": {"a": {}, "b": {}}, "reference": {"b": "x"}}, "reference: 'x' is no row"),
        ({"parameters": {"num_images": 3}}, "parameters need a notebook"),
        ({"notebook": "a.ipynb", "parameters": {"run_dir": "x"}}, "the grid itself gives the notebook its run_dir"),
    ],
)
def test_what_a_grid_refuses(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid(**changes)


def test_yaml_and_keywords_give_one_grid(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(
        "name: a\npreset: smoke\nabout:\noverrides: {learning_rate: 1e-4, weight_decay: 1E-2}\nrows:\n  one:\n"
        "  'off': {cam_scales: [1, 0.5]}\naxes: {w_ptc: [0, .5e-1]}\nseeds: [2]\n"
    )
    made = Grid.from_yaml(path)
    assert made == Grid(
        name="a", preset="smoke", overrides={"learning_rate": 1e-4, "weight_decay": 0.01}, seeds=(2,),
        rows={"one": {}, "off": {"cam_scales": [1, 0.5]}}, axes={"w_ptc": (0, 0.05)},
    )  # fmt: skip
    path.write_text(made.to_text())
    assert Grid.from_yaml(path) == made
    path.write_text(grid(axes={"w_ptc": np.linspace(0, 1, 3)}).to_text())
    assert [run.config.w_ptc for run in Grid.from_yaml(path).runs()] == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\npreset: smoke\nseed: 1", r"grid.yaml: unknown key 'seed'; did you mean 'seeds'"),
        ("name: a\npreset: smoke\nzzz: 1", "unknown key 'zzz'; there are: name, preset"),
        ("preset: smoke", "grid.yaml: no name"),
        ("name: a\nname: b\npreset: smoke", "'name' comes twice"),
        ("name: a\npreset: smoke\nrows: {a: {w_ptc: 0}, a: {}}", "'a' comes twice"),
        ("name: a\npreset: smoke\nrows: {no: {}}", "grid.yaml: .*quote words like no"),
        ("- a", "must hold `key: value` lines, got list"),
        ("a: [", "can not be read"),
        ("name: a\npreset: smoke\noverrides: {w_ptc: x}", "grid.yaml: grid 'a': config field 'w_ptc' must be float"),
    ],
)
def test_what_a_file_refuses(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        Grid.from_yaml(tmp_path / "grid.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "grids").glob("**/*.yaml")), ids=lambda path: path.stem)
def test_the_grids_of_this_project_can_be_read(path: Path) -> None:
    made = Grid.from_yaml(path)
    assert made.name == path.stem and made.about and made.preset in PRESETS
    assert made.notebook is None or (ROOT / made.notebook).is_file()


# --- runs, in this process --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_finished_runs_are_skipped_and_equal_rows_share_one(tmp_path: Path) -> None:
    two = grid(rows={"a": {}, "b": {"w_ptc": 0.0}, "as a": {"log_every": 2}})
    table = run_sweep(two, root=tmp_path, progress=False)
    assert table["state"].tolist() == ["done"] * 3 and table["row"].tolist() == ["a", "b", "as a"]
    assert table["run"][0] == table["run"][2] != table["run"][1]
    run = RunDir(tmp_path / "test" / table["run"][1])
    assert run.config() == Config.preset("smoke").replace(**QUICK, w_ptc=0.0)
    scores = run.read_table("evaluation")
    assert table["cam_mIoU"][1] == scores[(scores["target"] == "cam") & (scores["class"] == "mIoU")]["iou"].item()
    tokens = run.read_table("smoothing").query("site == 'after block' and metric == 'pairwise cosine'")
    tokens = tokens[tokens["variant"] == "absolute, off-diagonal"].set_index("layer")["value"]
    assert (table["similarity_first"][1], table["similarity_last"][1]) == (tokens[1], tokens[4])
    assert table["seconds"][1] == run.status()["total_seconds"] > run.status()["seconds"] > 0
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "test/sweep.csv").drop(columns=["reference", "error"]),
        table.drop(columns=["reference", "error"]),
    )

    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("test/*/**/*")}
    again = run_sweep(two, root=tmp_path, progress=False)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("test/*/**/*")} == before
    pd.testing.assert_frame_equal(again, table)
    wider = run_sweep(grid(rows=two.rows, seeds=2), root=tmp_path, progress=False)
    assert wider["state"].tolist() == ["done"] * 6 and len(list(tmp_path.glob("test/*/"))) == 4


@pytest.mark.usefixtures("here")
def test_grids_with_one_folder_share_their_runs(tmp_path: Path) -> None:
    first = grid(rows={"a": {}, "b": {"w_ptc": 0.0}}, folder="shared")
    second = grid(name="other", rows={"c": {"w_ctc": 0.0}, "as b": {"w_ptc": 0.0}}, folder="shared", reference="as b")
    made = run_sweep(first, root=tmp_path, progress=False)
    before = (tmp_path / "shared" / made["run"][1] / "metrics.csv").stat().st_mtime_ns
    other = run_sweep(second, root=tmp_path, progress=False)
    assert other["run"][1] == made["run"][1] and other["state"].tolist() == ["done", "done"]
    assert (tmp_path / "shared" / made["run"][1] / "metrics.csv").stat().st_mtime_ns == before
    assert sorted(path.parent.name for path in tmp_path.glob("*/sweep.csv")) == ["other", "test"]
    assert Grid.from_yaml(tmp_path / "other/grid.yaml") == second and len(list(tmp_path.glob("shared/*/"))) == 3


def test_the_first_row_is_the_reference_unless_said(tmp_path: Path) -> None:
    assert grid(rows={"a": {}, "b": {}}).reference == "a"
    assert grid(axes={"aux_layer": [-3, -2]}).reference == "aux_layer=-3"
    assert grid(rows={"a": {}, "b": {}}, reference={"a": "b"}).reference == {"a": "b"}


@pytest.mark.usefixtures("here")
def test_a_sweep_without_its_weights_does_not_start(tmp_path: Path) -> None:
    lost = grid(rows={"a": {}, "b": {"pretrained": True, "weights": str(tmp_path / "lost.safetensors")}})
    with pytest.raises(ValueError, match=r"no weights file .*lost\.safetensors"):
        run_sweep(lost, root=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("here")
def test_a_failure_is_recorded_and_tried_again_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three = grid(rows={"a": {}, "explodes": EXPLODES, "b": {"w_ctc": 0.0}})
    table = run_sweep(three, root=tmp_path, progress=False)
    assert table["state"].tolist() == ["done", "failed", "done"]
    folder = tmp_path / "test" / table["run"][1]
    failure = json.loads((folder / "failure.json").read_text())
    assert failure["error"].startswith("TrainingError: loss") and failure["error"] == table["error"][1]
    assert "Traceback" in failure["traceback"] and "train.py" in failure["traceback"]
    assert RunDir(folder).status()["state"] == "failed"

    before = (folder / "failure.json").stat().st_mtime_ns
    assert run_sweep(three, root=tmp_path, progress=False)["state"][1] == "failed"
    assert (folder / "failure.json").stat().st_mtime_ns == before
    run_sweep(three, root=tmp_path, progress=False, retry_failed=True)
    assert (folder / "failure.json").stat().st_mtime_ns > before
    monkeypatch.setattr("toco_lab.train.learning_rate", lambda cfg, step: 1e-4)
    mended = run_sweep(three, root=tmp_path, progress=False, retry_failed=True)
    assert not (folder / "failure.json").exists() and state_of(three, three.runs(tmp_path)[1]) == "done"
    assert mended["error"].tolist() == ["", "", ""]


@pytest.mark.usefixtures("here")
def test_evaluation_that_failed_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import toco_lab.smoothing
    import toco_lab.train

    with monkeypatch.context() as patched:
        patched.setattr(toco_lab.smoothing, "smoothing_of_run", lambda *a, **k: 1 / 0)
        table = run_sweep(grid(), root=tmp_path, progress=False)
    assert table["error"][0] == "ZeroDivisionError: division by zero"
    monkeypatch.setattr(toco_lab.train, "train_step", None)
    monkeypatch.setattr(toco_lab.evaluate, "evaluate_model", None)
    assert run_sweep(grid(), root=tmp_path, progress=False, retry_failed=True)["state"][0] == "done"


def test_nothing_starts_with_bad_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "LocalExecutor", None)
    notebook = str(ROOT / "notebooks/05_over_smoothing.ipynb")
    for bad, message in [
        (grid(notebook=notebook, parameters={"num_image": 3}), "no parameter 'num_image'; did you mean 'num_images'"),
        (grid(notebook=notebook, parameters={"num_images": "3"}), "must be int, got '3'"),
        (grid(notebook="no.ipynb"), "there is no notebook"),
        (grid(preset="voc_vit_b", overrides={"data_root": "nowhere"}), "nowhere"),
    ]:
        for call in (run_sweep, plan):
            with pytest.raises(ValueError, match=message):
                call(bad, root=tmp_path)
    with pytest.raises(ValueError, match="executor must be local or ray, got 'slurm'"):
        run_sweep(grid(), root=tmp_path, executor="slurm")
    for option in ({"gpus": 1.0}, {"address": "auto"}):
        with pytest.raises(ValueError, match="gpus and address are options of executor ray"):
            run_sweep(grid(), root=tmp_path, **option)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        LocalExecutor(0)


def test_two_sweeps_at_one_folder_are_refused(tmp_path: Path) -> None:
    with sweep._locked(tmp_path / "test"):
        with pytest.raises(ValueError, match="another process is running the sweep"):
            run_sweep(grid(), root=tmp_path)


def test_a_dry_run_writes_nothing_and_estimates_from_runs_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)  # no results of others
    made = grid(
        overrides={"steps": 100}, rows={"a": {}, "b": {"w_ptc": 0.0}, "long": {"steps": 200}, "as a": {}}, seeds=2
    )
    Path("grid.yaml").write_text(made.to_text())
    command = ["sweep", "grid.yaml", "--dry-run", "--workers", "2"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert (
        "8 runs, 2 of them equal to another and shared, 0 done, 6 to do with 2 workers: how long is not known"
        in printed
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.yaml"]

    for seed, seconds in ((5, 10.0), (6, 30.0)):  # two runs of row a's config, made elsewhere
        RunDir.create(made.runs()[0].config.replace(seed=seed)).set_status("done", seconds=3.0, total_seconds=seconds)
    RunDir.create(made.runs()[0].config.replace(w_seg=0.0), "results/demo").set_status("done", seconds=70.0)
    begun = RunDir.create(made.runs()[1].config, made.runs()[1].folder.parent)
    begun.append_metrics({"step": 75})
    left = {(run.row, run.seed): seconds for run in made.runs() if (seconds := seconds_left(made.runs())[run.folder])}
    assert left["a", 0] == 20 and left["a", 1] == 5  # a quarter is left
    assert left["b", 0] == pytest.approx((10 + 30 + 70) / 3)  # same preset and steps
    assert np.isnan(left["long", 0])
    frame = plan(made)
    assert frame["state"].tolist() == ["new", "begun"] + ["new"] * 5 + ["begun"]
    known = 20 + 5 + 2 * 110 / 3
    assert outlook(frame, workers=2).endswith(f"about 0:01:{round((known + 2 * known / 4) / 2) - 60:02d}")
    (made.runs()[0].folder).mkdir()
    (made.runs()[0].folder / "failure.json").write_text("{}")
    assert "1 failed before (left alone), 5 to do" in outlook(plan(made))
    assert "1 failed before (tried again), 6 to do" in outlook(plan(made), retry_failed=True)


# --- the live table ---------------------------------------------------------------------------------------------------


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A sweep of six runs: one done before, one that runs, one that has just failed, three that wait."""
    made = grid(rows={"a": {}, "b": {"w_ptc": 0.0}}, seeds=[0, 7, 3])
    runs = made.runs(tmp_path)
    old = RunDir.create(runs[0].config, runs[0].folder.parent)
    old.set_status("done", seconds=60.0)
    for name in ("protocol.json", "smoothing.csv"):
        (old.path / name).write_text("{}")
    waiting = RunDir.create(runs[3].config, runs[3].folder.parent)  # was begun by an earlier sweep
    os.utime(waiting.path / "config.json", (1, 1))
    (tmp_path / "test/grid.yaml").write_text("")

    def make() -> sweep._Board:
        shown = sweep._Board(made, runs, {run.folder for run in runs[1:]}, slots=2, progress=True)
        RunDir.create(runs[1].config, runs[1].folder.parent).append_metrics({"step": 1})
        sweep._record_failure(runs[2].folder, "ValueError: no\nmore", "Traceback ...")
        shown.end(runs[2].folder)
        return shown

    return make


def test_the_table_on_a_terminal_is_drawn_over_itself(board, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sweep.shutil, "get_terminal_size", lambda: os.terminal_size((80, 24)))
    shown = board()
    shown.refresh()
    shown.refresh()  # too early to draw again
    head, *rows = screen.getvalue().removeprefix("\x1b[J").splitlines()
    assert head.startswith("test: 1 done, 1 running, 3 waiting, 1 failed; 0:00:")
    assert head.endswith(", about 0:01:45 to go")  # three and a half runs of a minute, two at a time
    assert [row.split() for row in rows] == [
        ["seed", "0", "3", "7"],
        ["a", "done", "failed", "1/2"],
        ["b", "waiting", "waiting", "waiting"],
    ]
    shown._refreshed -= 1
    shown.refresh()
    assert screen.getvalue().count("\x1b[4F\x1b[J") == 1  # up by four lines


def test_a_low_terminal_shows_what_runs(board, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sweep.shutil, "get_terminal_size", lambda: os.terminal_size((30, 5)))
    board().refresh()
    lines = screen.getvalue().splitlines()
    assert len(lines) == 4 and max(map(len, lines[1:])) < 30 and lines[2].split()[0] == "a"


def test_the_table_in_a_notebook_is_updated(board, monkeypatch: pytest.MonkeyPatch) -> None:
    import IPython
    import IPython.display

    calls = []

    class Handle:
        def update(self, bundle, raw):
            calls.append(("update", bundle))

    def display(bundle, *, raw, display_id):
        calls.append(("display", bundle))
        return Handle()

    monkeypatch.setattr(IPython, "get_ipython", lambda: type("Shell", (), {"kernel": None})())
    monkeypatch.setattr(IPython.display, "display", display)
    shown = board()
    shown.refresh()
    shown._refreshed -= 1
    shown.refresh(last=True)
    assert [name for name, _ in calls] == ["display", "update"]
    assert "<td>1/2</td>" in calls[0][1]["text/html"] and "1 failed" in calls[0][1]["text/plain"]
    assert "to go" in calls[0][1]["text/plain"] and "to go" not in calls[1][1]["text/plain"]


def test_without_a_terminal_each_end_is_a_line(board, capsys: pytest.CaptureFixture) -> None:
    shown = board()
    shown.refresh()
    folder = next(run.folder for run in shown._runs if run.seed == 3)
    assert capsys.readouterr() == (f"failed: a, seed 3 ({folder}): ValueError: no\n", "")


# --- processes --------------------------------------------------------------------------------------------------------


def workers(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Workers that run this code, not a sweep's run: they start at once."""
    monkeypatch.setattr(sweep, "_WORKER", [sys.executable, "-c", f"import os, sys, time, signal\n{code}\n"])


def all_ended(pool: LocalExecutor, count: int) -> dict[Path, tuple[str, str]]:
    over, deadline = {}, time.monotonic() + 60
    while len(over) < count and time.monotonic() < deadline:
        over |= pool.ended()
        time.sleep(0.02)
    return over


def test_what_ends_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
print("started", flush=True)
what = sys.argv[1]
if what == "kill": os.kill(os.getpid(), signal.SIGKILL)
if what == "once" and not os.path.exists("mark"):
    open("mark", "w").close(); os.kill(os.getpid(), signal.SIGSEGV)
sys.exit({"known": 3}.get(what, 0) if what != "crash" else "no such module")"""
    workers(monkeypatch, code)
    monkeypatch.chdir(tmp_path)
    pool = LocalExecutor(2)
    for what in ("kill", "once", "known", "crash", "fine"):
        pool.submit(tmp_path / what, what)
    over = {folder.name: error for folder, error in all_ended(pool, 5).items()}
    assert over["fine"] == over["known"] == over["once"] == ("", "")
    assert over["kill"][0].startswith("the worker was killed by SIGKILL 3 times")
    assert over["crash"] == ("the worker ended with exit code 1", "started\nno such module")
    assert (tmp_path / "kill/output.txt").read_text().count("started\n") == 3
    assert "killed by SIGSEGV; started again (1 of 2)" in (tmp_path / "once/output.txt").read_text()


def test_workers_share_the_cores_and_no_more_than_asked_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers(monkeypatch, "print(os.environ['OMP_NUM_THREADS']); sys.stdin.read()")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    pool = LocalExecutor(3)
    for number in range(5):
        pool.submit(tmp_path / str(number), "")
    assert pool.ended() == {} and len(pool._running) == 3
    for worker, _, _ in list(pool._running.values()):
        worker.stdin.close()
    all_ended(pool, 3)
    assert len(pool._running) == 2 and (tmp_path / "0/output.txt").read_text() == "2\n"
    pool.close()
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert LocalExecutor(3)._environment["OMP_NUM_THREADS"] == "5"


def test_close_interrupts_and_kills_who_does_not_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
if sys.argv[1] == "deaf": signal.signal(signal.SIGINT, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)"""
    workers(monkeypatch, code)
    monkeypatch.setattr(sweep, "_STOP_SECONDS", 1.0)
    pool = LocalExecutor(2)
    for what in ("deaf", "hears"):
        pool.submit(tmp_path / what, what)
    pool.ended()
    started = [worker for worker, _, _ in pool._running.values()]
    deadline = time.monotonic() + 30
    while not all((tmp_path / what / "output.txt").read_text() for what in ("deaf", "hears")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pool.close()
    assert [worker.returncode for worker in started] == [-signal.SIGKILL, -signal.SIGINT]


def test_a_worker_ends_with_its_parent() -> None:
    code = "import threading, time\nfrom toco_lab import sweep\nsweep._work = lambda text: time.sleep(60)\nsweep.main()"
    worker = subprocess.Popen(
        [sys.executable, "-c", code, "{}"], stdin=subprocess.PIPE, env=os.environ | {sweep._BOUND: "1"}, cwd=ROOT
    )
    worker.stdin.close()  # as when the sweep was killed
    assert worker.wait(50) == 1


def until(happened, process: subprocess.Popen) -> None:
    """Wait for something a sweep does."""
    deadline = time.monotonic() + 200
    while not happened():
        assert process.poll() is None and time.monotonic() < deadline, "the sweep ended, or takes too long"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_killed_failed_interrupted_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with two workers: one killed by kill -9, one meets a failing run and goes on; then Ctrl-C.

    The second call ends what is left, here in this process, and the killed run is equal to one left in peace.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # bit-equal to the run in this process
    rows = {"killed": {"steps": 60}, "explodes": EXPLODES, "quick": {}, "last": {"w_ptc": 0.0}}
    made = grid(overrides=QUICK | {"checkpoint_every": 4}, rows=rows)
    (tmp_path / "grid.yaml").write_text(made.to_text())
    killed, explodes, quick, _ = made.runs(tmp_path)
    command = [sys.executable, "-m", "toco_lab", "sweep", "grid.yaml", "--root", str(tmp_path), "--workers", "2"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    until((killed.folder / "checkpoints/step_00000004.pt").exists, process)
    (worker,) = (one for one in psutil.Process(process.pid).children() if killed.folder.name in one.cmdline()[-1])
    worker.kill()
    until(lambda: state_of(made, quick) == "done", process)
    others = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    printed, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command continues" in error
    assert others and not any(one.is_running() for one in others)
    assert "failed: explodes, seed 0" in printed
    table = pd.read_csv(tmp_path / "test/sweep.csv")
    assert table["state"].tolist()[1:3] == ["failed", "done"] and table["state"][3] in ("new", "begun")
    assert "killed by SIGKILL; started again (1 of 2)" in (killed.folder / "output.txt").read_text()
    assert "TrainingError" in json.loads((explodes.folder / "failure.json").read_text())["traceback"]

    table = run_sweep(made, root=tmp_path, progress=False)
    assert table["state"].tolist() == ["done", "failed", "done", "done"]
    run = RunDir(killed.folder)
    assert "continue from step_" in (run.path / "log.txt").read_text()
    straight = RunDir.create(killed.config, tmp_path / "straight")
    fit(killed.config, straight, progress=False)
    assert (run.path / "metrics.csv").read_bytes() == (straight.path / "metrics.csv").read_bytes()

    record = run.read_json("env")[0]
    assert record["packages"]["torch"] and "git" in record
    repeat = json.loads(record["command"][1])  # python -m toco_lab.sweep TASK
    assert Config.preset(repeat["preset"]).replace(**repeat["overrides"]) == killed.config
    assert repeat["folder"] == str(killed.folder.resolve())


NOTEBOOK = """preset: str = "smoke"  # named Config
overrides: dict = {}  # any Config field
run_dir: str = "results/scratch"  # folder
factor: float = 1.0  # a number of its own"""


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_notebook_of_ones_own(tmp_path: Path) -> None:
    from nbformat import write
    from nbformat.v4 import new_code_cell, new_notebook

    cells = [new_code_cell(NOTEBOOK), new_code_cell("1 / overrides['w_ptc'] * factor")]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    write(new_notebook(cells=cells, metadata=kernel), tmp_path / "own.ipynb")
    own = {"notebook": tmp_path / "own.ipynb", "parameters": {"factor": 3}}
    made = grid(axes={"w_ptc": [0.5, 0]}, overrides=QUICK, **own)
    table = run_sweep(made, root=tmp_path, progress=False)
    assert table["state"].tolist() == ["done", "failed"] and table["w_ptc"].tolist() == [0.5, 0.0]
    assert "ZeroDivisionError" in table["error"][1]
    assert "6.0" in (tmp_path / "test" / table["run"][0] / "notebooks/own.ipynb").read_text()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("test/*/**/*")}
    run_sweep(made, root=tmp_path, progress=False)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("test/*/**/*")} == before
    other = grid(axes={"w_ptc": [0.5, 0]}, overrides=QUICK, **own | {"parameters": {"factor": 4}})
    assert [state_of(other, run) for run in other.runs(tmp_path)] == ["begun", "failed"]


# --- ray --------------------------------------------------------------------------------------------------------------


def test_runs_that_fit_on_a_machine() -> None:
    node = {"CPU": 8.0, "GPU": 2.0}
    assert sweep._fits(node, 1, 1) == 2 and sweep._fits(node, 0.5, 1) == 4
    assert sweep._fits(node, 0, 3) == 2 and sweep._fits(node, 3, 1) == 0 and sweep._fits({"CPU": 8.0}, 1, 1) == 0


def test_ray_is_asked_for_by_name_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'toco_lab\[ray\]'"):
        run_sweep(grid(), root=tmp_path, executor="ray")


@pytest.mark.slow
def test_a_sweep_on_ray(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    made = grid(rows={"explodes": EXPLODES})
    with pytest.raises(ValueError, match=r"no ray cluster at '127\.0\.0\.1:9'"):
        run_sweep(made, root=tmp_path, executor="ray", address="127.0.0.1:9")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(ValueError, match="no machine can hold a run of cpus 3 and gpus 0; they have cpus 2"):
            run_sweep(made, root=tmp_path, executor="ray", cpus=3)
        table = run_sweep(made, root=tmp_path, executor="ray", progress=False)
        assert ray.is_initialized()  # a cluster that was there before stays
    finally:
        ray.shutdown()
    assert table["state"].tolist() == ["failed"] and "TrainingError" in table["error"][0]
    command = RunDir(tmp_path / "test" / table["run"][0]).read_json("env")[-1]["command"]
    assert command[0].endswith("sweep.py") and json.loads(command[1])["preset"] == "smoke"
