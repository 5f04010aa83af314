"""A view of tokens: shapes are checked, shared quantities computed once, digits kept."""

import pytest
import torch
from helpers.smoothing import HEADS, class_cosines, image_of, make_view

from toco_lab.smoothing import singular_values
from toco_lab.smoothing.catalogue import measure
from toco_lab.smoothing.token_view import TokenView


@pytest.mark.parametrize(
    "field, shape, message",
    [
        ("tokens", (2, 11, 5), r"tokens \(2, 11, 5\).*3 \* 4"),
        ("label", (2, 3, 4), r"label \(2, 3, 4\).*need \(2, 12\)"),
        ("class_token", (2, 6), r"class_token.*need \(2, 5\)"),
        ("attention", (2, 3, 13, 13), r"attention.*need \(2, any, 14, 14\)"),
        ("previous_tokens", (1, 12, 5), r"previous_tokens.*need \(2, 12, any\)"),
        ("embedding", (2, 13, 5), "embedding"),
    ],
)
def test_shapes_that_do_not_fit_are_named(field, shape, message):
    with pytest.raises(ValueError, match=message):
        make_view((3, 4), 5, **{field: torch.ones(shape)})


def test_what_metrics_share_is_computed_once(monkeypatch):
    calls = []

    def counted(original):
        return lambda *args, **options: calls.append(original.__name__) or original(*args, **options)

    monkeypatch.setattr(singular_values, "_tridiagonal", counted(singular_values._tridiagonal))
    monkeypatch.setattr(torch.fft, "rfft2", counted(torch.fft.rfft2))
    view = make_view((3, 4), 5)
    for _ in range(2):
        measure(view)
    assert sorted(name.rpartition("_")[2] for name in calls) == ["rfft2", "tridiagonal", "tridiagonal"]  # two images


def test_values_per_head():
    view = make_view((3, 4), 5)
    mixed = view.attention.clone()
    mixed[:, 1] = torch.eye(14)
    mixed = make_view((3, 4), 5, attention=mixed)
    for name in ("attention_entropy", "attention_distance"):
        both, one = getattr(view, name), getattr(mixed, name)
        assert both.shape == (2, HEADS)
        assert torch.equal(both[:, 0], one[:, 0]) and not one[:, 1].any() and both[:, 1].all()


def test_class_cosine_map_is_row_major():
    view = make_view((3, 4), 5)
    assert view.class_cosine.shape == (2, 3, 4)
    assert view.class_cosine[1, 2, 1].item() == pytest.approx(class_cosines(image_of(view, 1))[2 * 4 + 1])


def test_noise_of_rounding_is_no_spread():
    token = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0))
    noisy = token * (1 + 1e-8 * torch.randn(1, 9, 64, dtype=torch.float64))
    wide = token * (1 + 1e-5 * torch.randn(1, 9, 64, dtype=torch.float64))
    assert not TokenView(noisy, (3, 3)).has_spread.item() and TokenView(wide, (3, 3)).has_spread.item()


def test_tokens_much_shorter_than_the_mean_keep_their_direction():
    torch.manual_seed(0)
    tokens = torch.randn(1, 12, 5) + 2
    tokens[:, ::2] *= 1e-8
    unit = torch.nn.functional.normalize(tokens.double(), dim=2, eps=0)
    torch.testing.assert_close(TokenView(tokens, (3, 4)).cosine, unit @ unit.mT, rtol=0, atol=1e-12)
