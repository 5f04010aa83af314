"""Scores of clips: perfect and flickering labels by hand, and what a run keeps."""

import shutil

import numpy as np
import pytest
import torch

from toco_lab.config import Config
from toco_lab.data.toy_clips import make_clip
from toco_lab.evaluation import clip_scores
from toco_lab.evaluation.clip_scores import (
    ESTIMATED,
    FUSIONS,
    PER_FRAME,
    SEGMENTED,
    STILL,
    TRUE,
    LabelCounts,
    clips_of_run,
    measure_clips,
    true_motion,
)
from toco_lab.evaluation.prediction import label_above, native_cams, predict, strongest_class
from toco_lab.method.model import ToCo
from toco_lab.runs.run_dir import RunDir


def test_the_true_labels_are_right_and_steady():
    clip = make_clip(1, 0)
    counts = LabelCounts(7)
    counts.add(torch.from_numpy(clip.mask), clip)
    found = counts.scores()
    assert found["miou"] == 1 and found["consistency"] > 0.95 and found["flipped"] < 0.02


def test_labels_that_flicker_are_counted_where_both_frames_show_the_pixel():
    """Two frames: all of one class, then all background. Each pixel in sight flips, and none agrees."""
    clip = make_clip(1, 0, frames=2)
    labels = torch.zeros(2, 96, 96, dtype=torch.int64)
    labels[0] = 3
    counts = LabelCounts(7)
    counts.add(labels, clip)
    assert counts.scores()["flipped"] == 1 and counts.scores()["consistency"] == 0
    assert counts._steps.sum() == (~clip.motion(1, 0)[1]).sum() and counts._steps[3, 0] == counts._steps.sum()
    half = LabelCounts(7)
    labels[1, :, 48:] = 3
    half.add(labels, clip)
    seen = ~clip.motion(1, 0)[1]
    flips = seen[:, :48].sum() / seen.sum()
    assert half.scores()["flipped"] == pytest.approx(flips)
    # of 3 the right half stays; of background, which the frame before has nowhere, nothing does
    assert half.scores()["consistency"] == pytest.approx((0 + (1 - flips)) / 2)


def test_the_rows_are_what_the_parts_give(monkeypatch):
    torch.manual_seed(0)
    cfg = Config.preset("smoke").replace(background_threshold=0.4)
    model = ToCo(cfg).train()
    found = measure_clips(model, cfg, clips=1, frames=3, window=1, threshold="configured", progress=False)
    assert model.training and tuple(found.table["fusion"]) == (*FUSIONS, SEGMENTED)
    model.eval()
    clip = make_clip(1, 0, 3)
    assert np.array_equal(found.clip.image, clip.image)
    mean, std = torch.tensor(model.mean), torch.tensor(model.std)
    image = ((torch.from_numpy(clip.image) / 255 - mean) / std).permute(0, 3, 1, 2).float()
    image_label = torch.from_numpy(clip.image_label).expand(3, -1)
    cams = native_cams(model, cfg, image, image_label)
    label = label_above(*strongest_class(cams.cam, cams.present), 0.4)
    assert (torch.from_numpy(found.labels[PER_FRAME]) == label).float().mean() > 0.999
    mean_of_all = cams.cam.mean(0, keepdim=True).expand(3, -1, -1, -1)  # the window of the frame in the middle
    middle = label_above(*strongest_class(mean_of_all, cams.present), 0.4)[1]
    assert (torch.from_numpy(found.labels[STILL][1]) == middle).float().mean() > 0.999
    counts = LabelCounts(7)
    counts.add(label, clip)
    row = found.table.set_index("fusion").loc[PER_FRAME]
    assert row.to_dict() == pytest.approx(counts.scores(), abs=2e-3)
    assert np.array_equal(found.labels[SEGMENTED], predict(model, cfg, image, image_label, "seg")["seg"].numpy())
    record = found.protocol
    assert record["window"] == 1 and record["images"] == 3 and record["flow"]["radius"] == 8
    moved = torch.from_numpy(clip.forward).square().sum(-1).sqrt()[torch.from_numpy(~clip.occluded)].mean().item()
    assert record["motion"] == pytest.approx(moved, abs=1e-5) and 0 < record["flow_error"] < moved


