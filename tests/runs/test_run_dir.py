"""Run folders: what is on disk after each call, after a kill and after a second start."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from matplotlib.figure import Figure

from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.evaluation.evaluate import evaluate_run
from toco_lab.evaluation.pseudo_labels import write_pseudo_labels
from toco_lab.explorers.run_browser import RunBrowser
from toco_lab.files import atomic_write
from toco_lab.runs.environment import environment
from toco_lab.runs.listing import RUN_COLUMNS, final_scores, find_runs, list_runs, read_runs
from toco_lab.runs.locks import RUN_LOCK, SWEEP_LOCK, only_worker
from toco_lab.runs.run_dir import RunDir
from toco_lab.runs.scores import rows_of_runs, run_scores
from toco_lab.smoothing.of_runs import smoothing_of_run


@pytest.fixture
def cfg():
    return Config.preset("smoke")


@pytest.fixture
def run(cfg, tmp_path):
    return RunDir.create(cfg, tmp_path)


# --- atomic_write ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_kill_leaves_readable_files(run):
    """A writer of tables, states and rows is killed again and again; every file it leaves can be read."""
    code = (
        "import sys; import pandas as pd; from toco_lab.runs import RunDir\n"
        "run = RunDir(sys.argv[1]); print('ready', flush=True); step = 0\n"
        "while True:\n"
        "    step += 1\n"
        "    run.append_metrics({'step': step, 'note': '0' * 5000, 'end': step})\n"
        "    run.set_status('running', step=step)\n"
        "    run.write_table('evaluation', pd.DataFrame({'target': ['cam'] * 2000, 'class': 'x', 'iou': 0.25}))\n"
    )
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE)
        writer.stdout.readline()
        time.sleep(0.15)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        metrics = run.metrics()
        assert (metrics["step"] == metrics["end"]).all()
        assert run.status()["step"] in (0, *metrics["step"])
        if (run.path / "evaluation.csv").exists():
            assert len(run.read_table("evaluation")) == 2000
        run.truncate_metrics(0)


# --- create and open ------------------------------------------------------------------------------


def test_create_writes_config_env_and_status(run, cfg, tmp_path):
    assert run.path == tmp_path / cfg.run_name()
    assert run.name == cfg.run_name()
    assert run.config() == cfg
    assert run.status() == {"state": "new", "step": 0, "steps": cfg.steps, "seconds": 0.0}
    (record,) = run.read_json("env")
    assert record["packages"]["pandas"] == pd.__version__
    assert record["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["command"] == sys.argv
    assert record["device"] and record["cpu_count"] >= 1


def test_create_again_continues_and_records_the_second_start(run, cfg, tmp_path):
    run.set_status("running", step=3)
    again = RunDir.create(cfg.replace(num_workers=1, device="cpu"), tmp_path)
    assert again.path == run.path
    assert again.config().num_workers == 1
    assert again.status()["step"] == 3
    assert len(again.read_json("env")) == 2


def test_create_refuses_another_config_in_the_same_folder(cfg, tmp_path):
    RunDir.create(cfg, tmp_path, name="mine")
    with pytest.raises(ValueError, match=rf"w_ptc \({cfg.w_ptc} there, 0\.5 wanted\).*seed \(0 there, 7 wanted\)"):
        RunDir.create(cfg.replace(w_ptc=0.5, seed=7), tmp_path, name="mine")
    damaged = RunDir.create(cfg, tmp_path, name="damaged")
    (damaged.path / "config.json").write_text('{"w_ptcc": 1}')
    with pytest.raises(ValueError, match=r"damaged/config\.json cannot be read .*'w_ptcc'.*Delete the folder"):
        damaged.config()


def test_create_removes_temporary_files_of_killed_processes_only(run, cfg, tmp_path):
    stale, fresh = run.path / "checkpoints" / ".step_1.pt.aa.tmp", run.path / ".config.json.bb.tmp"
    stale.parent.mkdir()
    stale.touch()
    fresh.touch()
    os.utime(stale, (0, 0))
    RunDir.create(cfg, tmp_path)
    assert not stale.exists()
    assert fresh.exists()


def test_opening_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        RunDir(tmp_path)


def test_environment_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment("cpu")["git"] is None


# --- state, metrics -------------------------------------------------------------------------------


def test_status_keeps_fields_but_not_an_old_error(run):
    run.set_status("failed", step=2, error="boom")
    assert run.status() == {"state": "failed", "step": 2, "steps": 4, "seconds": 0.0, "error": "boom"}
    run.set_status("running")
    assert run.status() == {"state": "running", "step": 2, "steps": 4, "seconds": 0.0}
    with pytest.raises(ValueError, match="'finished'"):
        run.set_status("finished")


def test_metrics_round_trip_exactly(run):
    assert run.metrics().empty
    run.append_metrics({"step": 1, "lr": 0.1 + 0.2, "cls_loss": np.float32(0.1), "ptc_loss": float("nan")})
    run.append_metrics({"step": 2, "ptc_loss": np.array(1 / 3)})
    metrics = run.metrics()
    assert metrics["step"].tolist() == [1, 2]
    assert metrics["lr"][0] == 0.1 + 0.2
    assert metrics["cls_loss"][0] == float(np.float32(0.1))
    assert np.isnan(metrics["lr"][1]) and np.isnan(metrics["ptc_loss"][0])
    assert metrics["ptc_loss"][1] == 1 / 3
    with pytest.raises(ValueError, match="no column 'ctc_loss'"):
        run.append_metrics({"step": 3, "ctc_loss": 1.0})


def test_half_written_last_line_is_dropped_when_read_and_when_continued(run):
    run.append_metrics({"step": 1, "loss": 0.5})
    with (run.path / "metrics.csv").open("a") as file:
        file.write("2,0.")
    assert run.metrics()["step"].tolist() == [1]
    run.append_metrics({"step": 2, "loss": 0.25})
    assert run.metrics()["loss"].tolist() == [0.5, 0.25]


def test_half_written_header_is_dropped(run):
    (run.path / "metrics.csv").write_text("step,lo")
    assert run.metrics().empty
    run.append_metrics({"step": 1, "loss": 0.5})
    assert run.metrics().to_dict("list") == {"step": [1], "loss": [0.5]}


def test_truncate_metrics(run):
    run.truncate_metrics(5)  # nothing there yet
    for step in (2, 4, 6):
        run.append_metrics({"step": step, "loss": 1 / step})
    with (run.path / "metrics.csv").open("a") as file:
        file.write("8,0.1")
    run.truncate_metrics(4)
    assert run.metrics().to_dict("list") == {"step": [2, 4], "loss": [1 / 2, 1 / 4]}
    assert (run.path / "metrics.csv").read_text().endswith("\n")
    run.truncate_metrics(0)
    assert run.metrics().empty


# --- tables, figures, checkpoints -----------------------------------------------------------------


def test_tables_keep_words_that_look_missing(run):
    frame = pd.DataFrame({"target": ["cam", "cam"], "class": ["NA", "None"], "iou": [1 / 3, np.nan]})
    run.write_table("evaluation", frame)
    pd.testing.assert_frame_equal(run.read_table("evaluation"), frame)
    with pytest.raises(FileNotFoundError):
        run.read_table("similarity")


def test_numbers_of_a_table_come_back_to_the_last_bit(run):
    """The quick parser of pandas does not in every version: 0.1 + 0.2 came back as 0.3."""
    numbers = [0.1 + 0.2, 5e-324, 1.7976931348623157e308, *np.random.default_rng(0).lognormal(0, 20, 500)]
    run.write_table("scores", pd.DataFrame({"value": numbers}))
    assert run.read_table("scores")["value"].tolist() == numbers


def test_json_takes_numpy_and_paths(run, tmp_path):
    run.write_json("numbers", {"count": np.int64(3), "scales": np.array([1.0, 0.5]), "root": tmp_path})
    assert run.read_json("numbers") == {"count": 3, "scales": [1.0, 0.5], "root": str(tmp_path)}


def test_save_figure_knows_both_kinds(run):
    from matplotlib.figure import Figure

    class Plotly:
        def to_json(self):
            return '{"data": []}'

    assert run.save_figure("cams", Figure()).read_bytes()[:4] == b"\x89PNG"
    assert json.loads(run.save_figure("curve", Plotly()).read_text()) == {"data": []}
    assert [path.name for path in run.figures()] == ["cams.png", "curve.json"]


def test_checkpoints_are_ordered_by_step_and_complete(run):
    assert run.checkpoints() == []
    for step in (100, 20, 3):
        with atomic_write(run.checkpoint_path(step)) as file:
            file.write(b"x")
    (run.path / "checkpoints" / ".step_00000200.pt.ab.tmp").touch()
    assert [path.stem for path in run.checkpoints()] == ["step_00000003", "step_00000020", "step_00000100"]


def test_log_appends_time_stamped_lines(run):
    run.log("first")
    run.log("second")
    lines = (run.path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["first", "second"]
    assert lines[0][:4].isdigit()


# --- list_runs ------------------------------------------------------------------------------------


def test_list_runs_shows_differences_and_scores(cfg, tmp_path):
    plain, without = RunDir.create(cfg, tmp_path), RunDir.create(cfg.replace(w_ptc=0.0, seed=1), tmp_path)
    plain.set_status("done", step=4)
    scores = {"target": ["cam", "cam", "labels"], "class": ["cat", "mIoU", "F1"], "iou": [0.2, 0.6, 0.9]}
    plain.write_table("evaluation", pd.DataFrame(scores))
    assert final_scores(plain) == {"cam_mIoU": 0.6, "labels_F1": 0.9}
    table = list_runs(tmp_path).set_index("run")
    lead, start = ["state", "step", "seconds", "made", "seed"], plain.read_json("env")[0]["start"]
    assert list(table.columns) == [*lead, "w_ptc", "cam_mIoU", "labels_F1", "error"]
    made = start[:19].replace("T", " ")
    assert table.loc[plain.name].tolist() == ["done", 4, 0.0, made, 0, cfg.w_ptc, 0.6, 0.9, ""]
    assert table.loc[without.name, "w_ptc"] == 0.0
    assert np.isnan(table.loc[without.name, "cam_mIoU"])


def test_list_runs_survives_foreign_folders(cfg, tmp_path):
    assert list(list_runs(tmp_path / "absent").columns) == [*RUN_COLUMNS, "error"]
    RunDir.create(cfg, tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text('{"a_field_of_another_version": 1}')
    states = list_runs(tmp_path).set_index("run")["state"]
    assert states.to_dict() == {cfg.run_name(): "new", "old": "unreadable"}


def test_everything_adds_equal_fields_and_the_last_metrics(run, cfg, tmp_path):
    run.append_metrics({"step": 1, "total_loss": 3.0, "val_cam": 0.5, "ptc_loss": float("nan")})
    run.append_metrics({"step": 2, "total_loss": 2.0})
    run.set_status("failed", error="boom: no memory\nand more", total_seconds=7.5)
    (row,) = list_runs(tmp_path, everything=True).to_dict("records")
    assert row["w_ptc"] == cfg.w_ptc and row["cam_scales"] == cfg.cam_scales
    assert (row["total_loss"], row["val_cam"], "ptc_loss" in row) == (2.0, 0.5, False)
    assert (row["error"], row["seconds"]) == ("boom: no memory", 7.5)
    assert list(list_runs(tmp_path)) == [*RUN_COLUMNS, "error"]


def test_runs_are_found_at_any_depth_but_not_inside_of_runs(cfg, tmp_path):
    for name in ("b", "sweeps/s/one", "demo/toco", ".hidden/x", "demo/.old.deleted", "b/copy"):
        RunDir.create(cfg, tmp_path, name=name)
    (tmp_path / "demo/back").symlink_to(tmp_path)  # no endless walk
    (tmp_path / "linked").symlink_to(tmp_path / "sweeps")
    found = [path.relative_to(tmp_path).as_posix() for path in find_runs(tmp_path)]
    assert found == ["b", "demo/toco", "linked/s/one"]  # one of the two ways to it
    assert list_runs(tmp_path)["run"].tolist() == found
    assert find_runs(tmp_path / "demo/toco") == [tmp_path / "demo/toco"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"), ("config.json", "[]"), ("config.json", "\0\1"), ("status.json", "3"),
        ("status.json", "{}"),
        ("evaluation.csv", "a,b\n1,2\n"), ("evaluation.csv", "target,class,iou\ncam,mIoU,much\n"), ("env.json", "[{}]"),
        ("metrics.csv", "step,loss\n1,word\n"),
    ],
)  # fmt: skip
def test_one_damaged_run_does_not_hide_the_others(cfg, tmp_path, file, content):
    for name in ("good", "bad"):
        RunDir.create(cfg, tmp_path, name=name)
    (tmp_path / "bad" / file).write_text(content)
    table = list_runs(tmp_path, everything=True).set_index("run")
    assert table["state"].to_dict() == {"good": "new", "bad": "unreadable"}
    assert table.loc["bad", "error"] and not table.loc["good", "error"]
    assert table.loc["good", "seed"] == 0 and np.isnan(table.loc["bad", "seed"])


def test_a_run_that_vanishes_while_it_is_read(run):
    paths = {"mine": run.path}
    shutil.rmtree(run.path)
    assert read_runs(paths)["state"].tolist() == ["unreadable"]


# --- the end --------------------------------------------------------------------------------------


@pytest.fixture
def living():
    """Starts a process that lives until the end of the test, once it has run some Python on a folder, `sys.argv[1]`."""
    started = []

    def start(code, folder):
        script = f"import os, sys, time; from pathlib import Path\n{code}"
        process = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "open\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def other_process(living, cfg, tmp_path):
    """Starts a living process that works at the run `mine`; with `more`, a line of Python, it does that as well."""

    def start(more="pass"):
        return living(
            "from toco_lab.config import Config; from toco_lab.runs import RunDir\n"
            "run = RunDir.create(Config.preset('smoke'), sys.argv[1], name='mine')\n"
            f"{more}\nprint('open', flush=True); time.sleep(120)",
            tmp_path,
        )

    return start


def test_delete_removes_the_folder_and_what_a_killed_deletion_left(run, tmp_path):
    RunDir.create(Config.preset("smoke"), tmp_path, name="other")
    (left := tmp_path / ".old.0badf00d.deleted").mkdir()
    (left / "config.json").touch()
    run.delete()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_deletion_killed_half_way_leaves_no_run(run, tmp_path, monkeypatch):
    def killed(path, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        run.delete()
    assert find_runs(tmp_path) == [] and not run.path.exists()
    assert len(list(tmp_path.iterdir())) == 1  # still there, for the next deletion


@pytest.mark.slow
def test_a_run_another_process_works_at_is_not_deleted_until_it_is_killed(other_process, tmp_path):
    worker = other_process()
    run = RunDir(tmp_path / "mine")
    for state in ("new", "running"):
        run.set_status(state)
        with pytest.raises(ValueError, match=rf"in use: process {worker.pid} of this machine has it open; stop it"):
            run.delete()
    run.set_status("done")
    assert run.busy() == ""
    run.set_status("running")
    worker.kill()
    worker.wait()
    assert run.busy() == ""
    run.delete()
    assert not run.path.exists()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_neither_ends_the_work_nor_outlives_it(other_process, tmp_path):
    """Workers of a data loader are forks: the first ends before its parent, the second after it."""
    worker = other_process(
        "os.waitpid(child, 0) if (child := os.fork()) else sys.exit()\nos.fork() or (time.sleep(20), os._exit(0))"
    )
    run = RunDir(tmp_path / "mine")
    assert f"process {worker.pid}" in run.busy()
    worker.kill()
    worker.wait()
    assert run.busy() == ""


def test_own_work_does_not_stop_a_deletion(run, cfg, tmp_path):
    again = RunDir.create(cfg, tmp_path)
    RunDir(run.path).delete()
    assert not run.path.exists() and again.busy() == ""
    assert RunDir.create(cfg, tmp_path).busy() == ""


def test_work_ends_with_the_object_and_its_copies_do_not_work(run):
    def seen_by_another():
        code = "import sys; from toco_lab.runs import RunDir; print(RunDir(sys.argv[1]).busy())"
        command = [sys.executable, "-c", code, str(run.path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert seen_by_another() == f"process {os.getpid()} of this machine has it open"
    path, copied = run.path, pickle.loads(pickle.dumps(run))
    assert copied.path == path and copied.config() == run.config()
    run._lock = None  # as if nobody held the object any more; the fixture does
    assert seen_by_another() == ""


def test_the_lock_is_an_empty_hidden_file(run, tmp_path):
    size = run.size()
    (run.path / RUN_LOCK).unlink()
    assert run.size() == size and RUN_LOCK.startswith(".")
    assert list_runs(tmp_path)["run"].tolist() == [run.name] and run.figures() == run.notebooks() == []


def test_a_lock_that_may_not_be_opened_stops_nobody(run, cfg, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError("the file of another user, or a read-only disk")

    run._lock = None
    monkeypatch.setattr(FileLock, "acquire", refused)
    assert list_runs(tmp_path)["state"].tolist() == ["new"]
    again = RunDir.create(cfg, tmp_path)
    assert "written to 0 minutes ago" in again.busy()  # whether somebody holds the lock cannot be seen


def test_records_of_older_versions_still_open(run, tmp_path):
    (record,) = run.read_json("env")
    old = record | {"process": record["process"] | {"began": 12345}}
    older = {key: value for key, value in record.items() if key != "process"}
    for records, busy in ([old], ""), ([older], "perhaps by a process that still lives"):
        run.write_json("env", records)
        assert list_runs(tmp_path)["state"].tolist() == ["new"]
        assert busy in run.busy() and bool(run.busy()) == bool(busy)
        assert len(RunDir.create(run.config(), tmp_path).read_json("env")) == 2


def test_a_run_of_an_unknown_process_is_in_use_while_it_is_written_to(run):
    run.set_status("running")
    (record,) = run.read_json("env")
    run.write_json("env", [record | {"process": record["process"] | {"host": "elsewhere"}}])
    assert "written to 0 minutes ago, perhaps by a process on elsewhere" in run.busy()
    (run.path / "env.json").write_text("[")
    assert "perhaps by a process that still lives" in run.busy()
    for name in ("status.json", "log.txt"):
        if (run.path / name).is_file():
            os.utime(run.path / name, (0, 0))
    assert run.busy() == ""


def test_a_run_of_a_running_sweep_is_in_use_until_it_is_done(run):
    with FileLock(run.path.parent / SWEEP_LOCK):
        assert run.busy() == f"a sweep is running in {run.path.parent}"
        run.set_status("done")
        assert run.busy() == ""
        run.set_status("running")
    assert run.busy() == ""


def test_what_is_no_run_is_not_deleted(run, cfg, tmp_path):
    (tmp_path / "link").symlink_to(run.path)
    with pytest.raises(ValueError, match="is a link; delete the folder it leads to"):
        RunDir(tmp_path / "link").delete()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/config.json").write_text("{}")  # every second library writes one
    with pytest.raises(ValueError, match="is it a run"):
        RunDir(tmp_path / "foreign").delete()
    RunDir.create(cfg, run.path, name="inner")
    with pytest.raises(ValueError, match=r"holds another run, .*inner"):
        run.delete()
    assert (run.path / "inner").is_dir()


# --- two processes --------------------------------------------------------------------------------


@pytest.fixture
def worker_at(living):
    """Starts a process that is the only worker of a folder."""
    code = (
        "from toco_lab.runs.locks import only_worker\n"
        "with only_worker(Path(sys.argv[1])):\n    print('open', flush=True); time.sleep(120)"
    )
    return lambda path: living(code, path)


def test_a_second_worker_is_refused_and_a_dead_one_holds_nothing(smoke_run, tmp_path, worker_at, capsys):
    copy = RunDir(shutil.copytree(smoke_run.path, tmp_path / "copy"))
    unfinished = RunDir.create(Config.preset("smoke"), tmp_path, name="unfinished")
    workers = [worker_at(run.path) for run in (copy, unfinished)]
    for path, command in (
        (copy.path, ["evaluate", str(copy.path)]),
        (copy.path, ["pseudo-labels", str(copy.path)]),
        (copy.path, ["runs", "delete", str(copy.path), "--yes"]),
        (unfinished.path, ["train", "smoke", "--root", str(tmp_path), "--name", "unfinished"]),
    ):
        assert main(command) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
        assert f"{path} is in use: another process trains, evaluates or labels" in line
    browser = RunBrowser(tmp_path)
    browser.picker.value = ("copy",)
    browser.delete_button.click()
    assert f"{copy.path} is in use: another process" in browser.message.value
    for call in (
        lambda: write_pseudo_labels(copy, progress=False),
        lambda: smoothing_of_run(copy, 1, progress=False),
        lambda: evaluate_run(copy, progress=False),
        copy.delete,
    ):
        with pytest.raises(ValueError, match="copy is in use: another process trains, evaluates or labels"):
            call()
    assert len(smoothing_of_run(copy, 1, progress=False, write=False))  # who only reads is free to
    assert copy.path.is_dir() and not unfinished.checkpoints()
    for worker in workers:
        worker.kill()
        worker.wait()
    assert main(["evaluate", str(copy.path), "--targets", "cam"]) == 0
    with only_worker(copy.path), pytest.raises(ValueError, match="in use: this process trains, evaluates or labels"):
        copy.delete()
    copy.delete()
    assert not copy.path.exists()


def test_a_killed_run_is_not_shown_as_running(run, tmp_path):
    run.set_status("running", step=1)
    assert list_runs(tmp_path)["state"].tolist() == ["running"]  # this process holds it
    content, run._lock = (run.path / "status.json").read_bytes(), None
    assert list_runs(tmp_path)["state"].tolist() == ["stopped"]
    assert rows_of_runs([run])["state"].tolist() == ["stopped"]
    with FileLock(run.path.parent / SWEEP_LOCK):  # a sweep that has not come to it again
        assert run.state() == "stopped"
    assert (run.path / "status.json").read_bytes() == content


def test_a_link_or_dots_lead_no_deletion_out_of_the_root(cfg, tmp_path, capsys, monkeypatch):
    outside = RunDir.create(cfg, tmp_path / "elsewhere", name="mine")
    outside._lock = None
    root = tmp_path / "results"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    for name in ("linked/mine", "../elsewhere/mine"):
        assert main(["runs", "delete", name, "--root", str(root), "--yes"]) == 2
        assert f"{name} leads out of {root}, to {outside.path}" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    for path in ("results/linked/mine", root / "linked" / "mine"):  # results is the root where none is given
        with pytest.raises(ValueError, match=f"mine leads out of results, to {outside.path}"):
            RunDir(path).delete()
    assert outside.path.is_dir()


def test_a_run_with_the_longest_name_can_be_deleted(cfg, tmp_path):
    for name in ("n" * 255, "\u00fc" * 127):
        RunDir.create(cfg, tmp_path, name=name).delete()
    assert list(tmp_path.iterdir()) == []


# --- damaged small files --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '{"state": "odd"}', "\0\1", '{"state": ["running"]}', "[" * 9999]
)
@pytest.mark.parametrize("file", ["status.json", "env.json"])
def test_a_damaged_file_is_named_and_written_anew_by_the_next_start(run, cfg, tmp_path, file, content):
    with atomic_write(run.checkpoint_path(2)) as checkpoint:
        checkpoint.write(b"x")
    (run.path / file).write_text(content)
    if file == "status.json":
        (row,) = list_runs(tmp_path).to_dict("records")
        assert row["state"] == "unreadable" and f"{file} is damaged" in row["error"]
    again = RunDir.create(cfg, tmp_path)
    assert again.status()["step"] in (0, 2) and again.read_json("env")[-1]["packages"]
    if (file, content) != ("env.json", "[]"):
        assert f"{file} is written anew: " in (run.path / "log.txt").read_text()


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("evaluation.csv", "a,b\n1,2\n", "a table with the columns target, class, iou"),
        (
            "evaluation.csv",
            "target,class,iou\ncam,mIoU,much\n",
            "row 2, column iou was expected ('much' is there)",
        ),
        ("smoothing.csv", "a,b\n1,2\n", "no column site, metric"),
        ("smoothing.csv", "", "a table with a line of column names"),
        ("smoothing.csv", "site,site\n", "column site stands there twice"),
        ("smoothing.csv", "site,metric,variant,layer,value\nx,y,z,1\n", "5 cells in row 2 was expected (there are 4)"),
        ("smoothing.csv", "site,metric,variant,layer,value\nx,y,z,1,0", "the file is cut off"),
        (
            "smoothing.csv",
            "site,metric,variant,layer,value\nx,y,z,last,0\n",
            "column layer was expected ('last'",
        ),
        ("smoothing.csv", "site,metric\0\n", "line 1: a zero byte"),
        ("evaluation.csv", "target,class,iou\ncam,\xff\n".encode("latin-1"), "line 2: byte 0xff is not UTF-8"),
        ("evaluation.csv", "target,class,iou\n\ncam,mIoU\n", "3 cells in row"),
    ],
)
def test_a_damaged_table_is_named(run, file, content, expected):
    (run.path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"{file} is damaged.*Delete it to have it made anew") as error:
        run_scores(run)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("status", {"state": "done", "step": "4"}, "number of 0 or more for `step` was expected ('4' is there)"),
        ("status", {"state": "done", "step": True}, "for `step` was expected (True is there)"),
        ("status", {"state": "done", "seconds": float("nan")}, "a number of 0 or more for `seconds`"),
        ("status", {"state": "done", "error": ["x"]}, "text for `error` was expected (['x'] is there)"),
        ("status", {"step": 1}, "a field `state` was expected (there are: step)"),
        ("env", {"start": "now"}, "a JSON list was expected (a dict is there: {'start': 'now'})"),
        ("env", [{}], "a field `[0].start` was expected (there are: none)"),
        ("env", [{"start": 1}], "text for `[0].start`"),
        ("env", [{"start": "now", "process": {"host": "here", "pid": "7"}}], "for `[0].process.pid`"),
        ("env", [{"start": "now", "packages": ["torch"]}], "a JSON object for `[0].packages`"),
        ("protocol", {"cam": []}, "a JSON object for `cam`"),
        ("protocol_train", {"cam": {}}, "a field `cam.checkpoint`"),
        ("protocol", {"cam": {"checkpoint": 5}}, "text for `cam.checkpoint` was expected (5 is there)"),
        ("initial_weights", {"file": "x"}, "a field `hash`"),
    ],
)  # fmt: skip
def test_a_field_of_a_wrong_kind_is_named(run, file, content, expected):
    run.write_json(file, content)
    with pytest.raises(ValueError, match=f"{file}.json is damaged") as error:
        run.read_json(file)
    assert expected in str(error.value)


def test_a_field_that_stands_twice_is_named_and_an_unknown_one_is_no_fault(run):
    (run.path / "status.json").write_text('{"state": "done", "step": 1, "step": 2}')
    with pytest.raises(ValueError, match=r"status.json is damaged: JSON was expected .`step` stands there twice"):
        run.status()
    run.write_json("status", {"state": "done", "of_a_later_version": [1]})
    assert run.status() == {"state": "done", "step": 0, "of_a_later_version": [1]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("step,loss\n1,0.5\nlate,0.25\n", "a number in row 3, column step was expected ('late' is there)"),
        ("step,loss\n1,word\n", "a number in row 2, column loss"),
        ("loss\n1\n", "a table with the columns step"),
        ("step,loss,loss\n1,2,3\n", "column loss stands there twice"),
        ("step,loss\n1\n", "2 cells in row 2 was expected (there are 1)"),
        ("step,loss\n1,\0\n", "a zero byte in line 2"),
    ],
)
def test_damaged_metrics_are_named_by_every_reader(run, tmp_path, content, expected):
    (run.path / "metrics.csv").write_text(content)
    (row,) = list_runs(tmp_path, everything=True).to_dict("records")
    assert row["state"] == "unreadable" and expected in row["error"]
    with pytest.raises(ValueError, match=r"metrics.csv is damaged.*Bring back a copy") as error:
        run.metrics()
    assert expected in str(error.value)


# --- runs that are planned --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write",
    [
        lambda run: run.log("here"),
        lambda run: run.set_status("running", step=1),
        lambda run: run.append_metrics({"step": 1, "total_loss": 0.5}),
        lambda run: run.write_table("smoothing", pd.DataFrame({"layer": [1]})),
        lambda run: run.write_json("protocol", {}),
    ],
)
def test_a_planned_run_begins_when_something_is_written(write, cfg, tmp_path):
    planned = RunDir.plan(cfg, tmp_path, name="a")
    assert planned.config() == cfg and planned.status() == {"state": "new", "step": 0} and planned.metrics().empty
    assert not planned.checkpoints() and not planned.is_evaluated and not (tmp_path / "a").exists()
    planned.save_figure("scene", Figure())
    assert not planned.has_begun and find_runs(tmp_path) == []
    write(planned)
    assert planned.has_begun and find_runs(tmp_path) == [tmp_path / "a"] and RunDir(tmp_path / "a").config() == cfg
    assert len(planned.environments()) == 1 and planned.busy() == ""


def test_a_plan_for_a_folder_of_another_run_is_refused_now_or_when_it_begins(cfg, tmp_path):
    other = cfg.replace(seed=cfg.seed + 1)
    planned = RunDir.plan(cfg, tmp_path, name="a")
    RunDir.create(other, tmp_path, name="a")
    for plan in (lambda: RunDir.plan(cfg, tmp_path, name="a"), planned.begin):
        with pytest.raises(ValueError, match="holds a run with another config"):
            plan()
    assert RunDir.plan(other, tmp_path, name="a").has_begun
