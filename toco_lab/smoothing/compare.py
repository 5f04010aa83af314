"""Whole models side by side on the same images: metrics per layer, artifacts, Gram distance, colours of tokens."""

import itertools
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from torch import Tensor, nn

from toco_lab.backbones.kinds import any_encoder_of, token_side
from toco_lab.backbones.pixels import normalise
from toco_lab.data import images as image_files
from toco_lab.data.layouts import LAYOUTS, files_below
from toco_lab.method.cam import at_evaluation_size
from toco_lab.progress import progress_bar
from toco_lab.runs.run_dir import RunDir
from toco_lab.smoothing.formulas import gram_distance
from toco_lab.smoothing.layers import Layer, layers_of
from toco_lab.smoothing.named_models import NamedModel, open_model
from toco_lab.smoothing.outliers import norm_cut
from toco_lab.smoothing.per_layer import COLUMNS, DEFAULT_SITES, Sample, measured_table, what_is_asked
from toco_lab.smoothing.registers import find_register_neurons, with_registers
from toco_lab.smoothing.token_colours import principal_colours
from toco_lab.vocabulary import AFTER_BLOCK, ALL_IMAGES, FINAL_NORM, MEAN_ABSOLUTE_COSINE, NO_NORM, PATCH_TOKENS
from toco_lab.words import counted

COMPARED = (  # metrics of a comparison, unless others are asked for
    "pairwise cosine",
    "cosine to the mean border token",
    "class-patch cosine",
    "effective rank",
    "high-frequency ratio",
    "token-norm outliers",
    "Gram distance",
)
ARTIFACTS = ("token-norm outliers", "share above the cut of all images")
BETWEEN_MODELS = ("Gram distance", "between two models")
PICTURED = 4  # images whose tokens are shown as colours
SUFFIXES = LAYOUTS["folder"].suffixes


@dataclass(frozen=True, eq=False)
class TokenColours:
    """The tokens of one layer as colours: (h, w, 3) uint8 for each pictured image, all of one basis."""

    model: str
    layer: str
    colours: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class ModelComparison:
    """What was measured on some models.

    Attributes:
        frame: Table of `smoothing_per_layer` of all models; of each layer also the share of artifacts (`ARTIFACTS`).
        gram: Gram distances between every two models with equal grids, image by image, in the same columns; `model` has
            both names.
        pictures: Tokens as colours, of some layers of each model.
        images: The pictured images as the models saw them, (H, W, 3) uint8.
        protocol: How all this was measured.
    """

    frame: pd.DataFrame
    gram: pd.DataFrame
    pictures: list[TokenColours]
    images: dict[str, np.ndarray]
    protocol: dict[str, Any]

    @property
    def table(self) -> pd.DataFrame:
        """Means over images: model, layer, metric, value, images; and weights, site, norm, variant."""
        keys = "model weights site norm layer metric variant".split()
        both = pd.concat([self.frame, self.gram], ignore_index=True) if len(self.gram) else self.frame
        table = both.groupby(keys, sort=False).agg(value=("value", "mean"), images=("image", "nunique")).reset_index()
        pooled = (both["image"] == ALL_IMAGES).groupby([both[key] for key in keys], sort=False).any().to_numpy()
        table["images"] = table["images"].where(~pooled, self.protocol["images"])
        return table["model layer metric value images weights site norm variant".split()]


def compare_models(
    models: Mapping[str, nn.Module | RunDir | Path | str],
    images: Path | str | Sequence[Path | str | np.ndarray],
    **options: Any,
) -> pd.DataFrame:
    """Over-smoothing of whole models on the same images, as one tidy table.

    Args:
        models: By the name they get: a module, a run, a checkpoint, or a name of timm (`open_model`).
        images: A folder of images, or image files, or arrays (H, W, 3) uint8.
        **options: As in `measure_models`.

    Returns:
        Means over images, with the columns model, layer, metric, value, images, weights, site, norm, variant. Rows of
        the metric `Gram distance`, variant `between two models`, have both names as model.

    Raises:
        ValueError: As `measure_models`.

    Example:
        >>> pictures = [np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)]
        >>> net = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2, dynamic_img_size=True)
        >>> table = compare_models({"tiny": net}, pictures, image_size=64, progress=False)
        >>> sorted(table["layer"].unique().tolist())
        [1, 2]
    """
    return measure_models(models, images, **options).table


