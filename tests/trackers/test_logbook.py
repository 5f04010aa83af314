"""What trackers are told, live and from the files of a run; that none is told twice, and that none can stop a run."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from helpers.finished_runs import make_gallery, make_run
from helpers.in_process import Here

from toco_lab import experiment, progress
from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.evaluation.gallery import save_gallery
from toco_lab.experiment import make, open_run, train
from toco_lab.runs.run_dir import RunDir
from toco_lab.sweeps import sweep
from toco_lab.sweeps.grid import Grid
from toco_lab.sweeps.sweep import run_sweep
from toco_lab.trackers import logbook, tracker
from toco_lab.trackers.lane import Lane
from toco_lab.trackers.said import row_scalars
from toco_lab.training import loop

SMOKE = Config.preset("smoke")


class Notes:
    """A tracker that writes down what it is told; `fails` and `waits` are names of its methods."""

    def __init__(self, fails: str = "", waits: str = "") -> None:
        self.fails, self.waits = fails, waits
        self.starts, self.said, self.ends = [], [], []

    def _note(self, kind: str, *said: object) -> None:
        if kind == self.waits:
            time.sleep(30)
        if kind == self.fails:
            raise ConnectionError("there is no network")
        self.said.append((kind, *said))

    def start(self, run, cfg, record):
        self.starts.append(dict(record))
        self._note("start")
        return {"id": "notes", "where": "here"}

    def scalars(self, step, values):
        self._note("scalars", step, values)

    def curve(self, name, points):
        self._note("curve", name, points)

    def picture(self, step, name, png):
        self._note("picture", step, name, png[:4])

    def table(self, name, frame):
        self._note("table", name, frame)

    def close(self, *, done):
        self.ends.append(done)

    def told(self, kind: str) -> list:
        return [said for said in self.said if said[0] == kind]

    def rows(self) -> dict[int, dict[str, float]]:
        rows = {step: values for _, step, values in self.told("scalars") if "train/lr" in values}
        assert len(rows) == sum("train/lr" in values for _, _, values in self.told("scalars")), "a step came twice"
        return rows


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Notes], Notes]:
    """Put a tracker in the place of wandb, whether that is installed or not."""

    def put(notes: Notes) -> Notes:
        monkeypatch.setattr(logbook, "new_tracker", lambda name: notes)
        return notes

    monkeypatch.setattr(tracker.importlib.util, "find_spec", lambda name: pytest)
    monkeypatch.setattr(pytest, "origin", "here", raising=False)
    return put


def rows_of(run: RunDir) -> dict[int, dict[str, float]]:
    return {int(row["step"]): row_scalars(row) for row in run.metrics().to_dict("records")}


# --- live -------------------------------------------------------------------------------------------------------------


def test_a_run_tells_every_row_and_its_results(use, smoke_run: RunDir, tmp_path: Path) -> None:
    notes = use(Notes())
    run = open_run(SMOKE, tmp_path)
    make(run, log_to="wandb", progress=False)
    pd.testing.assert_frame_equal(run.metrics(), smoke_run.metrics())
    assert notes.rows() == rows_of(run) and len(notes.rows()) == SMOKE.steps
    assert notes.rows()[1]["train/cls_loss"] == run.metrics()["cls_loss"][0]
    final = next(values for _, _, values in notes.told("scalars") if "final/cam_mIoU" in values)
    scores = run.read_table("evaluation").set_index(["target", "class"])["iou"]
    assert final["final/cam_mIoU"] == scores["cam", "mIoU"] and final["final/labels_F1"] == scores["labels", "F1"]
    table = dict(said[1:] for said in notes.told("table"))["scores"].set_index("target")
    assert table.loc["cam", "checkpoint"] == run.read_json("protocol")["cam"]["checkpoint"]
    assert {"split", "images", "scales", "flip", "background_threshold", "crf", "seed"} <= set(table)
    curves = dict(said[1:] for said in notes.told("curve"))
    assert list(curves["smoothing/pairwise_cosine"]) == [1, 2, 3, 4]
    assert curves["smoothing/pairwise_cosine"][4] == pytest.approx(final["final/similarity_last"])
    assert notes.told("picture") == [("picture", 4, "cams_at_the_end", b"\x89PNG")]
    assert notes.starts == [{}] and notes.ends == [True]


def test_validation_shows_its_cams(use, tmp_path: Path) -> None:
    notes = use(Notes())
    run = open_run(SMOKE.replace(val_every=2, val_images=1), tmp_path)
    train(run, log_to=["wandb"], progress=False)
    assert [said[1:3] for said in notes.told("picture")] == [(2, "cams"), (4, "cams")]
    assert notes.rows()[2]["validation/cam"] == run.metrics()["val_cam"][1]
    assert "validation/cam" not in notes.rows()[1], "NaN is not told"


def test_a_run_that_was_killed_tells_no_step_twice(use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, run, real = use(Notes()), open_run(SMOKE, tmp_path), loop.train_step

    def stopped(learner, batch, cfg, step, **options):
        if step == 3:
            raise KeyboardInterrupt
        return real(learner, batch, cfg, step, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(run, log_to="wandb", progress=False)
    assert list(first.rows()) == [1, 2, 3] and first.ends == [False]
    second = use(Notes())
    train(run, log_to="wandb", progress=False)  # from the checkpoint after step 2: row 3 is made anew
    assert list(second.rows()) == [4] and second.starts[0]["step"] == 3
    assert first.rows() | second.rows() == rows_of(run)


def test_a_tracker_switched_on_late_gets_the_rows_before(use, tmp_path: Path, monkeypatch) -> None:
    run = open_run(SMOKE, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(progress.tqdm, "set_postfix", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(run, progress=False)
    notes = use(Notes())
    train(run, log_to="wandb", progress=False)
    assert notes.rows() == rows_of(run)


@pytest.mark.parametrize("fails", ["start", "scalars", "picture", "table"])
def test_a_tracker_that_fails_is_said_once_and_changes_nothing(
    use, smoke_run: RunDir, tmp_path: Path, fails: str, capsys: pytest.CaptureFixture
) -> None:
    use(Notes(fails=fails))
    run = RunDir(shutil.copytree(smoke_run.path, tmp_path / "smoke"))
    with logbook.tracking(run, ("wandb",)) as book:
        for row in run.metrics().to_dict("records"):
            book.row(row)
        book.finish()
    said = capsys.readouterr().err
    assert said.count("warning: wandb gets nothing more of this run: ConnectionError: there is no network") == 1
    assert (run.path / "log.txt").read_text().count("there is no network") == 1
    record = run.path / "tracker_wandb.json"
    assert not record.exists() if fails == "start" else "results" not in json.loads(record.read_text())
    if fails == "scalars":  # what it did not take is sent the next time
        notes = use(Notes())
        logbook.log_run(run, "wandb")
        assert notes.rows() == rows_of(run)


def test_a_tracker_that_hangs_holds_nothing_up(use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    use(Notes(waits="start"))
    monkeypatch.setattr(logbook, "PATIENCE", 0.2)
    run = make_run(tmp_path, name="run")
    began = time.perf_counter()
    with logbook.tracking(run, ("wandb",)) as book:
        book.finish()
    assert time.perf_counter() - began < 5
    assert "it did not take everything within 0.2 seconds" in capsys.readouterr().err


def test_a_lane_keeps_the_order_and_needs_no_thread_of_the_caller() -> None:
    threads, order = set(), []
    lane = Lane("x", order.append)
    for number in range(20):
        lane.put(lambda number=number: (order.append(number), threads.add(threading.current_thread().name)))
    lane.close(10)
    assert order == list(range(20)) and threads == {"tracker x"}


# --- from the files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path: Path) -> RunDir:
    run = make_run(tmp_path / "runs", name="toco")
    save_gallery(run, make_gallery(0.5), "0123456789ab")
    return run


def test_a_finished_run_is_sent_once(use, finished: RunDir) -> None:
    notes = use(Notes())
    logbook.log_run(finished, "wandb")
    assert notes.rows() == rows_of(finished) and len(notes.rows()) == 30
    assert notes.told("picture") == [("picture", 300, "cams_at_the_end", b"\x89PNG")]
    again = use(Notes())
    logbook.log_run(finished, "wandb")
    assert again.said == [("start",)]
    table = finished.read_table("evaluation")
    finished.write_table("evaluation", table.assign(iou=table["iou"] / 2))  # evaluated once more
    changed = use(Notes())
    logbook.log_run(finished, "wandb")
    assert not changed.rows()
    assert changed.told("scalars")[0][2]["final/cam_mIoU"] == pytest.approx(0.3)


def test_the_command_sends_runs_and_says_what_was_refused(use, finished: RunDir, capsys) -> None:
    notes, root = use(Notes()), str(finished.path.parent)
    assert main(["runs", "log", "toco", "--root", root, "--log-to", "wandb"]) == 0
    assert capsys.readouterr().out == f"sent {finished.path} to wandb\n" and len(notes.rows()) == 30
    use(Notes(fails="start"))
    assert main(["runs", "log", "toco", "--root", root, "--log-to", "wandb"]) == 2
    assert "toco: wandb gets nothing more of this run: ConnectionError: there is no network" in capsys.readouterr().err
    (finished.path / "metrics.csv").write_text("step,cls_loss\n1,words\n")
    assert main(["runs", "log", "toco", "--root", root, "--log-to", "wandb"]) == 2
    assert "metrics.csv" in capsys.readouterr().err


def test_a_sweep_passes_its_trackers_to_each_run(use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "LocalExecutor", Here)
    notes = use(Notes())
    quick = {"steps": 2, "val_images": 1, "token_snapshots": 0, "probe_images": 1}
    two = Grid(name="test", preset="smoke", overrides=quick, rows={"a": {}, "b": {"w_ptc": 0.0}})
    table = run_sweep(two, root=tmp_path, log_to=("wandb",), progress=False)
    assert table["state"].tolist() == ["done"] * 2
    assert len(notes.starts) == 2 and notes.ends == [True, True]
    assert sum("final/cam_mIoU" in said[2] for said in notes.told("scalars")) == 2


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "log_to: there is no tracker 'tensorbord', did you mean 'tensorboard'?"),
        ("mlflow", "log_to: mlflow needs the package mlflow, which is not installed; install it with: "
         "pip install 'toco_lab[mlflow]'"),
    ],
)  # fmt: skip
def test_a_tracker_that_is_not_there_stops_at_once(tmp_path: Path, monkeypatch, name: str, message: str) -> None:
    monkeypatch.setattr(tracker.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(experiment, "fit", None)
    run = RunDir.create(SMOKE, tmp_path)
    for call in (train, make, logbook.log_run):
        with pytest.raises(ValueError) as error:
            call(run, log_to=name)
        assert str(error.value) == message


def test_the_command_line_makes_no_folder_without_the_package(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(tracker.importlib.util, "find_spec", lambda name: None)
    assert main(["train", "smoke", "--root", str(tmp_path / "runs"), "--log-to", "mlflow"]) == 2
    assert "pip install 'toco_lab[mlflow]'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_that_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B leaves a folder `wandb` where a script runs; Python takes it for a package without files."""
    (tmp_path / "no_such_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tracker, "TRACKERS", ("no_such_tracker",))
    with pytest.raises(ValueError, match="which is not installed"):
        tracker.check_trackers("no_such_tracker")
