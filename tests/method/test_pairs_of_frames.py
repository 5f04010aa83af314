"""A step of ToCo on pairs of frames of a clip: what compares them, whole runs, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import oracles
from helpers.interrupted import made_in_two_parts

from toco_lab.config import Config
from toco_lab.data.loader import train_loader
from toco_lab.experiment import open_run, train
from toco_lab.method.batch import Batch
from toco_lab.method.losses import ptc_loss, temporal_loss
from toco_lab.method.model import ToCo
from toco_lab.method.step import StepOutput, compute_losses, loss_weights
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.cost import step_cost
from toco_lab.training.timing import timed_steps

CLIPS = Config.preset("smoke").replace(train_on_clips=True, batch_size=4, seg_start_step=1, high_threshold=0.5)
CFG = CLIPS.replace(w_temporal=0.1, ptc_across_frames=True)


@pytest.fixture(scope="module")
def model() -> ToCo:
    torch.manual_seed(0)
    return ToCo(CFG).train()


@pytest.fixture(scope="module")
def batch(model: ToCo) -> Batch:
    return next(iter(train_loader(CFG, model.mean, model.std)))


def made_of(model: ToCo, batch: Batch, cfg: Config = CFG, step: int = 1) -> StepOutput:
    return compute_losses(model, batch, cfg, step, generator=torch.Generator().manual_seed(0))


def test_ptc_across_frames_is_ptc_of_the_tokens_of_both_side_by_side(model: ToCo, batch: Batch) -> None:
    made, alone = made_of(model, batch), made_of(model, batch, CLIPS)
    tokens, label = model(batch.image).features.patch_tokens.flatten(2), made.token_label.flatten(1)
    both = torch.stack([torch.cat([tokens[i], tokens[i + 1]], dim=1) for i in (0, 2)])  # (2, D, 2N)
    labels = torch.stack([torch.cat([label[i], label[i + 1]]) for i in (0, 2)])
    affinity = oracles.affinity(labels[:, None])
    torch.testing.assert_close(made.terms.ptc, ptc_loss(both[..., None], affinity))
    across = affinity[:, : label.shape[1], label.shape[1] :]
    assert (across == 1).any() and (across == 0).any()
    assert torch.equal(made.token_label, alone.token_label) and made.terms.ptc != alone.terms.ptc


def test_the_temporal_loss_is_that_of_the_decoder_and_joins_the_sum_with_the_segmentation(
    model: ToCo, batch: Batch
) -> None:
    made, alone = made_of(model, batch), made_of(model, batch, CFG.replace(w_temporal=0.0))
    logits = F.interpolate(model(batch.image).seg_logits, (96, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(made.terms.temporal, temporal_loss(logits, batch.flow, batch.holds))
    torch.testing.assert_close(made.terms.total, alone.terms.total + 0.1 * made.terms.temporal)
    assert made.terms.temporal > 0 and alone.terms.temporal is None
    early = made_of(model, batch, step=0)
    assert early.terms.temporal == 0 and loss_weights(CFG, 0)["temporal"] == 0 < loss_weights(CFG, 1)["temporal"]
    assert "temporal" not in loss_weights(CLIPS, 1)
    with pytest.raises(ValueError, match="the batch has no flow between frames: make it with train_loader"):
        made_of(model, replace(batch, flow=None))


def test_a_part_of_a_batch_keeps_its_pairs(model: ToCo, batch: Batch) -> None:
    halves = [made_of(model, batch[part], CFG.replace(w_ctc=0.0)).terms.temporal for part in (slice(2), slice(2, 4))]
    held = torch.stack([batch.holds[part].sum() for part in (slice(2), slice(2, 4))])
    whole = (torch.stack(halves) * held).sum() / held.sum()
    torch.testing.assert_close(made_of(model, batch, CFG.replace(w_ctc=0.0)).terms.temporal, whole)


def test_the_cost_of_pairs_is_counted() -> None:
    plain, across = step_cost(CLIPS), step_cost(CLIPS.replace(ptc_across_frames=True))
    pairs = 4 * 4 * 144**2 * 4  # bytes: four images, four maps of all pairs of their tokens
    assert across.activation_bytes - plain.activation_bytes == pairs and across.flops == plain.flops
    assert step_cost(CFG).activation_bytes > across.activation_bytes
    found = timed_steps(CFG, torch.device("cpu"), expected=0.1, progress=False)
    assert found is not None and found.images == 4


# --- whole runs -------------------------------------------------------------------------------------------------------

RUNS = {"true flow": CFG, "estimated flow": CFG.replace(clip_flow="estimated", accumulate=2), "clips": CLIPS}


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = open_run(RUNS[request.param].replace(token_snapshots=0), tmp_path_factory.mktemp("clips"))
    train(run, progress=False)
    return run


def test_an_interrupted_run_ends_with_the_same_bytes(run: RunDir, tmp_path: Path) -> None:
    made_in_two_parts(run, tmp_path, step=3)  # one step after a checkpoint


def test_metrics_have_the_term_only_where_it_is(run: RunDir) -> None:
    metrics, cfg = run.metrics(), run.config()
    assert ("temporal_loss" in metrics) == (cfg.w_temporal > 0)
    if cfg.w_temporal > 0:
        assert metrics["temporal_loss"].iloc[0] == 0 and (metrics["temporal_loss"].iloc[1:] > 0).all()


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_on_clips": False}, "w_temporal 0.1 has no effect: .* Set train_on_clips, or leave w_temporal out"),
        ({"train_on_clips": False, "w_temporal": 0.0}, "ptc_across_frames True has no effect: .* Set train_on_clips"),
        ({"dataset": "voc", "num_classes": 20}, "train_on_clips makes clips of toy scenes, and dataset 'voc' has none"),
        ({"toy_world": "parts"}, "train_on_clips makes clips of toy scenes, and toy_world 'parts' has none"),
        ({"batch_size": 3}, "batch_size 3 in 1 micro-batch .* tears pairs of frames apart, which train_on_clips makes"),
        ({"accumulate": 4}, r"batch_size 4 in 4 micro-batches \(accumulate\) tears pairs of frames apart"),
        ({"masks_for": 4}, "masks_for 4 draws single images, and train_on_clips pairs of frames"),
        ({"w_seg": 0.0}, "w_temporal 0.1 compares segmentations, which nothing teaches while w_seg is 0"),
        ({"w_ptc": 0.0}, "ptc_across_frames has no effect: w_ptc is 0"),
        ({"w_temporal": 0.0, "clip_flow": "estimated"}, "clip_flow 'estimated' has no effect: w_temporal is 0"),
        ({"clip_flow": "true"}, r"'clip_flow' must be .*'ground_truth', 'estimated'"),
        ({"w_temporal": -1.0}, "w_temporal must not be negative"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CFG.replace(**changes)


def test_other_methods_leave_clips_and_runs_without_them_keep_their_names() -> None:
    peer = CFG.replace(method="tscam")
    assert (peer.train_on_clips, peer.w_temporal, peer.ptc_across_frames) == (False, 0.0, False)
    with pytest.raises(ValueError, match=r"train_on_clips True has no effect: method 'tscam' .* reads it: toco"):
        Config.preset("smoke").replace(method="tscam", train_on_clips=True)
    toy = Config.preset("toy")
    assert toy.digest() == toy.replace(train_on_clips=False, w_temporal=0.0).digest()
    assert len({toy.replace(**changes).digest() for changes in (
        {}, {"train_on_clips": True}, {"train_on_clips": True, "w_temporal": 0.1},
        {"train_on_clips": True, "w_temporal": 0.1, "clip_flow": "estimated"},
    )}) == 4  # fmt: skip
