"""Over-smoothing of a model, layer by layer: the metrics of `catalogue` for every image, as one tidy table.

Every row says what it measures: model, weights, site (where in the network), norm, token set, metric and variant.
Curves can only be compared if these are known. Whether depth raises similarity depends on the weights: compare trained
weights with initial and random ones, and keep the input size fixed across the runs of one figure.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass

import pandas as pd
from torch import Tensor, nn

from toco_lab.backbones.kinds import any_encoder_of, final_norm, is_plain_vit
from toco_lab.backbones.pixels import check_normalised
from toco_lab.progress import progress_bar
from toco_lab.smoothing.catalogue import METRICS, MetricKey
from toco_lab.smoothing.formulas import RankMe
from toco_lab.smoothing.layers import DEFAULT_SITES, Layer, layers_of
from toco_lab.smoothing.stack import LayerValues, measure_layers
from toco_lab.vocabulary import (
    AFTER_ATTENTION,
    AFTER_BLOCK,
    ALL_IMAGES,
    ALL_TOKENS,
    ATTENTION,
    EMBEDDING,
    FINAL_NORM,
    MEAN_ABSOLUTE_COSINE,
    NEGATIVE_COSINE,
    PATCH_TOKENS,
    POSITIVE_COSINE,
    SITES,
)

OF_ATTENTION = ("14", "16", "17", "18")  # rows of the list of metrics that read attention maps and no tokens
RANK_ME = ("RankMe", "tokens of all images pooled")
PAIR_COSINES = (MEAN_ABSOLUTE_COSINE[0], POSITIVE_COSINE[0], NEGATIVE_COSINE[0])  # measured after every training
COLUMNS = "model weights site norm token_set tokens layer image metric variant value".split()


@dataclass(frozen=True)
class Sample:
    """An image (3, H, W), normalised, its pixel labels (H, W) if it has some, and its name in the table."""

    image: Tensor
    label: Tensor | None
    name: str


def smoothing_per_layer(
    model: nn.Module,
    images: Iterable[Tensor],
    labels: Iterable[Tensor | None] | None = None,
    *,
    name: str,
    weights: str = "",
    metrics: Sequence[str] | None = None,
    sites: Sequence[str] = DEFAULT_SITES,
    image_names: Iterable[str] | None = None,
    total: int | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Over-smoothing metrics at every layer, from one encoder pass per image; one image is held at a time.

    Args:
        model: A timm ViT or DeiT, with or without register or distillation tokens, a Swin, ResNet, ConvNeXt or another
            model in stages that `backbones.kinds` can read, or anything that carries one as `.encoder` (ToCo). A ViT
            takes images of other than its native size only if it was made with `dynamic_img_size=True`. In a model in
            stages each block has its own grid, and most metrics depend on the number of tokens: compare blocks of one
            stage, or models layer by layer.
        images: Normalised images, (3, H, W) each; a (B, 3, H, W) tensor will do. Sizes may differ.
        labels: Pixel labels of each image, (H, W) integers with `IGNORE_INDEX`, or None; without labels, metrics that
            need them are left out.
        name: Name of the model in the table.
        weights: Which weights it carries (pretrained, random, a step of training ...).
        metrics: Names (not variants) among `metric_names()`; None takes all.
        sites: Among `SITES`. Sites that the model does not have are left out: a model that pools first, or a ResNet,
            has no final norm; a model in stages has no patch embedding and no attention between all tokens.
        image_names: Value of the column `image`; numbers from 0 by default.
        total: Number of images, for the progress bar, where `images` does not know it.
        progress: Show a progress bar.

    Returns:
        Tidy table with columns model, weights, site, norm, token_set, tokens (N), layer (0 the embedding, 1..L the
        blocks; the final norm has that of the last block), image, metric, variant, value. A value that is not defined
        has no row: the cosine of negative pairs in an image of one class, for example.

    Warns:
        UserWarning: If an image looks as if it were not normalised, or the table has no row.

    Raises:
        ValueError: For no images; for an image that is not of floats or holds NaN; for a model that gives NaN;
            for an unknown site or metric; a metric that the sites or the model cannot provide; a model that
            `backbones.kinds` cannot read; an image smaller than one patch; labels or names that differ in number from
            the images, or labels that differ in size.
    """
    if total is None and isinstance(images, Sized):
        total = len(images)
    samples = _samples(images, labels, image_names)
    wanted = what_is_asked(any_encoder_of(model), metrics, sites)
    shown = progress_bar(samples, f"smoothing {name}", total, shown=progress)
    return measured_table(model, shown, wanted, name, weights)


def metric_names() -> list[str]:
    """Names of all metrics, in the order of `METRICS`; RankMe comes last."""
    return [*dict.fromkeys(name for name, _ in METRICS), RANK_ME[0]]


# --- what is asked for ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What to measure: metrics, RankMe or not, sites that the encoder has, and whether attention maps are needed."""

    keys: list[MetricKey]
    rank_me: bool
    sites: list[str]
    attention: bool


