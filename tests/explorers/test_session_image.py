"""The image of a session: labels that nobody gave, and results that are made once."""

import numpy as np
import torch

from toco_lab.config import Config
from toco_lab.explorers.session_image import encode_image, predicted_label
from toco_lab.method.model import ToCo


def test_unknown_labels_are_predicted(rng):
    cfg = Config.preset("smoke")
    image = encode_image(ToCo(cfg).eval(), cfg, rng.integers(0, 256, (64, 80, 3), np.uint8))
    assert image.label_source == "predicted"
    assert torch.equal(image.image_label, predicted_label(image.output.logits[0]))
    assert predicted_label(torch.tensor([-1.0, 2.0, 0.0, 3.0])).tolist() == [0, 1, 0, 1]
    assert predicted_label(torch.tensor([-1.0, -0.5, -2.0])).tolist() == [0, 1, 0]


def test_results_are_made_once_for_each_key(rng):
    cfg = Config.preset("smoke")
    image = encode_image(ToCo(cfg).eval(), cfg, rng.integers(0, 256, (64, 80, 3), np.uint8), name="x")
    calls = []
    for key in ("a", "b", "a"):
        assert image.keep(key, lambda key=key: calls.append(key) or key.upper()) == key.upper()
    assert calls == ["a", "b"]
    assert image.raw_cams == {}  # no scale was asked for
