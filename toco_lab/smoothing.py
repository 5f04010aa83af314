"""Over-smoothing: how alike the patch tokens of an image become from layer to layer.

Every row says what it measures: model, weights, site (where in the network), norm, token set, metric and variant.
Curves without these cannot be compared. Whether depth raises similarity depends on the weights: compare trained with
initial ones, and keep the input size fixed across the runs of one figure.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice, repeat

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from toco_lab.checkpoints import load_run_model, weights_hash
from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.data import eval_samples
from toco_lab.model import ToCo
from toco_lab.runs import RunDir
from toco_lab.train import resolve_device

AFTER_BLOCK, FINAL_NORM = "after block", "final norm"  # sites: raw residual stream, and what the classifier reads
TOKEN_SET = "patch tokens"  # class, distillation and register tokens are left out
COLUMNS = "model weights site norm token_set tokens layer image metric variant value".split()

Metric = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class PairCosine:
    """Mean |cos| over the token pairs of each image, (B,) each, in [0, 1]; NaN where there is no such pair.

    Attributes:
        positive: Over pairs of equal label; high is good.
        negative: Over pairs of different labels; low is good.
    """

    positive: Tensor
    negative: Tensor

    @property
    def gap(self) -> Tensor:
        """Positive minus negative, (B,); 0 when the tokens are smooth."""
        return self.positive - self.negative


def token_similarity(tokens: Tensor) -> Tensor:
    """Mean absolute cosine over all pairs of different tokens: (1 / N(N-1)) sum_{i != j} |cos(x_i, x_j)|.

    Args:
        tokens: Patch tokens, (B, D, h, w), any scale. A zero token has cosine 0 with every other.

    Returns:
        (B,) in [0, 1]: 1 when all tokens point the same way (smooth), 0 when they are orthogonal; NaN for one token.
    """
    return _pairwise_cosine(tokens.flatten(2).transpose(1, 2), None)


def pair_cosine(tokens: Tensor, label: Tensor) -> PairCosine:
    """Mean absolute cosine of positive (same label) and of negative pairs: the two parts of patch token contrast.

    PTC is 0.5 both for equal and for orthogonal tokens; this pair of numbers tells the two apart.

    Args:
        tokens: Patch tokens, (B, D, h, w), any scale.
        label: Class of each token, (B, h, w) integers; `IGNORE_INDEX` leaves a token out. See `majority_label`.

    Raises:
        ValueError: If label and tokens differ in grid or batch.
    """
    if label.shape != (tokens.shape[0], *tokens.shape[2:]):
        raise ValueError(f"label {tuple(label.shape)} does not fit tokens (B, D, h, w) {tuple(tokens.shape)}")
    x, label = tokens.flatten(2).transpose(1, 2), label.flatten(1)
    return PairCosine(_positive_cosine(x, label), _negative_cosine(x, label))


def majority_label(mask: Tensor, patch_size: int) -> Tensor:
    """Label of each patch: the most frequent value of its pixels (ignored pixels count; ties go to the smaller value).

    Args:
        mask: Pixel labels, (B, H, W) integers.
        patch_size: Side of a patch; pixels at the right and bottom that fill no patch are dropped, as in the model.

    Returns:
        (B, H // patch_size, W // patch_size), of the dtype of the mask.
    """
    patches = mask.unfold(1, patch_size, patch_size).unfold(2, patch_size, patch_size)  # (B, h, w, p, p)
    return patches.flatten(3).mode(dim=3).values


def similarity_per_layer(
    model: nn.Module,
    images: Iterable[Tensor],
    labels: Iterable[Tensor | None] | None = None,
    *,
    name: str,
    weights: str = "",
    site: str | None = None,
    image_names: Iterable[str] | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Every metric of `METRICS` after every block and after the final norm, one encoder pass per image.

    Args:
        model: A timm ViT made with `dynamic_img_size=True`, or anything that carries one as `.encoder` (ToCo).
        images: Normalised images, (3, H, W) each; a (B, 3, H, W) tensor will do. Sizes may differ.
        labels: Pixel labels of each image, (H, W) integers with `IGNORE_INDEX`, or None; without them the metrics of
            pairs are left out.
        name: Name of the model in the table.
        weights: Which weights it carries (pretrained, random, a step of training ...).
        site: "after block" (raw residual stream) or "final norm"; None gives both.
        image_names: Value of the column `image`; numbers from 0 by default.
        progress: Show a progress bar.

    Returns:
        Tidy table with columns model, weights, site, norm, token_set, tokens (N), layer (1..L; the final norm has that
        of the last block), image, metric, variant, value. A value that is not defined, as the cosine of negative pairs
        in an image of one class, has no row.

    Raises:
        ValueError: For an unknown site or an image smaller than one patch.
    """
    if site not in (None, AFTER_BLOCK, FINAL_NORM):
        raise ValueError(f"site must be {AFTER_BLOCK!r}, {FINAL_NORM!r} or None, got {site!r}")
    encoder = getattr(model, "encoder", model)
    patch, device = encoder.patch_embed.patch_size[0], next(encoder.parameters()).device
    rows = []
    with _evaluating(encoder):
        things = zip(images, repeat(None) if labels is None else labels, image_names or count(), strict=False)
        total = len(images) if hasattr(images, "__len__") else None
        for image, label, image_name in tqdm(things, f"similarity {name}", total, disable=not progress):
            if label is not None:
                label = majority_label(label[None].to(device), patch).flatten(1)
            for place, norm, layer, tokens in tokens_per_layer(encoder, image.to(device)):
                if site in (None, place):
                    common = (name, weights, place, norm, TOKEN_SET, tokens.shape[1], layer, image_name)
                    rows += [
                        (*common, metric, variant, function(tokens, label).item())
                        for (metric, variant), function in METRICS.items()
                    ]
    return pd.DataFrame(rows, columns=COLUMNS).dropna(subset="value", ignore_index=True)


@torch.no_grad()
def tokens_per_layer(encoder: nn.Module, image: Tensor) -> Iterator[tuple[str, str, int, Tensor]]:
    """Patch tokens of one image at every site, from one pass.

    Args:
        encoder: A timm ViT; its mode (training or evaluation) is left alone.
        image: Normalised image, (3, H, W); right and bottom pixels that fill no patch are dropped, as in ToCo.

    Yields:
        (site, norm, layer, tokens): tokens (1, N, D) float, without prefix tokens; layer 1..L.
    """
    size = encoder.patch_embed.patch_size[0]
    height, width = (length // size * size for length in image.shape[-2:])
    if min(height, width) == 0:
        raise ValueError(f"image {tuple(image.shape[-2:])} is smaller than one patch of {size} pixels")
    final, blocks = encoder.forward_intermediates(
        image[None, :, :height, :width], indices=None, norm=False, output_fmt="NLC", return_prefix_tokens=False
    )
    for layer, tokens in enumerate(blocks, start=1):
        yield AFTER_BLOCK, "none", layer, tokens.float()
    yield FINAL_NORM, type(encoder.norm).__name__, len(blocks), final[:, encoder.num_prefix_tokens :].float()


def smoothing_of_run(run: RunDir, num_images: int = 50, *, device: str = "auto", progress: bool = True) -> pd.DataFrame:
    """Similarity per layer of a run's last checkpoint on its validation images, written to similarity.csv.

    Images are resized to `eval_cam_size` squared, as in the evaluation of CAMs, so that runs share one N; native size
    if that is 0. Labels of pairs come from the true masks.

    Args:
        run: A run with a checkpoint.
        num_images: The first so many images of the validation list.
        device: As in `Config.device`.
        progress: Show a progress bar.

    Returns:
        The table of `similarity_per_layer`.
    """
    model, cfg = load_run_model(run, resolve_device(device))
    checkpoint = run.checkpoints()[-1]
    weights = f"{checkpoint.stem} ({weights_hash(checkpoint)})"
    frame = smoothing_of_model(model, cfg, num_images, name=run.name, weights=weights, progress=progress)
    run.write_table("similarity", frame)
    return frame


def smoothing_of_model(
    model: ToCo, cfg: Config, num_images: int = 50, *, name: str, weights: str, progress: bool = True
) -> pd.DataFrame:
    """As `smoothing_of_run`, for a model that no run holds: before training (`checkpoints.initial_model`), say."""
    samples = list(islice(eval_samples(cfg, model.mean, model.std), num_images))
    sized = [_resize(sample.image, sample.mask, cfg.eval_cam_size) for sample in samples]
    images, masks = zip(*sized, strict=True)
    names = [sample.name for sample in samples]
    return similarity_per_layer(model, images, masks, name=name, weights=weights, progress=progress, image_names=names)


def _resize(image: Tensor, mask: Tensor | None, size: int) -> tuple[Tensor, Tensor | None]:
    """Image (3, H, W) and mask (H, W) at size x size pixels; unchanged for size 0."""
    if size == 0:
        return image, mask
    image = F.interpolate(image[None], (size, size), mode="bilinear", align_corners=False)[0]
    return image, None if mask is None else F.interpolate(mask[None, None].float(), (size, size))[0, 0].long()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every submodule has its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


# --- metrics: (tokens (B, N, D), label (B, N) or None) -> (B,), NaN where not defined ---------------


def _absolute_cosine(tokens: Tensor) -> Tensor:
    """|cos| of every pair, (B, N, N); the Gram matrix of unit rows, so no (N, N, D) array is made."""
    unit = F.normalize(tokens, dim=2)
    return (unit @ unit.transpose(1, 2)).abs().clamp(max=1)  # rounding may exceed 1


def _masked_mean(values: Tensor, pairs: Tensor) -> Tensor:
    """Mean of (B, N, N) values over the pairs marked true, diagonal left out: (B,), NaN if there are none."""
    pairs = pairs & ~torch.eye(pairs.shape[-1], dtype=torch.bool, device=pairs.device)
    total = (values * pairs).sum(dim=(1, 2), dtype=torch.float64)
    return (total / pairs.sum(dim=(1, 2))).to(values.dtype)


def _pairwise_cosine(tokens: Tensor, label: Tensor | None) -> Tensor:
    similarity = _absolute_cosine(tokens)
    return _masked_mean(similarity, torch.ones_like(similarity, dtype=torch.bool))


def _positive_cosine(tokens: Tensor, label: Tensor | None) -> Tensor:
    return _labelled_cosine(tokens, label, same=True)


def _negative_cosine(tokens: Tensor, label: Tensor | None) -> Tensor:
    return _labelled_cosine(tokens, label, same=False)


def _labelled_cosine(tokens: Tensor, label: Tensor | None, *, same: bool) -> Tensor:
    if label is None:
        return tokens.new_full((len(tokens),), torch.nan)
    known = label != IGNORE_INDEX
    pairs = (label[:, :, None] == label[:, None, :]) == same
    return _masked_mean(_absolute_cosine(tokens), pairs & known[:, :, None] & known[:, None, :])


METRICS: dict[tuple[str, str], Metric] = {  # (metric, variant); a new metric is one more line
    ("pairwise cosine", "absolute, off-diagonal"): _pairwise_cosine,
    ("positive cosine", "absolute, true label"): _positive_cosine,
    ("negative cosine", "absolute, true label"): _negative_cosine,
}
