"""Every over-smoothing metric against loops written from its formula; identities; degenerate tokens; the door."""

import math

import numpy as np
import pytest
import torch
from helpers.smoothing import HEADS, ORACLE, PATCH, PREFIX, VIEWS, constant_view, image_of, make_view, value

from toco_lab.smoothing.catalogue import METRICS, measure, metric_table
from toco_lab.smoothing.formulas import token_similarity, uniform_attention_distance
from toco_lab.smoothing.token_view import TokenView

ATTENTION_ONLY = {key for key, metric in METRICS.items() if metric.needs and "attention" in metric.needs}


def test_the_oracle_covers_the_list():
    assert set(ORACLE) == set(METRICS)


@pytest.mark.parametrize("shape", VIEWS)
def test_every_metric_equals_its_loops(shape):
    view = make_view(*VIEWS[shape])
    result = measure(view)
    assert list(result) == list(METRICS)
    for key, oracle in ORACLE.items():
        expected = [oracle(image_of(view, index)) for index in range(2)]
        assert result[key].dtype == torch.float64 and result[key].shape == (2,), key
        np.testing.assert_allclose(
            result[key], expected, rtol=2e-6 if key in ATTENTION_ONLY else 1e-9, err_msg=str(key)
        )


def test_the_default_view_has_outliers_and_all_labels():
    view = make_view(*VIEWS["D < N, 3 x 4"])  # else the oracle of 20, 21 and 2 would compare little
    assert view.high_norm.sum(1).tolist() == [2, 2]
    assert (view.pairs.num_positive > 0).all() and (view.pairs.num_negative > 0).all()


def test_half_precision_tokens_are_measured_in_double():
    view = make_view((3, 4), 5)
    half = make_view((3, 4), 5, tokens=view.tokens.bfloat16())
    exact = make_view((3, 4), 5, tokens=view.tokens.bfloat16().double())
    key = ("effective rank", "sigma, centred")
    torch.testing.assert_close(measure(half, [key])[key], measure(exact, [key])[key])


def test_diagonal_included_is_linear_in_diagonal_left_out():
    view = make_view((3, 4), 5)
    without, with_it = (
        value(view, "pairwise cosine", f"absolute, {name}") for name in ("off-diagonal", "with diagonal")
    )
    torch.testing.assert_close(with_it, (11 * without + 1) / 12)


def test_complete_graph_and_pythagoras():
    view = make_view((3, 4), 5)
    x = view.tokens.double()
    dc = x.mean(1, keepdim=True).expand_as(x)
    total, mean, rest = (part.square().sum((1, 2)) for part in (x, dc, x - dc))
    torch.testing.assert_close(value(view, "Dirichlet energy", "complete graph"), 2 * rest)
    torch.testing.assert_close(total, mean + rest)
    share = value(view, "high-frequency ratio", "||HC||^2 / ||X||^2")
    torch.testing.assert_close(share, 1 - mean / total)
    torch.testing.assert_close(value(view, "rank-1 residual", "Frobenius"), share.sqrt())
    torch.testing.assert_close(value(view, "high-frequency ratio", "||HC|| / ||DC||"), (share / (1 - share)).sqrt())


def test_equal_tokens():
    result = {key: values.tolist() for key, values in measure(constant_view()).items()}
    ones = [
        ("pairwise cosine", "absolute, off-diagonal"), ("pairwise cosine", "absolute, with diagonal"),
        ("pairwise cosine", "raw, with diagonal"), ("pairwise cosine", "raw, off-diagonal"),
        ("positive cosine", "absolute, true label"), ("negative cosine", "absolute, true label"),
        ("effective rank", "sigma, not centred"), ("effective rank", "sigma^2, not centred"),
        ("stable rank", "not centred"), ("attention entropy", "over log T"),
        ("cross-layer attention similarity", "columns, block before"),
        ("cosine to the mean border token", "mean over inner tokens"),
    ]  # fmt: skip
    undefined = [
        ("pairwise cosine", "centred, absolute, off-diagonal"), ("pairwise cosine", "centred, raw, off-diagonal"),
        ("effective rank", "sigma, centred"), ("effective rank", "sigma^2, centred"),
        ("participation ratio", "centred"), ("CKA", "block before"),
        ("neighbour similarity of outliers", "high-norm tokens"),
        ("neighbour similarity of outliers", "high minus normal"),
    ]  # fmt: skip
    other = {
        ("attention entropy", "nats"): math.log(14),
        ("mean attention distance", "pixels"): uniform_attention_distance((3, 4), PATCH),
    }
    free = {  # depend on the class token, the embedding, the block before, or the number of pairs
        ("PTC loss", "absolute, true label"), ("class-patch cosine", "mean"), ("Gram distance", "block before"),
        ("neighbour similarity of outliers", "normal tokens"),
        ("relative log amplitude", "at 1.0 pi"), ("relative log amplitude", "last bin of the shifted transform"),
    }  # fmt: skip
    for key, values in result.items():
        if key in undefined:
            assert all(math.isnan(number) for number in values), key
        elif key not in free:
            expected = 1 if key in ones else other.get(key, 0)
            assert values == pytest.approx([expected] * 2, rel=1e-6, abs=1e-6), key
    for variant in ("at 1.0 pi", "last bin of the shifted transform"):
        assert max(result["relative log amplitude", variant]) < -10


