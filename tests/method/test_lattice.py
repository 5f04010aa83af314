"""The lattice against a dictionary of vertices, against the exact Gaussian, and its invariances."""

import numpy as np
import pytest
import torch
from helpers import oracles

from toco_lab.method import lattice
from toco_lab.method.lattice import Lattice, bilateral_features, bilateral_filter, spatial_features


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def features(*shape, spread=3.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * spread


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize(("d", "pixels", "spread"), [(1, 9, 2), (2, 40, 2), (3, 30, 0.3), (5, 60, 1), (5, 25, 20)])
def test_equals_the_dictionary_lattice(d, pixels, spread, compact):
    position, values = features(1, d, pixels, spread=spread), torch.rand(1, 3, pixels)
    expected = oracles.lattice_filter(position[0].T.double().numpy(), values[0].T.double().numpy()).T
    assert expected.max() > 0.3
    np.testing.assert_allclose(Lattice(position, compact=compact).filter(values)[0], expected, rtol=2e-5, atol=2e-6)


def test_image_filter_equals_the_dictionary_lattice():
    image, values = torch.rand(1, 3, 7, 9) * 255, torch.rand(1, 2, 7, 9)
    rows = values[0].flatten(1).T.double().numpy()
    expected = oracles.lattice_filter(oracles.pixel_features(image[0].double().numpy(), 5.0, 40.0), rows).T
    actual = bilateral_filter(image, values, sigma_rgb=40.0, sigma_xy=5.0)
    np.testing.assert_allclose(actual[0].flatten(1), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("compact", [True, False])
def test_images_of_a_batch_do_not_mix(compact):
    position, values = features(3, 5, 50), torch.rand(3, 4, 50)
    position[1] = position[0]  # equal features would share every vertex
    together = Lattice(position, compact=compact).filter(values)
    for i in range(3):
        alone = Lattice(position[i : i + 1], compact=compact).filter(values[i : i + 1])
        torch.testing.assert_close(together[i], alone[0], rtol=1e-6, atol=1e-7)
    swapped = Lattice(position.flip(0), compact=compact).filter(values.flip(0)).flip(0)
    torch.testing.assert_close(together, swapped, rtol=1e-6, atol=1e-7)


def test_linear_and_independent_of_pixel_order():
    lattice, a, b = Lattice(features(2, 5, 40)), torch.rand(2, 3, 40), torch.rand(2, 3, 40)
    combined = 2 * lattice.filter(a) - lattice.filter(b)
    torch.testing.assert_close(lattice.filter(2 * a - b), combined, rtol=1e-5, atol=1e-5)
    order = torch.randperm(40)
    shuffled = Lattice(features(2, 5, 40)[:, :, order]).filter(a[:, :, order])
    torch.testing.assert_close(shuffled, lattice.filter(a)[:, :, order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lattice.filter(a)[:, 1], lattice.filter(a[:, 1:2])[:, 0])  # channels are apart


def test_pixels_at_one_place_get_the_same_sum():
    # All on one lattice point. The blur keeps the sum there and sends an eighth of it once round the triangle (d = 2)
    # of corners, back to where it started; slicing multiplies by 1 / (1 + 2^-d).
    out = Lattice(torch.zeros(1, 2, 6)).filter(torch.arange(6.0).view(1, 1, 6))
    torch.testing.assert_close(out, torch.full((1, 1, 6), 15 * 1.125 / 1.25))


def test_constant_image_blurs_space_only():
    values = torch.rand(1, 2, 12, 10)
    grey, white = (torch.full((1, 3, 12, 10), level) for level in (90.0, 255.0))
    ones = bilateral_filter(grey, torch.ones(1, 1, 12, 10), sigma_rgb=5.0, sigma_xy=3.0)
    mean = bilateral_filter(grey, values, sigma_rgb=5.0, sigma_xy=3.0) / ones
    assert mean.std() < 0.35 * values.std() and values.min() < mean.min() and mean.max() < values.max()
    # Only where the grey falls within its simplex is left, which scales the filter but hardly shapes it.
    other = bilateral_filter(white, torch.cat([values, torch.ones(1, 1, 12, 10)], 1), sigma_rgb=5.0, sigma_xy=3.0)
    torch.testing.assert_close(other[:, :2] / other[:, 2:], mean, rtol=0.1, atol=0.02)


def test_colour_edge_stops_the_filter():
    image = torch.zeros(1, 3, 8, 8)
    image[..., 4:] = 255
    left = torch.zeros(1, 1, 8, 8)
    left[..., :4] = 1
    out = bilateral_filter(image, left, sigma_rgb=5.0, sigma_xy=100.0)
    assert out[..., 4:].abs().max() == 0 and out[..., :4].min() > 1


def test_resembles_the_exact_gaussian():
    image = torch.rand(1, 3, 12, 14) * 255
    values = torch.rand(1, 2, 12, 14)
    position = oracles.pixel_features(image[0].double().numpy(), 6.0, 60.0)
    exact = oracles.exact_gaussian(position, values[0].flatten(1).T.double().numpy())
    actual = bilateral_filter(image, values, sigma_rgb=60.0, sigma_xy=6.0)[0].flatten(1).T.double().numpy()
    factor = (actual * exact).sum() / (exact * exact).sum()
    assert 0.3 < factor < 0.7
    assert np.linalg.norm(actual - factor * exact) / np.linalg.norm(actual) < 0.2


def test_gradient_is_the_transposed_kernel():
    lattice = Lattice(features(1, 2, 15, spread=1.0))
    values = torch.eye(15)[None].requires_grad_()  # channel c = one pixel: row c of the output is the kernel
    kernel = lattice.filter(values)
    weights = torch.rand(1, 15, 15)
    (kernel * weights).sum().backward()
    torch.testing.assert_close(values.grad[0], weights[0] @ kernel[0].detach().T)


def test_normalise_is_the_symmetric_form():
    values = torch.rand(1, 2, 30)
    plain, normalised = Lattice(features(1, 5, 30)), Lattice(features(1, 5, 30))
    normalised.normalise()
    norm = plain.filter(torch.ones(1, 1, 30)).rsqrt()
    torch.testing.assert_close(normalised.filter(values), norm * plain.filter(norm * values), rtol=1e-5, atol=1e-6)


def test_features_are_positions_then_colours():
    image = torch.arange(2 * 3 * 2 * 3).view(2, 3, 2, 3).to(torch.uint8)
    out = bilateral_features(image, sigma_xy=2.0, sigma_rgb=4.0)
    assert spatial_features(2, 3, 2.0)[0].tolist() == [[0, 0.5, 1, 0, 0.5, 1], [0, 0, 0, 0.5, 0.5, 0.5]]
    assert out.shape == (2, 5, 6) and torch.equal(out[1, :2], spatial_features(2, 3, 2.0)[0])
    assert torch.equal(out[1, 2:], image[1].flatten(1) / 4)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"\(1, 5, 0\)"):
        Lattice(torch.zeros(1, 5, 0))
    with pytest.raises(ValueError, match=r"\(2, 3, 9\).*\(2, 5, 10\)"):
        Lattice(features(2, 5, 10)).filter(torch.zeros(2, 3, 9))
    with pytest.raises(ValueError, match=r"\(10, 3\).*\(2, 5, 10\)"):
        Lattice(features(2, 5, 10)).filter_rows(torch.zeros(10, 3))
    with pytest.raises(ValueError, match="larger sigmas"):
        Lattice(features(1, 5, 10, spread=1e4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: make gpu")
def test_gpu_equals_cpu_and_does_not_wait():
    position, values = features(2, 5, 500), torch.rand(2, 4, 500)
    on_gpu = position.cuda(), values.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        actual = Lattice(on_gpu[0], compact=False).filter(on_gpu[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(actual.cpu(), Lattice(position).filter(values), rtol=1e-4, atol=1e-5)


def test_ranks_are_those_of_two_stable_sorts(rng):
    values = torch.randint(0, 4, (6, 500)).float()  # many equal ones
    expected = values.argsort(dim=0, descending=True, stable=True).argsort(dim=0)
    assert torch.equal(lattice._descending_rank(values), expected)
