"""Over-smoothing of a model, layer by layer: the metrics of `token_metrics` for every image, as one tidy table.

Every row says what it measures: model, weights, site (where in the network), norm, token set, metric and variant.
Curves without these cannot be compared. Whether depth raises similarity depends on the weights: compare trained with
initial and random ones, and keep the input size fixed across the runs of one figure.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, tee
from operator import itemgetter
from typing import Any

import pandas as pd
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from toco_lab.backbones.activations import Activations, capture
from toco_lab.backbones.kinds import any_encoder_of, fill_patches, final_norm, is_plain_vit
from toco_lab.backbones.weights import weights_hash
from toco_lab.config import Config
from toco_lab.data.loader import EvalSample, eval_samples
from toco_lab.method.cam import at_evaluation_size
from toco_lab.method.model import ToCo
from toco_lab.runs.run_dir import RunDir
from toco_lab.smoothing.catalogue import METRICS, measure
from toco_lab.smoothing.formulas import RankMe, layer_cka
from toco_lab.smoothing.view import TokenView, majority_label, stack_layers
from toco_lab.training.checkpoints import load_run_model
from toco_lab.training.processes import resolve_device
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
    NO_NORM,
    PATCH_TOKENS,
    POSITIVE_COSINE,
    SITES,
)

DEFAULT_SITES = (AFTER_BLOCK, FINAL_NORM)
OF_ATTENTION = ("14", "16", "17", "18")  # rows of the literature's list that look at the attention maps alone
RANK_ME = ("RankMe", "tokens of all images pooled")
PAIR_COSINES = (
    MEAN_ABSOLUTE_COSINE[0],
    POSITIVE_COSINE[0],
    NEGATIVE_COSINE[0],
)  # what is measured after every training
STACK_NUMBERS = 2**19  # of the largest array of a stack of layers: more would leave the cache, less is many small calls
COLUMNS = "model weights site norm token_set tokens layer image metric variant value".split()


@dataclass(frozen=True)
class Layer:
    """Tokens at one place: site, class of the norm applied ("none" for the raw stream), layer 0..L, and the view."""

    site: str
    norm: str
    number: int
    view: TokenView


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
    """Over-smoothing metrics at every layer, one encoder pass per image; images stream through, one at a time.

    Args:
        model: A timm ViT or DeiT, with or without register or distillation tokens, a Swin, ResNet or ConvNeXt, or
            anything that carries one as `.encoder` (ToCo). Images that are not of its native size need
            `dynamic_img_size=True`. In a model in stages each block has its own grid, and the number of tokens in the
            table with it: most metrics depend on it, so compare blocks of one stage, or models layer by layer.
        images: Normalised images, (3, H, W) each; a (B, 3, H, W) tensor will do. Sizes may differ.
        labels: Pixel labels of each image, (H, W) integers with `IGNORE_INDEX`, or None; without them the metrics that
            need labels are left out.
        name: Name of the model in the table.
        weights: Which weights it carries (pretrained, random, a step of training ...).
        metrics: Names (not variants) among `metric_names()`; None takes all.
        sites: Among `SITES`. A model without a norm at the end of its stream (it pools first, or is a ResNet) has no
            final norm, one in stages neither patch embedding nor attention that all tokens share: they are left out.
        image_names: Value of the column `image`; numbers from 0 by default.
        total: Number of images, for the progress bar, where `images` does not know it.
        progress: Show a progress bar.

    Returns:
        Tidy table with columns model, weights, site, norm, token_set, tokens (N), layer (0 the embedding, 1..L the
        blocks; the final norm has that of the last block), image, metric, variant, value. A value that is not defined,
        as the cosine of negative pairs in an image of one class, has no row.

    Raises:
        ValueError: For an unknown site or metric, one that the sites or the model can not give, a model that is of no
            kind read here, an image smaller than one patch, or labels and names that are not as many, or as large, as
            the images.
    """
    encoder = any_encoder_of(model)
    keys, pool, sites = _wanted(encoder, metrics, sites)
    needed = AFTER_BLOCK in sites and any("attention" in METRICS[key].needs for key in keys)
    attention = needed and is_plain_vit(encoder)
    device, rank_me, rows = next(encoder.parameters()).device, {}, []
    given = {"image": images, "label": labels, "name": image_names}
    given = {key: values for key, values in given.items() if values is not None}
    total = len(images) if hasattr(images, "__len__") else total
    stream = zip(*given.values(), strict=True)
    for number, values in enumerate(tqdm(stream, f"smoothing {name}", total, disable=not progress)):
        one = {"label": None, "name": number} | dict(zip(given, values, strict=True))
        label = None if one["label"] is None else one["label"][None].to(device)
        layers = list(layers_of(encoder, one["image"][None].to(device), label, sites=sites, attention=attention))
        for layer, values in zip(layers, _measured(layers, keys, pool=pool), strict=True):
            place, count = (name, weights, layer.site, layer.norm), layer.view.tokens.shape[1]
            for key in _measurable(keys, layer.view):
                metric = METRICS[key]
                site = ATTENTION if metric.row in OF_ATTENTION else layer.site
                tokens = count + layer.view.num_prefix if metric.token_set == ALL_TOKENS else count
                about = (name, weights, site, layer.norm, metric.token_set, tokens, layer.number, str(one["name"]))
                rows.append((*about, *key, values[key]))
            if pool:
                rank_me.setdefault((*place, layer.number), RankMe()).add(values[RANK_ME], count)
    rows += [
        (*place, PATCH_TOKENS, pooled.count, number, ALL_IMAGES, *RANK_ME, pooled.compute())
        for (*place, number), pooled in rank_me.items()
    ]
    return pd.DataFrame(rows, columns=COLUMNS).dropna(subset="value", ignore_index=True)


def metric_names() -> list[str]:
    """Names of all metrics, in the order of `token_metrics.METRICS`."""
    return [*dict.fromkeys(name for name, _ in METRICS), RANK_ME[0]]


def layers_of(
    model: nn.Module,
    image: Tensor,
    label: Tensor | None = None,
    *,
    sites: Sequence[str] = DEFAULT_SITES,
    attention: bool = False,
) -> Iterator[Layer]:
    """The tokens of some images at every layer and site, from one pass.

    Args:
        model: See `smoothing_per_layer`.
        image: Normalised, (B, 3, H, W).
        label: Pixel labels, (B, H, W), or None; each token takes the majority of its pixels.
        sites: Among `SITES`.
        attention: Give the views after each block the attention of that block and of the one before.

    Yields:
        Layers in the order a token meets them.
    """
    encoder = any_encoder_of(model)
    seen = capture(encoder, image, attention=attention, after_attention=AFTER_ATTENTION in sites)
    rows = fill_patches(encoder, image)[0].shape[-2]
    if label is not None:
        if label.shape[-2:] != image.shape[-2:]:
            raise ValueError(f"label {tuple(label.shape[-2:])} and image {tuple(image.shape[-2:])} differ in size")
        label = fill_patches(encoder, label)[0]
    blocks = [seen.patches(tokens) for tokens in seen.after_block]
    patches = {grid: rows // grid[0] for grid in (seen.grid, *seen.block_grids)}  # side of a token in pixels
    labels = {grid: None if label is None else majority_label(label, side).flatten(1) for grid, side in patches.items()}

    def view(
        tokens: Tensor, grid: tuple[int, int] = seen.grid, own: Tensor | None = None, **further: Tensor | None
    ) -> TokenView:
        first = seen.class_token(tokens) if getattr(encoder, "cls_token", None) is not None else None
        return TokenView(
            seen.patches(tokens) if own is None else own, grid, labels[grid], class_token=first,
            embedding=seen.patch_embedding, num_prefix=seen.num_prefix, patch_size=patches[grid], **further,
        )  # fmt: skip

    if EMBEDDING in sites:
        yield Layer(EMBEDDING, NO_NORM, 0, view(seen.embedding))
    for number, tokens in enumerate(seen.after_block, start=1):
        if AFTER_ATTENTION in sites:
            yield Layer(AFTER_ATTENTION, NO_NORM, number, view(seen.after_attention[number - 1]))
        if AFTER_BLOCK in sites:
            grid, before = seen.block_grids[number - 1], _before(seen, blocks, number)
            yield Layer(AFTER_BLOCK, NO_NORM, number, view(tokens, grid, blocks[number - 1], **before))
    if FINAL_NORM in sites:
        yield Layer(FINAL_NORM, seen.norm, len(seen.after_block), view(seen.final))


def layer_similarity(model: nn.Module, images: Iterable[Tensor], *, progress: bool = False) -> pd.DataFrame:
    """Linear CKA between every two blocks, centred over the tokens of an image, mean over images.

    It compares the same places in both, so the finer grids of a model in stages are averaged down to the final one.

    Args:
        model: See `smoothing_per_layer`.
        images: Normalised images, (3, H, W) each.
        progress: Show a progress bar.

    Returns:
        Square table, layers 1..L as index and columns, values in [0, 1]. Bright squares along the diagonal are runs of
        blocks that change little (Kornblith et al. 2019; Raghu et al. 2021 for ViTs).
    """
    encoder, total, number = any_encoder_of(model), 0, 0
    device = next(encoder.parameters()).device
    for image in tqdm(images, "similarity of layers", disable=not progress):
        seen = capture(encoder, image[None].to(device))
        total = total + layer_cka(_on_final_grid(seen))[0].cpu()
        number += 1
    if number == 0:
        raise ValueError("no images to compare layers on")
    names = pd.RangeIndex(1, len(total) + 1, name="block")
    return pd.DataFrame((total / number).numpy(), names, names)


def smoothing_of_run(
    run: RunDir,
    num_images: int = 50,
    *,
    metrics: Sequence[str] | None = PAIR_COSINES,
    sites: Sequence[str] = DEFAULT_SITES,
    device: str = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Over-smoothing of a run's last checkpoint on its validation images, written to smoothing.csv.

    Images are resized to `eval_cam_size` squared, as in the evaluation of CAMs, so that runs share one N; native size
    if that is 0. Labels of pairs come from the true masks.

    Args:
        run: A run with a checkpoint.
        num_images: The first so many images of the validation list.
        metrics: Names of metrics; None takes all.
        sites: Among `SITES`.
        device: As in `Config.device`.
        progress: Show a progress bar.

    Returns:
        The table of `smoothing_per_layer`.
    """
    model, cfg = load_run_model(run, resolve_device(device))
    checkpoint = run.checkpoints()[-1]
    weights = f"{checkpoint.stem} ({weights_hash(checkpoint)})"
    frame = smoothing_of_model(
        model, cfg, num_images, name=run.name, weights=weights, metrics=metrics, sites=sites, progress=progress
    )
    run.write_table("smoothing", frame)
    return frame


