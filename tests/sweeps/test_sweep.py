"""Sweeps: what a grid refuses, which runs it makes, and what failures, kill -9, Ctrl-C and a second call leave."""

import json
import shutil
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
from helpers.folders import TABLE, make_folder
from helpers.in_process import Here
from helpers.refusing import fill_disk
from PIL import Image

from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.experiment import make, open_run
from toco_lab.runs.run_dir import RunDir
from toco_lab.sweeps import executors, forked, sweep
from toco_lab.sweeps.grid import Grid
from toco_lab.sweeps.progress import seconds_left
from toco_lab.sweeps.sweep import outlook, plan, run_sweep, sweep_table
from toco_lab.sweeps.worker import state_on_disk
from toco_lab.training.loop import fit

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"steps": 2, "val_images": 1, "token_snapshots": 0, "probe_images": 1}
EXPLODES = {"learning_rate": 1e30, "warmup_ratio": 1.0}  # passes every check, and ends in a loss that is NaN


def grid(**changes) -> Grid:
    return Grid(**{"name": "test", "preset": "smoke", "overrides": QUICK} | changes)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps run in this process."""
    monkeypatch.setattr(sweep, "LocalExecutor", Here)


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
    left_out = grid(rows=two.rows, seeds=2).runs()[1].folder.name
    wider = run_sweep(grid(rows=two.rows, seeds=2), root=tmp_path, leave_out={left_out}, progress=False)
    assert wider["state"].tolist() == ["done", "new", "done", "done", "done", "new"]  # the third row shares the first's
    wider = run_sweep(grid(rows=two.rows, seeds=2), root=tmp_path, progress=False)
    assert wider["state"].tolist() == ["done"] * 6 and len(list(tmp_path.glob("test/*/"))) == 4


@pytest.mark.usefixtures("here")
def test_a_full_disk_for_one_run_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = grid(rows={"refused": {}, "fine": {"w_ptc": 0.0}})
    refused = two.runs(tmp_path)[0].folder
    with monkeypatch.context() as patch:
        fill_disk(patch, f"{refused.name}/.config.json")
        table = run_sweep(two, root=tmp_path, progress=False)
    assert table["state"].tolist() == ["failed", "done"]
    assert f"{refused}/config.json: No space left on device. Free some space" in table["error"][0]
    assert [path.name for path in refused.iterdir()] == ["failure.json"], "no half of a run"
    assert run_sweep(two, root=tmp_path, retry_failed=True, progress=False)["state"].tolist() == ["done", "done"]


def test_a_run_folder_that_takes_no_record_stops_no_other(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(forked, "CAN_FORK", False)
    monkeypatch.setattr(executors, "_WORKER", [sys.executable, "-c", "print('started')"])
    two = grid(rows={"refused": {}, "fine": {"w_ptc": 0.0}})
    refused, fine = (run.folder for run in two.runs(tmp_path))
    refused.parent.mkdir(parents=True)
    refused.write_text("a file where the run's folder is to be")
    table = run_sweep(two, root=tmp_path)
    assert table["state"].tolist() == ["failed", "new"] and (fine / "output.txt").read_text() == "started\n"
    assert f"{refused}: File exists. A folder is needed there: move the file away" in table["error"][0]
    assert "failed: refused, seed 0" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "test/sweep.csv")["state"].tolist() == ["failed", "new"]


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
    assert "Traceback" in failure["traceback"] and "loop.py" in failure["traceback"]
    assert RunDir(folder).status()["state"] == "failed"

    before = (folder / "failure.json").stat().st_mtime_ns
    assert run_sweep(three, root=tmp_path, progress=False)["state"][1] == "failed"
    assert (folder / "failure.json").stat().st_mtime_ns == before
    run_sweep(three, root=tmp_path, progress=False, retry_failed=True)
    assert (folder / "failure.json").stat().st_mtime_ns > before
    monkeypatch.setattr("toco_lab.training.optimiser.learning_rate", lambda cfg, step: 1e-4)
    mended = run_sweep(three, root=tmp_path, progress=False, retry_failed=True)
    assert not (folder / "failure.json").exists() and state_on_disk(three, three.runs(tmp_path)[1]) == "done"
    assert mended["error"].tolist() == ["", "", ""]


@pytest.mark.usefixtures("here")
def test_evaluation_that_failed_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toco_lab import experiment
    from toco_lab.evaluation import evaluate
    from toco_lab.training import loop

    with monkeypatch.context() as patched:
        patched.setattr(experiment, "smoothing_of_run", lambda *a, **k: 1 / 0)
        table = run_sweep(grid(), root=tmp_path, progress=False)
    assert table["error"][0] == "ZeroDivisionError: division by zero"
    monkeypatch.setattr(loop, "train_step", None)
    monkeypatch.setattr(evaluate, "evaluate_model", None)
    assert run_sweep(grid(), root=tmp_path, progress=False, retry_failed=True)["state"][0] == "done"


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.usefixtures("here")
def test_a_folder_of_images_is_swept_as_train_trains_it(tmp_path: Path, listed: bool) -> None:
    """A folder without lists and masks, and one with lists where one of two validation images has a mask."""
    folder = tmp_path / "pets"
    make_folder(folder, TABLE)
    if listed:
        (folder / "train.txt").write_text("one\ntwo\nthree\n")
        (folder / "val.txt").write_text("four\nfive\n")
        (folder / "classes.txt").write_text("ant\ncat\ndog\n")
        (folder / "masks").mkdir()
        Image.fromarray(np.ones((40, 50), np.uint8)).save(folder / "masks/four.png")
    own = {
        "dataset": "folder",
        "data_root": str(folder),
        "label_source": "auto",
        "num_classes": 0,
        "val_images": 2,
        "accumulate": 2,
        "val_every": 1,
    }
    swept = grid(overrides=QUICK | own, rows={"ours": {}, "theirs": {"released": True}})
    table = run_sweep(swept, root=tmp_path, progress=False)
    assert table["state"].tolist() == ["done", "done"], table["error"].tolist()

    command = ["train", "smoke", "--root", str(tmp_path / "trained")]
    command += [word for name, value in (QUICK | own).items() for word in (f"--{name}", str(value))]
    for row, more in enumerate(([], ["--released"])):
        assert main([*command, *more]) == 0
        one, other = tmp_path / "test" / table["run"][row], tmp_path / "trained" / table["run"][row]
        for name in ("config.json", "metrics.csv", "evaluation.csv"):
            assert (one / name).read_bytes() == (other / name).read_bytes(), (row, name)
    evaluation = RunDir(one).read_table("evaluation")
    assert set(evaluation["target"]) == {"labels"} and (folder / "val.txt").is_file()


def test_nothing_starts_with_bad_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "LocalExecutor", None)
    notebook = str(ROOT / "notebooks/05_over_smoothing.ipynb")
    for bad, message in [
        (grid(notebook=notebook, parameters={"num_image": 3}), "no parameter 'num_image', did you mean 'num_images'"),
        (grid(notebook=notebook, parameters={"num_images": "3"}), "must be int, got '3'"),
        (grid(notebook="no.ipynb"), "there is no notebook"),
        (grid(preset="voc_vit_b", overrides={"data_root": "nowhere"}), "nowhere"),
    ]:
        for call in (run_sweep, plan):
            with pytest.raises(ValueError, match=message):
                call(bad, root=tmp_path)
    with pytest.raises(ValueError, match="executor must be local or ray, got 'slurm'"):
        run_sweep(grid(), root=tmp_path, executor="slurm")
    with pytest.raises(ValueError, match="cpus=4 has no effect with executor local"):
        run_sweep(grid(), root=tmp_path, cpus=4)
    with pytest.raises(ValueError, match="workers=2 has no effect with executor ray"):
        run_sweep(grid(), root=tmp_path, executor="ray", workers=2)
    for option in ({"gpus": 1.0}, {"address": "auto"}):
        with pytest.raises(ValueError, match="gpus and address are options of executor ray"):
            run_sweep(grid(), root=tmp_path, **option)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        executors.LocalExecutor(0)


def test_two_sweeps_at_one_folder_are_refused(tmp_path: Path) -> None:
    with sweep._only_sweep_in(tmp_path / "test"):
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


# --- processes -------------------------------------------------------------------------------------------------------


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
    children = psutil.Process(process.pid).children(recursive=True)
    alive = [one for one in children if one.status() != psutil.STATUS_ZOMBIE]  # one that has just ended has no files
    output = str((killed.folder / "output.txt").resolve())
    (worker,) = (one for one in alive if any(file.path == output for file in one.open_files()))
    worker.kill()
    until(lambda: state_on_disk(made, quick) == "done", process)
    others = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    printed, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command continues" in error
    assert others and not psutil.wait_procs(others, timeout=20)[1]
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
    repeat = json.loads(record["command"][1])  # python -m toco_lab.sweeps.worker TASK
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
    assert [state_on_disk(other, run) for run in other.runs(tmp_path)] == ["begun", "failed"]


# --- ray --------------------------------------------------------------------------------------------------------------


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
    assert command[0].endswith("worker.py") and json.loads(command[1])["preset"] == "smoke"


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "\0"])
@pytest.mark.parametrize("file", ["status.json", "failure.json", "evaluation.csv", "smoothing.csv"])
def test_a_damaged_file_stops_neither_the_table_nor_the_plan(tmp_path: Path, file: str, content: str) -> None:
    two = grid(rows={"a": {}, "b": {"w_ctc": 0.0}})
    good, bad = two.runs(tmp_path)
    for run in (good, bad):
        RunDir.create(run.config, run.folder.parent, name=run.folder.name)
    (bad.folder / file).write_text(content)
    table = sweep_table(tmp_path, two)
    assert table["error"][0] == "" and table["state"][0] == "begun"
    assert f"{file} is damaged" in table["error"][1]
    assert len(plan(two, root=tmp_path, data=False)) == 2


@pytest.mark.parametrize("file", ["evaluation.csv", "protocol.json", "smoothing.csv", "status.json"])
def test_a_finished_run_with_a_damaged_file_is_begun_and_mended(smoke_run: RunDir, tmp_path: Path, file: str) -> None:
    one = grid(overrides={})
    (planned,) = one.runs(tmp_path)
    run = RunDir(shutil.copytree(smoke_run.path, planned.folder))
    run.set_status("done")
    assert state_on_disk(one, planned) == "done"
    table = {name: (run.path / name).read_text() for name in ("evaluation.csv", "smoothing.csv")}
    (run.path / file).write_text("damaged")
    assert state_on_disk(one, planned) == "begun" and f"{file} is damaged" in sweep_table(tmp_path, one)["error"][0]
    make(open_run(run.config(), tmp_path / "test", name=planned.folder.name), progress=False)
    assert state_on_disk(one, planned) == "done" and sweep_table(tmp_path, one)["error"][0] == ""
    for name, text in table.items():
        assert (run.path / name).read_text().replace(run.name, "smoke") == text  # the name is that of the folder
