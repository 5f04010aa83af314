"""Pairs of tokens, with and without labels, against double loops."""

import math

import numpy as np
import pytest
import torch
from helpers.smoothing import cosine, make_view, value

from toco_lab.method.losses import affinity_mask, ptc_terms
from toco_lab.smoothing.formulas import pair_cosine, token_similarity


def slow_pairs(tokens, label=None):
    """|cos| of all ordered pairs i != j of one image (D, h, w): list of (value, same label or None)."""
    rows = tokens.flatten(1).T.double().numpy()
    label = None if label is None else label.flatten().tolist()
    pairs = []
    for i, x in enumerate(rows):
        for j, y in enumerate(rows):
            if i == j or (label and 255 in (label[i], label[j])):
                continue
            pairs.append((abs(cosine(x, y)), None if label is None else label[i] == label[j]))
    return pairs


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (1, 2, 1, 2), (3, 8, 4, 4)])
def test_token_similarity_equals_the_double_loop(shape):
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = [np.mean([value for value, _ in slow_pairs(image)]) for image in tokens]
    np.testing.assert_allclose(token_similarity(tokens).numpy(), expected, rtol=1e-9)


def test_pair_cosine_equals_the_double_loop():
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(3, 6, 4, 5, generator=generator)
    label = torch.randint(0, 3, (3, 4, 5), generator=generator)
    label[0, 0], label[1, :, 2] = 255, 255
    result = pair_cosine(tokens, label)
    for image in range(3):
        pairs = slow_pairs(tokens[image], label[image])
        positive = np.mean([value for value, same in pairs if same])
        negative = np.mean([value for value, same in pairs if not same])
        assert result.positive[image].item() == pytest.approx(positive, rel=1e-9)
        assert result.negative[image].item() == pytest.approx(negative, rel=1e-9)
        assert result.gap[image].item() == pytest.approx(positive - negative, abs=1e-9)


def test_sign_and_scale_of_a_token_do_not_matter():
    tokens = torch.randn(1, 4, 2, 3)
    scaled = tokens * torch.tensor([[-3.0, 1, 0.1], [1e3, -1, 2]])
    torch.testing.assert_close(token_similarity(scaled), token_similarity(tokens), rtol=1e-6, atol=0)


def test_equal_tokens_scaled_and_of_other_sign_stay_in_range():
    constant = torch.randn(1, 7, 1, 1).expand(1, 7, 3, 3)
    assert token_similarity(constant).item() == pytest.approx(1, abs=1e-6)
    assert token_similarity(-constant).item() <= 1


def test_equal_and_orthogonal_tokens_are_told_apart():
    label = torch.tensor([[[0, 0], [1, 1]]])
    equal = pair_cosine(torch.ones(1, 4, 2, 2), label)
    orthogonal = pair_cosine(torch.eye(4).reshape(1, 4, 2, 2), label)
    assert (equal.positive.item(), equal.negative.item()) == pytest.approx((1, 1))
    assert (orthogonal.positive.item(), orthogonal.negative.item()) == pytest.approx((0, 0))


def test_undefined_values_are_nan():
    assert math.isnan(token_similarity(torch.randn(1, 4, 1, 1)).item())
    one_class = pair_cosine(torch.randn(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long))
    assert math.isnan(one_class.negative.item())
    assert not math.isnan(one_class.positive.item())
    assert math.isnan(pair_cosine(torch.randn(1, 4, 2, 2), torch.full((1, 2, 2), 255)).positive.item())
    each_alone = pair_cosine(torch.randn(1, 4, 2, 2), torch.arange(4).reshape(1, 2, 2))
    assert math.isnan(each_alone.positive.item()) and not math.isnan(each_alone.negative.item())


def test_pair_cosine_wants_labels_on_the_token_grid():
    with pytest.raises(ValueError, match=r"\(1, 8, 8\).*\(1, 4, 2, 2\)"):
        pair_cosine(torch.randn(1, 4, 2, 2), torch.zeros(1, 8, 8, dtype=torch.long))


@pytest.mark.parametrize("labels", [[0, 1, 2, 255], [4], [255], [0, 255]])
def test_ptc_is_the_loss_on_true_labels(labels):
    generator = torch.Generator().manual_seed(1)
    label = torch.tensor(labels)[torch.randint(len(labels), (2, 12), generator=generator)]
    view = make_view((3, 4), 5, label=label)
    for index, actual in enumerate(value(view, "PTC loss", "absolute, true label")):
        field = view.tokens[index : index + 1].double().mT.unflatten(2, (3, 4))
        terms = ptc_terms(field, affinity_mask(label[index : index + 1].unflatten(1, (3, 4))))
        expected = terms.loss.item() if len(labels) > 2 else math.nan  # one kind of pair alone is not the loss
        assert actual.item() == pytest.approx(expected, rel=1e-9, nan_ok=True)
        pairs = [value(view, f"{sign} cosine", "absolute, true label")[index] for sign in ("positive", "negative")]
        np.testing.assert_allclose(pairs, [terms.positive_cosine, terms.negative_cosine], rtol=1e-9)