def what_is_asked(encoder: nn.Module, metrics: Sequence[str] | None, sites: Sequence[str]) -> Asked:
    """Check names of metrics and sites; ValueError for one that is unknown or that the encoder cannot provide."""
    unknown = [name for name in metrics or () if name not in metric_names()]
    if unknown:
        raise ValueError(f"unknown metric {', '.join(map(str, unknown))}; there are: {', '.join(metric_names())}")
    there = _sites_of(encoder, sites)
    for name in metrics or ():
        if name == RANK_ME[0]:
            continue
        needs = [metric.needs for (metric_name, _), metric in METRICS.items() if metric_name == name]
        if not is_plain_vit(encoder) and all("attention" in need for need in needs):
            raise ValueError(f"{name!r} is about attention between all tokens: {type(encoder).__name__} has none")
        if AFTER_BLOCK not in there and all({"attention", "previous_tokens"} & set(need) for need in needs):
            raise ValueError(f"{name!r} is about a block: add the site {AFTER_BLOCK!r}")
    keys = [key for key in METRICS if metrics is None or key[0] in metrics]
    attention = AFTER_BLOCK in there and any("attention" in METRICS[key].needs for key in keys)
    return Asked(keys, metrics is None or RANK_ME[0] in metrics, there, attention and is_plain_vit(encoder))


def _sites_of(encoder: nn.Module, sites: Sequence[str]) -> list[str]:
    """Those of the sites that the encoder has; ValueError for an unknown site, or if none is left."""
    if not sites or set(sites) - set(SITES):
        raise ValueError(f"sites must be some of {', '.join(SITES)}, got {tuple(sites)}")
    absent = set() if is_plain_vit(encoder) else {EMBEDDING, AFTER_ATTENTION}
    if final_norm(encoder) is None:
        absent.add(FINAL_NORM)  # it would repeat the last block
    there = [site for site in sites if site not in absent]
    if not there:
        what = "norm at the end of its stream" if FINAL_NORM in sites else f"site {' or '.join(sites)}"
        raise ValueError(f"this model has no {what}: take the site {AFTER_BLOCK!r}")
    return there


# --- images -----------------------------------------------------------------------------------------------------------


def _samples(
    images: Iterable[Tensor], labels: Iterable[Tensor | None] | None, names: Iterable[str] | None
) -> Iterator[Sample]:
    """Images with their labels and names, read in step; without names they are numbered from 0."""
    named: Iterable[tuple[object, Tensor]] = enumerate(images) if names is None else zip(names, images, strict=True)
    if labels is None:
        return (Sample(image, None, str(name)) for name, image in named)
    return (Sample(image, label, str(name)) for (name, image), label in zip(named, labels, strict=True))


# --- the table --------------------------------------------------------------------------------------------------------


def measured_table(model: nn.Module, samples: Iterable[Sample], wanted: Asked, name: str, weights: str) -> pd.DataFrame:
    """Measure every layer of every image; RankMe pools the tokens of each layer over the images."""
    encoder = any_encoder_of(model)
    device = next(encoder.parameters()).device
    rows: list[tuple] = []
    pools: dict[tuple[str, str, int], RankMe] = {}
    count = 0
    for sample in samples:
        label = None if sample.label is None else sample.label[None].to(device)
        check_normalised(sample.image, f"image {sample.name!r}")
        image = sample.image[None].to(device)
        layers = list(layers_of(encoder, image, label, sites=wanted.sites, attention=wanted.attention))
        _check_tokens(layers, sample.name, encoder)
        measured = measure_layers(layers, wanted.keys, with_moment=wanted.rank_me)
        for layer, result in zip(layers, measured, strict=True):
            rows += _rows(layer, result, sample.name)
            if result.moment is not None:
                pool = pools.setdefault((layer.site, layer.norm, layer.number), RankMe())
                pool.add(result.moment, layer.view.tokens.shape[1])
        count += 1
    if not count:
        raise ValueError("no images to measure")
    rows += [
        (site, norm, PATCH_TOKENS, pool.count, number, ALL_IMAGES, *RANK_ME, pool.compute())
        for (site, norm, number), pool in pools.items()
    ]
    frame = pd.DataFrame([(name, weights, *row) for row in rows], columns=COLUMNS)
    frame = frame.dropna(subset="value", ignore_index=True)
    if frame.empty:
        metrics = ", ".join(dict.fromkeys(metric for metric, _ in wanted.keys))
        warnings.warn(f"no row: {metrics} has no value for any image; metrics of pairs need labels", stacklevel=2)
    return frame


def _check_tokens(layers: Sequence[Layer], image: str, encoder: nn.Module) -> None:
    """ValueError if a layer gives NaN or infinite tokens: its metrics would have no row."""
    for layer in layers:
        if not layer.view.tokens.isfinite().all():
            raise ValueError(
                f"{type(encoder).__name__} gives NaN or infinite tokens for image {image!r}, {layer.site} "
                f"{layer.number}: look at its weights"
            )


def _rows(layer: Layer, result: LayerValues, image: str) -> Iterator[tuple]:
    """A row of the table for each metric of a layer, from the column `site` on."""
    num_patches = layer.view.tokens.shape[1]
    for key, value in result.values.items():
        metric = METRICS[key]
        site = ATTENTION if metric.row in OF_ATTENTION else layer.site
        tokens = num_patches + layer.view.num_prefix if metric.token_set == ALL_TOKENS else num_patches
        yield site, layer.norm, metric.token_set, tokens, layer.number, image, *key, value
