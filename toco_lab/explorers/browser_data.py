"""Token maps as the explorer's JavaScript reads them: names and numbers as JSON, all tokens as one block of bytes."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from toco_lab.tokens.token_maps import TokenMaps, maps_by_image

_PNG_BYTES = 100_000  # a picture that is larger than this as PNG travels as JPEG


@dataclass(frozen=True)
class BrowserData:
    """What static/token_explorer.js needs.

    Attributes:
        meta: Names, pictures (data URLs), grids, steps, layers, widths and offsets; fit for JSON.
        tokens: The int8 tokens of all maps, one after another.
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
    offset = 0
    for row in table.values():
        entries.append([])
        for record in row.values():
            height, width, _ = record.image.shape
            content = repr(record.image.shape).encode() + record.image.tobytes()
            if content not in pictures:
                pictures[content] = len(urls)
                urls.append({"url": picture_url(record.image), "height": height, "width": width})
            entries[-1].append(_entry(record, pictures[content], offset))
            parts.append(record.tokens.values.tobytes())
            offset += len(parts[-1])
    meta = {
        "images": list(table),
        "models": [{"name": name, "colour": (colours or {}).get(name)} for name in models],
        "pictures": urls,
        "maps": entries,
    }
    return BrowserData(meta, b"".join(parts))


def _entry(maps: TokenMaps, picture: int, offset: int) -> dict[str, Any]:
    """What is to be known of one model and image; its tokens begin at byte `offset`."""
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
    }


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
