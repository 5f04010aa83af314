"""One run from its config to its numbers: what is finished is not done again, what cannot be had is left out."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from helpers.folders import TABLE, make_folder
from matplotlib.figure import Figure

from toco_lab import experiment
from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.data.classes import DataError
from toco_lab.experiment import make, open_run, start, train
from toco_lab.runs.listing import list_runs
from toco_lab.runs.run_dir import RunDir
from toco_lab.training import loop

ROOT = Path(__file__).resolve().parents[1]
SMOKE = Config.preset("smoke")


def folder_config(root: Path) -> Config:
    """Six images with a table of labels, no masks and no lists, and the smallest network."""
    cfg = make_folder(root, TABLE)
    return SMOKE.replace(
        dataset="folder", data_root=cfg.data_root, label_source="auto", num_classes=0, val_images=0, val_every=2
    )


@pytest.fixture
def finished(smoke_run: RunDir, tmp_path: Path) -> RunDir:
    """A copy of the finished smoke run."""
    return RunDir(shutil.copytree(smoke_run.path, tmp_path / "smoke"))


def refuse(*arguments: object, **options: object) -> None:
    raise AssertionError("this was done already")


# --- open_run ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_images_gets_its_classes_and_its_lists(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cfg = folder_config(tmp_path / "pets")
    run = open_run(cfg, tmp_path / "runs", name="pets")
    assert "wrote train.txt with 5 images and val.txt with 1 image," in capsys.readouterr().out
    assert run.path == tmp_path / "runs" / "pets"
    assert run.config() == cfg.replace(classes=("ant", "cat", "dog"), num_classes=3, label_source="labels.csv")
    assert open_run(cfg, tmp_path / "runs", name="pets").path == run.path
    assert capsys.readouterr().out == "", "the lists are there"


def test_no_folder_is_made_for_data_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images below data_root"):
        open_run(Config.preset("voc_vit_b").replace(data_root=str(tmp_path / "VOC2012")), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_folder_keeps_its_config(tmp_path: Path) -> None:
    run = open_run(SMOKE, tmp_path)
    assert run.path == tmp_path / SMOKE.run_name()
    with pytest.raises(ValueError, match=r"another config: w_ptc \(1.5 there, 0.0 wanted\)"):
        open_run(SMOKE.replace(w_ptc=0.0), tmp_path, name=SMOKE.run_name())
    assert run.config() == SMOKE


# --- train and make ---------------------------------------------------------------------------------------------------


def test_training_validates_and_keeps_tokens_as_the_config_says(tmp_path: Path) -> None:
    run = open_run(SMOKE.replace(val_every=2, val_images=1, token_snapshots=2, probe_images=1), tmp_path)
    model = train(run, progress=False)
    assert not model.training
    scores = run.metrics().set_index("step")["val_cam"]
    assert 0 <= scores[2] <= 1 and 0 <= scores[4] <= 1 and scores[[1, 3]].isna().all()
    assert [[path.stem for path in image] for image in run.token_maps()] == [["step_00000000", "step_00000004"]]


def test_what_is_finished_is_not_done_again(finished: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.path.rglob("*.csv")}
    monkeypatch.setattr(loop, "train_step", refuse)
    monkeypatch.setattr(experiment, "evaluate_run", refuse)
    monkeypatch.setattr(experiment, "smoothing_of_run", refuse)
    evaluation = make(finished, progress=False)
    pd.testing.assert_frame_equal(evaluation.table, finished.read_table("evaluation"))
    assert evaluation.protocol == finished.read_json("protocol")
    assert {path: path.stat().st_mtime_ns for path in finished.path.rglob("*.csv")} == before


def test_only_what_is_missing_is_made(finished: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "train_step", refuse)
    evaluated = finished.read_table("evaluation")
    (finished.path / "protocol.json").unlink()  # written last: a killed evaluation has none
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "smoothing_of_run", refuse)
        pd.testing.assert_frame_equal(make(finished, progress=False).table, evaluated)
    assert (finished.path / "protocol.json").is_file()
    (finished.path / "smoothing.csv").unlink()
    monkeypatch.setattr(experiment, "evaluate_run", refuse)
    make(finished, progress=False)
    assert set(finished.read_table("smoothing")["site"]) >= {"after block", "final norm"}


def test_a_run_that_was_stopped_goes_on(smoke_run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, real, steps = open_run(SMOKE, tmp_path), loop.train_step, []

    def stopped(learner, batch, cfg, step, **options):
        if step == 3 and 3 not in steps:
            steps.append(step)
            raise KeyboardInterrupt
        steps.append(step)
        return real(learner, batch, cfg, step, **options)

    monkeypatch.setattr(loop, "train_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        make(run, progress=False)
    assert not (run.path / "protocol.json").exists()
    evaluation = make(run, progress=False)
    assert steps == [0, 1, 2, 3, 2, 3], "from the checkpoint after step 2"
    pd.testing.assert_frame_equal(run.metrics(), smoke_run.metrics())
    pd.testing.assert_frame_equal(evaluation.table, smoke_run.read_table("evaluation"))


def test_a_folder_without_masks_is_scored_by_its_labels_alone(tmp_path: Path) -> None:
    run = open_run(folder_config(tmp_path / "pets"), tmp_path, name="run")
    evaluation = make(run, progress=False)
    assert evaluation.table[["target", "class"]].to_numpy().tolist() == [["labels", "F1"]]
    assert run.metrics()["val_cam"].isna().all(), "val_every is set, but there is nothing to validate on"
    assert len(run.metrics()) == SMOKE.steps and (run.path / "smoothing.csv").is_file()


# --- start ------------------------------------------------------------------------------------------------------------


def test_a_notebook_starts_with_its_config_and_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "notebooks")
    cfg, run = start("smoke", {"steps": 2, "warmup_steps": 0}, tmp_path / "runs" / "mine")
    assert Path.cwd() == ROOT, "relative paths count from the project's folder"
    assert cfg == SMOKE.replace(steps=2, warmup_steps=0) == run.config() and run.path == tmp_path / "runs" / "mine"
    figure = Figure(figsize=(1, 1))
    assert run.show("scene", figure) is figure
    assert (run.path / "figures" / "scene.png").stat().st_size > 0
    assert run.status() == {"state": "new", "step": 0} and not run.has_begun
    assert list_runs(tmp_path / "runs").empty, "who only looks makes no run"
    assert start("smoke", {"steps": 2, "warmup_steps": 0}, run.path)[1].path == run.path


def test_a_notebook_takes_a_run_as_it_is(smoke_run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cfg, run = start("", {}, smoke_run.path)
    assert cfg == smoke_run.config() == run.config() and run.path == smoke_run.path
    with pytest.raises(ValueError, match="leave overrides empty"):
        start("", {"steps": 2}, smoke_run.path)
    with pytest.raises(ValueError, match="in a notebook preset '' does"):
        start("smoke", {"seed": 9}, smoke_run.path)
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        start("", {}, tmp_path / "none")


@pytest.mark.parametrize(
    ("preset", "overrides", "words"),
    [("smok", {}, "did you mean 'smoke'"), ("smoke", {"stepps": 2}, "did you mean 'steps'")],
)
def test_a_wrong_name_makes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str, overrides: dict, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        start(preset, overrides, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_losses_that_never_join_are_said_and_kept_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cfg = Config.preset("smoke").replace(seg_start_step=4)
    for _ in range(2):
        run = open_run(cfg, tmp_path)
        assert (
            "warning: the segmentation and regularised losses never join: seg_start_step 4" in capsys.readouterr().out
        )
    assert (run.path / "log.txt").read_text().count("seg_start_step 4 is not below steps 4") == 1


@pytest.mark.parametrize("field", ["data_root", "label_source"])
def test_a_field_that_the_data_set_does_not_read_makes_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for make_run in (
        lambda: start("smoke", {field: "my_photos"}, tmp_path / "run"),
        lambda: open_run(Config.preset("smoke").replace(**{field: "my_photos"}), tmp_path),
        lambda: open_run(Config(dataset="toy", **{field: "my_photos"}), tmp_path),
    ):
        with pytest.raises(DataError, match=f"^{field}='my_photos' has no effect: the data set 'toy' does not read it"):
            make_run()
    assert not list(tmp_path.iterdir())


def test_overrides_that_are_no_fields_and_values_are_named(tmp_path: Path) -> None:
    for overrides in (["steps"], None, "steps=20"):
        with pytest.raises(ValueError, match=r"^overrides must be a Mapping, got .* config fields and their values"):
            start("smoke", overrides, tmp_path / "run")


@pytest.mark.parametrize("name", ["..", "", ".", "a/../../b", "/elsewhere"])
def test_a_name_that_leads_out_of_the_root_makes_no_run(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(ValueError, match=r"^name '.*' names no folder below the root"):
        open_run(Config.preset("smoke"), tmp_path / "runs", name=name)
    for dry in ([], ["--dry-run"]):
        assert main(["train", "smoke", "--root", str(tmp_path / "runs"), "--name", name, *dry]) == 2
        assert capsys.readouterr().err.startswith(f"error: name {name!r} names no folder below the root")
    assert not list(tmp_path.iterdir())
