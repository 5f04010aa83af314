"""Every method in the one frame: train, kill, continue, evaluate, label, predict, report, by the same calls as ToCo."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from helpers.interrupted import made_in_two_parts

from toco_lab.backbones.weights import read_weights
from toco_lab.config import Config
from toco_lab.data.loader import eval_samples
from toco_lab.evaluation.evaluate import TARGETS, evaluate_model, evaluate_run, validator
from toco_lab.evaluation.example_maps import gallery_rows
from toco_lab.evaluation.gallery import load_gallery
from toco_lab.evaluation.pseudo_labels import write_pseudo_labels
from toco_lab.experiment import make, open_run
from toco_lab.explorers.cam_panels import CamChoice, CamPanels
from toco_lab.explorers.cam_session import CamSession
from toco_lab.method.cam import multi_scale_cam
from toco_lab.methods import METHODS, has_decoder, unread
from toco_lab.peers.build import MODELS, build_model
from toco_lab.prediction.source import load
from toco_lab.reports.export import build_report
from toco_lab.reports.names import row_names
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model
from toco_lab.training.cost import step_cost
from toco_lab.training.optimiser import build_optimizer
from toco_lab.vocabulary import SEG, TITLES

PEERS = [name for name in METHODS if name != "toco"]
WITH_CAMS = [name for name in PEERS if METHODS[name].cams]  # the others: test_supervised.py
SMOKE = Config.preset("smoke")


@pytest.fixture(scope="module", params=WITH_CAMS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished run of each method, made as the command `train smoke --method NAME` makes it."""
    run = open_run(SMOKE.replace(method=request.param, val_every=2), tmp_path_factory.mktemp(request.param))
    make(run, progress=False)
    return run


def test_every_method_has_a_model_and_a_row_in_the_table() -> None:
    assert list(MODELS) == list(METHODS)


def test_scores_and_gallery_have_what_the_method_gives(run: RunDir) -> None:
    cfg = run.config()
    scored, decoder = set(run.read_table("evaluation")["target"]), has_decoder(cfg)
    assert {"cam", "cam_tuned", "cam_aux", "cam_refined", "labels"} <= scored and (SEG in scored) == decoder
    metrics = run.metrics()
    assert metrics["val_cam"].notna().any() and metrics["val_seg"].notna().any() == decoder
    gallery = load_gallery(run)
    assert gallery is not None and all((TITLES[SEG] in row) == decoder for row in gallery.rows.values())
    model, _ = load_run_model(run)
    assert (TITLES[SEG] in gallery_rows(model, cfg, 1)[0]) == decoder
    assert run.is_measured


def test_a_target_of_the_decoder_is_refused_where_there_is_none(run: RunDir) -> None:
    cfg = run.config()
    if has_decoder(cfg):
        assert SEG in evaluate_run(run, targets=[SEG], progress=False).scores
        return
    model, _ = load_run_model(run)
    with pytest.raises(ValueError, match=f"method '{cfg.method}' trains no decoder.*seg"):
        evaluate_model(model, cfg, targets=[SEG], progress=False)
    with pytest.raises(ValueError, match=f"mask 'seg'.*{cfg.method}"):
        load(run, device="cpu").recipe(mask="seg")
    assert set(validator(cfg)(model, 0)) >= {"cam", "cam_aux"}


def test_an_interrupted_run_ends_with_the_same_bytes(run: RunDir, tmp_path: Path) -> None:
    made_in_two_parts(run, tmp_path, step=2)


def test_every_trained_weight_learns(run: RunDir) -> None:
    model, cfg = load_run_model(run)
    groups = build_optimizer(model, cfg).param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held)) and set(held) == {id(p) for p in model.parameters() if p.requires_grad}
    torch.manual_seed(cfg.seed)
    begun, now = build_model(cfg).state_dict(), read_weights(run.checkpoints()[-1])["model"]
    still = [name for name, value in begun.items() if torch.equal(value, now[name])]
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert set(still) <= frozen | {name for name, _ in model.named_buffers()}, still


