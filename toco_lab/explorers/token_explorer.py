"""Token explorer: click a patch and see its cosine similarity to every other, layer by layer, in one or two models.

The cosines are computed in the browser (static/token_explorer.js), so a click never waits for the kernel. The same
file serves notebooks, as an anywidget, and offline pages, as a fragment of HTML with the tokens inside.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import anywidget
import numpy as np
import traitlets as T

from toco_lab.explorers.token_maps import TokenMaps, arrange, payload

MODULE = Path(__file__).parent / "static" / "token_explorer.js"
_STATE = ("image", "patch", "layer", "step", "left", "right")


class SimilarityPanel(TypedDict):
    """One picture with its map: title, image (H, W, 3) uint8, map (h, w) cosines, patch (row, column)."""

    title: str
    image: np.ndarray
    map: np.ndarray
    patch: tuple[int, int]


def panels_of(maps: Sequence[TokenMaps], selection: Mapping[str, Any]) -> list[SimilarityPanel]:
    """What a selection shows, computed anew: one panel, or two where models are compared.

    Args:
        maps: The maps it was made with, in any order.
        selection: `TokenExplorer.selection`, or what "Save selection" wrote. Needed are image, patch, layer, step (the
            nearest kept one is taken), left and right (None for one panel).

    Raises:
        ValueError: If it names an image, model, layer or patch that the maps do not have.
    """
    table = arrange(maps)
    row = table[list(table)[_find(selection["image"], list(table), "image")]]
    names = [name for name in (selection["left"], selection["right"]) if name is not None]
    chosen = [row[list(row)[_find(name, list(row), "model")]] for name in names]
    first = chosen[0]
    layer = _find(selection["layer"], first.layers, "layer")
    if not 0 <= selection["patch"] < first.tokens.num_tokens:
        raise ValueError(f"patch {selection['patch']} is not one of 0..{first.tokens.num_tokens - 1}")
    h, w = first.grid
    down, across = (selection["patch"] // w + 0.5) / h, (selection["patch"] % w + 0.5) / w
    wanted, panels = first.steps[first.nearest_step(selection["step"])], []
    for one in chosen:
        place = int(down * one.grid[0]), int(across * one.grid[1])  # grids may differ
        step, index = one.nearest_step(wanted), one.find_layer(selection["layer"], layer)
        title = f"{one.model}, {one.layers[index]}" + (f", step {one.steps[step]}" if len(one.steps) > 1 else "")
        similarity = one.similarity(step, index, place[0] * one.grid[1] + place[1])
        panels.append(SimilarityPanel(title=title, image=one.image, map=similarity, patch=place))
    return panels


class TokenExplorer(anywidget.AnyWidget):
    """The explorer in a notebook. The traits follow the picture, and the picture follows the traits.

    Attributes:
        image, left, right: Indices of the image and of the models shown; `right` is -1 where none is beside.
        patch: Row-major index in the grid of the left model; -1, or one the image does not have, means its centre.
        layer: Index of the layer of the left model.
        step: Training step; the nearest one kept is shown.
        selection: The same in names, with the range of similarities to the other patches: a dict fit for JSON.
        maps: The maps it was made with.
    """

    _esm = MODULE
    meta = T.Dict().tag(sync=True)
    data = T.Bytes().tag(sync=True)
    image = T.Int(0).tag(sync=True)
    patch = T.Int(-1).tag(sync=True)
    layer = T.Int(0).tag(sync=True)
    step = T.Int(0).tag(sync=True)
    left = T.Int(0).tag(sync=True)
    right = T.Int(-1).tag(sync=True)
    selection = T.Dict().tag(sync=True)

    def __init__(
        self,
        maps: Sequence[TokenMaps],
        *,
        image: str | int = 0,
        patch: tuple[int, int] | None = None,
        layer: str | int | None = None,
        step: int | None = None,
        left: str | int = 0,
        right: str | int | None = None,
        colours: Mapping[str, str] | None = None,
    ) -> None:
        """Make the widget.

        Args:
            maps: Every image of every model once (`token_maps.merge_steps` joins snapshots).
            image: Name or index of the image shown first.
            patch: Row and column of the patch chosen first; None takes the centre.
            layer: Name or index of the layer; None takes the last.
            step: Training step; None takes the last.
            left: Name or index of the model.
            right: Name or index of the model beside it; None shows one.
            colours: As in `token_maps.payload`.

        Raises:
            ValueError: If the maps do not fit together, or something is not among them.
        """
        self._table = [list(row.values()) for row in arrange(maps).values()]
        self.maps = tuple(maps)
        packed = payload(maps, colours=colours)
        images, models = packed.meta["images"], [model["name"] for model in packed.meta["models"]]
        image, left = _find(image, images, "image"), _find(left, models, "model")
        first = self._table[image][left]
        h, w = first.grid
        super().__init__(
            meta=packed.meta,
            data=packed.buffer,
            image=image,
            patch=_patch(*((h // 2, w // 2) if patch is None else patch), first.grid),
            layer=_find(len(first.layers) - 1 if layer is None else layer, first.layers, "layer"),
            step=first.steps[-1] if step is None else step,
            left=left,
            right=-1 if right is None else _find(right, models, "model"),
        )
        self.observe(self._select, list(_STATE))
        self._select()

    def select(
        self,
        row: int,
        column: int,
        *,
        layer: str | int | None = None,
        step: int | None = None,
        image: str | int | None = None,
    ) -> None:
        """Choose a patch by row and column (from 0), and with it a layer, a training step, an image; None keeps them.

        Raises:
            ValueError: If the patch, layer or image is not there.
        """
        image = self.image if image is None else _find(image, self.meta["images"], "image")
        first = self._table[image][self.left]
        changes = {"image": image, "patch": _patch(row, column, first.grid)}
        if layer is not None:
            changes["layer"] = _find(layer, first.layers, "layer")
        if step is not None:
            changes["step"] = step
        with self.hold_sync(), self.hold_trait_notifications():
            for name, value in changes.items():
                setattr(self, name, value)

    def panels(self, selection: Mapping[str, Any] | None = None) -> list[SimilarityPanel]:
        """What is shown now, or what another selection shows, as arrays for a figure."""
        return panels_of(self.maps, self.selection if selection is None else selection)

    @T.validate("image", "left", "right", "layer", "patch")
    def _check(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        if not hasattr(self, "_table"):
            return value
        lowest = -1 if name in ("right", "patch") else 0
        count = {
            "image": len(self._table),
            "left": len(self._table[0]),
            "right": len(self._table[0]),
            "layer": max(len(one.layers) for row in self._table for one in row),
            "patch": max(one.tokens.num_tokens for row in self._table for one in row),
        }[name]
        if not lowest <= value < count:
            raise T.TraitError(f"{name} must be in {lowest}..{count - 1}, got {value}")
        return value

    def _select(self, _change: Any = None) -> None:
        """Say the state in names. The browser writes the same; this serves a kernel without one."""
        row = self._table[self.image]
        first = row[self.left]
        h, w = first.grid
        patch = self.patch if 0 <= self.patch < h * w else h // 2 * w + w // 2
        selection = {
            "image": first.image_name,
            "patch": patch,
            "row": patch // w,
            "column": patch % w,
            "layer": first.layers[min(self.layer, len(first.layers) - 1)],
            "step": first.steps[first.nearest_step(self.step)],
            "left": first.model,
            "right": row[self.right].model if self.right >= 0 else None,
        }
        ranges = [_range(panel) for panel in panels_of(self.maps, selection)]
        self.selection = selection | {"similarity": dict(zip(("left", "right"), [*ranges, None], strict=False))}


def _range(panel: SimilarityPanel) -> dict[str, float]:
    """Similarity of the chosen patch to all others, four digits."""
    others = np.delete(panel["map"].astype(float), np.ravel_multi_index(panel["patch"], panel["map"].shape))
    others = others if len(others) else np.ones(1)
    return {
        "minimum": round(others.min(), 4),
        "mean": round(others.mean(), 4),
        "maximum": round(others.max(), 4),
    }


def _find(wanted: str | int, names: Sequence[str], what: str) -> int:
    """Index of a name or of an index (negative ones count from the end)."""
    if isinstance(wanted, str) and wanted in names:
        return list(names).index(wanted)
    if not isinstance(wanted, str) and -len(names) <= wanted < len(names):
        return int(wanted) % len(names)
    raise ValueError(f"there is no {what} {wanted!r}; there is {', '.join(map(repr, names))}")


def _patch(row: int, column: int, grid: tuple[int, int]) -> int:
    if not (0 <= row < grid[0] and 0 <= column < grid[1]):
        raise ValueError(f"patch ({row}, {column}) lies outside the grid of {grid[0]} rows and {grid[1]} columns")
    return int(row) * grid[1] + int(column)


# --- offline pages ----------------------------------------------------------------------------------------------------


def explorer_module_html() -> str:
    """The JavaScript, once for each page, before its explorers. Nothing is requested: the module is a blob."""
    source = _json(MODULE.read_text(encoding="utf-8"))
    return (
        f'<script type="application/json" id="token-explorer-module">{source}</script>\n'
        "<script>window.tokenExplorer = import(URL.createObjectURL(new Blob([JSON.parse("
        'document.getElementById("token-explorer-module").textContent)], {type: "text/javascript"})));</script>\n'
    )


def explorer_element_html(
    maps: Sequence[TokenMaps], element_id: str, *, colours: Mapping[str, str] | None = None, **state: int
) -> str:
    """One explorer with its tokens inside; `explorer_module_html` must stand above it.

    Args:
        maps: As for `TokenExplorer`.
        element_id: Id of its element; one of its own for each explorer of a page.
        colours: As in `token_maps.payload`.
        **state: First values of the traits of `TokenExplorer`, as `right=1` for two models side by side.

    Raises:
        ValueError: If the id is no plain word, a state is unknown, or the maps do not fit together.
    """
    if not re.fullmatch(r"[A-Za-z][\w-]*", element_id):
        raise ValueError(f"element_id must be a letter, then letters, digits, - or _, got {element_id!r}")
    unknown = sorted(set(state) - set(_STATE))
    if unknown:
        raise ValueError(f"unknown state {', '.join(unknown)}; there is {', '.join(_STATE)}")
    packed = payload(maps, colours=colours)
    data = base64.b64encode(packed.buffer).decode()
    return (
        f'<div id="{element_id}"><noscript>The token explorer needs JavaScript.</noscript></div>\n'
        f'<script type="application/json" id="{element_id}-meta">{_json([packed.meta, state])}</script>\n'
        f'<script type="text/plain" id="{element_id}-data">{data}</script>\n'
        "<script>{const part = (end) => document.getElementById("
        f'"{element_id}" + end), [meta, state] = JSON.parse(part("-meta").textContent);\n'
        'const bytes = Uint8Array.from(atob(part("-data").textContent), (letter) => letter.charCodeAt(0));\n'
        'tokenExplorer.then(({mount}) => mount(part(""), meta, bytes, state));}</script>\n'
    )


def explorer_html(maps: Sequence[TokenMaps], *, element_id: str = "token-explorer", **options: Any) -> str:
    """A page fragment that needs nothing else: the module and one explorer; arguments as `explorer_element_html`."""
    return explorer_module_html() + explorer_element_html(maps, element_id, **options)


def _json(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it can end the element."""
    return json.dumps(value).replace("<", "\\u003c")
