"""Token maps as the explorer's JavaScript reads them: names and numbers as JSON, all tokens as one block of bytes."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from toco_lab.smoothing.artifacts import length_modes
from toco_lab.tokens.token_maps import TokenMaps, maps_by_image

_PNG_BYTES = 100_000  # a picture that is larger than this as PNG travels as JPEG


@dataclass(frozen=True)
class BrowserData:
    """What static/token_explorer.js needs.

    Attributes:
        meta: Names, pictures (data URLs), grids, steps, layers, widths, directions, lengths and offsets; fit for JSON.
        tokens: The int8 tokens of all maps, one after another, each followed by its lengths (uint8) if it has them.
    """

    meta: dict[str, Any]
    tokens: bytes


def pack_for_browser(maps: Sequence[TokenMaps], *, colours: Mapping[str, str] | None = None) -> BrowserData:
    """Everything the browser needs to show these maps; equal pictures travel once.

    Args:
        maps: Every image of every model once. Models may differ in grid, layers and steps.
        colours: CSS colour of a model's curve, by name; the explorer has colours of its own for the others.

    Raises:
        ValueError: As in `maps_by_image`.
    """
    table = maps_by_image(maps)
    models = list(next(iter(table.values())))
    pictures: dict[bytes, int] = {}  # content -> place in `urls`
    urls: list[dict[str, Any]] = []
    entries: list[list[dict[str, Any]]] = []  # entries[image][model]
    parts: list[bytes] = []
    bases: dict[int, int] = {}  # what tells directions apart -> a small number
    offset = 0
    for row in table.values():
        entries.append([])
        for record in row.values():
            height, width, _ = record.image.shape
            content = repr(record.image.shape).encode() + record.image.tobytes()
            if content not in pictures:
                pictures[content] = len(urls)
                urls.append({"url": picture_url(record.image), "height": height, "width": width})
            entries[-1].append(_entry(record, pictures[content], offset, bases))
            parts.append(record.tokens.values.tobytes())
            if record.tokens.lengths is not None:
                parts.append(record.tokens.lengths.tobytes())
            offset = sum(map(len, parts))
    meta = {
        "images": list(table),
        "models": [{"name": name, "colour": (colours or {}).get(name)} for name in models],
        "pictures": urls,
        "maps": entries,
    }
    return BrowserData(meta, b"".join(parts))


def _entry(maps: TokenMaps, picture: int, offset: int, bases: dict[int, int]) -> dict[str, Any]:
    """What is to be known of one model and image; its tokens begin at byte `offset`, and `bases` may grow."""
    tokens = maps.tokens
    named = (
        None
        if tokens.bases is None
        else [[bases.setdefault(basis, len(bases)) for basis in row] for row in tokens.bases.tolist()]
    )
    return {
        "picture": picture,
        "weights": maps.weights,
        "grid": list(maps.grid),
        "steps": list(maps.steps),
        "layers": list(maps.layers),
        "dim": maps.tokens.dim,
        "widths": maps.tokens.widths.tolist(),
        "error": maps.tokens.error,
        "offset": offset,
        "bases": named,
        "lengths": None
        if tokens.length_ends is None
        else {
            "offset": offset + tokens.values.nbytes,
            "ends": np.round(tokens.length_ends.astype(float), 4).tolist(),
            "artifacts": _artifacts(maps),
        },
    }


def _artifacts(maps: TokenMaps) -> list[list[list[float | None]]]:
    """Share of artifact tokens and the length from which a token is one (None without any), by step and layer."""
    steps, layers = maps.tokens.widths.shape
    found = [[length_modes(_lengths(maps, step, layer)) for layer in range(layers)] for step in range(steps)]
    return [[[round(one.share, 5), one.cut] for one in row] for row in found]


def _lengths(maps: TokenMaps, step: int, layer: int) -> np.ndarray:
    lengths = maps.tokens.token_lengths(step, layer)
    return np.zeros(0) if lengths is None else lengths


def picture_url(image: np.ndarray) -> str:
    """A picture (H, W, 3) uint8 as a data URL: PNG, or JPEG where a PNG would be large."""
    kind, content = "png", _encoded(image, "png", optimize=True)
    if len(content) > _PNG_BYTES:
        kind, content = "jpeg", _encoded(image, "jpeg", quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _encoded(image: np.ndarray, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()