def measure_models(
    models: Mapping[str, nn.Module | RunDir | Path | str],
    images: Path | str | Sequence[Path | str | np.ndarray],
    *,
    image_size: int = 224,
    num_images: int = 20,
    metrics: Sequence[str] = COMPARED,
    registers: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> ModelComparison:
    """All that `compare_models` tabulates, and what its report draws.

    Args:
        models: As in `compare_models`.
        images: As in `compare_models`; of a folder the first `num_images` in the order of their names.
        image_size: Images are resized to this side, squared; 0 keeps their sizes.
        num_images: Most images of a folder.
        metrics: Names of metrics (`per_layer.metric_names`) beside the pairwise cosine, which is always there.
        registers: Show each plain ViT that has artifacts a second time, with so many test-time registers
            (`registers.with_registers`); the protocol says what was found in each.
        device: Where models go that are opened here.
        progress: Show progress bars.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: For no model, a folder without images, a model or a metric that is not known.
    """
    if not isinstance(models, Mapping) or not models:
        raise ValueError(f"models must be at least one model by its name, {{name: model}}, got {str(models)[:60]}")
    metrics = list(dict.fromkeys([MEAN_ABSOLUTE_COSINE[0], *metrics]))
    pictures = read_pictures(images, num_images)
    opened = [open_model(source, name=name, device=device) for name, source in models.items()]
    found: dict[str, str] = {}
    if registers:
        opened, found = _beside_registers(opened, pictures, image_size, registers)
    tables = [_measured(one, pictures, image_size, metrics, progress) for one in opened]
    norms, gram, shown, seen = _passes(opened, pictures, image_size, progress)
    artifacts = [_artifact_row(*place, values) for place, values in norms.items()]
    frame = pd.concat([*tables, pd.DataFrame(artifacts, columns=COLUMNS)], ignore_index=True)
    return ModelComparison(
        frame=frame,
        gram=pd.DataFrame(gram, columns=COLUMNS),
        pictures=_colours(shown),
        images=seen,
        protocol=_protocol(opened, images, list(pictures), image_size, device)
        | ({"registers": found} if found else {}),
    )


def read_pictures(images: Path | str | Sequence[Path | str | np.ndarray], num_images: int) -> dict[str, np.ndarray]:
    """Images by name, (H, W, 3) uint8.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there are no images, or one is no uint8 array (H, W, 3).
        DataError: For a file that cannot be read.
    """
    if isinstance(images, Path | str):
        folder = Path(images)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: there is no such folder of images")
        files = [path for path in files_below(folder, nested=True) if path.suffix.lower() in SUFFIXES]
        if not files:
            raise ValueError(f"{folder} holds no image: a file {', '.join(SUFFIXES)}")
        files = sorted(files)[:num_images]
        return {path.relative_to(folder).as_posix(): image_files.read_rgb(path) for path in files}
    found: dict[str, np.ndarray] = {}
    for number, image in enumerate(images):
        if isinstance(image, Path | str):
            found[str(image)] = image_files.read_rgb(Path(image))
        elif isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,):
            found[f"image {number}"] = image
        else:
            what = f"{image.dtype} {tuple(image.shape)}" if hasattr(image, "shape") else type(image).__name__
            raise ValueError(f"image {number} must be a file or a uint8 array (H, W, 3), got {what}")
    if not found:
        raise ValueError("there is no image to measure models on: give at least one")
    return found


def _pixels(model: NamedModel, raw: np.ndarray, size: int) -> Tensor:
    """The image as a model gets it, (1, 3, H, W)."""
    pixels = torch.from_numpy(raw.copy()).permute(2, 0, 1)
    device = next(any_encoder_of(model.model).parameters()).device
    return at_evaluation_size(normalise(pixels, model.mean, model.std)[None].to(device), size)


def _beside_registers(
    models: Sequence[NamedModel], pictures: Mapping[str, np.ndarray], size: int, count: int
) -> tuple[list[NamedModel], dict[str, str]]:
    """The models, each with artifacts followed by itself with registers; and of each model what was found."""
    all_models, found = [], {}
    for one in models:
        all_models.append(one)
        try:
            neurons = find_register_neurons(one.model, (_pixels(one, raw, size)[0] for raw in pictures.values()))
            beside = with_registers(one.model, neurons, count=count)
        except ValueError as error:
            found[one.name] = f"none: {error}"
            continue
        if not neurons.images:
            found[one.name] = f"none: no artifacts in {counted(len(pictures), 'image')}"
            continue
        places = ", ".join(f"{block + 1}/{unit}" for block, unit in neurons.neurons)
        found[one.name] = (
            f"{count}, for {counted(neurons.artifacts, 'artifact')} in {counted(neurons.images, 'image')}; "
            f"neurons (block/unit) {places}"
        )
        name = f"{one.name} + {counted(count, 'register')}"
        all_models.append(NamedModel(name, beside, one.weights, one.mean, one.std))
    return all_models, found


def _measured(
    model: NamedModel, pictures: Mapping[str, np.ndarray], size: int, metrics: Sequence[str], progress: bool
) -> pd.DataFrame:
    wanted = what_is_asked(any_encoder_of(model.model), metrics, DEFAULT_SITES)
    samples = (Sample(_pixels(model, raw, size)[0], None, name) for name, raw in pictures.items())
    bar = progress_bar(samples, f"metrics of {model.name}", len(pictures), shown=progress)
    return measured_table(model.model, bar, wanted, model.name, model.weights)


Place = tuple[str, str, str, str, int]  # model, weights, site, norm, layer
Shown = dict[tuple[str, str], dict[str, Layer]]  # (model, layer in words) -> image -> its tokens


