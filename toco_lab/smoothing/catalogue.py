"""The list of over-smoothing metrics: name and variant, formula, source, what each needs and what it sees.

A metric is a function of a `TokenView` that gives one number per image. `METRICS` has all of them by (metric, variant),
because one name stands for several formulas in the literature.

No metric is the one right measure. A direction that all tokens share raises the pairwise cosine, whatever else they
hold (look at the centred one). A few tokens of large norm decide every norm and rank (look at the outliers). The number
of tokens enters many formulas (keep the input size fixed).
"""

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from toco_lab.smoothing.arithmetic import mean_where, off_diagonal_mean, ratio
from toco_lab.smoothing.formulas import (
    attention_energy,
    effective_rank,
    inner_minus_border,
    log_amplitude_at_last_bin,
    outlier_neighbour_excess,
    participation_ratio,
    ptc,
    radial_band_energy,
    relative_log_amplitude,
    spectral_share,
    where_spread,
)
from toco_lab.smoothing.outliers import OUTLIER_DEVIATIONS
from toco_lab.smoothing.token_view import TokenView
from toco_lab.vocabulary import (
    ALL_TOKENS,
    CLASS_AND_PATCH_TOKENS,
    MEAN_ABSOLUTE_COSINE,
    NEGATIVE_COSINE,
    PATCH_TOKENS,
    POSITIVE_COSINE,
)

MetricKey = tuple[str, str]  # (metric, variant)


@dataclass(frozen=True)
class Metric:
    """A formula with its explanation.

    Attributes:
        function: View -> (B,) float64; NaN where the formula has no value.
        row: Number in our list of the literature's metrics; letters tell variants apart.
        limit: What the value tends to when the tokens become alike.
        source: Paper or code that the formula comes from.
        sees: What this metric shows that others do not, or how it misleads.
        needs: Fields of `TokenView` that the formula reads beyond tokens and grid.
        token_set: Which tokens the value is about.
    """

    function: Callable[[TokenView], Tensor]
    row: str
    limit: str
    source: str
    sees: str
    needs: tuple[str, ...] = ()
    token_set: str = PATCH_TOKENS


# sources
_DIVERSE = "Gong et al. 2021, arXiv 2104.12753"
_SURVEY = "Rusch et al. 2023, arXiv 2303.10993"
_TOCO = "Ru et al., CVPR 2023 (ToCo)"
_RANK_ONE = "Dong et al. 2021, arXiv 2103.03404"
_ROY = "Roy and Vetterli 2007"
_WANG = "Wang et al. 2022, arXiv 2203.05962"
_PARK = "Park and Kim 2022, arXiv 2202.06709"
_REGISTERS = "Darcet et al. 2024, arXiv 2309.16588"
_DINOV3 = "DINOv3, Simeoni et al. 2025, arXiv 2508.10104"
_BORDER = "derived; the border as background: Wei et al., ECCV 2012"
_ENTROPY = "Zhai et al. 2023, arXiv 2303.06296"

METRICS: dict[MetricKey, Metric] = {  # (metric, variant); a new metric is one more entry
    MEAN_ABSOLUTE_COSINE: Metric(
        lambda view: off_diagonal_mean(view.absolute_cosine), "1a", "1", _DIVERSE,
        "The usual curve; one direction that all tokens share raises it, whatever else they hold.",
    ),
    ("pairwise cosine", "absolute, with diagonal"): Metric(
        lambda view: view.absolute_cosine.mean((1, 2)), "1b", "1", "code of " + _WANG,
        "((N - 1) 1a + 1) / N: the same curve, lifted by 1/N, so small images look smoother.",
    ),
    ("pairwise cosine", "raw, with diagonal"): Metric(
        lambda view: view.cosine.mean((1, 2)), "1c", "1", "code of Chen et al. 2022, arXiv 2203.06345",
        "Squared length of the mean unit token: opposite tokens cancel, so it is 0 where they balance.",
    ),
    ("pairwise cosine", "raw, off-diagonal"): Metric(
        lambda view: view.mean_cosine, "1d", "1", "Evo-ViT, arXiv 2108.01390, issue 4",
        "Tells tokens that point the same way from opposite ones, which 1a counts as alike.",
    ),
    ("pairwise cosine", "centred, absolute, off-diagonal"): Metric(
        lambda view: where_spread(view, off_diagonal_mean(view.centred_cosine.abs())), "1e",
        "nothing fixed (NaN for equal tokens)", "derived from 1a",
        "What is left of 1a without the common direction: high only if the differences lie on one line.",
    ),
    ("pairwise cosine", "centred, raw, off-diagonal"): Metric(
        lambda view: where_spread(view, off_diagonal_mean(view.centred_cosine)), "1e",
        "nothing fixed (NaN for equal tokens)", "derived from 1d",
        "Near 0 by construction, as centred tokens sum to 0; it moves only where their lengths differ much.",
    ),
    POSITIVE_COSINE: Metric(
        lambda view: view.pairs.mean.positive, "2", "1", _TOCO,
        "How alike tokens of one class are; high is good, but it is high in a smooth layer as well.", ("label",),
    ),
    NEGATIVE_COSINE: Metric(
        lambda view: view.pairs.mean.negative, "2", "1", _TOCO,
        "How alike tokens of different classes are: the part of over-smoothing that costs segmentation.", ("label",),
    ),
    ("cosine gap", "absolute, true label"): Metric(
        lambda view: view.pairs.mean.gap, "2", "0", _TOCO,
        "Positive minus negative: whether similarity follows the classes; 0 for equal and for orthogonal tokens.",
        ("label",),
    ),
    ("PTC loss", "absolute, true label"): Metric(
        ptc, "3", "0.5", _TOCO,
        "What ToCo minimises, here image by image and by true labels; about 0.5 for equal and for orthogonal tokens.",
        ("label",),
    ),
    ("MAD", "4-neighbour grid, sum"): Metric(
        lambda view: ((1 - view.neighbour_cosine) * view.num_neighbours).mean(1), "4", "0", _SURVEY,
        "Angles between next tokens only; a sum, so inner tokens count twice as much as corners.",
    ),
    ("MAD", "4-neighbour grid, mean"): Metric(
        lambda view: (1 - view.neighbour_cosine).mean(1), "4", "0", _SURVEY,
        "Sees smoothing within objects that the mean over all pairs hides behind the differences between objects.",
    ),
    ("MAD", "complete graph, sum"): Metric(
        lambda view: (1 - view.mean_cosine) * (view.x.shape[1] - 1), "4", "0", _SURVEY,
        "(N - 1) (1 - 1d): grows with the number of tokens, so it compares only at one input size.",
    ),
    ("MAD", "complete graph, mean"): Metric(
        lambda view: 1 - view.mean_cosine, "4", "0", _SURVEY,
        "1 - 1d: nothing new, in the form in which papers on graph networks report it.",
    ),
    ("Dirichlet energy", "4-neighbour grid"): Metric(
        lambda view: view.grid_energy, "5", "0", _SURVEY,
        "Differences of next tokens with their lengths: it grows when only the tokens grow, as they do with depth.",
    ),
    ("Dirichlet energy", "4-neighbour grid, square root"): Metric(
        lambda view: view.grid_energy.sqrt(), "5", "0", _SURVEY,
        "In the unit of the tokens; the survey's measure, for which exponential decay is called over-smoothing.",
    ),
    ("Dirichlet energy", "4-neighbour grid, over ||X||^2"): Metric(
        lambda view: ratio(view.grid_energy, view.energy), "5", "0", _SURVEY,
        "Scale-free, so layers compare; a few tokens of large norm can rule both parts of the quotient.",
    ),
    ("Dirichlet energy", "complete graph"): Metric(
        lambda view: 2 * view.centred_energy, "5", "0", _SURVEY,
        "2 ||HC||^2: on the complete graph it is the variance of the tokens, and knows no places.",
    ),
    ("Dirichlet energy", "complete graph, over ||X||^2"): Metric(
        lambda view: ratio(2 * view.centred_energy, view.energy), "5", "0", _SURVEY,
        "Twice the second variant of 11.",
    ),
    ("Dirichlet energy", "attention-weighted"): Metric(
        attention_energy, "5", "0", "after " + _SURVEY,
        "Differences along the edges that the layer itself mixes; patches only, rows of A divided by their sum.",
        ("attention",),
    ),
    ("rank-1 residual", "Frobenius"): Metric(
        lambda view: ratio(view.centred_energy, view.energy).sqrt(), "6", "0", _RANK_ONE,
        "How far X is from equal rows, as a share of its length; the square root of the second variant of 11.",
    ),
    ("rank-1 residual", "1-inf norm"): Metric(
        lambda view: view.composite_ratio.sqrt(), "6", "0", _RANK_ONE,
        "The norm of the proof of rank collapse; largest sums, so one token or one channel decides. x* is the mean.",
    ),
    ("rank-1 residual", "1-inf norm without square root"): Metric(
        lambda view: view.composite_ratio, "6", "0", "code of " + _RANK_ONE,
        "The square of the variant before, as the authors' code has it: on a log scale it falls twice as fast.",
    ),
    ("effective rank", "sigma, not centred"): Metric(
        lambda view: effective_rank(view.singular_values), "7", "1", _ROY,
        "How many directions carry the tokens; a strong mean token alone pulls it down.",
    ),
    ("effective rank", "sigma, centred"): Metric(
        lambda view: effective_rank(view.centred_singular_values), "7", "nothing fixed (NaN for equal tokens)", _ROY,
        "How many directions carry the differences; can be high in a layer that 1a calls smooth.",
    ),
    ("effective rank", "sigma^2, not centred"): Metric(
        lambda view: effective_rank(view.singular_values.square()), "7", "1", "after " + _ROY,
        "Weights by energy: smaller than with sigma, and blind to the tail of the spectrum.",
    ),
    ("effective rank", "sigma^2, centred"): Metric(
        lambda view: effective_rank(view.centred_singular_values.square()), "7",
        "nothing fixed (NaN for equal tokens)", "after " + _ROY,
        "Directions of the differences by energy: near 1 in layers where a few outlier tokens rule.",
    ),
    ("stable rank", "not centred"): Metric(
        lambda view: ratio(view.energy, view.singular_values[:, 0].square()), "8", "1", "Rudelson and Vershynin 2007",
        "Only compares the strongest direction with all: moves early, then says no more.",
    ),
    ("participation ratio", "centred"): Metric(
        lambda view: participation_ratio(view.centred_singular_values.square()), "9",
        "nothing fixed (NaN for equal tokens)", "Gao et al. 2017",
        "Directions of the differences, squared weights: more robust to noise in the tail than 7.",
    ),
    ("high-frequency ratio", "||HC|| / ||DC||"): Metric(
        lambda view: ratio(view.centred_energy, view.x.shape[1] * view.mean.square().sum(1)).sqrt(), "11", "0", _WANG,
        "Everything but the mean token counts as high frequency, smooth gradients too: see 12 and 13.",
    ),
    ("high-frequency ratio", "||HC||^2 / ||X||^2"): Metric(
        lambda view: ratio(view.centred_energy, view.energy), "11", "0", _WANG,
        "The same as a share in [0, 1]; with the share of the mean token it sums to 1.",
    ),
    ("relative log amplitude", "at 1.0 pi"): Metric(
        lambda view: relative_log_amplitude(view)[:, -1], "12", "very negative (the floor 1e-6 ends it)", _PARK,
        "Neighbour-to-neighbour change against the mean token; a mean of logarithms, so silent channels count fully.",
    ),
    ("relative log amplitude", "last bin of the shifted transform"): Metric(
        log_amplitude_at_last_bin, "12", "very negative (the floor 1e-6 ends it)", "notebook of " + _PARK,
        "As published: for an even grid one step below 1.0 pi, for an odd one the same as the variant before.",
    ),
    ("radial band energy", "beyond half the Nyquist frequency"): Metric(
        radial_band_energy, "13", "0", "derived from 12",
        "Tells fine structure from slow gradients, which 11 does not; channels of large amplitude rule.",
    ),
    ("attention spectrum", "share off frequency 0, patches"): Metric(
        lambda view: spectral_share(view.patch_attention).mean(1), "14", "0", _WANG,
        "What one layer of attention lets through beside the mean, before the residual path adds to it.",
        ("attention",),
    ),
    ("attention spectrum", "share off frequency 0, all tokens"): Metric(
        lambda view: spectral_share(view.need("attention")).mean(1), "14", "0", _WANG,
        "As published: with the class token, to which places and frequencies mean nothing.", ("attention",), ALL_TOKENS,
    ),
    ("feature-map variance", "unbiased"): Metric(
        lambda view: ratio(view.centred_energy, view.energy.new_tensor(view.x.shape[1] - 1)) / view.x.shape[2],
        "15", "0", _PARK,
        "Attention lowers it and MLPs raise it, so it saws from block to block; it grows with the scale of the tokens.",
    ),
    ("attention entropy", "nats"): Metric(
        lambda view: view.attention_entropy.mean(1), "16", "log T (equal tokens get uniform attention)", _ENTROPY,
        "High where attention averages widely, low where it collapses on few tokens; heads differ: see each.",
        ("attention",), ALL_TOKENS,
    ),
    ("attention entropy", "over log T"): Metric(
        lambda view: view.attention_entropy.mean(1) / (math.log(view.need("attention").shape[3]) or math.nan), "16",
        "1 (equal tokens get uniform attention)", _ENTROPY,
        "In [0, 1], so input sizes compare: 1 is uniform attention.", ("attention",), ALL_TOKENS,
    ),
    ("mean attention distance", "pixels"): Metric(
        lambda view: view.attention_distance.mean(1), "17", "the distance of uniform attention",
        "Dosovitskiy et al. 2021, arXiv 2010.11929, appendix D.7",
        "How local a layer is; attention on one far artifact counts as global, as uniform attention does.",
        ("attention", "patch_size"),
    ),
    ("cross-layer attention similarity", "columns, block before"): Metric(
        lambda view: view.attention_similarity.mean((1, 2)).double(), "18", "1",
        "Zhou et al. 2021, arXiv 2103.11886 (DeepViT)",
        "Whether a block attends as the one before: attention collapse, which may come without equal tokens.",
        ("attention", "previous_attention"), ALL_TOKENS,
    ),
    ("class-patch cosine", "mean"): Metric(
        lambda view: view.class_cosine.mean((1, 2)), "19", "nothing fixed", "idea in the code of " + _TOCO,
        "Whether the class token has become one of the patches; says nothing of the patches among themselves.",
        ("class_token",), CLASS_AND_PATCH_TOKENS,
    ),
    ("class-patch cosine", "standard deviation"): Metric(
        lambda view: view.class_cosine.flatten(1).std(1, correction=0), "19", "0", "idea in the code of " + _TOCO,
        "Whether the class token still tells places apart; look at the map as well.",
        ("class_token",), CLASS_AND_PATCH_TOKENS,
    ),
    ("token-norm outliers", f"share above median + {OUTLIER_DEVIATIONS:g} deviations, per image"): Metric(
        lambda view: view.high_norm.double().mean(1), "20", "nothing fixed", "after " + _REGISTERS,
        "Artifact tokens that rule cosines and ranks; a flat image puts its cut too low: compare `outlier_share`.",
    ),
    ("neighbour similarity of outliers", "high-norm tokens"): Metric(
        lambda view: mean_where(view.embedding_cosine, view.high_norm), "21", "nothing fixed", _REGISTERS,
        "How redundant the patches are that became outliers; NaN in an image without one.", ("embedding",),
    ),
    ("neighbour similarity of outliers", "normal tokens"): Metric(
        lambda view: mean_where(view.embedding_cosine, ~view.high_norm), "21", "nothing fixed", _REGISTERS,
        "The level to compare with: neighbours look alike in the input already.", ("embedding",),
    ),
    ("neighbour similarity of outliers", "high minus normal"): Metric(
        outlier_neighbour_excess, "21", "nothing fixed", _REGISTERS,
        "Positive where outliers arise on redundant background, as in the paper.", ("embedding",),
    ),
    ("CKA", "block before"): Metric(
        lambda view: (view.unit_gram * view.previous_unit_gram).sum(1).clamp(0, 1), "22",
        "nothing fixed (NaN for equal tokens)", "Kornblith et al. 2019, arXiv 1905.00414",
        "Whether a block changes the pattern of its tokens at all; near 1 with and without over-smoothing.",
        ("previous_tokens",),
    ),
    ("Gram distance", "block before"): Metric(
        lambda view: (view.cosine - view.previous_cosine).square().mean((1, 2)), "23",
        "the mean squared 1 - cosine before", "after the Gram objective of " + _DINOV3,
        "How much a block changes which places are alike; unlike 22 it sees a direction that all tokens come to share.",
        ("previous_tokens",),
    ),
    ("cosine to the mean border token", "mean over inner tokens"): Metric(
        lambda view: view.border_cosine[:, view.inner].mean(1), "24", "1", _BORDER,
        "How much the inside of an image, where objects are as a rule, looks like its border; NaN without an inside.",
    ),
    ("cosine to the mean border token", "inner minus border"): Metric(
        inner_minus_border, "24", "0", _BORDER,
        "Negative where inside and border can be told apart; needs objects in the middle, as photographs have.",
    ),
}  # fmt: skip


