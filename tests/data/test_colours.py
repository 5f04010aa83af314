"""Colours of a view: the draws are torchvision's, and so is what they do to the pixels."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from toco_lab.data.colours import (
    BLUR_SIGMA,
    ColourDraws,
    apply_colours,
    apply_colours_as_released,
    draw_colours,
    gaussian_blur,
    shift_hue,
)

NEVER = {"jitter_probability": 0.0, "grey": 0.0, "blur": 0.0, "solarise": 0.0}
STRENGTHS = (0.4, 0.4, 0.2, 0.1)


def drawn(seed: int = 0, strengths=STRENGTHS, **probabilities) -> ColourDraws:
    torch.manual_seed(seed)
    return draw_colours(strengths, **(NEVER | probabilities))


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_is_torchvisions_inside_and_keeps_flat_images(sigma):
    image = torch.rand(3, 40, 30)
    size = 2 * int(np.ceil(3 * sigma)) + 1
    expected = functional.gaussian_blur(image, [size, size], [sigma, sigma])
    inner = (slice(None), slice(size, -size), slice(size, -size))
    torch.testing.assert_close(gaussian_blur(image, sigma)[inner], expected[inner])
    tiny = torch.full((3, 2, 1), 0.7)  # smaller than the kernel
    torch.testing.assert_close(gaussian_blur(tiny, sigma), tiny)


@pytest.mark.parametrize("shift", [-0.5, -0.07, 0.0, 0.1])
def test_hue_is_torchvisions_and_leaves_grey_alone(shift):
    image = torch.rand(3, 20, 30)
    image[:, 0] = torch.rand(30)  # grey
    image[0, 1] = image[1, 1] = 1.0  # two channels equally strong
    image[:, 2] = 0.0
    torch.testing.assert_close(shift_hue(image, shift), functional.adjust_hue(image, shift), atol=3e-6, rtol=0)
    assert torch.equal(shift_hue(image, shift)[:, 0], image[:, 0])
    red = torch.tensor([0.8, 0.2, 0.2])[:, None, None]
    assert shift_hue(red, 1 / 3)[:, 0, 0].tolist() == pytest.approx([0.2, 0.8, 0.2])


@pytest.mark.parametrize("strengths", [STRENGTHS, (0.4, 0.0, 0.2, 0.0)])
def test_jitter_is_torchvisions_with_the_same_draws(strengths):
    image = torch.rand(3, 20, 30)
    for seed in range(12):  # several orders of the four changes
        draws = drawn(seed, strengths, jitter_probability=1.0)
        after = torch.rand(())
        torch.manual_seed(seed)
        expected = v2.RandomApply([v2.ColorJitter(*strengths)], p=1.0)(image)
        torch.testing.assert_close(apply_colours(image, draws), expected, atol=1e-5, rtol=0)
        assert torch.equal(torch.rand(()), after), "another number of draws"


def test_probabilities():
    for name in ("jitter_probability", "grey", "blur", "solarise"):
        draws = [drawn(seed, **{name: 0.3}) for seed in range(100)]
        assert 18 < sum(draw != ColourDraws() for draw in draws) < 42, name
    sigmas = [drawn(seed, blur=1.0).blur for seed in range(100)]
    low, high = BLUR_SIGMA
    assert low <= min(sigmas) < 0.2 and 1.9 < max(sigmas) <= high


def test_what_never_happens_draws_nothing():
    untouched = torch.rand((), generator=torch.Generator().manual_seed(3))
    assert drawn(3) == ColourDraws() and torch.equal(torch.rand(()), untouched)


def test_the_order_of_the_jitter_counts():
    image = torch.full((3, 2, 2), 0.9)
    twice, then_back = (("brightness", 2.0), ("brightness", 0.5)), (("brightness", 0.5), ("brightness", 2.0))
    assert apply_colours(image, ColourDraws(twice))[0, 0, 0] == pytest.approx(0.5)  # clipped in between
    assert apply_colours(image, ColourDraws(then_back))[0, 0, 0] == pytest.approx(0.9)


def test_by_pil_each_change_is_whole_grey_levels_and_near_the_exact_one():
    pixels = torch.randint(0, 256, (3, 24, 31), dtype=torch.uint8)
    before = pixels.clone()
    draws = ColourDraws((("contrast", 1.3), ("brightness", 0.7), ("saturation", 1.2)), grey=True)
    found, exact = apply_colours_as_released(pixels, draws), 255 * apply_colours(pixels / 255, draws)
    assert found.dtype == torch.uint8 and torch.equal(pixels, before)
    assert 0 < (found - exact).abs().max() < 4 and (found - exact).mean() < -0.5  # cut off, not rounded
    assert torch.equal(apply_colours_as_released(pixels, ColourDraws()), pixels)
    solarised = apply_colours_as_released(pixels, ColourDraws(solarise=True))
    assert torch.equal(solarised, torch.where(pixels >= 128, 255 - pixels, pixels))
    torch.testing.assert_close(255 * apply_colours(pixels / 255, ColourDraws(solarise=True)), solarised.float())


def test_wrong_draws_are_refused():
    with pytest.raises(
        ValueError, match=r"jitter changes brightness, .* and not 'brightnes'.*did you mean 'brightness'"
    ):
        ColourDraws((("brightnes", 1.1),))
    with pytest.raises(ValueError, match="blur must not be negative, got -1"):
        ColourDraws(blur=-1)
