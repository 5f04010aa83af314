"""From a run to a student: its config, its labels, what is printed, what is refused, and a second call."""

import math
import shutil
from pathlib import Path

import pytest

from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.evaluation.pseudo_labels import Thresholds, write_pseudo_labels
from toco_lab.experiment import open_run, train
from toco_lab.relations import VIT_SIZES
from toco_lab.runs.run_dir import RunDir
from toco_lab.students import COLUMNS, make_student, pass_time, segmentation_weights, student_config
from toco_lab.training.checkpoints import load_run_model


@pytest.fixture
def teacher(smoke_run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A copy of the smoke run in a project of its own, which is the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(smoke_run.path, tmp_path / "results" / "teacher")
    return RunDir("results/teacher")


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_student_has_its_teachers_config_but_for_what_it_learns_from(teacher: RunDir) -> None:
    there, labels = teacher.config(), teacher.path / "pseudo_labels/train/refined"
    cfg = student_config(teacher, labels)
    assert (cfg.mask_source, cfg.soft_teacher) == ("results/teacher/pseudo_labels/train/refined", "results/teacher")
    assert (cfg.method, cfg.w_seg, cfg.w_soft, cfg.soft_temperature) == ("supervised", 0.5, 0.5, 2.0)
    same = ("dataset", "crop_size", "steps", "batch_size", "learning_rate", "seed", "train_images", *VIT_SIZES)
    assert all(getattr(cfg, name) == getattr(there, name) for name in same)
    hard = student_config(teacher, labels, hard_only=True, depth=2)
    assert (hard.w_seg, hard.w_soft, hard.soft_teacher, hard.depth) == (1.0, 0.0, "", 2)
    assert student_config(teacher, Path("/elsewhere")).mask_source == "/elsewhere"
    (teacher.path / "config.json").write_text(there.replace(masks_for=4).to_json())
    assert student_config(teacher, labels).masks_for == 0  # the student has a label of every image


@pytest.mark.parametrize(
    ("changes", "pretrained", "weights"),
    [
        ({}, True, "data/toy/vit_toy.safetensors"),
        ({"depth": 8}, True, "data/toy/vit_toy.safetensors"),
        ({"depth": 4}, True, "data/toy/vit_toy.safetensors"),
        ({"depth": 9}, False, ""),
        ({"embed_dim": 32}, False, ""),
        ({"backbone": "resnet10t"}, True, ""),
        ({"depth": 4, "pretrained": True, "weights": "mine.pth"}, True, "mine.pth"),
    ],
)
def test_a_student_of_another_size_takes_no_weights_that_do_not_fit(
    changes: dict, pretrained: bool, weights: str, tmp_path: Path
) -> None:
    run = RunDir.create(Config.preset("toy"), tmp_path)
    run.checkpoint_path(run.config().steps).parent.mkdir()
    run.checkpoint_path(run.config().steps).touch()
    cfg = student_config(run, tmp_path, hard_only=True, **changes)
    assert (cfg.pretrained, cfg.weights) == (pretrained, weights)


def test_teacher_labels_and_student_stand_beside_each_other_and_nothing_is_made_twice(
    teacher: RunDir, capsys: pytest.CaptureFixture
) -> None:
    command = ["student", str(teacher.path), "--depth", "2", "--name", "small", "--device", "cpu"]
    assert main(command) == 0
    run, printed = RunDir("results/small"), capsys.readouterr().out
    assert run.config().depth == 2 and run.config().soft_teacher == "results/teacher" and run.is_measured
    table = run.read_table("evaluation").set_index(["target", "class"])["iou"]
    rows = [line.split() for line in printed.splitlines()[2:5]]
    assert [row[0] for row in rows] == ["teacher", "labels", "student"]
    assert rows[2][1:4] == ["val", "4", f"{100 * table['seg', 'mIoU']:.1f}"]
    before = files_of(teacher.path) | {f"small/{name}": data for name, data in files_of(run.path).items()}
    assert main(command) == 0
    after = files_of(teacher.path) | {f"small/{name}": data for name, data in files_of(run.path).items()}
    changed = {Path(name).name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == {"env.json", "log.txt"}  # that it was asked for again
    assert capsys.readouterr().out.splitlines()[4].split()[:4] == rows[2][:4]


def test_the_numbers_of_the_table(teacher: RunDir) -> None:
    made = make_student(teacher, kind="seed", hard_only=True, embed_dim=12, progress=False)
    labels = write_pseudo_labels(teacher, kinds=["seed"], progress=False)
    rows = made.table.set_index("what")
    assert list(made.table) == list(COLUMNS) and list(rows.index) == ["teacher", "labels (seed)", "student"]
    assert rows.loc["labels (seed)", "mIoU"] == pytest.approx(100 * labels.miou["seed"])
    model, cfg = load_run_model(teacher)
    weights = sum(p.numel() for part in (model.encoder, model.decoder) for p in part.parameters())
    assert segmentation_weights(model) == weights < sum(p.numel() for p in model.parameters())
    assert rows.loc["teacher", "million parameters"] == weights / 1e6 > rows.loc["student", "million parameters"]
    assert 0 < pass_time(model, cfg) < 10_000 and math.isnan(rows.loc["labels (seed)", "ms an image"])
    assert made.run.path.parent == teacher.path.parent and made.run.name == made.run.config().run_name()
    assert str(made).count("\n") == 3 and "nan" not in str(made).lower()


def test_labels_that_are_there_keep_their_thresholds(teacher: RunDir) -> None:
    write_pseudo_labels(teacher, kinds=["refined"], thresholds=Thresholds(0.2, 0.6), refine="pamr", progress=False)
    before = files_of(teacher.path / "pseudo_labels/train/refined/SegmentationClass")
    make_student(teacher, hard_only=True, depth=1, progress=False)
    assert files_of(teacher.path / "pseudo_labels/train/refined/SegmentationClass") == before


def test_a_stopped_student_ends_as_one_that_was_not_stopped(teacher: RunDir) -> None:
    straight = make_student(teacher, depth=2, name="straight", progress=False)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("toco_lab.training.loop._Training._save", _stopping)
        make_student(teacher, depth=2, name="stopped", progress=False)
    again = make_student(teacher, depth=2, name="stopped", progress=False)
    last = [made.run.checkpoints()[-1].read_bytes() for made in (straight, again)]
    assert last[0] == last[1]


def _stopping(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_student_may_be_a_teacher(teacher: RunDir) -> None:
    longer = {"steps": 60, "batch_size": 4, "learning_rate": 3e-3}  # until its segmentation shows more than one class
    first = make_student(teacher, hard_only=True, name="first", progress=False, **longer)
    second = make_student(first.run, depth=2, name="second", progress=False)
    assert second.table["what"][1] == "labels (seg)" and second.run.config().soft_teacher == "results/first"


def test_runs_that_can_teach_nothing_are_refused(teacher: RunDir, capsys: pytest.CaptureFixture) -> None:
    def refused(*words: str) -> str:
        assert main(["student", *words, "--device", "cpu"]) == 2
        return capsys.readouterr().err

    assert "error: results is not a run folder" in refused("results")
    begun = open_run(Config.preset("smoke").replace(seed=1), "results", name="begun")
    assert "results/begun is not finished (new, 0 steps of 4): train it to its end first" in refused(str(begun.path))
    peer = open_run(Config.preset("smoke").replace(method="tscam", steps=1, warmup_steps=0), "results", name="peer")
    train(peer, progress=False)
    said = refused(str(peer.path))
    assert "no segmentation to learn from: method 'tscam' has no decoder" in said and "hard labels alone" in said
    assert "no labels of kind seg" in refused(str(peer.path), "--kind", "seg", "--hard-only")
    labels = teacher.path / "pseudo_labels/train/refined"
    write_pseudo_labels(teacher, kinds=["refined"], progress=False)
    classes = (labels / "classes.txt").read_text()
    text = (labels / "protocol.json").read_text()
    (labels / "protocol.json").write_text(text.replace('"dataset": "toy"', '"dataset": "voc"'))
    assert "pseudo labels of another protocol: dataset ('voc' there, 'toy' wanted)" in refused(str(teacher.path))
    assert {path.name for path in Path("results").iterdir()} == {"teacher", "begun", "peer"} and len(classes) > 10