def _passes(
    models: Sequence[NamedModel], pictures: Mapping[str, np.ndarray], size: int, progress: bool
) -> tuple[dict[Place, list[Tensor]], list[tuple], Shown, dict[str, np.ndarray]]:
    """What needs all models, or all images, at once: norms per layer, Gram distances, tokens to be shown."""
    norms: dict[Place, list[Tensor]] = {}
    gram: list[tuple] = []
    shown: Shown = {}
    seen: dict[str, np.ndarray] = {}
    for image, raw in progress_bar(pictures.items(), "tokens of all models", shown=progress):
        layers = {one.name: list(layers_of(one.model, _pixels(one, raw, size))) for one in models}
        for one in models:
            for layer in layers[one.name]:
                place = (one.name, one.weights, layer.site, layer.norm, layer.number)
                norms.setdefault(place, []).append(layer.view.norms.flatten().cpu())
        for first, second in itertools.combinations(layers, 2):
            gram += _gram_rows(f"{first} and {second}", layers[first], layers[second], image)
        if len(seen) < PICTURED:
            seen[image] = _seen(raw, size)
            for name, own in layers.items():
                for words, layer in _to_show(own).items():
                    shown.setdefault((name, words), {})[image] = layer
    return norms, gram, shown, seen


def _gram_rows(name: str, first: Sequence[Layer], second: Sequence[Layer], image: str) -> Iterator[tuple]:
    """Gram distances of the blocks of equal number, and of the last tokens, where the grids agree."""
    here, there = ({layer.number: layer for layer in own if layer.site == AFTER_BLOCK} for own in (first, second))
    pairs = [(here[number], there[number], AFTER_BLOCK, number) for number in here if number in there]
    if FINAL_NORM in (first[-1].site, second[-1].site):
        pairs.append((first[-1], second[-1], FINAL_NORM, max(first[-1].number, second[-1].number)))
    for one, other, site, number in pairs:
        if one.view.grid == other.view.grid:
            value = gram_distance(one.view.tokens.cpu(), other.view.tokens.cpu()).item()
            norm = NO_NORM if site == AFTER_BLOCK else " and ".join(dict.fromkeys((one.norm, other.norm)))
            tokens = one.view.tokens.shape[1]
            yield (name, "", site, norm, PATCH_TOKENS, tokens, number, image, *BETWEEN_MODELS, value)


def _artifact_row(model: str, weights: str, site: str, norm: str, layer: int, norms: Sequence[Tensor]) -> tuple:
    """The share of tokens beyond one cut for all images, see `norm_cut`."""
    pooled, tokens = torch.cat(list(norms)), len(norms[0])
    share = (pooled > norm_cut(pooled)).double().mean().item()
    return (model, weights, site, norm, PATCH_TOKENS, tokens, layer, ALL_IMAGES, *ARTIFACTS, share)


def _to_show(layers: Sequence[Layer]) -> dict[str, Layer]:
    """Some layers of a model whose tokens have the last grid: in the middle, the last block, the final norm."""
    blocks = [one for one in layers if one.site == AFTER_BLOCK and one.view.grid == layers[-1].view.grid]
    chosen = {f"block {one.number}": one for one in (blocks[(len(blocks) - 1) // 2], blocks[-1])}
    return chosen | ({FINAL_NORM: layers[-1]} if layers[-1].site == FINAL_NORM else {})


def _colours(shown: Shown) -> list[TokenColours]:
    pictures = []
    for (model, words), layers in shown.items():
        views = {image: layer.view for image, layer in layers.items()}
        colours = principal_colours(torch.cat([view.tokens[0].cpu() for view in views.values()]))
        parts = colours.split([view.tokens.shape[1] for view in views.values()])
        grids = {
            image: part.unflatten(0, view.grid).mul(255).round().byte().numpy()
            for (image, view), part in zip(views.items(), parts, strict=True)
        }
        pictures.append(TokenColours(model, words, grids))
    return pictures


def _seen(raw: np.ndarray, size: int) -> np.ndarray:
    """The image at the size at which the models see it, before normalisation."""
    pixels = at_evaluation_size(torch.from_numpy(raw.copy()).permute(2, 0, 1)[None].float(), size)
    return pixels[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def _protocol(
    models: Sequence[NamedModel], images: Any, names: list[str], size: int, device: str | torch.device
) -> dict[str, Any]:
    """How the numbers came about."""
    return {
        "images": len(names),
        "images_from": str(images) if isinstance(images, Path | str) else "a list",
        "image_names": names,
        "image_size": f"{size} x {size}, resized (bilinear)" if size else "native",
        "images_read": image_files.RULE,
        "models": {
            one.name: {
                "network": type(any_encoder_of(one.model)).__name__,
                "weights": one.weights,
                "side_of_a_token": token_side(any_encoder_of(one.model)),
                "mean": [round(value, 4) for value in one.mean],
                "std": [round(value, 4) for value in one.std],
            }
            for one in models
        },
        "device": str(device),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }
