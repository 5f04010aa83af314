"""The second score of a CAM: its threshold comes from training images, and every threshold is counted in one pass."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from toco_lab.config import Config
from toco_lab.data import loader
from toco_lab.data.loader import eval_samples
from toco_lab.data.own_folder import complete_config
from toco_lab.evaluation import thresholds
from toco_lab.evaluation.evaluate import Evaluation, evaluate_model, evaluate_run, validator
from toco_lab.evaluation.prediction import label_above, predict, strongest_class
from toco_lab.evaluation.thresholds import GRID, ThresholdCounts, tune_thresholds
from toco_lab.method.labels import confident_label
from toco_lab.method.model import ToCo
from toco_lab.method.present import PresentClasses
from toco_lab.method.refine import refine_cam, refined_labels
from toco_lab.runs.listing import final_scores
from toco_lab.runs.run_dir import RunDir

CFG = Config.preset("smoke")
CAMS = ("cam", "cam_aux")


def random_cams(rng, images=3, classes=4, side=17):
    """CAMs of images that show 0 to 3 of 4 classes, many scores exactly at a threshold, and masks with 255."""
    label = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]][:images])
    present = PresentClasses.of(label)
    scores = rng.choice([0.0, 1.0, *GRID, *rng.random(20)], size=(images, present.index.shape[1], side, side))
    truth = rng.choice([0, 1, 2, 3, 4, 255], size=(images, side, side))
    return torch.tensor(scores, dtype=torch.float32), present, torch.tensor(truth), classes + 1


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ToCo(CFG).eval()


def test_the_grid_is_the_one_that_is_promised():
    assert GRID == (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)


def test_every_threshold_in_one_pass_counts_what_each_one_counts_alone(rng):
    """Brute force: `confident_label` and a confusion matrix by two loops, threshold by threshold; scores that lie
    exactly on a threshold are background, as there.
    """
    cam, present, truth, labels = random_cams(rng)
    asked = (0.0, *GRID, 0.97)
    counts = ThresholdCounts(asked, labels, torch.device("cpu"))
    for image in range(3):  # image by image: counts add up
        score, winner = strongest_class(cam, present)
        counts.add(score[image : image + 1], winner[image : image + 1], truth[image : image + 1])
    for threshold, matrix in zip(asked, counts.matrices(), strict=True):
        label = confident_label(cam, present, low=threshold, high=threshold)
        expected = torch.zeros(labels, labels, dtype=torch.int64)
        for true, predicted in zip(truth.flatten().tolist(), label.flatten().tolist(), strict=True):
            if true != 255:
                expected[true, predicted] += 1
        assert torch.equal(matrix, expected), threshold
        assert torch.equal(label_above(*strongest_class(cam, present), threshold), label)


def test_refined_labels_are_those_of_one_threshold_each(rng):
    cam, present, _, _ = random_cams(rng, side=24)
    image = torch.rand(3, 3, 24, 24)
    both = refined_labels(image, cam, present, (0.5, 0.2), dilations=(1, 2), num_iter=3)
    for threshold, label in zip((0.5, 0.2), both, strict=True):
        one = refine_cam(image, cam, present, low=threshold, high=threshold, dilations=(1, 2), num_iter=3)
        assert torch.equal(label, one)
    assert not torch.equal(*both)


def test_the_second_score_is_the_score_at_the_threshold_that_is_best_on_training_images(model):
    """Both thresholds and both scores, found again by scoring the two splits at every threshold of the config."""
    cfg = CFG.replace(val_images=5)
    found = evaluate_model(model, cfg, targets=(*CAMS, "cam_refined"), progress=False)
    by_hand = {split: {} for split in ("train", "val")}
    for threshold in GRID:
        one = cfg.replace(background_threshold=threshold, threshold_images=0, val_images=0)
        for split, changed in (("train", one), ("val", one.replace(val_images=5))):
            targets = CAMS if split == "train" else (*CAMS, "cam_refined")
            scores = evaluate_model(model, changed, split=split, targets=targets, progress=False).scores
            assert set(scores) == {*targets, "labels"}
            by_hand[split][threshold] = scores
    for cam in CAMS:
        best = max(GRID, key=lambda threshold: by_hand["train"][threshold][cam])
        record = found.protocol[f"{cam}_tuned"]
        assert (record["background_threshold"], record["threshold_from"]) == (best, "16 training images")
        assert found.scores[f"{cam}_tuned"] == by_hand["val"][best][cam]
        assert found.scores[cam] == by_hand["val"][0.5][cam] and "threshold_from" not in found.protocol[cam]
        for split, rows in found.curve[found.curve["target"] == cam].groupby("split"):
            assert rows["threshold"].tolist() == list(GRID)
            np.testing.assert_array_equal(rows["miou"], [by_hand[split][threshold][cam] for threshold in GRID])
            assert rows.loc[rows["chosen"], "threshold"].tolist() == [best]
            assert rows.loc[rows["configured"], "threshold"].tolist() == [0.5]
            assert set(rows["images"]) == {16 if split == "train" else 5}
            assert set(rows["tuned_on"]) == {split == "train"}
    best = found.protocol["cam_tuned"]["background_threshold"]
    assert best != 0.5, "the test would show nothing"
    record = found.protocol["cam_refined_tuned"]
    assert record["background_threshold"] == best and record["par"]
    assert record["threshold_from"] == "16 training images, by the CAM before PAR"
    assert found.scores["cam_refined_tuned"] == by_hand["val"][best]["cam_refined"]


def test_a_threshold_of_the_config_beside_the_grid_has_its_point_and_is_never_chosen(model):
    cfg = CFG.replace(background_threshold=0.83, val_images=3)  # where the CAM of this model is at its best
    found = evaluate_model(model, cfg, targets=("cam",), progress=False)
    own = found.curve[found.curve["configured"]]
    assert own["threshold"].tolist() == [0.83, 0.83] and not own["chosen"].any()
    assert own.loc[own["split"] == "val", "miou"].item() == found.scores["cam"]
    assert (
        own.loc[own["split"] == "train", "miou"].item()
        > found.curve.query("split == 'train' and chosen")["miou"].item()
    )


def altered_masks(monkeypatch, split):
    """From now on every mask of a split shows class 3 alone."""
    ordinary = loader.EvalSamples.__getitem__

    def altered(self, index):
        sample = ordinary(self, index)
        if split in sample.name:
            return dataclasses.replace(sample, mask=torch.full_like(sample.mask, 3))
        return sample

    monkeypatch.setattr(loader.EvalSamples, "__getitem__", altered)


def test_the_scored_split_never_has_a_say(model, monkeypatch):
    before = evaluate_model(model, CFG, targets=CAMS, progress=False)
    with monkeypatch.context() as patch:
        altered_masks(patch, "val")
        after = evaluate_model(model, CFG, targets=CAMS, progress=False)
    assert after.scores["cam"] != before.scores["cam"]
    chosen = [found.protocol[f"{cam}_tuned"]["background_threshold"] for found in (before, after) for cam in CAMS]
    assert chosen[:2] == chosen[2:]
    with monkeypatch.context() as patch:
        altered_masks(patch, "train")  # the threshold does come from there
        moved = evaluate_model(model, CFG, targets=CAMS, progress=False)
    assert [moved.protocol[f"{cam}_tuned"]["background_threshold"] for cam in CAMS] != chosen[:2]


def test_images_that_are_scored_are_left_out_of_the_choice(model):
    train = eval_samples(CFG.replace(val_images=0), model.mean, model.std, "train").reader.names
    assert len(train) == 16
    ten = tune_thresholds(model, CFG, ["cam"], train[:6], progress=False)
    assert ten.images == 10 and not ten.absent
    none = tune_thresholds(model, CFG, ["cam"], train, progress=False)
    assert none.of("cam") is None and none.absent == (
        "all training images of 'train' that have a mask are among those that are scored"
    )
    found = evaluate_model(model, CFG.replace(val_images=0), split="train", targets=("cam",), progress=False)
    assert np.isnan(found.scores["cam_tuned"]) and found.protocol["cam_tuned"]["not_defined"] == none.absent
    assert found.curve["split"].unique().tolist() == ["train"] and not found.curve[["tuned_on", "chosen"]].any(
        axis=None
    )


def test_training_images_are_spread_over_the_list(model):
    samples, chosen = thresholds._training_images(model, CFG.replace(threshold_images=5), ())
    assert chosen == [0, 3, 6, 9, 12]
    found = tune_thresholds(model, CFG.replace(threshold_images=5), ["cam"], (), progress=False)
    assert found.images == 5 and set(found.curve["images"]) == {5}
    assert samples.reader.names[0].startswith("toy_train")


def test_without_a_second_score_everything_is_as_before(model):
    found = evaluate_model(model, CFG.replace(threshold_images=0), progress=False)
    assert list(found.scores) == ["cam", "cam_aux", "cam_refined", "seg", "labels"] and found.curve.empty
    with_it = evaluate_model(model, CFG, progress=False)
    assert {target: with_it.scores[target] for target in found.scores} == found.scores
    assert list(with_it.scores) == [
        "cam", "cam_tuned", "cam_aux", "cam_aux_tuned", "cam_refined", "cam_refined_tuned", "seg", "labels"
    ]  # fmt: skip


def test_no_pass_over_training_images_where_nothing_would_come_of_it(model, monkeypatch):
    monkeypatch.setattr("toco_lab.evaluation.evaluate.tune_thresholds", None)  # a call would raise
    assert set(evaluate_model(model, CFG, targets=("seg",), progress=False).scores) == {"seg"}
    validated = set(validator(CFG)(model, 1))  # during training
    assert validated == {"cam", "cam_aux", "seg", "ctc_positive_object", "ctc_negative_object"}


def folder_of_two_lists(root, *, train_masks):
    """Images a to d of 32 x 32 pixels: train lists a, b and c, val lists c and d; d has a mask, the others may."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for place, name in enumerate("abcd"):
        colours = np.random.default_rng(place).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(colours).save(root / f"images/{name}.png")
        if name == "d" or name in train_masks:
            mask = np.zeros((32, 32), np.uint8)
            mask[8:20, 4:16] = 1 + place % 2
            Image.fromarray(mask).save(root / f"masks/{name}.png")
    (root / "labels.csv").write_text("name,labels\na,cat\nb,dog\nc,cat\nd,dog\n")
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "train.txt").write_text("a\nb\nc\n")
    (root / "val.txt").write_text("c\nd\n" if "c" in train_masks else "d\n")
    small = {name: getattr(CFG, name) for name in ("patch_size", "embed_dim", "depth", "num_heads", "decoder_width")}
    return complete_config(
        CFG.replace(dataset="folder", data_root=str(root), label_source="auto", num_classes=0, train_images=0, **small)
    )


@pytest.mark.parametrize(
    ("train_masks", "expected"),
    [
        ("", "no training image of 'train' has a mask"),
        ("b", "1 training image"),
        ("abc", "2 training images"),  # c is scored as well
        ("c", "all training images of 'train' that have a mask are among those that are scored"),
    ],
)
def test_only_training_images_that_have_a_mask_and_are_not_scored_count(tmp_path, train_masks, expected):
    cfg = folder_of_two_lists(tmp_path / "own", train_masks=train_masks)
    torch.manual_seed(0)
    found = evaluate_model(ToCo(cfg), cfg, targets=("cam",), progress=False)
    record, known = found.protocol["cam_tuned"], expected[0].isdigit()
    assert record["threshold_from" if known else "not_defined"] == expected
    assert np.isnan(found.scores["cam_tuned"]) != known and not np.isnan(found.scores["cam"])
    assert len(found.table[found.table["target"] == "cam_tuned"]) == (4 if known else 1)


def test_a_score_needs_no_training_images(tmp_path):
    cfg = folder_of_two_lists(tmp_path / "own", train_masks="ab")
    torch.manual_seed(0)
    model = ToCo(cfg)
    (tmp_path / "own/train.txt").unlink()
    (tmp_path / "own/images/a.png").unlink()
    found = evaluate_model(model, cfg, targets=("cam",), progress=False)
    assert 0 <= found.scores["cam"] <= 1 and np.isnan(found.scores["cam_tuned"])
    assert found.protocol["cam_tuned"]["not_defined"].startswith("the training images 'train' cannot be read: ")