def test_orthonormal_tokens():
    orthonormal = torch.linalg.qr(torch.randn(1, 16, 12, dtype=torch.float64)).Q.mT  # (1, 12, 16)
    view = TokenView(orthonormal, (3, 4))
    assert value(view, "pairwise cosine", "absolute, off-diagonal").item() == pytest.approx(0, abs=1e-12)
    for key in (("effective rank", "sigma, not centred"), ("effective rank", "sigma^2, not centred")):
        assert value(view, *key).item() == pytest.approx(12)
    assert value(view, "stable rank", "not centred").item() == pytest.approx(12)
    for variant in ("sigma, centred", "sigma^2, centred"):  # the mean takes one direction away
        assert value(view, "effective rank", variant).item() == pytest.approx(11)
    assert value(view, "participation ratio", "centred").item() == pytest.approx(11)


def test_attention_that_stays_where_it_is():
    t = 12 + PREFIX
    view = make_view((3, 4), 5, attention=torch.eye(t).expand(2, HEADS, t, t))
    assert value(view, "attention entropy", "nats").tolist() == [0, 0]
    assert value(view, "mean attention distance", "pixels").tolist() == [0, 0]
    assert value(view, "Dirichlet energy", "attention-weighted").tolist() == pytest.approx([0, 0], abs=1e-9)
    assert value(view, "attention spectrum", "share off frequency 0, all tokens").tolist() == pytest.approx(
        [13 / 14] * 2
    )
    assert value(view, "attention spectrum", "share off frequency 0, patches").tolist() == pytest.approx([11 / 12] * 2)


def test_zero_tokens_have_cosine_zero():
    tokens = torch.ones(1, 3, 1, 3)
    tokens[..., 0] = 0  # 3 pairs, one of them of cosine 1
    assert token_similarity(tokens).item() == pytest.approx(1 / 3)
    view = make_view((3, 4), 5)
    with_zero = view.tokens.clone()
    with_zero[:, 5] = 0
    result = measure(make_view((3, 4), 5, tokens=with_zero, embedding=with_zero, previous_tokens=with_zero))
    assert not [key for key, values in result.items() if not values.isfinite().all()]


def test_an_image_of_zeros_gives_no_infinity_and_no_error():
    zero = torch.zeros(2, 12, 5)
    result = measure(make_view((3, 4), 5, tokens=zero, class_token=zero[:, 0], embedding=zero, previous_tokens=zero))
    assert not [key for key, values in result.items() if values.isinf().any()]
    assert result["pairwise cosine", "absolute, off-diagonal"].tolist() == [0, 0]
    assert result["rank-1 residual", "Frobenius"].isnan().all() and result["stable rank", "not centred"].isnan().all()


def test_a_single_token():
    result = measure(make_view((1, 1), 5))
    assert not [key for key, values in result.items() if values.isinf().any()]
    assert result["effective rank", "sigma, not centred"].tolist() == pytest.approx([1, 1])
    for key in (("pairwise cosine", "raw, off-diagonal"), ("MAD", "4-neighbour grid, mean"), ("CKA", "block before")):
        assert result[key].isnan().all()


def test_measure_leaves_out_what_the_view_does_not_hold():
    full = make_view((3, 4), 5)
    bare = TokenView(full.tokens, full.grid)
    assert list(measure(bare)) == [key for key, metric in METRICS.items() if not metric.needs]
    label_only = set(measure(TokenView(full.tokens, full.grid, label=full.label))) - set(measure(bare))
    assert {METRICS[key].row for key in label_only} == {"2", "3"}


def test_every_metric_asks_for_what_it_reads():
    full = make_view((3, 4), 5)
    for key, metric in METRICS.items():
        needed = {name: getattr(full, name) for name in metric.needs}
        alone = TokenView(full.tokens, full.grid, num_prefix=PREFIX, **needed)
        assert torch.equal(measure(alone, [key])[key], measure(full, [key])[key]), key


def test_measure_keeps_the_order_asked_for_and_no_gradient():
    view = make_view((3, 4), 5, tokens=torch.randn(2, 12, 5, requires_grad=True))
    keys = [("CKA", "block before"), ("MAD", "complete graph, mean")]
    result = measure(view, iter(keys))
    assert list(result) == keys and not any(values.requires_grad for values in result.values())


def test_errors_of_measure():
    view = TokenView(torch.randn(1, 4, 3), (2, 2), attention=torch.eye(5).expand(1, 1, 5, 5))
    with pytest.raises(ValueError, match=r"'pairwise cosin'.*did you mean \('pairwise cosine', 'raw, off-diagonal'\)"):
        measure(view, [("pairwise cosin", "raw, off-diagonal")])
    with pytest.raises(ValueError, match=r"did you mean \('CKA', 'block before'\)"):
        measure(view, ["CKA block before"])
    with pytest.raises(ValueError, match=r"'positive cosine'.*needs label"):
        measure(view, [("positive cosine", "absolute, true label")])
    with pytest.raises(ValueError, match=r"needs patch_size: give"):
        measure(view, [("mean attention distance", "pixels")])


def test_metric_table():
    table = metric_table()
    assert table.columns.tolist() == "row metric variant needs limit sees source".split()
    assert list(zip(table["metric"], table["variant"], strict=True)) == list(METRICS)
    rows = [int(row.rstrip("abcde")) for row in table["row"]]
    assert rows == sorted(rows)
    assert set(table["row"]) == {*"1a 1b 1c 1d 1e".split(), *map(str, [*range(2, 10), *range(11, 25)])}
    assert table.drop(columns="needs").map(lambda text: bool(text.strip())).all(axis=None)
    assert set(", ".join(filter(None, table["needs"])).split(", ")) <= {*TokenView.__dataclass_fields__}