def smoothing_of_model(
    model: ToCo,
    cfg: Config,
    num_images: int = 50,
    *,
    name: str,
    weights: str,
    metrics: Sequence[str] | None = PAIR_COSINES,
    sites: Sequence[str] = DEFAULT_SITES,
    progress: bool = True,
) -> pd.DataFrame:
    """As `smoothing_of_run`, for a model that no run holds: before training (`checkpoints.initial_model`), say."""
    samples = eval_samples(cfg, model.mean, model.std)
    # three views of one stream, read in step: one image is held at a time
    stream = tee((_resize(sample, cfg.eval_cam_size) for sample in islice(samples, num_images)), 3)
    images, masks, names = (map(itemgetter(part), one) for part, one in enumerate(stream))
    return smoothing_per_layer(
        model, images, masks, name=name, weights=weights, metrics=metrics, sites=sites, image_names=names,
        total=min(num_images, len(samples)), progress=progress,
    )  # fmt: skip


def _wanted(
    encoder: nn.Module, metrics: Sequence[str] | None, sites: Sequence[str]
) -> tuple[list[tuple[str, str]], bool, tuple[str, ...]]:
    """Keys of METRICS that are asked for, whether RankMe is, and the sites the encoder has."""
    unknown = [name for name in metrics or () if name not in metric_names()]
    if unknown:
        raise ValueError(f"unknown metric {', '.join(unknown)}; there are: {', '.join(metric_names())}")
    if not sites or set(sites) - set(SITES):
        raise ValueError(f"sites must be some of {', '.join(SITES)}, got {tuple(sites)}")
    absent = set() if is_plain_vit(encoder) else {EMBEDDING, AFTER_ATTENTION}
    absent |= {FINAL_NORM} if final_norm(encoder) is None else set()  # it would repeat the last block
    asked, sites = sites, [site for site in sites if site not in absent]
    if not sites:
        what = "norm at the end of its stream" if FINAL_NORM in asked else f"site {' or '.join(asked)}"
        raise ValueError(f"this model has no {what}: take the site {AFTER_BLOCK!r}")
    for name in metrics or ():
        if not is_plain_vit(encoder) and name != RANK_ME[0] and all("attention" in need for need in _needs(name)):
            raise ValueError(f"{name!r} is about attention between all tokens: {type(encoder).__name__} has none")
        if AFTER_BLOCK not in sites and name != RANK_ME[0] and _of_block(name):
            raise ValueError(f"{name!r} is about a block: add the site {AFTER_BLOCK!r}")
    keys = [key for key in METRICS if metrics is None or key[0] in metrics]
    return keys, metrics is None or RANK_ME[0] in metrics, tuple(sites)