def test_maps_of_images_do_not_depend_on_their_batch_or_on_gradient_mode(run: RunDir) -> None:
    model, cfg = load_run_model(run)
    image = torch.stack([sample.image for sample in eval_samples(cfg, model.mean, model.std)][:2])
    both = multi_scale_cam(model, image, cfg.cam_scales)
    alone = multi_scale_cam(model, image[1:], cfg.cam_scales, plain=model(image[1:]).features)
    torch.testing.assert_close(both.cam[1:], alone.cam, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both.cam_aux[1:], alone.cam_aux, rtol=1e-4, atol=1e-4)
    assert both.cam.shape == (2, cfg.num_classes, *image.shape[-2:]) and not both.cam.requires_grad
    assert both.cam.amax() > 0.9 and not torch.equal(both.cam, both.cam_aux)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_labels_predictions_and_sessions(run: RunDir, tmp_path: Path) -> None:
    cfg = run.config()
    written = write_pseudo_labels(run, out=tmp_path / "labels", split=cfg.val_split, progress=False)
    assert written is not None and len(list((tmp_path / "labels" / "seed").rglob("*.png"))) == cfg.val_images
    model, _ = load_run_model(run)
    sample = eval_samples(cfg, model.mean, model.std)[0]
    predicted = load(run, device="cpu").predict(sample.raw)
    assert predicted.mask.shape == sample.raw.shape[:2]
    session = CamSession(model, cfg)
    session.set_sample(sample)
    assert session.score("cam", 0).shape == sample.raw.shape[:2]
    choice = CamChoice(0, "cam", cfg.cam_scales, True, 0.25, 0.7, 0.5, 0)
    shown = CamPanels(session, tuple("abcdef"), choice).view(TITLES[SEG])
    assert ("no decoder" in shown.panel.note) != has_decoder(cfg)
    if has_decoder(cfg):
        assert session.segmentation().shape == sample.raw.shape[:2]
    else:
        with pytest.raises(RuntimeError, match="no decoder"):
            session.segmentation()


def test_tables_name_the_method(run: RunDir, smoke_run: RunDir) -> None:
    title = METHODS[run.config().method].title
    assert row_names([run, smoke_run])[run.name].startswith(f"smoke {title}")
    assert row_names([run]) == {run.name: f"smoke {title}"}


@pytest.mark.slow
def test_a_report_shows_it_beside_toco(run: RunDir, smoke_run: RunDir, tmp_path: Path) -> None:
    (page,) = build_report([run, smoke_run], tmp_path / "report.md")
    assert METHODS[run.config().method].title in page.read_text()


def test_its_cost_is_counted(run: RunDir) -> None:
    cost = step_cost(run.config())
    assert cost.flops > cost.pass_flops > 0 and cost.activation_bytes > 0


# --- what a method does not read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", PEERS)
def test_replace_switches_off_what_is_not_read_and_back(method: str) -> None:
    cfg = SMOKE.replace(method=method)
    assert all(getattr(cfg, name) == 0 for name in unread(method) if name.startswith("w_"))
    assert cfg.replace(method="toco") == SMOKE
    assert cfg.digest() != SMOKE.digest()
    assert Config.from_json(cfg.to_json()) == cfg
    assert cfg.released().method == method


@pytest.mark.parametrize("method", PEERS)
def test_options_that_are_not_read_are_refused(method: str) -> None:
    defaults = {field.name: field.default for field in fields(Config)}
    for name in unread(method):
        value = defaults[name]
        if isinstance(value, float | int) and not isinstance(value, bool) and name.startswith("w_"):
            with pytest.raises(ValueError, match=f"{name} 0.3 has no effect: method '{method}'"):
                SMOKE.replace(method=method, **{name: 0.3})
    with pytest.raises(ValueError, match=f"pooling 'average' has no effect: method '{method}'.*toco"):
        SMOKE.replace(method=method, pooling="average")


@pytest.mark.parametrize("backbone", ["swin_tiny_patch4_window7_224", "resnet18", "convnext_atto"])
@pytest.mark.parametrize("method", [name for name in PEERS if METHODS[name].class_token])
def test_backbones_without_a_class_token_are_refused_with_the_reason(method: str, backbone: str) -> None:
    with pytest.raises(ValueError, match=f"method '{method}'.*{backbone} has none: take a plain ViT"):
        SMOKE.replace(method=method, backbone=backbone)
    with pytest.raises(ValueError, match=f"{method}.*no class token"):
        build_model(SMOKE.replace(method=method, backbone="vit_base_patch16_gap_224"))


def test_compiled_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="compile_blocks is for method 'toco'"):
        SMOKE.replace(method="tscam", compile_blocks=True)


def test_targets_of_old_runs_are_as_before() -> None:
    assert TARGETS == ("cam", "cam_aux", "cam_refined", "seg") and has_decoder(SMOKE)


def test_maps_that_need_more_than_a_pass_say_so() -> None:
    cfg = SMOKE.replace(method="getam")
    model = build_model(cfg)
    with pytest.raises(ValueError, match=r"maps of a GETAM need more than one pass: raw_maps\(image\)"):
        model.cams(model.encode(torch.zeros(1, 3, 32, 32)))
