"""One field says how CAMs are refined: every word of it on one model, in evaluation, pseudo labels and protocols."""

import shutil

import pytest
import torch

from toco_lab.config import Config
from toco_lab.data.loader import eval_samples
from toco_lab.evaluation.evaluate import evaluate_model, evaluate_run, protocol_record
from toco_lab.evaluation.prediction import native_cams
from toco_lab.evaluation.pseudo_labels import Thresholds, kind_record
from toco_lab.method.refine import refine_cam
from toco_lab.peers.build import build_model
from toco_lab.peers.refinement import WORDS, refine, refine_between, refinements_of
from toco_lab.runs.run_dir import RunDir

AFA = Config.preset("smoke").replace(method="afa")


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = build_model(AFA).eval()
    torch.nn.init.normal_(model.classifier.weight)
    samples = eval_samples(AFA, model.mean, model.std)
    chosen = [samples[number] for number in range(2)]
    image = torch.stack([one.image for one in chosen])
    return model, image, native_cams(model, AFA, image, torch.stack([one.image_label for one in chosen]))


def test_each_gives_labels_of_present_classes_of_its_own(case):
    model, image, cams = case
    found = {}
    for word in WORDS:
        strict, loose = refine(model, AFA.replace(eval_refine=word), image, cams, (0.7, 0.2))
        assert strict.shape == image[:, 0].shape and (strict == 0).sum() >= (loose == 0).sum(), word
        for label, index, mask in zip(loose, cams.present.index, cams.present.mask, strict=True):
            assert set(label.unique().tolist()) <= {0, *(index[mask] + 1).tolist()}, word
        found[word] = loose
    pairs = [(one, two) for one in WORDS for two in WORDS if one < two]
    assert all(not torch.equal(found[one], found[two]) for one, two in pairs)


def test_par_is_what_it_was_and_labels_are_open_between_the_thresholds(case):
    model, image, cams = case
    pixels = (image * image.new_tensor(model.std)[:, None, None] + image.new_tensor(model.mean)[:, None, None]).clamp(
        0, 1
    )
    found = refine_between(model, AFA, image, cams, low=0.25, high=0.7)
    expected = refine_cam(
        pixels, cams.cam, cams.present, low=0.25, high=0.7, dilations=AFA.par_dilations, num_iter=AFA.par_iterations
    )
    assert (found != expected).float().mean() < 1e-3 and (found == 255).any()


def test_the_evaluation_uses_it_and_says_so(case):
    model, *_ = case
    cfg = AFA.replace(val_images=2, threshold_images=0, eval_refine="walk+par")
    record = evaluate_model(model, cfg, targets=["cam_refined"], progress=False).protocol["cam_refined"]
    assert record["refinement"] == "walk+par" and record["par"] and not record["crf"]
    assert "refinement" not in protocol_record(AFA, "cam_refined", "val", 1, "")
    assert "refinement" not in protocol_record(cfg, "cam", "val", 1, "")
    labels = kind_record(cfg.replace(eval_refine="patch"), "refined", "val", ["a"], "", Thresholds(0.5, 0.5))
    assert labels["refinement"] == "patch" and labels["par"] is False


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eval_refine": "walk"}, "eval_refine 'walk' walks along a learned affinity.*w_aff above 0"),
        ({"eval_refine": "patch+par", "backbone": "resnet18"}, "which resnet18 does not have"),
        ({"eval_refine": "sam"}, "eval_refine"),
    ],
)
def test_what_cannot_be_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Config.preset("smoke").replace(**changes)


def test_what_a_model_can_do_is_known_from_its_config():
    assert refinements_of(Config.preset("smoke")) == ("par", "pamr", "crf", "patch", "patch+par")
    assert refinements_of(Config.preset("smoke").replace(w_aff=0.1)) == WORDS
    assert refinements_of(Config.preset("smoke").replace(backbone="swin_tiny_patch4_window7_224")) == WORDS[:3]


def test_a_run_is_scored_again_with_another_refinement(smoke_run, tmp_path):
    run = RunDir(shutil.copytree(smoke_run.path, tmp_path / "run"))
    before = run.read_table("evaluation").set_index(["target", "class"])["iou"]
    evaluate_run(run, targets=["cam_refined"], refine="patch+par", progress=False)
    after = run.read_table("evaluation").set_index(["target", "class"])["iou"]
    assert run.read_json("protocol")["cam_refined"]["refinement"] == "patch+par"
    assert after["seg", "mIoU"] == before["seg", "mIoU"] and run.config() == smoke_run.config()
    with pytest.raises(ValueError, match="nothing trains one"):
        evaluate_run(run, targets=["cam_refined"], refine="walk", progress=False)


def test_old_digests_stay():
    assert Config.preset("smoke").replace(eval_refine="par").digest() == Config.preset("smoke").digest()
    assert AFA.replace(eval_refine="walk").digest() != AFA.digest()