def test_masks_without_a_pixel_that_counts_choose_nothing(model, monkeypatch):
    ordinary = loader.EvalSamples.__getitem__

    def ignored(self, index):
        sample = ordinary(self, index)
        return dataclasses.replace(sample, mask=torch.full_like(sample.mask, 255))

    monkeypatch.setattr(loader.EvalSamples, "__getitem__", ignored)
    found = tune_thresholds(model, CFG, CAMS, (), progress=False)
    assert found.absent == "no mask of 16 training images has a pixel that counts" and not found.best


def test_a_score_that_is_not_there_is_stored_as_a_missing_one(tmp_path):
    rows = [("cam", "mIoU", 0.5, 0.1), ("cam_tuned", "mIoU", float("nan"), float("nan"))]
    run = RunDir.create(CFG, tmp_path)
    run.write_table("evaluation", pd.DataFrame(rows, columns=["target", "class", "iou", "over_activation"]))
    scores = final_scores(run)
    assert scores["cam_mIoU"] == 0.5 and np.isnan(scores["cam_tuned_mIoU"])
    assert np.isnan(Evaluation(run.read_table("evaluation"), {}).scores["cam_tuned"])


def test_the_name_of_a_run_stays():
    assert CFG.replace(threshold_images=100).digest() == CFG.digest() != CFG.replace(threshold_images=50).digest()


