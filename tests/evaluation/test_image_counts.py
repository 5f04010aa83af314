"""Pixel counts of images: against a loop, against the evaluation, kept and measured anew; gains between runs."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.labelled_runs import SMALL, make_run

from toco_lab.config import Config
from toco_lab.data.loader import eval_samples
from toco_lab.evaluation import of_runs
from toco_lab.evaluation.evaluate import evaluate_model
from toco_lab.evaluation.image_counts import class_counts, images_of_run, measure_images
from toco_lab.evaluation.object_size import ANY_SIZE, image_scores, scores_by_size
from toco_lab.evaluation.prediction import predict
from toco_lab.evaluation.run_gains import gains_of_runs
from toco_lab.evaluation.scores import confusion_matrix
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model


@pytest.fixture
def own_run(toy_run, tmp_path) -> RunDir:
    """A copy that a test may write into."""
    return RunDir(shutil.copytree(toy_run.path, tmp_path / "own"))


@pytest.fixture(scope="module")
def other_run(tmp_path_factory) -> RunDir:
    """The same three scenes, seen by other weights (another classifier)."""
    cfg = Config.preset("smoke").replace(val_images=3, train_images=4, crop_size=48, seed=1, **SMALL)
    return make_run(cfg, tmp_path_factory.mktemp("other"), flat=True)


def test_counts_of_a_matrix_are_its_sums():
    matrix = torch.tensor([[[5, 1], [2, 3]], [[0, 0], [0, 7]]])
    assert class_counts(matrix).tolist() == [[[6, 5], [7, 4], [5, 3]], [[0, 7], [0, 7], [0, 7]]]


def test_counts_are_those_of_a_loop(toy_run):
    model, cfg = load_run_model(toy_run)
    found = measure_images(model, cfg.replace(threshold_images=0), targets=("cam", "seg"), progress=False)
    assert list(found.protocol) == ["cam", "seg"]
    expected = []
    for sample in eval_samples(cfg, model.mean, model.std):
        predicted = predict(model, cfg, sample.image[None], sample.image_label[None], ("cam", "seg"))
        truth = sample.mask.numpy()
        for target in ("cam", "seg"):
            label = predicted[target][0].numpy()
            for number in range(cfg.num_classes + 1):
                there, said = truth == number, label == number
                if there.any() or said.any():
                    counts = [there.sum(), said.sum(), (there & said).sum(), truth.size]
                    expected.append((sample.name, target, number, *map(int, counts)))
    columns = ["image", "target", "label", "truth", "predicted", "hits", "pixels"]
    assert sorted(found.table[columns].itertuples(index=False, name=None)) == sorted(expected)


def test_sizes_of_a_masked_cam_add_up_to_its_evaluation(toy_run):
    """A CAM that true labels mask is nowhere but in images that show its class."""
    model, cfg = load_run_model(toy_run)
    counts = measure_images(model, cfg, targets=("cam",), progress=False)
    assert list(counts.protocol) == ["cam", "cam_tuned"]
    table = scores_by_size(counts.of("cam_tuned"))
    by_size = table[(table["size"] == ANY_SIZE) & (table["class"] != "mIoU")].set_index("class")["iou"]
    scored = evaluate_model(model, cfg, targets=("cam",), progress=False).table
    scored = scored[scored["target"] == "cam_tuned"].set_index("class")["iou"]
    assert by_size.to_dict() == pytest.approx(scored[by_size.index].to_dict(), nan_ok=True) and len(by_size) > 1


def test_ignored_pixels_are_no_part_of_an_image():
    truth, label = torch.tensor([[0, 1, 255], [1, 1, 255]]), torch.tensor([[0, 0, 1], [1, 1, 1]])
    assert class_counts(confusion_matrix(label, truth, 2)).tolist() == [[1, 3], [2, 2], [1, 2]]


def test_a_run_keeps_its_counts_until_its_weights_change(own_run, monkeypatch):
    first = images_of_run(own_run, targets=("cam",), device="cpu", progress=False)
    assert (own_run.path / "images.csv").is_file() and "seg" not in first.protocol
    both = images_of_run(own_run, targets=("seg",), device="cpu", progress=False)  # beside what is there
    assert list(both.protocol) == ["cam", "cam_tuned", "seg"]
    pd.testing.assert_frame_equal(both.of("cam"), first.of("cam"))
    with pytest.raises(ValueError, match="no counts of 'cam_aux'; there are: cam, cam_tuned, seg"):
        both.of("cam_aux")
    with monkeypatch.context() as patch:
        patch.setattr(of_runs, "load_run_model", lambda *_: pytest.fail("the model is not needed"))
        again = images_of_run(own_run, targets=("cam", "seg"), progress=False)
    pd.testing.assert_frame_equal(again.table, both.table)
    saved = torch.load(own_run.checkpoints()[-1])
    saved["model"]["classifier.weight"] *= -1
    torch.save(saved, own_run.checkpoints()[-1])
    changed = images_of_run(own_run, targets=("cam",), device="cpu", progress=False)
    assert list(changed.protocol) == ["cam", "cam_tuned"] and not changed.of("cam").equals(first.of("cam"))


def test_a_damaged_file_is_measured_anew(own_run):
    first = images_of_run(own_run, targets=("seg",), device="cpu", progress=False)
    (own_run.path / "images.csv").write_text("image,target\ncut o")
    pd.testing.assert_frame_equal(images_of_run(own_run, targets=("seg",), progress=False).table, first.table)


def test_labels_have_no_pixels(toy_run):
    with pytest.raises(ValueError, match="no pixels to count"):
        measure_images(*load_run_model(toy_run), targets=("labels",))


def test_two_runs_are_a_pair_whatever_their_seeds(own_run, other_run):
    gains = gains_of_runs(own_run, other_run, target="cam", names=("A", "B"), device="cpu", progress=False)
    of_run = [
        image_scores(images_of_run(run, targets=("cam",), progress=False).of("cam")).set_index("image")["miou"]
        for run in (own_run, other_run)
    ]
    found = gains.frame.set_index("image")["gain"]
    assert found.to_dict() == pytest.approx((of_run[1] - of_run[0]).to_dict()) and len(found) == 3
    assert "similarity" not in gains.frame  # nobody measured it
    assert gains.captions(1)[0].startswith(gains.frame["image"].iloc[0]) and "(seed 0)" in gains.captions(1)[0]


@pytest.mark.parametrize("target", ["cam_tuned", "seg"])
def test_pictures_show_the_maps_that_were_counted(own_run, other_run, target):
    gains = gains_of_runs(own_run, other_run, target=target, names=("A", "B"), device="cpu", progress=False)
    rows = gains.pictures(1)
    headings = ["image", "truth", "A", "A, label", "B", "B, label"]
    assert all(list(row) == (headings if target == "cam_tuned" else headings[:2] + headings[3::2]) for row in rows)
    for name, row in zip(gains.extremes(1), rows, strict=True):
        for title, run in (("A", own_run), ("B", other_run)):
            counts = images_of_run(run, targets=(target.removesuffix("_tuned"),), progress=False).of(target)
            counts = counts[counts["image"] == name].set_index("label")
            label, truth = row[f"{title}, label"], row["truth"]
            assert {n: (label == n).sum() for n in counts.index} == counts["predicted"].to_dict()
            assert {n: ((label == n) & (truth == n)).sum() for n in counts.index} == counts["hits"].to_dict()
        assert row["image"].dtype == np.uint8 and row["image"].shape[:2] == row["truth"].shape


def test_runs_that_cannot_be_paired_are_refused(own_run, toy_run, other_run):
    with pytest.raises(ValueError, match="have the same seed"):
        gains_of_runs([own_run, toy_run], [other_run])
    with pytest.raises(ValueError, match="a run on either side"):
        gains_of_runs([], [other_run])
