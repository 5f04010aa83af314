"""The whole way on real photographs: VOC samples that lie beside the project (skipped where they do not)."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from helpers.folders import SAMPLES, needs_samples

from toco_lab.config import Config, config_differences
from toco_lab.data.loader import eval_samples, train_loader
from toco_lab.evaluation.evaluate import evaluate_run
from toco_lab.method.cam import multi_scale_cam
from toco_lab.method.model import ToCo
from toco_lab.presets import BASELINE
from toco_lab.runs.run_dir import RunDir
from toco_lab.smoothing.of_runs import smoothing_of_run
from toco_lab.smoothing.per_layer import SITES, metric_names, smoothing_per_layer
from toco_lab.sweeps.grid import Grid
from toco_lab.tokens.snapshots import probe_samples, token_maps
from toco_lab.tokens.token_maps import save_token_maps
from toco_lab.training.checkpoints import initial_model, load_checkpoint
from toco_lab.training.learner import Learner, train_step
from toco_lab.training.loop import fit
from toco_lab.vocabulary import TUNED

STUDY = Path(__file__).resolve().parents[2] / "results" / "studies" / "photographs" / "grid.yaml"
DINOV2 = SAMPLES.parent / "weights" / "dinov2_vits14_fp16.safetensors"
CLIP = Path(__file__).resolve().parents[2] / "data" / "clip_vitb16.safetensors"  # as the study on photographs reads it
pytestmark = [pytest.mark.data, pytest.mark.slow, needs_samples]


def small(**changes) -> Config:
    """The VOC preset with a small backbone, small crops and few images: seconds on a CPU."""
    return Config.preset("voc_deit_b").replace(**{
        "data_root": str(SAMPLES / "voc_sample"), "backbone": "deit_tiny_patch16_224", "depth": 4, "embed_dim": 48,
        "pretrained": False, "crop_size": 128, "local_crop_size": 32, "num_local_crops": 4, "view2_size": 64,
        "decoder_width": 32, "head_hidden": 64, "head_bottleneck": 32, "head_out": 64, "steps": 4, "batch_size": 2,
        "warmup_steps": 1, "seg_start_step": 1, "checkpoint_every": 2, "log_every": 1, "num_workers": 0,
        "val_images": 4, "eval_cam_size": 128, "eval_seg_scales": (1.0,), "eval_crf": True,
    } | changes)  # fmt: skip


def test_train_cams_evaluation_and_similarity_on_voc(tmp_path):
    cfg = small()
    run = RunDir.create(cfg, tmp_path)
    model = fit(cfg, run, progress=False)
    metrics = run.metrics()
    assert (metrics["seg_loss"].iloc[1:] > 0).all() and metrics["total_loss"].notna().all()
    sample = eval_samples(cfg, model.mean, model.std)[0]
    maps = multi_scale_cam(model, sample.image[None], cfg.cam_scales)
    assert maps.cam.shape == (1, 20, *sample.raw.shape[:2])
    assert maps.cam.min() >= 0 and maps.cam.max() <= 1
    evaluation = evaluate_run(run, progress=False)
    assert set(evaluation.scores) == {"cam", "cam_aux", "cam_refined", "seg", "seg_crf", "labels", *TUNED.values()}
    assert all(0 <= score <= 1 for score in evaluation.scores.values())
    assert evaluation.protocol["seg_crf"]["crf"] and evaluation.protocol["cam"]["images"] == 4
    curve = smoothing_of_run(run, 2, progress=False)
    assert curve["value"].between(-1, 1).all() and curve["layer"].max() == 4


def test_the_tokens_of_real_photographs_travel_within_the_error(tmp_path):
    """28 x 28 tokens of 12 blocks of a ViT of real width, from photographs: every cosine within 0.02."""
    cfg = small(depth=12, embed_dim=192, num_heads=3, eval_cam_size=448)
    torch.manual_seed(0)
    model = ToCo(cfg).eval()
    for maps in token_maps(model, cfg, probe_samples(cfg, model), name="DeiT-tiny", weights="random"):
        assert maps.grid == (28, 28) and len(maps.layers) == 13
        assert 0 < maps.tokens.error <= 0.02
        save_token_maps(tmp_path / "maps.npz", maps)
        assert (tmp_path / "maps.npz").stat().st_size < 3_000_000


def test_every_metric_is_defined_on_real_photographs():
    """Also where tokens are many, images not square, and the backbone has registers and a distillation token."""
    cfg = small(eval_cam_size=0)
    reader = eval_samples(cfg, (0.5,) * 3, (0.5,) * 3)
    sizes = {"embed_dim": 48, "depth": 3, "num_heads": 2, "num_classes": 0, "dynamic_img_size": True}
    for name in ("vit_small_patch14_reg4_dinov2", "deit_tiny_distilled_patch16_224"):
        model = timm.create_model(name, **sizes)
        frame = smoothing_per_layer(model, [reader[0].image], [reader[0].mask], name=name, sites=SITES)
        assert set(metric_names()) - set(frame["metric"]) <= {"neighbour similarity of outliers"}
        assert frame["value"].notna().all()


def test_image_labels_alone_separate_real_photographs():
    """A few steps on eight photographs: the classification loss of those very photographs must fall."""
    cfg = small(
        train_images=8, batch_size=8, steps=12, learning_rate=1e-3, jitter_probability=0.0, scale_range=(0.5, 0.5),
        blur_probability=(0.0, 0.0, 0.0), **BASELINE,
    )  # fmt: skip
    torch.manual_seed(0)
    model = ToCo(cfg).train()
    learner = Learner.of(model, cfg)
    losses = [train_step(learner, batch, cfg, step).terms.cls.item()
              for step, batch in enumerate(train_loader(cfg, model.mean, model.std))]  # fmt: skip
    assert losses[-1] < 0.6 * losses[0]


def test_the_study_on_photographs_compares_rows_that_differ_in_what_they_say():
    """From the grid alone, without a weights file: what each row changes in plain classification, and that it fits."""
    kept = Grid.from_yaml(STUDY)
    grid = replace(kept, overrides={**kept.overrides, "data_root": str(SAMPLES / "voc_sample")})
    configs = {run.row: run.config for run in grid.runs() if run.seed == 0}
    assert len({cfg.digest() for cfg in configs.values()}) == len(configs) == len(kept.rows)
    plain = configs["classification"]
    for row, weights in {
        "+ PTC": {"w_ptc"}, "+ PTC + CTC": {"w_ptc", "w_ctc"},
        "classification + seg + reg": {"w_seg", "w_reg", "eval_crf"},
        "+ PTC + seg + reg": {"w_ptc", "w_seg", "w_reg", "eval_crf"},
        "full ToCo": {"w_ptc", "w_ctc", "w_seg", "w_reg", "eval_crf"},
    }.items():  # fmt: skip
        assert set(config_differences({"one": plain, "other": configs[row]})) == weights
    assert plain.encoder_start_step < plain.steps <= configs["frozen"].encoder_start_step
    reader = eval_samples(plain.replace(val_images=0), (0.5,) * 3, (0.5,) * 3, plain.train_split)
    assert len(reader) == 506 and len(eval_samples(plain, (0.5,) * 3, (0.5,) * 3)) == 154


@pytest.mark.parametrize("preset, weights, token", [("voc_vit_s", DINOV2, 14), ("voc_clip", CLIP, 16)])
def test_the_presets_of_a_pretrained_vit_train_their_heads_first(preset, weights, token, tmp_path):
    """Real weights in bf16, a few steps: the encoder waits, then learns; all losses join in."""
    if not weights.is_file():
        pytest.skip(f"no pretrained ViT: {weights} is not there")
    cfg = Config.preset(preset).replace(
        data_root=str(SAMPLES / "voc_sample"), weights=str(weights), precision="bf16", crop_size=4 * token,
        view2_size=4 * token, local_crop_size=2 * token, num_local_crops=2, scale_range=(0.2, 0.3), cam_scales=(1.0,),
        batch_size=2, steps=4, warmup_steps=1, encoder_start_step=2, contrast_start_step=2, seg_start_step=3,
        frozen_blocks=2, num_workers=0, checkpoint_every=2, log_every=1, train_images=12, val_images=3,
        threshold_images=2, eval_cam_size=112, eval_seg_scales=(0.3,),
    )  # fmt: skip
    run = RunDir.create(cfg, tmp_path)
    model = fit(cfg, run, progress=False)
    start = initial_model(cfg).encoder.state_dict()
    waiting = load_checkpoint(run.checkpoint_path(2))["model"]
    assert all(torch.equal(waiting[f"encoder.{name}"], value) for name, value in start.items())
    moved = {name for name, value in model.encoder.state_dict().items() if not torch.equal(value, start[name])}
    assert {name for name in moved if name.startswith("blocks.")} and not any("blocks.1." in name for name in moved)
    metrics = run.metrics()
    assert metrics["total_loss"].notna().all() and (metrics["ptc_loss"] > 0).tolist() == [False, False, True, True]
    assert (metrics["seg_loss"] > 0).tolist() == [False, False, False, True]
    scores = evaluate_run(run, progress=False).scores
    assert {"cam", "cam_aux", "cam_tuned", "seg", "labels"} <= set(scores)
    assert all(0 <= score <= 1 for score in scores.values())
