"""The second stage: losses against the equations, what a teacher may not do, and what a run without CAMs gives."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.interrupted import made_in_two_parts
from torch import Tensor

from toco_lab.attribution.measured import measure_attributions
from toco_lab.backbones.pixels import denormalise, normalise
from toco_lab.backbones.weights import read_weights
from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.data.loader import eval_samples, train_loader
from toco_lab.evaluation.evaluate import evaluate_model
from toco_lab.evaluation.example_maps import gallery_rows
from toco_lab.evaluation.pseudo_labels import write_pseudo_labels
from toco_lab.experiment import make, open_run, train
from toco_lab.explorers.cam_explorer import CamExplorer
from toco_lab.explorers.cam_session import CamSession
from toco_lab.method.step import compute_losses
from toco_lab.peers.build import build_model
from toco_lab.peers.supervised import Supervised, class_margins, soft_label_loss
from toco_lab.prediction.folder import predict_folder
from toco_lab.prediction.source import load
from toco_lab.relations import never_reached
from toco_lab.reports.export import build_report
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model
from toco_lab.training.cost import step_cost
from toco_lab.training.learner import Learner, train_step
from toco_lab.training.teacher import open_teacher
from toco_lab.training.timing import timed_steps
from toco_lab.vocabulary import TITLES

SMOKE = Config.preset("smoke").replace(method="supervised")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# --- losses -----------------------------------------------------------------------------------------------------------


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def divergence(student: np.ndarray, teacher: np.ndarray, inside: np.ndarray, t: float) -> float:
    """t^2 sum_k p_k log(p_k / q_k), the mean over the tokens inside, token by token."""
    terms = []
    for image, row, column in zip(*np.nonzero(inside), strict=True):
        p, q = (softmax(one[image, :, row, column] / t) for one in (teacher, student))
        terms.append(t**2 * sum(p[k] * np.log(p[k] / q[k]) for k in range(len(p))))
    return float(np.mean(terms)) if terms else 0.0


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_soft_label_loss_is_the_scaled_divergence(rng: np.random.Generator, temperature: float) -> None:
    student, teacher = rng.normal(0, 3, (2, 2, 4, 3, 5))
    inside = rng.random((2, 3, 5)) < 0.7
    made = soft_label_loss(*map(torch.tensor, (student, teacher, inside)), temperature=temperature)
    assert made.item() == pytest.approx(divergence(student, teacher, inside, temperature), rel=1e-9)


def test_its_gradient_is_t_times_the_difference_of_probabilities(rng: np.random.Generator) -> None:
    """d/dz of t^2 KL(p || softmax(z / t)) is t (softmax(z / t) - p); no gradient reaches the teacher."""
    t, inside = 2.0, torch.ones(1, 2, 2, dtype=torch.bool)
    student, teacher = (torch.tensor(rng.normal(size=(1, 3, 2, 2)), requires_grad=True) for _ in range(2))
    soft_label_loss(student, teacher, inside, temperature=t).backward()
    expected = t * ((student / t).softmax(1) - (teacher / t).softmax(1)) / 4
    torch.testing.assert_close(student.grad, expected.detach())
    assert teacher.grad is None
    again = torch.tensor(rng.normal(size=(1, 3, 2, 2)), requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: soft_label_loss(z, teacher, inside, temperature=t), (again,))


def test_soft_label_loss_of_equals_and_of_padding_alone_is_zero() -> None:
    logits = torch.randn(2, 3, 4, 4)
    inside = torch.ones(2, 4, 4, dtype=torch.bool)
    assert soft_label_loss(logits, logits, inside, temperature=2).item() == pytest.approx(0, abs=1e-6)
    assert soft_label_loss(logits, -logits, ~inside, temperature=2).item() == 0
    with pytest.raises(ValueError, match=r"logits \(2, 3, 4, 4\) do not fit target \(2, 3, 2, 2\)"):
        soft_label_loss(logits, logits[..., :2, :2], inside, temperature=2)


def test_class_margins_are_positive_where_the_segmentation_shows_a_class() -> None:
    logits = torch.randn(8, 5, 3, 3)
    margins, label = class_margins(logits), logits.argmax(1).flatten(1)
    for image, row in enumerate(margins):
        assert [c + 1 for c in range(4) if row[c] > 0] == [c for c in label[image].unique().tolist() if c]
    by_hand = torch.tensor([[[[2.0, 0.0]], [[1.5, 3.0]], [[0.0, 1.0]]]])  # background, two classes, two tokens
    torch.testing.assert_close(class_margins(by_hand), torch.tensor([[2.0, -2.0]]))


def batch_of(cfg: Config, mask: Tensor | None = None):
    batch = next(iter(train_loader(cfg, MEAN, STD)))
    return batch if mask is None else dataclasses.replace(batch, mask=mask)


def test_a_step_is_the_cross_entropy_of_both_halves_of_the_mask() -> None:
    torch.manual_seed(0)
    model, batch = build_model(SMOKE), batch_of(SMOKE)
    assert batch.mask is not None
    made = compute_losses(model, batch, SMOKE, 0)
    seg = model(batch.image).seg_logits
    logits = torch.nn.functional.interpolate(seg, batch.mask.shape[-2:], mode="bilinear", align_corners=False)
    losses = -logits.log_softmax(1).gather(1, batch.mask[:, None])[:, 0]
    expected = 0.5 * losses[batch.mask == 0].mean() + 0.5 * losses[batch.mask > 0].mean()
    torch.testing.assert_close(made.terms.seg, expected, rtol=1e-5, atol=1e-6)
    assert made.terms.total == made.terms.seg and made.terms.soft is None and made.terms.cls == 0


def test_masks_of_255_alone_give_no_loss_no_gradient_and_no_nan() -> None:
    model, batch = build_model(SMOKE), batch_of(SMOKE)
    assert batch.mask is not None
    terms = compute_losses(model, dataclasses.replace(batch, mask=torch.full_like(batch.mask, 255)), SMOKE, 0).terms
    terms.total.backward()
    assert terms.seg.item() == terms.total.item() == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())
    without = dataclasses.replace(batch, mask=None)
    with pytest.raises(ValueError, match="no masks"):
        compute_losses(model, without, SMOKE, 0)


# --- the teacher ------------------------------------------------------------------------------------------------------


def taught(smoke_run: RunDir, **changes) -> Config:
    return SMOKE.replace(soft_teacher=str(smoke_run.path), w_seg=0.5, w_soft=0.5, **changes)


def test_the_teacher_sees_the_same_view_and_is_no_part_of_the_student(smoke_run: RunDir) -> None:
    cfg = taught(smoke_run)
    learner = Learner.of(build_model(cfg).train(), cfg)
    model, batch = learner.model, batch_of(cfg)
    assert isinstance(model, Supervised) and model.teacher is not None and batch.mask is not None
    teacher, _ = load_run_model(smoke_run)
    made = compute_losses(model, batch, cfg, 0).terms
    wanted, student = (one(batch.image).seg_logits.detach().numpy() for one in (teacher, model))
    grid = np.ones((len(batch.image), *student.shape[-2:]), bool)  # toy scenes fill their crops
    assert made.soft is not None
    assert made.soft.item() == pytest.approx(divergence(student, wanted, grid, 2.0), rel=1e-4)
    assert made.total.item() == pytest.approx(0.5 * made.seg.item() + 0.5 * made.soft.item())
    assert not model.teacher(batch.image).requires_grad
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert set(before) == set(build_model(SMOKE).state_dict())  # nothing of the teacher is in a checkpoint
    frozen = model.teacher(batch.image)
    model.train()
    train_step(learner, batch, cfg, 1)
    assert torch.equal(model.teacher(batch.image), frozen)
    assert not torch.equal(before["decoder.conv3.weight"], model.state_dict()["decoder.conv3.weight"])


def test_a_teacher_with_other_colours_sees_the_same_picture(smoke_run: RunDir) -> None:
    student = build_model(SMOKE)
    student.mean, student.std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    teacher, _ = load_run_model(smoke_run)
    image = batch_of(SMOKE).image
    other = normalise(denormalise(image, MEAN, STD), student.mean, student.std)
    wanted = teacher(image).seg_logits
    torch.testing.assert_close(open_teacher(taught(smoke_run), student)(other), wanted, rtol=1e-3, atol=1e-4)


def test_teachers_that_cannot_be_one_are_refused_before_there_is_a_run(smoke_run: RunDir, tmp_path: Path) -> None:
    no_decoder = open_run(Config.preset("smoke").replace(method="tscam", steps=1, warmup_steps=0), tmp_path)
    with pytest.raises(ValueError, match="is not finished"):
        open_run(SMOKE.replace(soft_teacher=str(no_decoder.path), w_soft=0.5), tmp_path)
    train(no_decoder, progress=False)
    with pytest.raises(ValueError, match="no segmentation to learn from: method 'tscam' has no decoder"):
        open_run(SMOKE.replace(soft_teacher=str(no_decoder.path), w_soft=0.5), tmp_path)
    with pytest.raises(ValueError, match="take a teacher of the same classes"):
        open_run(taught(smoke_run, toy_world="parts"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [no_decoder.name]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"w_soft": 0.5}, "there is none: give the folder of its run as soft_teacher"),
        ({"soft_teacher": "results/RUN"}, "has no effect: w_soft is 0"),
        ({"w_seg": 0}, "has nothing to learn"),
        ({"method": "toco", "mask_source": "labels"}, "mask_source 'labels' has no effect: method 'toco'"),
        ({"seg_start_step": 2}, "seg_start_step 2 has no effect: method 'supervised'"),
        ({"low_threshold": 0.3}, "low_threshold 0.3 has no effect: method 'supervised'"),
    ],
)
def test_options_that_have_no_effect_are_refused(changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SMOKE.replace(**changes)


# --- a whole run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["vit_tiny_patch16_224", "resnet10t"])
def run(request: pytest.FixtureRequest, smoke_run: RunDir, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished student with a teacher, of the teacher's kind and of another one with another grid."""
    run = open_run(taught(smoke_run, backbone=request.param, val_every=2), tmp_path_factory.mktemp("students"))
    make(run, progress=False)
    return run