def _of_block(name: str) -> bool:
    """Whether every variant of a metric needs the attention of a block, or the block before."""
    return all({"attention", "previous_tokens"} & set(need) for need in _needs(name))


def _needs(name: str) -> list[Sequence[str]]:
    """What the variants of a metric need."""
    return [one.needs for (metric, _), one in METRICS.items() if metric == name]


def _measurable(keys: Iterable[tuple[str, str]], view: TokenView) -> list[tuple[str, str]]:
    return [key for key in keys if all(getattr(view, need) is not None for need in METRICS[key].needs)]


def _measured(layers: Sequence[Layer], keys: Sequence[tuple[str, str]], *, pool: bool) -> list[dict[tuple, Any]]:
    """The metrics of every layer, many layers at once; what a layer can not give is not its own value, or NaN. With
    `pool` what an image adds to RankMe, (D, D), under its name.

    One stack is the residual stream with the final norm, as long as its grid stays; every other site is another.
    """
    stacks: dict[tuple, list[int]] = {}
    for number, layer in enumerate(layers):
        stream = layer.site in (AFTER_BLOCK, FINAL_NORM)
        stacks.setdefault((stream or layer.site, *layer.view.tokens.shape), []).append(number)
    found: list[dict[tuple, Any]] = [{} for _ in layers]
    for numbers in stacks.values():
        gram = None
        for piece in _pieces(numbers, [layers[number].view for number in numbers]):
            views = [layers[number].view for number in piece]
            stack = stack_layers(views, gram_before=gram)
            known = dict.fromkeys(key for view in views for key in _measurable(keys, view))
            for key, values in measure(stack, known).items():
                for number, value in zip(piece, values.tolist(), strict=True):
                    found[number][key] = value
            for number, moment in zip(piece, stack.moment if pool else (), strict=pool):
                found[number][RANK_ME] = moment
            gram = vars(stack)["unit_gram"][-1:] if "unit_gram" in vars(stack) else None
    return found


