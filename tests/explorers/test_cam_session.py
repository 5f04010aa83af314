"""The session: the encoder runs once, everything behind it equals the functions it stands for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from toco_lab.attribution.catalogue import Attribution
from toco_lab.backbones.pixels import normalise
from toco_lab.config import Config
from toco_lab.data.loader import eval_samples
from toco_lab.evaluation.scores import confusion_matrix, iou_scores
from toco_lab.explorers import cam_session
from toco_lab.explorers.cam_session import CamSession
from toco_lab.explorers.session_image import predicted_label
from toco_lab.method.cam import min_max, multi_scale_cam
from toco_lab.method.crf import dense_crf
from toco_lab.method.crops import sample_local_crops
from toco_lab.method.labels import confident_label, region_mask
from toco_lab.method.model import ToCo
from toco_lab.method.present import PresentClasses
from toco_lab.method.refine import refine_cam

H, W = 64, 80
PRESENT = (1, 4)  # class indices


@pytest.fixture
def cfg() -> Config:
    return Config.preset("smoke")


@pytest.fixture
def model(cfg) -> ToCo:
    torch.manual_seed(0)
    return ToCo(cfg).eval()


@pytest.fixture
def raw(rng) -> np.ndarray:
    coarse = rng.integers(0, 256, (H // 8, W // 8, 3), np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)


@pytest.fixture
def label(cfg) -> torch.Tensor:
    return torch.zeros(cfg.num_classes).index_fill(0, torch.tensor(PRESENT), 1)


@pytest.fixture
def session(model, cfg, raw, label) -> CamSession:
    mask = np.zeros((H, W), np.uint8)
    mask[:20], mask[40:, :30], mask[20] = PRESENT[0] + 1, PRESENT[1] + 1, 255
    session = CamSession(model, cfg)
    session.set_image(raw, image_label=label, mask=mask, name="picture")
    return session


def pixels_of(model, raw):
    return normalise(torch.from_numpy(raw).permute(2, 0, 1), model.mean, model.std)[None]


def count_encodings(model):
    """Images that went through the encoder, one entry per call."""
    calls = []
    model.encoder.patch_embed.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    return calls


# --- maps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relu", [True, False])
def test_cams_are_those_of_multi_scale_cam(model, cfg, raw, label, relu):
    session = CamSession(model, cfg.replace(cam_relu=relu))
    session.set_image(raw, image_label=label)
    image = pixels_of(model, raw)
    with torch.no_grad():
        plain = model.encode(image)
    expected = multi_scale_cam(model, image, cfg.cam_scales, plain=plain, relu=relu)
    got = session.cams()
    assert torch.equal(got.cam, expected.cam)
    assert torch.equal(got.cam_aux, expected.cam_aux)
    assert got.cam.shape == (1, cfg.num_classes, H, W)
    some = session.cams(classes=[4, 0])
    assert torch.equal(some.cam_aux, expected.cam_aux[:, [4, 0]])


def test_cams_come_back_from_the_evaluation_size(model, cfg, raw, label):
    session = CamSession(model, cfg.replace(eval_cam_size=48))
    session.set_image(raw, image_label=label)
    small = F.interpolate(pixels_of(model, raw), (48, 48), mode="bilinear", align_corners=False)
    expected = F.interpolate(multi_scale_cam(model, small, cfg.cam_scales).cam, (H, W), mode="bilinear")
    torch.testing.assert_close(session.cams().cam, expected, atol=1e-5, rtol=0)


def test_one_scale_without_flip_is_the_raw_cam(session, model, raw):
    with torch.no_grad():
        small = F.interpolate(pixels_of(model, raw), (H // 2, W // 2), mode="bilinear")
        raw_cam, raw_aux = model.cams(model.encode(small))
    for got, maps in ((session.cams((0.5,), False).cam, raw_cam), (session.cams((0.5,), False).cam_aux, raw_aux)):
        expected = min_max(F.interpolate(maps, (H, W), mode="bilinear").relu())
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(session.cams((0.5,), False).cam, session.cams((0.5,), True).cam, atol=1e-3)


def test_encoder_runs_once_per_scale_and_flip(model, cfg, raw, label):
    calls = count_encodings(model)
    session = CamSession(model, cfg)
    session.set_image(raw, image_label=label, mask=np.zeros((H, W), np.uint8))
    assert calls == [1, 1, 2]  # plain, its mirror image, both at half size
    session.cams(), session.cams((1.0,), False), session.segmentation(), session.region(0.1, 0.9)
    session.local_crops(), session.refined_label(), session.iou(session.label("cam_aux", 0.3))
    for low in (0.1, 0.2, 0.3):
        session.pseudo_label(low, 0.8)
    assert calls == [1, 1, 2]
    session.cams((1.0, 1.5))
    session.cams((1.5,))
    assert calls == [1, 1, 2, 2]  # a scale nobody had asked for, once


def test_score_is_one_map_or_the_strongest_present(session):
    maps = session.cams()
    assert torch.equal(session.score("cam_aux", 3), maps.cam_aux[0, 3])
    assert torch.equal(session.score("cam"), maps.cam[0, list(PRESENT)].amax(0))
    assert torch.equal(session.score("cam", scales=(0.5,)), session.cams((0.5,)).cam[0, list(PRESENT)].amax(0))


def test_segmentation_is_the_plain_pass(session, model, raw):
    with torch.no_grad():
        logits = model(pixels_of(model, raw)).seg_logits
    assert torch.equal(session.segmentation(), F.interpolate(logits, (H, W), mode="bilinear").argmax(1)[0])


def test_attribution_is_computed_once_per_class(session, monkeypatch):
    calls = []

    def fake(model, image, class_index, *, block=1):
        calls.append((class_index, block))
        return torch.eye(2).expand(len(image), 2, 2)

    monkeypatch.setitem(cam_session.ATTRIBUTIONS, "fake", Attribution(fake, "what it shows"))
    assert session.attribution("fake", 4).shape == (H, W)
    session.attribution("fake", 4)
    session.attribution("fake", 1)
    session.attribution("fake", 1, 3)
    assert calls == [(4, 1), (1, 1), (1, 3)]
    monkeypatch.setitem(cam_session.ATTRIBUTIONS, "same", replace(cam_session.ATTRIBUTIONS["attention rollout"]))
    assert session.attribution("same", 4) is session.attribution("same", 1)
    with pytest.raises(ValueError, match=r"'wrong'; there are: .*fake"):
        session.attribution("wrong", 1)


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["cam", "cam_aux"])
@pytest.mark.parametrize(("low", "high"), [(0.25, 0.7), (0.5, 0.55), (0.0, 1.0)])
def test_labels_are_those_of_the_whole_cam(session, label, source, low, high):
    present = PresentClasses.of(label[None])
    cam = present.gather(getattr(session.cams(), source))
    expected = confident_label(cam, present, low=low, high=high)[0]
    assert torch.equal(session.pseudo_label(low, high, source), expected)
    assert torch.equal(session.label(source, low), confident_label(cam, present, low=low, high=low)[0])
    assert set(session.label(source, 0.4).unique().tolist()) == {0, 2, 5}, "all classes must win somewhere"
    cam_aux = present.gather(session.cams().cam_aux)
    assert torch.equal(session.region(low, high), region_mask(cam_aux, present, low=low, high=high)[0])


def test_thresholds_default_to_the_config(session, cfg):
    assert torch.equal(session.label(), session.label("cam", cfg.background_threshold))
    assert torch.equal(session.pseudo_label(), session.pseudo_label(cfg.low_threshold, cfg.high_threshold))


def test_par_is_the_refinement_of_training(session, cfg, raw, label):
    image = torch.from_numpy(raw).permute(2, 0, 1)[None] / 255
    present = PresentClasses.of(label[None])
    expected = refine_cam(
        image, present.gather(session.cams().cam_aux), present, low=0.3, high=0.6,
        dilations=cfg.par_dilations, num_iter=cfg.par_iterations,
    )  # fmt: skip
    assert torch.equal(session.refined_label(0.3, 0.6, "cam_aux"), expected[0])
    assert len(expected.unique()) > 2


def test_crf_keeps_what_a_strict_and_a_loose_background_agree_on(session, raw):
    image = torch.from_numpy(raw).permute(2, 0, 1)[None]
    winners = []
    for background in (0.3, 0.6):
        score = torch.cat([torch.full((1, 1, H, W), background), session.cams(classes=PRESENT).cam], 1)
        winners.append(dense_crf(image, score.exp() / score.exp().sum(1, keepdim=True)).argmax(1)[0])
    loose, strict = winners
    expected = torch.where(strict > 0, torch.tensor([0, 2, 5])[strict], torch.where(loose > 0, 255, 0))
    assert torch.equal(session.refined_label(0.3, 0.6, method="crf"), expected)
    assert {0, 255} < set(expected.unique().tolist())


def test_iou_without_open_pixels_is_that_of_the_evaluation(session, cfg):
    label = session.label("cam", 0.4)
    scores = iou_scores(confusion_matrix(label, session.image.truth, cfg.num_classes + 1))
    got = session.iou(label)
    assert torch.equal(got.iou.nan_to_num(-1), scores.iou.nan_to_num(-1))
    assert got.miou == scores.miou.item()
    assert got.left_open == 0


def test_iou_leaves_open_pixels_out_but_not_classes(model, cfg):
    session = CamSession(model, cfg)
    mask = torch.zeros(10, 8, dtype=torch.int64)
    mask[:4], mask[4:6], mask[9] = 2, 5, 255
    session.set_image(
        np.zeros((10, 8, 3), np.uint8).repeat(2, 0).repeat(2, 1),
        mask=mask.repeat_interleave(2, 0).repeat_interleave(2, 1),
    )
    truth = session.image.truth
    label = truth.clone()
    label[truth == 5] = 255  # nothing decided: 2 of 9 rows
    label[0:2] = 3  # wrong: one row of four
    label[2:4] = 255  # open: one more row
    got = session.iou(label)
    assert got.left_open == pytest.approx(3 / 9)
    assert got.iou[[0, 2, 3, 5]].tolist() == pytest.approx([1, 2 / 3, 0, 0])
    assert got.iou[[1, 4, 6]].isnan().all()
    assert got.miou == pytest.approx((1 + 2 / 3 + 0) / 3)  # classes of the mask: 0, 2, 5


def test_image_without_a_class_is_all_background(model, cfg, raw):
    session = CamSession(model, cfg)
    session.set_image(raw, image_label=np.zeros(cfg.num_classes, np.float32))
    assert session.image.present == ()
    for label in (session.label(), session.pseudo_label(), session.refined_label(), session.region()):
        assert label.unique().tolist() == [0]
    assert 0 <= session.image.strongest_class < cfg.num_classes


def test_local_crops_are_those_of_class_token_contrast(session, cfg):
    expected = sample_local_crops(
        session.region(0.2, 0.8)[None], crop_size=32, num_crops=2, candidates="not_foreground",
        min_content=cfg.crop_min_content, max_negative=cfg.crop_max_negative, between="ignore",
        generator=torch.Generator().manual_seed(7),
    )  # fmt: skip
    crops = session.local_crops(0.2, 0.8, 7)
    assert all(torch.equal(getattr(crops, name), getattr(expected, name)) for name in ("top", "left", "kind"))
    assert not torch.equal(session.local_crops(0.2, 0.8, 8).top, crops.top)


# --- what goes in -----------------------------------------------------------------------------------------------------


def test_a_sample_brings_all_it_knows(model, cfg):
    sample = eval_samples(cfg, model.mean, model.std)[1]
    session = CamSession(model, cfg)
    session.set_sample(sample)
    assert session.image.name == sample.name
    assert session.image.label_source == "true"
    assert torch.equal(session.image.truth, sample.mask)
    assert torch.equal(session.image.image_label, sample.image_label)
    assert torch.equal(session.image.pixels[0], sample.image)


def test_unknown_labels_are_predicted(model, cfg, raw):
    session = CamSession(model, cfg)
    session.set_image(raw)
    assert session.image.label_source == "predicted"
    assert torch.equal(session.image.image_label, predicted_label(session.image.output.logits[0]))


def test_wrong_order_names_set_image(model, cfg):
    session = CamSession(model, cfg)
    for call in (session.cams, session.label, session.region, session.segmentation, session.local_crops):
        with pytest.raises(RuntimeError, match="set_image"):
            call()


def test_errors_say_what_is_wrong_and_keep_the_image(session, raw, label):
    with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\), got float32 \(64, 80, 3\)"):
        session.set_image(raw.astype(np.float32))
    with pytest.raises(ValueError, match=r"mask \(3, 3\) does not fit the image \(64, 80\)"):
        session.set_image(raw, mask=np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"image_label \(2,\) must be \(6,\)"):
        session.set_image(raw, image_label=label[:2])
    with pytest.raises(ValueError, match="smaller than one patch"):
        session.set_image(raw[:12, :12])  # too small at scale 0.5
    assert session.image.name == "picture"
    with pytest.raises(ValueError, match="source must be one of cam, cam_aux"):
        session.label("seg")
    with pytest.raises(ValueError, match="low < high"):
        session.pseudo_label(0.8, 0.2)
    with pytest.raises(ValueError, match="one of par, pamr, crf, patch"):
        session.refined_label(method="sam")
    session.set_image(raw, name="bare")
    with pytest.raises(ValueError, match="'bare' has no mask"):
        session.iou(session.label())
    session.set_image(raw[:32])
    with pytest.raises(ValueError, match="crop_size 32"):
        session.local_crops()


def test_longest_side_follows_the_encoder(model, cfg):
    assert CamSession(model, cfg).longest_side == 2 * 96
    assert CamSession(model, cfg.replace(eval_cam_size=448)).longest_side == 1024
