"""Views for tests of over-smoothing metrics, and every metric in loops: one image at a time, a loop for each sum."""

import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import torch

from toco_lab.smoothing.catalogue import measure
from toco_lab.smoothing.token_view import TokenView

HEADS, PREFIX, PATCH = 2, 2, 16


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


def gram(x, y):
    pairs = [(i, j) for i in range(len(x)) for j in range(len(x))]
    return sum((cosine(x[i], x[j]) - cosine(y[i], y[j])) ** 2 for i, j in pairs) / len(pairs)


def border_cosines(image):
    """Cosines of the inner tokens, and of those at the border, with the mean of the latter; nan for none inside."""
    last = image.grid[0] - 1, image.grid[1] - 1
    outer = [row in (0, last[0]) or column in (0, last[1]) for row, column in places(image.grid)]
    border = sum(token for token, out in zip(image.x, outer, strict=True) if out) / sum(outer)
    found = {side: [cosine(token, border) for token, out in zip(image.x, outer, strict=True) if out == side]
             for side in (False, True)}  # fmt: skip
    return found[False] or [math.nan], found[True]


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
    ("Gram distance", "block before"): lambda image: gram(image.x, image.previous_tokens),
    ("cosine to the mean border token", "mean over inner tokens"): lambda image: np.mean(border_cosines(image)[0]),
    ("cosine to the mean border token", "inner minus border"): (
        lambda image: np.mean(border_cosines(image)[0]) - np.mean(border_cosines(image)[1])
    ),
}  # fmt: skip


VIEWS = {"D < N, 3 x 4": ((3, 4), 5), "D > N, 3 x 4": ((3, 4), 17), "6 x 3": ((6, 3), 7), "1 x 7": ((1, 7), 5)}


@torch.no_grad()
def tokens_by_hand(vit, image):
    """Tokens (1, 1 + N, D) at every (site, layer) of a timm ViT, from the definition of a block."""
    """Tokens (1, 17, 24) at every site, from the definition of a block."""
    vit.eval()
    sites = {}
    tokens = sites["patch embedding", 0] = vit.norm_pre(vit._pos_embed(vit.patch_embed(image[None])))
    for layer, block in enumerate(vit.blocks, start=1):
        tokens = sites["after attention", layer] = tokens + block.attn(block.norm1(tokens))
        tokens = sites["after block", layer] = tokens + block.mlp(block.norm2(tokens))
    sites["final norm", 3] = vit.norm(tokens)
    return sites