def _pieces(numbers: Sequence[int], views: Sequence[TokenView]) -> Iterator[Sequence[int]]:
    """Of a stack, as many layers at once as their largest arrays allow."""
    tokens = views[0].tokens.shape[1]
    largest = max([2 * tokens**2, *(view.attention.numel() for view in views if view.attention is not None)])
    size = max(1, STACK_NUMBERS // largest)
    return (numbers[start : start + size] for start in range(0, len(numbers), size))


def _before(seen: Activations, blocks: Sequence[Tensor], number: int) -> dict[str, Tensor | None]:
    """What block `number` (from 1) attended to, and what the block before it gave and attended to.

    Args:
        seen: The pass.
        blocks: Patch tokens after each block.
        number: From 1.
    """
    maps = [one.float() for one in seen.attention[max(0, number - 2) : number]]  # half precision can not add up rows
    tokens = blocks[max(0, number - 2) : number]
    alike = len(tokens) > 1 and tokens[0].shape == tokens[1].shape  # a new stage begins with tokens of another kind
    return {
        "attention": maps[-1] if maps else None,
        "previous_attention": maps[0] if len(maps) > 1 else None,
        "previous_tokens": tokens[0] if alike else None,
    }


def _on_final_grid(seen: Activations) -> list[Tensor]:
    """Patch tokens after every block, (B, N, D) with D of the block, on the grid of the final tokens."""
    found = []
    for tokens, grid in zip(seen.after_block, seen.block_grids, strict=True):
        tokens = seen.patches(tokens)
        if grid != seen.grid:
            tokens = F.adaptive_avg_pool2d(tokens.mT.unflatten(2, grid), seen.grid).flatten(2).mT
        found.append(tokens)
    return found


def _resize(sample: EvalSample, size: int) -> tuple[Tensor, Tensor | None, str]:
    """Image (3, H, W), mask (H, W) and name, at size x size pixels; unchanged for size 0."""
    image, mask = sample.image, sample.mask
    if size:
        image = at_evaluation_size(image[None], size)[0]
        mask = None if mask is None else F.interpolate(mask[None, None].float(), (size, size))[0, 0].long()
    return image, mask, sample.name