@torch.no_grad()
def measure(view: TokenView, metrics: Iterable[MetricKey] | None = None) -> dict[MetricKey, Tensor]:
    """Compute metrics on one layer.

    Args:
        view: Tokens of the layer, and the other fields that the metrics need.
        metrics: Keys of `METRICS`; None takes every metric whose needs the view meets.

    Returns:
        (metric, variant) -> (B,) float64, in the order of `metrics`.

    Raises:
        ValueError: For a key that is not in `METRICS`, or whose needs the view does not meet.
    """
    keys = measurable(METRICS, view) if metrics is None else list(metrics)
    for key in keys:
        if key not in METRICS:
            known = {" / ".join(one): one for one in METRICS}
            name = key if isinstance(key, str) else " / ".join(map(str, key))
            near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
            raise ValueError(f"no metric {key!r}, did you mean {known[near]!r}? metric_table() lists all")
        if missing := _missing(key, view):
            raise ValueError(f"metric {key!r} needs {', '.join(missing)}: give them to TokenView")
    return {key: METRICS[key].function(view) for key in keys}


def measurable(keys: Iterable[MetricKey], view: TokenView) -> list[MetricKey]:
    """Those of the keys whose needs a view meets."""
    return [key for key in keys if not _missing(key, view)]


def _missing(key: MetricKey, view: TokenView) -> list[str]:
    """What a metric needs and the view does not have."""
    return [name for name in METRICS[key].needs if getattr(view, name) is None]


def metric_table() -> pd.DataFrame:
    """`METRICS` as a table: row, metric, variant, needs, limit, sees, source."""
    return pd.DataFrame(
        [
            (one.row, metric, variant, ", ".join(one.needs), one.limit, one.sees, one.source)
            for (metric, variant), one in METRICS.items()
        ],
        columns="row metric variant needs limit sees source".split(),
    )
