"""Every over-smoothing metric against loops written from its formula; identities between them; degenerate tokens."""

import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from toco_lab.method.losses import affinity_mask, ptc_terms
from toco_lab.smoothing import spectra
from toco_lab.smoothing.catalogue import METRICS, measure, metric_table
from toco_lab.smoothing.formulas import (
    RankMe,
    attention_spectrum,
    layer_cka,
    outlier_share,
    pair_cosine,
    radial_band_energy,
    relative_log_amplitude,
    spectral_share,
    token_similarity,
    uniform_attention_distance,
)
from toco_lab.smoothing.view import TokenView, majority_label, norm_cut

HEADS, PREFIX, PATCH = 2, 2, 16
ATTENTION_ONLY = {key for key, metric in METRICS.items() if metric.needs and "attention" in metric.needs}


def make_view(grid, width, seed=0, **changes):
    """Random tokens of two images with a common direction, a few long ones, and all that metrics need beside them."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    n = math.prod(grid)
    tokens = randn(2, n, width) + 0.5 * randn(2, 1, width)
    tokens[:, :2] *= 40  # outliers
    label = torch.randint(0, 3, (2, n), generator=generator)
    label[0, :3:2], label[1, 1:2] = 255, 255
    fields = {
        "tokens": tokens,
        "grid": grid,
        "label": label,
        "class_token": randn(2, width),
        "attention": (2 * randn(2, HEADS, PREFIX + n, PREFIX + n)).softmax(3),
        "previous_attention": (2 * randn(2, HEADS, PREFIX + n, PREFIX + n)).softmax(3),
        "previous_tokens": tokens + randn(2, n, width),
        "embedding": randn(2, n, width) + 0.3,
        "num_prefix": PREFIX,
        "patch_size": PATCH,
    }
    return TokenView(**(fields | changes))


def constant_view(**changes):
    """All patch tokens equal; the attention is uniform."""
    token, t = torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(3)), 12 + PREFIX
    uniform = torch.full((2, HEADS, t, t), 1 / t)
    equal = token.expand(2, 12, 5)
    return make_view((3, 4), 5, tokens=equal, attention=uniform, previous_attention=uniform, **changes)


def value(view, metric, variant):
    return measure(view, [(metric, variant)])[metric, variant]


# --- oracle: one image at a time, loops for sums ------------------------------------------------------


def image_of(view, index):
    """What a view holds for one image, in numpy float64."""
    one = {
        name: None if getattr(view, name) is None else getattr(view, name)[index].double().numpy()
        for name in "tokens label class_token attention previous_attention previous_tokens embedding".split()
    }
    return SimpleNamespace(
        x=one.pop("tokens"), grid=view.grid, num_prefix=view.num_prefix, patch_size=view.patch_size, **one
    )


def cosine(a, b):
    return float(sum(a * b)) / math.sqrt(sum(a * a)) / math.sqrt(sum(b * b))


def cosines(x, *, diagonal=False, change=abs):
    return [change(cosine(a, b)) for i, a in enumerate(x) for j, b in enumerate(x) if diagonal or i != j]


def raw(number):
    return number


def hc(x):
    return x - sum(x) / len(x)


def squared(x):
    return sum(float(entry) ** 2 for entry in x.flat)


def places(grid):
    return [(row, column) for row in range(grid[0]) for column in range(grid[1])]


def neighbours(grid):
    """For each token the indices of those one step up, down, left, right."""
    where = places(grid)
    return [[j for j, b in enumerate(where) if abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1] for a in where]


def labelled(image, kind):
    """|cos| of the ordered pairs with equal (kind 1) or different (0) label."""
    found = []
    for i, a in enumerate(image.x):
        for j, b in enumerate(image.x):
            if i != j and 255 not in (image.label[i], image.label[j]) and (image.label[i] == image.label[j]) == kind:
                found.append(abs(cosine(a, b)))
    return found


def ptc(image):
    positive, negative = labelled(image, 1), labelled(image, 0)
    return 0.5 * (1 - sum(positive) / (len(positive) + 1)) + 0.5 * sum(negative) / (len(negative) + 1)


def mad(image, graph, *, mean):
    terms = []
    for i, others in enumerate(graph):
        distances = [1 - cosine(image.x[i], image.x[j]) for j in others]
        terms.append(sum(distances) / (len(distances) if mean else 1))
    return sum(terms) / len(terms)


def complete(image):
    n = len(image.x)
    return [[j for j in range(n) if j != i] for i in range(n)]


def dirichlet(image, graph):
    return sum(squared(image.x[i] - image.x[j]) for i, others in enumerate(graph) for j in others) / len(image.x)


def patch_rows(image, attention):
    """Patch to patch, each row divided by its sum, (heads, N, N)."""
    block = attention[:, image.num_prefix :, image.num_prefix :].copy()
    for head in block:
        for row in head:
            row /= sum(row)
    return block


def attention_energy(image):
    total = 0.0
    for head in patch_rows(image, image.attention):
        for i, a in enumerate(image.x):
            for j, b in enumerate(image.x):
                total += 0.5 * head[i, j] * squared(a - b)
    return total / HEADS


def composite(z):
    """(||z||_1, ||z||_inf): largest column sum and largest row sum of absolute values."""
    return np.linalg.norm(z, 1) * np.linalg.norm(z, np.inf)


def sigma(x):
    return np.linalg.svd(x, compute_uv=False)


def exp_entropy(weights):
    shares = weights / sum(weights)
    return math.exp(-sum(p * math.log(p) for p in shares if p > 1e-30))


def fourier(x, grid, frequency):
    """One coefficient per channel, by the sum."""
    waves = [
        np.exp(-2j * math.pi * (frequency[0] * row / grid[0] + frequency[1] * column / grid[1]))
        for row, column in places(grid)
    ]
    return sum(wave * token for wave, token in zip(waves, x, strict=True))


def log_amplitude(image, frequency):
    return float(np.mean(np.log(np.abs(fourier(image.x, image.grid, frequency)) + 1e-6)))


def distance_from_zero(frequency, grid):
    """Squared, in units of the Nyquist frequency, exact."""
    signed = [k - side if 2 * k > side else k for k, side in zip(frequency, grid, strict=True)]
    return sum(Fraction(2 * k, side) ** 2 for k, side in zip(signed, grid, strict=True))


def band(image, radius=Fraction(1, 2)):
    energy = {f: float(sum(abs(fourier(image.x, image.grid, f)) ** 2)) for f in places(image.grid)}
    return sum(e for f, e in energy.items() if distance_from_zero(f, image.grid) > radius**2) / sum(energy.values())


def spectrum(attention):
    """F A F^H with F the unitary DFT, of one head."""
    t = len(attention)
    f = np.array([[np.exp(-2j * math.pi * a * b / t) / math.sqrt(t) for b in range(t)] for a in range(t)])
    return f @ attention @ f.conj().T


def off_zero(attention):
    shares = []
    for head in attention:
        energy = np.abs(spectrum(head)) ** 2
        shares.append(energy[1:, 1:].sum() / energy.sum())  # neither the row nor the column of frequency 0
    return float(np.mean(shares))


def entropy(image):
    rows = [-sum(p * math.log(p) for p in row if p > 0) for head in image.attention for row in head]
    return sum(rows) / len(rows)


def attention_distance(image):
    where, terms = places(image.grid), []
    for head in patch_rows(image, image.attention):
        for i, a in enumerate(where):
            terms.append(sum(head[i, j] * image.patch_size * math.dist(a, b) for j, b in enumerate(where)))
    return sum(terms) / len(terms)


def cross_layer(image):
    columns = range(image.attention.shape[2])
    pairs = zip(image.attention, image.previous_attention, strict=True)
    return float(np.mean([cosine(now[:, t], before[:, t]) for now, before in pairs for t in columns]))


def class_cosines(image):
    return [cosine(image.class_token, token) for token in image.x]


def is_outlier(image):
    norms = [math.sqrt(squared(token)) for token in image.x]
    median = np.median(norms)
    deviation = 1.4826 * np.median([abs(norm - median) for norm in norms])
    return [norm > median + 5 * deviation for norm in norms]


def embedding_cosine(image, outlier):
    graph = neighbours(image.grid)
    values = []
    for i, long in enumerate(is_outlier(image)):
        if long == outlier:
            values.append(np.mean([cosine(image.embedding[i], image.embedding[j]) for j in graph[i]]))
    return float(np.mean(values))


def cka(x, y):
    x, y = hc(x), hc(y)
    return squared(y.T @ x) / math.sqrt(squared(x.T @ x) * squared(y.T @ y))


def mean_of_hc(image):
    return squared(np.ones((len(image.x), 1)) * (sum(image.x) / len(image.x)))


ORACLE = {
    ("pairwise cosine", "absolute, off-diagonal"): lambda image: np.mean(cosines(image.x)),
    ("pairwise cosine", "absolute, with diagonal"): lambda image: np.mean(cosines(image.x, diagonal=True)),
    ("pairwise cosine", "raw, with diagonal"): lambda image: np.mean(cosines(image.x, diagonal=True, change=raw)),
    ("pairwise cosine", "raw, off-diagonal"): lambda image: np.mean(cosines(image.x, change=raw)),
    ("pairwise cosine", "centred, absolute, off-diagonal"): lambda image: np.mean(cosines(hc(image.x))),
    ("pairwise cosine", "centred, raw, off-diagonal"): lambda image: np.mean(cosines(hc(image.x), change=raw)),
    ("positive cosine", "absolute, true label"): lambda image: np.mean(labelled(image, 1)),
    ("negative cosine", "absolute, true label"): lambda image: np.mean(labelled(image, 0)),
    ("cosine gap", "absolute, true label"): lambda image: np.mean(labelled(image, 1)) - np.mean(labelled(image, 0)),
    ("PTC loss", "absolute, true label"): ptc,
    ("MAD", "4-neighbour grid, sum"): lambda image: mad(image, neighbours(image.grid), mean=False),
    ("MAD", "4-neighbour grid, mean"): lambda image: mad(image, neighbours(image.grid), mean=True),
    ("MAD", "complete graph, sum"): lambda image: mad(image, complete(image), mean=False),
    ("MAD", "complete graph, mean"): lambda image: mad(image, complete(image), mean=True),
    ("Dirichlet energy", "4-neighbour grid"): lambda image: dirichlet(image, neighbours(image.grid)),
    ("Dirichlet energy", "4-neighbour grid, square root"): (
        lambda image: math.sqrt(dirichlet(image, neighbours(image.grid)))
    ),
    ("Dirichlet energy", "4-neighbour grid, over ||X||^2"): (
        lambda image: dirichlet(image, neighbours(image.grid)) / squared(image.x)
    ),
    ("Dirichlet energy", "complete graph"): lambda image: dirichlet(image, complete(image)),
    ("Dirichlet energy", "complete graph, over ||X||^2"): (
        lambda image: dirichlet(image, complete(image)) / squared(image.x)
    ),
    ("Dirichlet energy", "attention-weighted"): attention_energy,
    ("rank-1 residual", "Frobenius"): lambda image: math.sqrt(squared(hc(image.x)) / squared(image.x)),
    ("rank-1 residual", "1-inf norm"): lambda image: math.sqrt(composite(hc(image.x)) / composite(image.x)),
    ("rank-1 residual", "1-inf norm without square root"): lambda image: composite(hc(image.x)) / composite(image.x),
    ("effective rank", "sigma, not centred"): lambda image: exp_entropy(sigma(image.x)),
    ("effective rank", "sigma, centred"): lambda image: exp_entropy(sigma(hc(image.x))),
    ("effective rank", "sigma^2, not centred"): lambda image: exp_entropy(sigma(image.x) ** 2),
    ("effective rank", "sigma^2, centred"): lambda image: exp_entropy(sigma(hc(image.x)) ** 2),
    ("stable rank", "not centred"): lambda image: squared(image.x) / np.linalg.norm(image.x, 2) ** 2,
    ("participation ratio", "centred"): (
        lambda image: sum(sigma(hc(image.x)) ** 2) ** 2 / sum(sigma(hc(image.x)) ** 4)
    ),
    ("high-frequency ratio", "||HC|| / ||DC||"): lambda image: math.sqrt(squared(hc(image.x)) / mean_of_hc(image)),
    ("high-frequency ratio", "||HC||^2 / ||X||^2"): lambda image: squared(hc(image.x)) / squared(image.x),
    ("relative log amplitude", "at 1.0 pi"): (
        lambda image: log_amplitude(image, [side // 2 for side in image.grid]) - log_amplitude(image, (0, 0))
    ),
    ("relative log amplitude", "last bin of the shifted transform"): (
        lambda image: log_amplitude(image, [side - 1 - side // 2 for side in image.grid]) - log_amplitude(image, (0, 0))
    ),
    ("radial band energy", "beyond half the Nyquist frequency"): band,
    ("attention spectrum", "share off frequency 0, patches"): (
        lambda image: off_zero(patch_rows(image, image.attention))
    ),
    ("attention spectrum", "share off frequency 0, all tokens"): lambda image: off_zero(image.attention),
    ("feature-map variance", "unbiased"): (
        lambda image: np.mean([np.var(channel, ddof=1) for channel in image.x.T])
    ),
    ("attention entropy", "nats"): entropy,
    ("attention entropy", "over log T"): lambda image: entropy(image) / math.log(image.attention.shape[2]),
    ("mean attention distance", "pixels"): attention_distance,
    ("cross-layer attention similarity", "columns, block before"): cross_layer,
    ("class-patch cosine", "mean"): lambda image: np.mean(class_cosines(image)),
    ("class-patch cosine", "standard deviation"): lambda image: np.std(class_cosines(image)),
    ("token-norm outliers", "share above median + 5 deviations, per image"): lambda image: np.mean(is_outlier(image)),
    ("neighbour similarity of outliers", "high-norm tokens"): lambda image: embedding_cosine(image, True),
    ("neighbour similarity of outliers", "normal tokens"): lambda image: embedding_cosine(image, False),
    ("neighbour similarity of outliers", "high minus normal"): (
        lambda image: embedding_cosine(image, True) - embedding_cosine(image, False)
    ),
    ("CKA", "block before"): lambda image: cka(image.x, image.previous_tokens),
}  # fmt: skip


VIEWS = {"D < N, 3 x 4": ((3, 4), 5), "D > N, 3 x 4": ((3, 4), 17), "6 x 3": ((6, 3), 7), "1 x 7": ((1, 7), 5)}


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


# --- identities ---------------------------------------------------------------------------------------


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
    free = {  # depend on the class token, the embedding, or the number of pairs
        ("PTC loss", "absolute, true label"), ("class-patch cosine", "mean"),
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


def test_equal_tokens_scaled_and_of_other_sign_stay_in_range():
    constant = torch.randn(1, 7, 1, 1).expand(1, 7, 3, 3)
    assert token_similarity(constant).item() == pytest.approx(1, abs=1e-6)
    assert token_similarity(-constant).item() <= 1


def test_noise_of_rounding_is_no_spread():
    token = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0))
    noisy = token * (1 + 1e-8 * torch.randn(1, 9, 64, dtype=torch.float64))
    wide = token * (1 + 1e-5 * torch.randn(1, 9, 64, dtype=torch.float64))
    assert not TokenView(noisy, (3, 3)).has_spread.item() and TokenView(wide, (3, 3)).has_spread.item()


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


def test_values_per_head():
    view = make_view((3, 4), 5)
    mixed = view.attention.clone()
    mixed[:, 1] = torch.eye(14)
    mixed = make_view((3, 4), 5, attention=mixed)
    for name in ("attention_entropy", "attention_distance"):
        both, one = getattr(view, name), getattr(mixed, name)
        assert both.shape == (2, HEADS)
        assert torch.equal(both[:, 0], one[:, 0]) and not one[:, 1].any() and both[:, 1].all()


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


def test_class_cosine_map_is_row_major():
    view = make_view((3, 4), 5)
    assert view.class_cosine.shape == (2, 3, 4)
    assert view.class_cosine[1, 2, 1].item() == pytest.approx(class_cosines(image_of(view, 1))[2 * 4 + 1])


def test_norm_cut_and_share_above_a_given_one():
    norms = torch.tensor([[1.0, 2, 3, 4, 100], [5, 5, 5, 5, 5]])
    assert norm_cut(norms).tolist() == pytest.approx([3 + 5 * 1.4826, 5])
    assert norm_cut(norms[0], deviations=2).item() == pytest.approx(3 + 2 * 1.4826)
    tokens = torch.zeros(1, 4, 2)
    tokens[0, :, 0] = torch.tensor([1.0, 149, 151, -500])
    assert outlier_share(TokenView(tokens, (2, 2)), 150).item() == 0.5


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


# --- PTC and pairs ------------------------------------------------------------------------------------


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


def test_majority_label():
    mask = torch.zeros(1, 5, 4, dtype=torch.long)
    mask[0, :2, 2:] = torch.tensor([[3, 3], [3, 255]])
    mask[0, 2:4, :2] = torch.tensor([[255, 255], [255, 1]])
    mask[0, 2:4, 2:] = torch.tensor([[7, 7], [2, 2]])  # a tie
    mask[0, 4] = 9  # fills no patch
    assert majority_label(mask, 2).tolist() == [[[0, 3], [255, 2]]]


# --- degenerate tokens --------------------------------------------------------------------------------


def test_zero_tokens_have_cosine_zero():
    tokens = torch.ones(1, 3, 1, 3)
    tokens[..., 0] = 0  # 3 pairs, one of them of cosine 1
    assert token_similarity(tokens).item() == pytest.approx(1 / 3)
    view = make_view((3, 4), 5)
    with_zero = view.tokens.clone()
    with_zero[:, 5] = 0
    result = measure(make_view((3, 4), 5, tokens=with_zero, embedding=with_zero, previous_tokens=with_zero))
    assert not [key for key, values in result.items() if not values.isfinite().all()]


def test_tokens_much_shorter_than_the_mean_keep_their_direction():
    torch.manual_seed(0)
    tokens = torch.randn(1, 12, 5) + 2
    tokens[:, ::2] *= 1e-8
    unit = torch.nn.functional.normalize(tokens.double(), dim=2, eps=0)
    torch.testing.assert_close(TokenView(tokens, (3, 4)).cosine, unit @ unit.mT, rtol=0, atol=1e-12)


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


# --- RankMe -------------------------------------------------------------------------------------------


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


# --- the list and its door ----------------------------------------------------------------------------


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

    monkeypatch.setattr(spectra, "_tridiagonal", counted(spectra._tridiagonal))
    monkeypatch.setattr(torch.fft, "rfft2", counted(torch.fft.rfft2))
    view = make_view((3, 4), 5)
    for _ in range(2):
        measure(view)
    assert sorted(name.rpartition("_")[2] for name in calls) == ["rfft2", "tridiagonal", "tridiagonal"]  # two images


def test_metric_table():
    table = metric_table()
    assert table.columns.tolist() == "row metric variant needs limit sees source".split()
    assert list(zip(table["metric"], table["variant"], strict=True)) == list(METRICS)
    rows = [int(row.rstrip("abcde")) for row in table["row"]]
    assert rows == sorted(rows)
    assert set(table["row"]) == {*"1a 1b 1c 1d 1e".split(), *map(str, [*range(2, 10), *range(11, 23)])}
    assert table.drop(columns="needs").map(lambda text: bool(text.strip())).all(axis=None)
    assert set(", ".join(filter(None, table["needs"])).split(", ")) <= {*TokenView.__dataclass_fields__}