def test_scores_are_of_the_segmentation_alone(run: RunDir) -> None:
    cfg, metrics = run.config(), run.metrics()
    assert set(run.read_table("evaluation")["target"]) == {"seg", "labels"} and run.is_measured
    assert metrics["val_seg"].notna().any() and metrics["val_cam"].isna().all()
    assert (metrics["total_loss"] - 0.5 * metrics["seg_loss"] - 0.5 * metrics["soft_loss"]).abs().max() < 1e-5
    assert never_reached(cfg) == [] and (metrics["cls_loss"] == 0).all()
    model, _ = load_run_model(run)
    assert set(gallery_rows(model, cfg, 1)[0]) == {"image", "truth", TITLES["seg"]}
    with pytest.raises(ValueError, match=r"method 'supervised' learns from masks and has no CAM.*no target cam"):
        evaluate_model(model, cfg, targets=["cam"], progress=False)
    assert step_cost(cfg).flops > 0
    assert timed_steps(cfg, torch.device("cpu"), expected=0.01, progress=False) is not None


def test_labels_of_a_run_are_those_its_segmentation_shows(run: RunDir) -> None:
    model, cfg = load_run_model(run)
    image = torch.stack([sample.image for sample in eval_samples(cfg, model.mean, model.std)])
    output = model(image)
    shown = [set(one.unique().tolist()) - {0} for one in output.seg_logits.argmax(1)]
    assert [set((one.nonzero().flatten() + 1).tolist()) for one in output.logits > 0] == shown