def test_rows_that_are_asked_for_are_those_of_the_whole_table(monkeypatch):
    """And no flow is matched for those that follow none."""
    torch.manual_seed(0)
    cfg = Config.preset("smoke")
    model = ToCo(cfg)
    settings = dict(clips=1, frames=3, window=1, threshold="configured", progress=False)
    whole = measure_clips(model, cfg, **settings)
    monkeypatch.setattr(clip_scores.EstimatedMotion, "flow", lambda *given: pytest.fail("flow was matched"))
    for asked in ([PER_FRAME], [TRUE, STILL]):
        found = measure_clips(model, cfg, fusions=asked, **settings)
        rows = whole.table.set_index("fusion").loc[[*asked, SEGMENTED]].reset_index()
        assert found.table.equals(rows) and list(found.labels) == [*asked, SEGMENTED]
        assert "flow" not in found.protocol and "estimated flow" not in str(found) and "checkpoint" in str(found)


def test_the_encoder_sees_each_frame_once(monkeypatch):
    seen = []
    own = clip_scores.native_cams
    monkeypatch.setattr(clip_scores, "native_cams", lambda *given: seen.append(len(given[2])) or own(*given))
    cfg = Config.preset("smoke").replace(cam_scales=(1.0,))
    measure_clips(ToCo(cfg), cfg, clips=1, frames=9, threshold="configured", progress=False)
    assert seen == [8, 1]


def test_the_true_motion_is_that_of_the_clip():
    clip = make_clip(2, 1, frames=3)
    flow, seen = true_motion(clip)(0, 1)
    assert np.array_equal(flow.numpy(), clip.forward[0].transpose(2, 0, 1))
    assert np.array_equal(seen.numpy(), ~clip.occluded[0])


def test_a_run_keeps_its_scores_with_their_protocol(smoke_run, tmp_path):
    shutil.copytree(smoke_run.path, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    found = clips_of_run(run, clips=2, frames=4, progress=False, device="cpu")
    table = run.read_table("video").set_index("fusion")
    assert table.shape == (5, 3) and run.read_json("video") == found.protocol
    assert table["flipped"].between(0, 1).all()
    # averaging over time makes labels steadier, most of all along the true motion
    assert table.loc[TRUE, "flipped"] < table.loc[PER_FRAME, "flipped"]
    assert table.loc[ESTIMATED, "consistency"] > table.loc[PER_FRAME, "consistency"]
    said = str(found)
    assert found.protocol["checkpoint"] in said and "2 toy clips of 4 frames, 2 neighbours on each side" in said


def test_what_has_no_true_motion_is_refused(smoke_run):
    cfg = Config.preset("smoke")
    model = ToCo(cfg)
    with pytest.raises(ValueError, match=r"only toy scenes have clips with a true motion, .* dataset 'voc'"):
        measure_clips(model, Config.preset("voc_vit_b"))
    with pytest.raises(ValueError, match="the run is of toy_world 'parts': give a folder of frames or a video"):
        measure_clips(model, cfg.replace(toy_world="parts"))
    for options, message in (
        ({"clips": 0}, "clips must be at least 1, got 0"), ({"window": 0}, "window must be at least 1 frame, got 0"),
        ({"threshold": "best"}, "threshold must be one of tuned, configured, got 'best'"),
        ({"fusions": ["true"]}, r"fusions must be some of per frame, .*, true flow, got \['true'\]"),
        ({"fusions": []}, r"fusions must be some of .*, got \[\]"),
        ({"frames": 1}, "frames must be a whole number of at least 2, got 1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            measure_clips(model, cfg, progress=False, **options)
