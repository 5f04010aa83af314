"""Token maps: what the token explorer shows of one model and one image, its file, and how records are joined.

The tokens are quantised (`quantise`), so that a record is small enough for a run folder and for a web page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from toco_lab.files import DAMAGED_NPZ, atomic_write, require
from toco_lab.runs.run_dir import RunDir
from toco_lab.tokens.quantise import QuantisedTokens, join_steps
from toco_lab.words import counted

_FORMAT = 1  # of the saved file
_LATER = ("bases", "lengths", "length_ends")  # arrays that files of earlier versions lack


@dataclass(frozen=True, eq=False)
class TokenMaps:
    """What one model makes of one image, after every layer and at some steps of its training.

    Attributes:
        model: Name of the model, for instance of its run.
        weights: Which weights it carries, in words.
        image_name: Name of the image; the maps of several models are matched by it.
        image: What the model saw, (H, W, 3) uint8; the grid covers it from edge to edge.
        grid: Rows and columns of patches (h, w).
        steps: Training steps of the snapshots, rising.
        layers: Names of the layers in order: "block 1", ..., "final norm".
        tokens: The patch tokens, N = h * w, row-major.
    """

    model: str
    weights: str
    image_name: str
    image: np.ndarray
    grid: tuple[int, int]
    steps: tuple[int, ...]
    layers: tuple[str, ...]
    tokens: QuantisedTokens

    def __post_init__(self) -> None:
        h, w = self.grid
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3:
            raise ValueError(f"image must be uint8 (H, W, 3), got {self.image.dtype} {self.image.shape}")
        if h * w != self.tokens.num_tokens:
            raise ValueError(f"a grid of {h} x {w} patches does not fit {counted(self.tokens.num_tokens, 'token')}")
        if self.tokens.widths.shape != (len(self.steps), len(self.layers)):
            raise ValueError(
                f"{counted(len(self.steps), 'step')} and {counted(len(self.layers), 'layer')} do not fit tokens "
                f"of (steps, layers) {self.tokens.widths.shape}"
            )
        if list(self.steps) != sorted(set(self.steps)):
            raise ValueError(f"steps must rise, got {self.steps}")

    def nearest_step(self, step: int) -> int:
        """Index of the snapshot nearest to a training step; the earlier one of two equally near."""
        return min(range(len(self.steps)), key=lambda index: abs(self.steps[index] - step))

    def find_layer(self, name: str, index: int) -> int:
        """Index of the layer of this name; if there is none, `index`, but at most that of the last layer."""
        return self.layers.index(name) if name in self.layers else min(index, len(self.layers) - 1)

    def similarity(self, step: int, layer: int, patch: int) -> np.ndarray:
        """Cosine of one patch to all, (h, w) in [-1, 1]; arguments as in `QuantisedTokens.similarity`."""
        return self.tokens.similarity(step, layer, patch).reshape(self.grid)

    def similarity_of(
        self, other: "TokenMaps", theirs: tuple[int, int], ours: tuple[int, int], patch: int
    ) -> np.ndarray:
        """Cosine of a patch of another image to all of this one, (h, w); as `QuantisedTokens.similarity_of`."""
        return self.tokens.similarity_of(other.tokens, theirs, ours, patch).reshape(self.grid)


def save_token_maps(path: Path | str, maps: TokenMaps) -> None:
    """Write maps as .npz, atomically."""
    tokens = maps.tokens
    later = {name: getattr(tokens, name) for name in _LATER if getattr(tokens, name) is not None}
    with atomic_write(path) as file:
        np.savez_compressed(
            file,
            format=_FORMAT,
            model=maps.model,
            weights=maps.weights,
            image_name=maps.image_name,
            image=maps.image,
            grid=maps.grid,
            steps=np.array(maps.steps, np.int64),
            layers=np.array(maps.layers, np.str_),
            values=tokens.values,
            widths=tokens.widths,
            errors=tokens.errors,
            dim=tokens.dim,
            **later,
        )


def load_token_maps(path: Path | str) -> TokenMaps:
    """Read what `save_token_maps` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or of another version; the message names it.
    """
    with Path(path).open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as saved:
                return _from_arrays(saved)
        except DAMAGED_NPZ as error:
            raise ValueError(
                f"{path} cannot be read as token maps ({error}); it is damaged or of another version of this package. "
                "Delete it and make it again"
            ) from error


def _from_arrays(saved: Mapping[str, np.ndarray]) -> TokenMaps:
    if int(saved["format"]) != _FORMAT:
        raise ValueError(f"format {saved['format']}, not {_FORMAT}")
    h, w = (int(length) for length in saved["grid"])
    return TokenMaps(
        model=str(saved["model"]),
        weights=str(saved["weights"]),
        image_name=str(saved["image_name"]),
        image=saved["image"],
        grid=(h, w),
        steps=tuple(int(step) for step in saved["steps"]),
        layers=tuple(str(name) for name in saved["layers"]),
        tokens=QuantisedTokens(
            values=saved["values"],
            widths=saved["widths"],
            errors=saved["errors"],
            num_tokens=h * w,
            dim=int(saved["dim"]),
            **{name: saved[name] for name in _LATER if name in saved},
        ),
    )


def merge_steps(maps: Sequence[TokenMaps]) -> TokenMaps:
    """Join snapshots of one model and one image, taken at different steps of its training.

    Args:
        maps: In any order. The words about the weights are taken from the last step.

    Raises:
        ValueError: If there are none, two hold the same step, or they differ in model, image, grid, layers or width.
    """
    if not maps:
        raise ValueError("merge_steps needs at least one snapshot")
    maps = sorted(maps, key=lambda snapshots: snapshots.steps[0])
    first = maps[0]
    for other in maps[1:]:
        _check_same_model_and_image(first, other)
    taken = sorted(
        ((step, source.tokens.take(steps=[index])) for source in maps for index, step in enumerate(source.steps)),
        key=lambda pair: pair[0],
    )
    steps = tuple(step for step, _ in taken)
    if len(set(steps)) < len(steps):
        raise ValueError(f"two snapshots hold the same step: {list(steps)}")
    tokens = join_steps([part for _, part in taken])
    last = max(maps, key=lambda snapshots: snapshots.steps[-1])
    return replace(first, weights=last.weights, steps=steps, tokens=tokens)


def _check_same_model_and_image(first: TokenMaps, other: TokenMaps) -> None:
    between = f"the snapshots of steps {first.steps} and {other.steps} differ in"
    for field in ("model", "image_name", "grid", "layers"):
        here, there = getattr(first, field), getattr(other, field)
        if here != there:
            raise ValueError(f"{between} {field}: {here!r} and {there!r}")
    if not np.array_equal(first.image, other.image):
        raise ValueError(f"{between} the pixels of {first.image_name!r}")
    if first.tokens.dim != other.tokens.dim:
        raise ValueError(f"{between} width: {first.tokens.dim} and {counted(other.tokens.dim, 'dimension')}")


def maps_by_image(maps: Sequence[TokenMaps]) -> dict[str, dict[str, TokenMaps]]:
    """Maps by image name and model name, both in order of appearance: `maps_by_image(maps)[image][model]`.

    Raises:
        ValueError: If there are none, two are of one model and image, or a model lacks an image another one has.
    """
    if not maps:
        raise ValueError("a token explorer needs the token maps of at least one image")
    for record in maps:
        require(record, TokenMaps, "an item of maps", ": tl.maps_of_run(run) gives them")
    models = list(dict.fromkeys(record.model for record in maps))
    table: dict[str, dict[str, TokenMaps]] = {record.image_name: {} for record in maps}
    for record in maps:
        image, model = record.image_name, record.model
        if model in table[image]:
            raise ValueError(f"two token maps of image {image!r} and model {model!r}: use merge_steps")
        table[image][model] = record
    for image, row in table.items():
        missing = [model for model in models if model not in row]
        if missing:
            raise ValueError(
                f"no token maps of image {image!r} for {', '.join(missing)}; every model needs every image"
            )
    return {image: {model: row[model] for model in models} for image, row in table.items()}


def load_run_maps(run: RunDir) -> list[TokenMaps]:
    """The tokens a run kept, one record per probe image with all its steps; an empty list if it kept none.

    Raises:
        ValueError: If a file is damaged; the message names it.
    """
    return [merge_steps([load_token_maps(path) for path in image]) for image in run.token_maps() if image]


def thin_steps(maps: TokenMaps, max_bytes: int) -> TokenMaps:
    """As many snapshots as fit: the first, the last, and some between them at even distances.

    Args:
        maps: Snapshots of one model and image.
        max_bytes: Most bytes of tokens. If not even two snapshots fit, the last one is kept, whatever its size.
    """
    kept = _evenly(maps.tokens.slab_bytes.sum(axis=1), max_bytes)
    return replace(maps, steps=tuple(maps.steps[index] for index in kept), tokens=maps.tokens.take(steps=kept))


def thin_layers(maps: TokenMaps, max_bytes: int) -> TokenMaps:
    """As many layers as fit: the first, the last, and some between them at even distances.

    Args:
        maps: Of one model and image.
        max_bytes: Most bytes of tokens. If not even two layers fit, the last one is kept, whatever its size.
    """
    kept = _evenly(maps.tokens.slab_bytes.sum(axis=0), max_bytes)
    return replace(maps, layers=tuple(maps.layers[index] for index in kept), tokens=maps.tokens.take(layers=kept))


def _evenly(sizes: np.ndarray, most: int) -> list[int]:
    """Indices of as many items as fit: first, last, and some between them; the last alone if not even two do."""
    for count in range(len(sizes), 1, -1):
        kept = np.linspace(0, len(sizes) - 1, count).round().astype(int).tolist()
        if sizes[kept].sum() <= most:
            return kept
    return [len(sizes) - 1]
