"""The dense CRF against the loops of oracles.py, and what it must do on simple images."""

import numpy as np
import pytest
import torch
from helpers import oracles

from toco_lab.method.crf import crf_label, dense_crf
from toco_lab.method.present import PresentClasses


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_crf_equals_the_mean_field_loops():
    image, prob = (rand(2, 3, 6, 7) * 255).round(), (rand(2, 3, 6, 7, seed=1) * 4).softmax(1)
    prob[:, 0, :, :3] = 0  # clipped to 1e-5
    actual = dense_crf(
        image.to(torch.uint8),
        prob,
        iterations=3,
        gaussian_sigma_xy=2,
        gaussian_weight=3,
        bilateral_sigma_xy=10,
        bilateral_sigma_rgb=40,
        bilateral_weight=5,
    )
    for i in range(2):
        terms = [(3, 2, None), (5, 10, 40)]
        expected = oracles.mean_field(image[i].double().numpy(), prob[i].double().numpy(), 3, terms)
        np.testing.assert_allclose(actual[i], expected, atol=2e-5)
    assert (actual - prob).abs().max() > 0.05


def test_crf_batch_equals_single_images_and_input_stays():
    image, prob = rand(2, 3, 10, 12) * 255, (rand(2, 4, 10, 12, seed=1) * 6).softmax(1)
    prob = prob.contiguous(memory_format=torch.channels_last)
    before = prob.clone()
    together = dense_crf(image, prob, iterations=4)
    assert torch.equal(prob, before)
    for i in range(2):
        alone = dense_crf(image[i], prob[i : i + 1], iterations=4)
        torch.testing.assert_close(together[i], alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.sum(1), torch.ones(2, 10, 12))


def test_crf_removes_a_speck_and_keeps_certainty():
    image = torch.zeros(1, 3, 16, 16)
    image[..., 8:] = 200
    prob = torch.full((1, 2, 16, 16), 0.2)
    prob[:, 1, :, 8:] = prob[:, 0, :, :8] = 0.8
    prob[0, :, 5, 3] = torch.tensor([0.4, 0.6])
    label = dense_crf(image, prob).argmax(1)
    assert (label[..., :8] == 0).all() and (label[..., 8:] == 1).all()
    certain = torch.zeros(1, 2, 8, 8)
    certain[:, 1] = 1  # zeros are clipped, not -inf
    assert (dense_crf(image[..., 4:12, 4:12], certain)[:, 1] > 0.99).all()


def test_crf_names_wrong_shapes():
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 8\).*\(1, 2, 8, 9\)"):
        dense_crf(torch.zeros(3, 8, 8), torch.ones(1, 2, 8, 9))


def test_crf_label_is_what_a_strict_and_a_loose_background_agree_on():
    image, cam = rand(2, 3, 8, 9) * 255, rand(2, 4, 8, 9, seed=1)
    present = PresentClasses.of(torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0]]))
    runs = []
    for background in (0.3, 0.7):
        scores = torch.cat([torch.full((1, 8, 9), background), cam[0, [1, 3]]])[None]
        probability = scores.exp() / scores.exp().sum(1, keepdim=True)
        runs.append(torch.tensor([0, 2, 4])[dense_crf(image[:1].round(), probability).argmax(1)[0]])
        once = crf_label(image, present.gather(cam), present, low=background, high=background)
        assert torch.equal(once[0], runs[-1])
    loose, strict = runs
    label = crf_label(image, present.gather(cam), present, low=0.3, high=0.7)
    assert torch.equal(label[0], torch.where((strict == 0) & (loose > 0), 255, strict))
    assert label[0].unique().tolist() != [0] and (label[1] == 0).all()  # without a class all is background
