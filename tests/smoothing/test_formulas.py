"""Formulas by themselves: spectra of tokens and attention, CKA, RankMe, distances."""

import math

import numpy as np
import pytest
import torch
from helpers.smoothing import HEADS, cka, gram, image_of, log_amplitude, make_view, sigma, spectrum, value

from toco_lab.smoothing.formulas import (
    RankMe,
    attention_spectrum,
    gram_distance,
    layer_cka,
    radial_band_energy,
    relative_log_amplitude,
    spectral_share,
    uniform_attention_distance,
)
from toco_lab.smoothing.token_view import TokenView


def test_queries_that_look_at_the_same_places_pass_frequency_0_alone():
    same = torch.randn(1, 1, 1, 9).softmax(3).expand(1, 1, 9, 9)
    assert spectral_share(same).item() == pytest.approx(0, abs=1e-6)


def test_attention_spectrum_is_the_transform_from_both_sides():
    attention = make_view((3, 4), 5).attention.double()
    result = attention_spectrum(attention)
    assert result.shape == (2, HEADS, 14)
    for index in range(2):
        for head in range(HEADS):
            expected = np.linalg.norm(spectrum(attention[index, head].numpy()), axis=1)
            np.testing.assert_allclose(torch.fft.ifftshift(result[index, head]), expected, atol=1e-12)
    shares = 1 - result[:, :, 7] ** 2 / result.square().sum(2)  # frequency 0 stands in the middle
    torch.testing.assert_close(shares, spectral_share(attention))


def test_uniform_attention_distance_by_hand():
    assert uniform_attention_distance((1, 2), 16) == 8
    assert uniform_attention_distance((2, 2), 10) == pytest.approx((10 + 10 + math.sqrt(200)) / 4)


def test_waves_on_the_grid():
    row = torch.arange(8).repeat_interleave(4)[None, :, None]
    for frequency in (1, 2, 3, 4):  # in units of a quarter of the Nyquist frequency; on the circle is not beyond it
        view = TokenView(torch.cos(2 * math.pi * frequency * row / 8), (8, 4))
        assert radial_band_energy(view).item() == pytest.approx(int(frequency > 2), abs=1e-9)
        assert radial_band_energy(view, radius=0.75).item() == pytest.approx(int(frequency > 3), abs=1e-9)


def test_relative_log_amplitude_curve():
    view = make_view((8, 8), 3)
    curve = relative_log_amplitude(view)
    assert curve.shape == (2, 5) and not curve[:, 0].any()
    image = image_of(view, 1)
    expected = [log_amplitude(image, (k, k)) - log_amplitude(image, (0, 0)) for k in range(5)]
    np.testing.assert_allclose(curve[1], expected, rtol=1e-9)
    torch.testing.assert_close(curve[:, 3], value(view, "relative log amplitude", "last bin of the shifted transform"))


def test_layer_cka():
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(2, 6, width, generator=generator) for width in (4, 9, 4)]
    layers.append(
        layers[0] @ torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q * 3 + 7
    )  # turned, scaled, moved
    layers.append(torch.ones(2, 6, 4))
    result = layer_cka(layers)
    assert result.shape == (2, 5, 5)
    for a in range(4):
        for b in range(4):
            for index in range(2):
                x, y = (layers[k][index].double().numpy() for k in (a, b))
                assert result[index, a, b].item() == pytest.approx(cka(x, y), rel=1e-6)
    assert result[:, 0, 3].tolist() == pytest.approx([1, 1], abs=1e-6)
    assert result[:, 4].isnan().all() and result[:, :, 4].isnan().all()


def test_gram_distance_of_two_models():
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(2, 6, width, generator=generator) for width in (4, 9))
    found = gram_distance(one, other)
    expected = [gram(x.double().numpy(), y.double().numpy()) for x, y in zip(one, other, strict=True)]
    assert found.dtype == torch.float64 and found.tolist() == pytest.approx(expected)
    turned = one @ torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q * 3
    assert gram_distance(one, turned).tolist() == pytest.approx([0, 0], abs=1e-10)
    with pytest.raises(ValueError, match=r"\(2, 6, 4\) and \(2, 5, 9\) cannot be compared"):
        gram_distance(one, other[:, :5])


def slow_rankme(rows):
    singular = sigma(rows)
    shares = singular / sum(singular) + 1e-7
    return math.exp(-sum(p * math.log(p) for p in shares))


@pytest.mark.parametrize("images, width", [(7, 5), (2, 40)])  # more tokens than channels, and fewer
def test_rankme_in_parts_equals_one_decomposition_of_all(images, width):
    tokens = torch.randn(images, 6, width, generator=torch.Generator().manual_seed(0))
    rank = RankMe()
    for part in tokens.split(2):
        rank.update(part)
    assert rank.compute() == pytest.approx(slow_rankme(tokens.flatten(0, 1).double().numpy()), rel=1e-6)
    assert rank.moment.shape == (width, width) and rank.moment.dtype == torch.float64


def test_rankme_of_equal_tokens_is_one_and_of_none_an_error():
    rank = RankMe()
    with pytest.raises(ValueError, match="no tokens"):
        rank.compute()
    rank.update(torch.randn(1, 1, 8).expand(3, 5, 8))
    assert rank.compute() == pytest.approx(1, abs=1e-4)