def test_predict_gives_the_second_label_map_where_it_is_asked_for(model):
    sample = eval_samples(CFG, model.mean, model.std)[0]
    image, label = sample.image[None], sample.image_label[None]
    plain = predict(model, CFG, image, label, ["cam"])
    both = predict(model, CFG, image, label, ["cam"], tuned={"cam": 0.2})
    assert set(both) - set(plain) == {"cam_tuned"} and torch.equal(plain["cam"], both["cam"])
    expected = torch.where(both["cam_scores"] > 0.2, both["cam_winners"], 0)
    assert torch.equal(both["cam_tuned"], expected) and not torch.equal(expected, both["cam"])


def test_a_run_keeps_its_curve(smoke_run, tmp_path):
    shutil.copytree(smoke_run.path, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    curve = run.read_table("thresholds")
    assert len(curve) == 2 * 2 * 16 and curve["chosen"].sum() == 4
    rows = run.read_table("evaluation").set_index(["target", "class"])["iou"]
    scored = curve[~curve["tuned_on"]].set_index("target")
    for cam in CAMS:
        own = scored.loc[cam]
        assert own.loc[own["configured"], "miou"].item() == rows[cam, "mIoU"]
        assert own.loc[own["chosen"], "miou"].item() == rows[f"{cam}_tuned", "mIoU"]
    evaluate_run(run, targets=("cam",), progress=False)  # the other CAM's rows stay
    again = run.read_table("thresholds")
    pd.testing.assert_frame_equal(
        again.sort_values(["target", "tuned_on", "threshold"], ignore_index=True),
        curve.sort_values(["target", "tuned_on", "threshold"], ignore_index=True),
    )
    evaluate_run(run, targets=("cam",), split="train", progress=False)
    assert run.read_table("thresholds_train")["split"].unique().tolist() == ["train"]
    pd.testing.assert_frame_equal(run.read_table("thresholds"), again)
