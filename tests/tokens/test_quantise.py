"""Quantised tokens: the int8 tokens against exact cosines, and the error they claim."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from helpers.token_records import low_rank

from toco_lab.tokens.quantise import quantise_images, quantise_tokens


def exact_cosine(tokens: torch.Tensor) -> np.ndarray:
    """cos(x_i, x_j) = x_i . x_j / (|x_i| |x_j|), one pair after the other, in float64; 0 where a token is zero."""
    rows = tokens.double().numpy()
    cosine = np.zeros((len(rows), len(rows)))
    for i, x in enumerate(rows):
        for j, y in enumerate(rows):
            norms = np.sqrt(x @ x) * np.sqrt(y @ y)
            cosine[i, j] = x @ y / norms if norms else 0
    return cosine


def all_similarities(quantised, step=0, layer=0) -> np.ndarray:
    return np.stack([quantised.similarity(step, layer, patch) for patch in range(quantised.num_tokens)])


def test_similarity_is_the_cosine_within_the_error_it_claims():
    layers = [low_rank(seed=0), low_rank(seed=1, rank=20)]
    quantised = quantise_tokens([layers, layers[::-1]])
    errors = []
    for step, row in enumerate([layers, layers[::-1]]):
        for layer, tokens in enumerate(row):
            difference = np.abs(all_similarities(quantised, step, layer) - exact_cosine(tokens)).max()
            assert difference == pytest.approx(quantised.errors[step, layer], abs=2e-6)  # measured, not guessed
            errors.append(difference)
    assert quantised.error == pytest.approx(max(errors), abs=2e-6)
    assert 0.001 < quantised.error <= 0.02
    assert quantised.widths.tolist() == [[8, 24], [24, 8]]  # each slab as narrow as it can be


@pytest.mark.parametrize(("max_error", "width"), [(0.3, 16), (0.02, 24), (0.0, 64)])
def test_a_smaller_error_costs_dimensions(max_error, width):
    quantised = quantise_tokens([[low_rank(rank=20)]], max_error=max_error)
    assert quantised.widths.tolist() == [[width]]
    difference = np.abs(all_similarities(quantised) - exact_cosine(low_rank(rank=20))).max()
    assert difference == pytest.approx(quantised.error, abs=2e-6)
    assert (quantised.error <= max_error) == (max_error > 0)  # what int8 alone costs is said, not hidden


def test_images_quantised_together_are_compared_within_the_error_they_claim():
    torch.manual_seed(3)
    mixing = torch.randn(20, 64)
    images = [[torch.randn(n, 20) @ mixing + 0.1 * torch.randn(n, 64) for _ in range(2)] for n in (30, 12)]
    first, second = quantise_images(images)
    assert (first.num_tokens, second.num_tokens) == (30, 12)
    assert np.array_equal(first.bases, second.bases) and len(set(first.bases.ravel().tolist())) == 2
    for layer in range(2):
        exact = exact_cosine(torch.cat([images[0][layer], images[1][layer]]))
        place, seen = (0, layer), np.zeros((42, 42))
        for rows, one in ((slice(0, 30), first), (slice(30, 42), second)):
            for columns, other in ((slice(0, 30), first), (slice(30, 42), second)):
                seen[rows, columns] = [other.similarity_of(one, place, place, patch) for patch in range(one.num_tokens)]
        assert np.abs(seen - exact).max() == pytest.approx(first.errors[0, layer], abs=2e-6)
        assert 0.001 < first.errors[0, layer] == second.errors[0, layer] <= 0.02
    alone = quantise_tokens([images[1]])
    with pytest.raises(ValueError, match="not kept together: keep them again"):
        alone.similarity_of(first, (0, 0), (0, 0), 3)
    with pytest.raises(ValueError, match="not kept together"):
        first.similarity_of(second, (0, 1), (0, 0), 3)  # another layer has other directions
    assert np.array_equal(alone.similarity_of(alone, (0, 0), (0, 0), 3), alone.similarity(0, 0, 3))
    with pytest.raises(ValueError, match="every image needs the same layers"):
        quantise_images([images[0], images[1][:1]])


def test_lengths_are_kept_within_a_step_of_their_logarithm():
    tokens = low_rank(num_tokens=200)
    quantised = quantise_tokens([[tokens, 3 * tokens], [torch.ones(200, 64), tokens]])
    exact = tokens.norm(dim=1).numpy()
    step = np.log(exact.max() / exact.min()) / 255
    for place, factor in (((0, 0), 1), ((0, 1), 3), ((1, 1), 1)):
        off = np.abs(np.log(quantised.token_lengths(*place) / (factor * exact)))
        assert 0 < off.max() <= step / 2 + 1e-6
    assert np.allclose(quantised.token_lengths(1, 0), 8)
    assert quantised.take(steps=[1]).token_lengths(0, 1) == pytest.approx(quantised.token_lengths(1, 1))
    zero = quantise_tokens([[torch.tensor([[0.0, 0.0], [3.0, 4.0]])]]).token_lengths(0, 0)
    assert zero[0] < 1e-30 and zero[1] == pytest.approx(5)
    assert replace(quantised, lengths=None).token_lengths(0, 0) is None  # kept by an earlier version


def test_zero_equal_and_opposite_tokens():
    tokens = torch.zeros(5, 12)
    tokens[1], tokens[2], tokens[3] = torch.arange(12.0), 7 * torch.arange(12.0), -torch.arange(12.0)
    tokens[4, 0] = 1e-3  # orthogonal to the others
    quantised = quantise_tokens([[tokens]])
    expected = np.zeros((5, 5))
    expected[1:4, 1:4] = [[1, 1, -1], [1, 1, -1], [-1, -1, 1]]
    expected[4, 4] = 1
    assert np.allclose(all_similarities(quantised), expected, atol=1e-6)
    assert quantised.error < 1e-6
    assert quantise_tokens([[torch.zeros(3, 4)]]).similarity(0, 0, 1).tolist() == [0, 0, 0]


def test_constant_tokens_are_equal_at_the_least_width():
    quantised = quantise_tokens([[torch.full((9, 40), 0.3)]])
    assert quantised.widths.tolist() == [[8]]
    assert np.allclose(all_similarities(quantised), 1, atol=1e-6)


def test_tokens_of_a_vision_transformer():
    torch.manual_seed(0)
    net = timm.models.VisionTransformer(img_size=72, patch_size=8, embed_dim=96, depth=3, num_heads=3).eval()
    image = torch.nn.functional.interpolate(torch.randn(1, 3, 6, 6), (72, 72), mode="bicubic")
    with torch.no_grad():
        final, blocks = net.forward_intermediates(
            image, indices=None, norm=False, output_fmt="NLC", return_prefix_tokens=False
        )
    layers = [tokens[0] for tokens in blocks] + [final[0, 1:]]
    quantised = quantise_tokens([layers])
    assert quantised.error <= 0.02 and quantised.dim == 96 and quantised.num_tokens == 81
    assert quantised.widths.max() < 96
    for layer, tokens in enumerate(layers):
        unit = torch.nn.functional.normalize(tokens.double(), dim=1)
        assert (
            np.abs(all_similarities(quantised, layer=layer) - (unit @ unit.T).numpy()).max() <= quantised.error + 1e-6
        )


def test_int8_values_use_their_range_and_lie_in_order():
    quantised = quantise_tokens([[low_rank(seed=0), low_rank(seed=1)], [low_rank(seed=2), low_rank(seed=3)]])
    slabs = [quantised.slab(step, layer) for step in range(2) for layer in range(2)]
    assert np.array_equal(np.concatenate([slab.ravel() for slab in slabs]), quantised.values)
    assert all((np.abs(slab.astype(int)).max(axis=1) == 127).all() for slab in slabs)
    taken = quantised.take(steps=[1])
    assert np.array_equal(taken.slab(0, 1), slabs[3]) and taken.errors.tolist() == [quantised.errors[1].tolist()]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([], "same layers"),
        ([[]], "same layers"),
        ([[torch.ones(2, 3)], [torch.ones(2, 3), torch.ones(2, 3)]], r"\[1, 2\] layers"),
        ([[torch.ones(2, 3), torch.ones(2, 4)]], r"\(2, 4\)"),
        ([[torch.ones(1, 2, 3)]], r"\(1, 2, 3\)"),
        ([[torch.ones(2, 3), torch.tensor([[1.0, torch.nan]] * 2)[:, [0, 1, 0]]]], "step 0, layer 1 .* not finite"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(steps, words):
    with pytest.raises(ValueError, match=words):
        quantise_tokens(steps)
