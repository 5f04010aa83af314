"""Views as panels, from a session and a choice alone, without a widget."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from toco_lab.config import Config
from toco_lab.explorers.cam_panels import CamChoice, CamPanels, Refinement, _contrast
from toco_lab.explorers.cam_session import CamSession
from toco_lab.method.model import ToCo

NAMES = tuple("abcdef")
CHOICE = CamChoice(None, "cam", (1.0, 0.5), True, low=0.25, high=0.7, background=0.5, crop_seed=0)


@pytest.fixture(scope="module")
def session() -> CamSession:
    """An image whose upper half is class b, with a model of random weights. Shared: read only."""
    torch.manual_seed(0)
    cfg = Config.preset("smoke")
    session = CamSession(ToCo(cfg), cfg)
    raw = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    mask = np.zeros((64, 80), np.uint8)
    mask[:32] = 2
    session.set_image(raw, image_label=np.array([0, 1, 0, 0, 0, 0]), mask=mask, name="<x>")
    return session


def test_titles_say_what_was_asked_for(session):
    panels = CamPanels(session, NAMES, CHOICE)
    assert panels.view("CAM").panel.title == "CAM: strongest class"
    assert panels.view("CAM label").panel.title == "CAM above 0.50"
    assert panels.view("pseudo label").panel.title == "pseudo label, 0.25 to 0.70"
    other = replace(panels, choice=replace(CHOICE, class_index=3, source="cam_aux", background=0.3, crop_seed=4))
    assert other.view("auxiliary CAM").panel.title == "auxiliary CAM: d"
    assert other.view("CAM label").panel.title == "auxiliary CAM above 0.30"
    assert other.view("regions and crops").panel.note.endswith("draw 4")
    np.testing.assert_array_equal(other.view("CAM label").panel.array, session.label("cam_aux", 0.3))


def test_a_refined_label_is_the_one_that_was_asked_for(session):
    panels = CamPanels(session, NAMES, CHOICE)
    assert panels.view("refined label").panel.note == "press Refine: 0.25 to 0.70, CAM, scales 1, 0.5, flip"
    label = session.pseudo_label(0.1, 0.2)
    arguments = {"method": "crf", "low": 0.1, "high": 0.2, "source": "cam", "scales": [1.0, 0.5], "flip": True}
    refined = replace(panels, refinement=Refinement(label, arguments))
    shown = refined.view("refined label")
    assert shown.panel.note.endswith("press Refine again: 0.25 to 0.70, CAM, scales 1, 0.5, flip")
    assert "press" not in replace(refined, choice=replace(CHOICE, low=0.1, high=0.2)).view("refined label").panel.note
    assert shown.panel.title == "CRF of 0.10 to 0.20"
    np.testing.assert_array_equal(shown.panel.array, label)
    assert shown.iou.miou == session.iou(label).miou


def test_the_segmentation_of_an_untrained_decoder_is_not_shown():
    cfg = Config.preset("smoke").replace(w_seg=0.0)
    session = CamSession(ToCo(cfg), cfg)
    session.set_image(np.zeros((64, 80, 3), np.uint8), image_label=np.array([0, 1, 0, 0, 0, 0]), name="<x>")
    shown = CamPanels(session, NAMES, CHOICE).view("segmentation").panel
    assert shown.note == "this run trains no decoder" and shown.array is None


def test_words_name_every_panel_and_its_scores(session):
    panels = CamPanels(session, NAMES, CHOICE, original_size=(640, 800))
    views = [panels.view(name) for name in ("image", "CAM label", "truth")]
    iou = views[1].iou
    words = panels.in_words(views)
    assert words.startswith(
        "<p>&lt;x&gt;, 800 x 640, shown and read at 80 x 64 pixels, image labels (true): b. Panels:"
    )
    assert "<th>IoU, %</th><th>mean</th><th>background</th><th>b</th><th>left open, %</th>" in words
    scores = "".join(f"<td>{100 * value:.1f}</td>" for value in (iou.miou, iou.iou[0], iou.iou[2], 0))
    assert f"<td>CAM above 0.50</td>{scores}" in words
    assert "<table" not in panels.in_words(views[:1])  # no label, no scores
    with pytest.raises(ValueError, match="unknown view 'x'; there are: image, CAM"):
        panels.view("x")


def test_contrast_by_hand():
    score = torch.tensor([[0.8, 0.6, 0.2], [0.1, 0.9, 0.3]])
    truth = torch.tensor([[1, 2, 0], [0, 255, 0]])
    assert _contrast(score, truth, None) == "mean: object 0.70, ground 0.20"
    assert _contrast(score, truth, 1) == "mean: object 0.60, ground 0.20"
    assert _contrast(score, truth, 4) == _contrast(score, None, 4) == "mean 0.48"  # the class is not there