def test_an_interrupted_run_ends_with_the_same_bytes(run: RunDir, tmp_path: Path) -> None:
    made_in_two_parts(run, tmp_path, step=2)
    begun, now = build_model(run.config()).state_dict(), read_weights(run.checkpoints()[-1])["model"]
    moved = [name for name, value in begun.items() if not torch.equal(value, now[name])]
    assert {name.partition(".")[0] for name in moved} == {"encoder", "decoder"}


def test_predictions_have_a_mask_and_no_cam(run: RunDir, tmp_path: Path) -> None:
    model, cfg = load_run_model(run)
    sample = eval_samples(cfg, model.mean, model.std)[0]
    loaded = load(run, device="cpu")
    predicted = loaded.predict(sample.raw)
    assert predicted.mask.shape == sample.raw.shape[:2] and predicted.cams.shape == (0, *sample.raw.shape[:2])
    assert predicted.protocol["mask"] == "seg" and "margin" in predicted.protocol["present_classes"]
    told = loaded.predict(sample.raw, classes=["ringed egg"])
    assert told.present == ("ringed egg",) and len(told.figure().axes) >= 2
    with pytest.raises(ValueError, match="learnt from masks and has no CAM"):
        told.cam("ringed egg")
    with pytest.raises(ValueError, match="mask 'cam' is of a CAM, and method 'supervised' has none: take seg"):
        loaded.recipe(mask="cam")
    told.save(tmp_path / "photo", scores=True)
    picture = next((tmp_path / "photo").rglob("*.png"))
    for made, kept in ((1, 0), (0, 1)):
        done = predict_folder(loaded, [picture], tmp_path / "out", classes=["ringed egg"], progress=False)
        assert (done.made, done.kept) == (made, kept)


def test_what_reads_a_cam_says_that_there_is_none(run: RunDir, tmp_path: Path, capsys) -> None:
    model, cfg = load_run_model(run)
    with pytest.raises(ValueError, match="has no CAM to explore"):
        CamSession(model, cfg)
    assert "learns from masks and has no CAM to explore" in CamExplorer(run).message.value
    with pytest.raises(ValueError, match=r"method 'supervised' has no CAM.*Take its segmentation"):
        model.raw_maps(torch.zeros(1, 3, 96, 96))
    with pytest.raises(ValueError, match="has no CAM, so that there are no labels of kind seed, refined, crf"):
        write_pseudo_labels(run, out=tmp_path / "labels", progress=False)
    assert main(["evaluate", str(run.path), "--refine", "crf"]) == 2
    assert re.search("eval_refine 'crf' has no effect: method 'supervised'", capsys.readouterr().err)
    measured = measure_attributions(run, images=1, steps=2, progress=False)
    assert "CAM" not in set(measured.table["method"])


@pytest.mark.slow
def test_a_report_shows_it_beside_its_teacher(run: RunDir, smoke_run: RunDir, tmp_path: Path) -> None:
    (page,) = build_report([run, smoke_run], tmp_path / "report.md")
    assert "supervised" in page.read_text()
