"""Images without any class, from a folder with labels.csv to masks: training, evaluation, pseudo labels, predict."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.data.check import check_dataset
from toco_lab.data.classes import save_mask
from toco_lab.data.loader import train_loader
from toco_lab.data.own_folder import complete_config
from toco_lab.data.readers import open_dataset
from toco_lab.data.toy_tissue import make_tissue_scene
from toco_lab.evaluation.pseudo_labels import write_pseudo_labels
from toco_lab.prediction.predictor import Predictor
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model

SMOKE = Config.preset("smoke")
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve scenes of tissue as files; labels.csv names cells or nothing; the last four are scored."""
    root = tmp_path_factory.mktemp("slides")
    scenes = [make_tissue_scene(9, index) for index in range(12)]
    (root / "images").mkdir()
    (root / "masks").mkdir()
    for index, scene in enumerate(scenes):
        Image.fromarray(scene.image).save(root / f"images/tile_{index:02d}.png")
        save_mask(root / f"masks/tile_{index:02d}.png", scene.mask)
    rows = "".join(f"tile_{index:02d},{'cell' * bool(scene.mask.any())}\n" for index, scene in enumerate(scenes))
    (root / "labels.csv").write_text(f"name,labels\n{rows}")
    (root / "classes.txt").write_text("cell\n")
    for split, places in (("train", range(8)), ("val", range(8, 12))):
        (root / f"{split}.txt").write_text("".join(f"tile_{index:02d}\n" for index in places))
    empty = [not scene.mask.any() for scene in scenes]
    assert 0 < sum(empty[:8]) < 8 and 0 < sum(empty[8:]) < 4
    return root


@pytest.fixture(scope="module")
def cfg(slides: Path) -> Config:
    return complete_config(
        SMOKE.replace(dataset="folder", data_root=str(slides), label_source="auto", num_classes=0, val_images=0,
                      train_images=0, turns=True, token_snapshots=0, local_crop_size=16)
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(cfg: Config, slides: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Trained by the command, on the labels of labels.csv."""
    root = tmp_path_factory.mktemp("runs")
    cfg_file = root / "config.json"
    cfg_file.write_text(cfg.to_json())
    assert main(["train", "--config", str(cfg_file), "--root", str(root), "--name", "run"]) == 0
    return RunDir(root / "run")


def empty_names(slides: Path) -> set[str]:
    with (slides / "labels.csv").open() as file:
        return {row["name"] for row in csv.DictReader(file) if not row["labels"]}


def test_labels_of_the_table_reach_the_batches(cfg: Config, slides: Path) -> None:
    assert not check_dataset(cfg, "train", progress=False).problems
    batches = list(train_loader(cfg.replace(steps=8), MEAN, STD))
    shown = {name: label for batch in batches for name, label in zip(batch.names, batch.image_label, strict=True)}
    assert {name for name, label in shown.items() if not label.any()} == empty_names(slides) & set(shown)
    assert len(shown) == 8


def test_a_run_is_scored_over_all_images(run: RunDir, slides: Path) -> None:
    table, protocol = run.read_table("evaluation").set_index(["target", "class"]), run.read_json("protocol")
    assert protocol["cam"]["images"] == 4 and run.metrics()["total_loss"].notna().all()
    assert 0 < table.loc[("cam", "background"), "iou"] <= 1 and 0 <= table.loc[("labels", "F1"), "iou"] <= 1


def test_pseudo_labels_of_an_empty_image_are_background(run: RunDir, slides: Path) -> None:
    made = write_pseudo_labels(run, kinds=("seed", "refined", "aux"), progress=False)
    for kind in ("seed", "refined", "aux"):
        for path in sorted((made.out / kind / "SegmentationClass").glob("*.png")):
            label = np.array(Image.open(path))
            assert path.stem not in empty_names(slides) or not label.any()
        assert np.array([np.array(Image.open(path)).any()
                         for path in (made.out / kind / "SegmentationClass").glob("*.png")]).any()  # fmt: skip


def test_nothing_is_predicted_where_the_classifier_says_no(run: RunDir) -> None:
    model, cfg = load_run_model(run)
    image = open_dataset(cfg, "val").image(0)
    with torch.no_grad():
        model.classifier.weight.zero_()  # every logit is 0, and so is no class
    silent = Predictor(model, cfg).predict(image, mask="cam")
    assert silent.present == () and silent.cams.shape == (0, 96, 96) and not silent.mask.any()
    assert Predictor(model, cfg).predict(image, mask="cam_refined").mask.sum() == 0


def test_a_run_says_what_becomes_of_its_empty_images(cfg: Config, slides: Path, tmp_path: Path, capsys) -> None:
    number = len(empty_names(slides) & {f"tile_{index:02d}" for index in range(8)})
    for keep, fate in ((True, "all background"), (False, r"left out (train_on_empty)")):
        file = tmp_path / f"{keep}.json"
        file.write_text(cfg.replace(steps=2, train_on_empty=keep).to_json())
        assert main(["train", "--config", str(file), "--root", str(tmp_path), "--name", str(keep)]) == 0
        said = capsys.readouterr().out
        assert f"training images without any class, {fate}: {number}" in said
        assert ("every image shows 'cell'" in said) is not keep
