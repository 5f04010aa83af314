"""A folder of photographs becomes a project: a config that fits, lists with every class; then train and report."""

from pathlib import Path

import numpy as np
import pytest
from helpers.photographs import write_photographs
from PIL import Image

from toco_lab.backbones import at_hand
from toco_lab.commands import new_project
from toco_lab.commands.app import main
from toco_lab.commands.new_project import RECIPE
from toco_lab.config import Config
from toco_lab.data.readers import open_dataset
from toco_lab.presets import PRESETS
from toco_lab.runs.config_file import read_config
from toco_lab.runs.run_dir import RunDir
from toco_lab.training import timing


@pytest.fixture(autouse=True)
def nothing_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has never downloaded weights."""
    monkeypatch.setattr(at_hand, "weights_at_hand", lambda name: False)


def test_from_a_folder_to_a_report(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder, file = tmp_path / "my pets", tmp_path / "my pets" / "toco_lab.yaml"
    write_photographs(folder, 12, masks=True)
    assert main(["new-project", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "12 images, 6 classes (" in said and "labels from labels.csv, 12 masks" in said
    assert "10 images to train on, 2 to validate on" in said and "wrote train.txt and val.txt" in said
    assert "crops of 96 pixels: images have a short side of 120 pixels" in said
    assert "warning: the toy's small ViT has only seen toy scenes" in said
    assert f"train --config '{file}'" in said and "predict RUN" in said
    cfg = read_config(file)
    assert cfg.num_classes == 6 and cfg.data_root == str(folder) and cfg.preset_name == "folder"
    assert (cfg.weights, cfg.crop_size, cfg.batch_size) == (PRESETS["toy"]["weights"], 96, 8)
    train, val = (set(open_dataset(cfg, split).names) for split in ("train", "val"))
    assert (len(train), len(val)) == (10, 2) and not train & val
    assert main(["data", "check", str(file), "--out", str(tmp_path / "sheet.png")]) == 0
    assert "0 problems" in capsys.readouterr().out
    short = ["--steps", "2", "--warmup-steps", "0", "--seg-start-step", "1", "--batch-size", "2"]
    assert main(["train", "--config", str(file), "--root", str(tmp_path), "--name", "run", *short]) == 0
    run = RunDir(tmp_path / "run")
    assert run.status()["state"] == "done" and "cam" in set(run.read_table("evaluation")["target"])
    assert run.config() == cfg.replace(steps=2, warmup_steps=0, seg_start_step=1, batch_size=2)
    assert main(["report", str(run.path), "--out", str(tmp_path / "report.html")]) == 0
    assert "my pets" in (tmp_path / "report.html").read_text()


def test_subfolders_are_classes_and_lists_that_are_there_stay(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    names = write_photographs(tmp_path, 9, subfolders=True)
    (tmp_path / "train.txt").write_text("".join(f"{name}\n" for name in names[:5]))
    (tmp_path / "val.txt").write_text("".join(f"{name}\n" for name in names[5:8]))
    assert main(["new-project", str(tmp_path), "--out", str(tmp_path / "mine.yaml")]) == 0
    said = capsys.readouterr().out
    assert "from the subfolders of" in said and "5 images to train on, 3 to validate on: as the lists say" in said
    assert "no masks" in said and "labels are scored, CAMs are shown but not scored" in said
    classes = {path.name for path in (tmp_path / "images").iterdir()}
    assert set(read_config(tmp_path / "mine.yaml").classes) == classes
    assert (tmp_path / "labels.csv").read_text().count("\n") == 10
    assert (tmp_path / "val.txt").read_text().split() == names[5:8]


def test_sizes_follow_images_and_weights_at_hand(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "images").mkdir()
    rows = ["name,labels"] + [f"p{i},{'cat' if i % 2 else 'dog'}" for i in range(60)]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    for i in range(60):
        Image.fromarray(np.full((1500, 2000, 3), 4 * i, np.uint8)).save(tmp_path / "images" / f"p{i}.png")
    monkeypatch.setattr(at_hand, "weights_at_hand", lambda name: name.startswith("deit_tiny"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["new-project", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "backbone   deit_tiny_patch16_224.fb_in1k: its pretrained weights are on this machine" in said
    assert "warning" not in said
    cfg = read_config(tmp_path / "toco_lab.yaml")
    assert (cfg.crop_size, cfg.local_crop_size, cfg.eval_cam_size, cfg.batch_size) == (112, 32, 224, 8)
    assert cfg.scale_range == (0.0448, 0.119) and cfg.eval_seg_scales == (0.0747, 0.112)
    assert (cfg.steps, cfg.warmup_steps, cfg.contrast_start_step, cfg.encoder_start_step) == (240, 10, 24, 0)
    assert cfg.seg_start_step == 24 and "segmentation from step 24" in said
    assert (cfg.probe_heads, cfg.frozen_blocks, cfg.learning_rate) == (True, 7, RECIPE["learning_rate"])
    assert cfg.pretrained and not cfg.weights and cfg.depth is None
    monkeypatch.setattr(new_project, "FEW", 48)  # that many training images are not few: VOC's schedule
    assert main(["new-project", str(tmp_path), "--overwrite"]) == 0
    cfg = read_config(tmp_path / "toco_lab.yaml")
    assert (cfg.crop_size, cfg.local_crop_size, cfg.eval_cam_size, cfg.batch_size) == (224, 48, 224, 4)
    assert cfg.scale_range == (0.0896, 0.239) and cfg.eval_seg_scales == (0.149, 0.224)
    assert (cfg.steps, cfg.warmup_steps, cfg.seg_start_step) == (480, 36, 48)  # 40 passes over 48 images
    assert cfg.w_ptc == Config.preset("folder").w_ptc and cfg.frozen_blocks == 0 and not cfg.probe_heads
    for name, sizes in (("resnet18.a1_in1k", (224, 64)), ("vit_small_patch14_dinov2.lvd142m", (224, 42))):
        assert main(["new-project", str(tmp_path), "--backbone", name, "--overwrite"]) == 0
        assert "timm downloads its weights when the run starts" in capsys.readouterr().out
        cfg = read_config(tmp_path / "toco_lab.yaml")
        assert (cfg.crop_size, cfg.local_crop_size) == sizes


@pytest.mark.parametrize(("gain", "precision"), [(2.0, "bf16"), (0.6, "fp32")])
def test_a_few_photographs_and_clip_follow_the_preset_that_was_measured(
    gain: float, precision: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(timing, "bf16_gain", lambda device: gain)  # of this machine
    write_photographs(tmp_path / "mine", 12)
    assert main(["new-project", str(tmp_path / "mine"), "--backbone", RECIPE["backbone"]]) == 0
    cfg, preset = read_config(tmp_path / "mine" / "toco_lab.yaml"), Config.preset("voc_clip")
    same = (
        "backbone", "depth", "aux_layer", "probe_heads", "cam_scales", "batch_size", "steps", "learning_rate",
        "head_lr_factor", "warmup_steps", "frozen_blocks", "contrast_start_step",
        "seg_start_step", "w_ptc", "w_ctc", "w_seg", "w_reg",
    )  # fmt: skip
    assert {name: getattr(cfg, name) for name in same} == {name: getattr(preset, name) for name in same}
    assert cfg.precision == precision


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no images below data_root nowhere"),
        (["flat"], "mkdir images && mv *.* ./images"),
        (["apart"], "mkdir images && mv cat dog ./images"),
        (["twice"], "have one name: an image is known by its name alone"),
        (["one"], "1 image, 1 of them with a label: too few"),
        (["bare"], "does not say what is in its images"),
        (["there"], "toco_lab.yaml is there already: --overwrite replaces it"),
        (["one", "--out", "a.json"], "--out must end in .yaml"),
        (["one", "--out", "a.txt"], "a config file ends in .yaml, .yml or .json"),
        (["one", "--weights", "a.pth"], "--weights belong to a --backbone"),
        (["good", "--backbone", "resnet_18"], "backbone 'resnet_18' cannot be built"),
        (["good", "--backbone", "resnet18", "--weights", "a.pth"], "no weights file a.pth"),
    ],
)
def test_what_is_no_project_yet_is_said_with_the_remedy(words, message, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    files = "flat/a apart/cat/a apart/dog/b twice/images/cat/a twice/images/dog/a one/images/a bare/images/a"
    for place in [f"{file}.jpg" for file in f"{files} good/images/a good/images/b".split()]:
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (200, 90, 10)).save(place)
    Path("there").mkdir()
    Path("there/toco_lab.yaml").touch()
    Path("one/labels.csv").write_text("name,labels\na,cat\n")
    Path("good/labels.csv").write_text("name,labels\na,cat\nb,dog\n")
    before = sorted(tmp_path.rglob("*"))
    assert main(["new-project", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_weights_at_hand_are_looked_for_where_timm_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    asked = []
    monkeypatch.setattr(at_hand, "try_to_load_from_cache", lambda repo, file: asked.append((repo, file)))
    assert not at_hand.weights_at_hand("deit_tiny_patch16_224.fb_in1k")
    assert asked[0] == ("timm/deit_tiny_patch16_224.fb_in1k", "model.safetensors")
    monkeypatch.setattr(at_hand, "try_to_load_from_cache", lambda repo, file: str(tmp_path))
    assert at_hand.weights_at_hand("deit_tiny_patch16_224") and not at_hand.weights_at_hand("no_such_model")
