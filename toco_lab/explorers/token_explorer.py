"""Token explorer: click a patch and see its cosine similarity to every other, layer by layer, in one or two models.

Or look for the patch in a second image; or see the tokens' principal components as colours, and their lengths. All of
it is computed in the browser (static/token_numbers.js and token_explorer.js), so a click never waits for the kernel.
The same JavaScript serves notebooks, as an anywidget, and offline pages (`token_page`).
"""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import anywidget
import numpy as np
import traitlets as T

from toco_lab.explorers.browser_data import pack_for_browser
from toco_lab.tokens.token_maps import TokenMaps, maps_by_image
from toco_lab.words import counted

MODULE = "\n".join(
    (Path(__file__).parent / "static" / name).read_text(encoding="utf-8")
    for name in ("token_numbers.js", "token_explorer.js")
)
STATE = ("image", "patch", "layer", "step", "left", "right", "other", "asked", "show")
SHOW = ("similarity", "colours", "shared colours", "length")


class SimilarityMap(TypedDict):
    """Similarity of one patch to all, over the image, as `figures.similarity_maps` draws it.

    Keys: title, image (H, W, 3) uint8, map (h, w) cosines in [-1, 1], patch (row, column) in the grid (h, w). Where
    `found` is true, the patch asked about is one of another image, and `patch` is the one most like it.
    """

    title: str
    image: np.ndarray
    map: np.ndarray
    patch: tuple[int, int]
    found: NotRequired[bool]


def similarity_maps(maps: Sequence[TokenMaps], selection: Mapping[str, Any]) -> list[SimilarityMap]:
    """What a selection shows, computed anew: one map, or two where models or images are compared.

    Args:
        maps: The maps it was made with, in any order.
        selection: `TokenExplorer.selection`, or what "Save selection" wrote. It needs image, patch, layer, step (the
            nearest kept one is taken), left and right (None for one map); with `other`, the name of a second image,
            the patch is looked for there (if `asked` is 1, a patch of the second image in the first).

    Raises:
        ValueError: If it names an image, model, layer or patch that the maps do not have.
    """
    table = maps_by_image(maps)
    row = table[list(table)[_find(selection["image"], list(table), "image")]]
    if selection.get("other") is not None:
        other = table[list(table)[_find(selection["other"], list(table), "image")]]
        name = list(row)[_find(selection["left"], list(row), "model")]
        return _in_two_images(row[name], other[name], selection)
    names = [name for name in (selection["left"], selection["right"]) if name is not None]
    shown = [row[list(row)[_find(name, list(row), "model")]] for name in names]
    left = shown[0]
    if not 0 <= selection["patch"] < left.tokens.num_tokens:
        raise ValueError(f"patch {selection['patch']} is not one of 0..{left.tokens.num_tokens - 1}")
    h, w = left.grid
    centre = (selection["patch"] // w + 0.5) / h, (selection["patch"] % w + 0.5) / w
    layer, step = _find(selection["layer"], left.layers, "layer"), left.steps[left.nearest_step(selection["step"])]
    return [_similarity_map(record, centre, record.find_layer(selection["layer"], layer), step) for record in shown]


def _similarity_map(maps: TokenMaps, centre: tuple[float, float], layer: int, step: int) -> SimilarityMap:
    """Of the patch at a place given as shares of height and width (grids may differ), at the step nearest to `step`."""
    row, column = int(centre[0] * maps.grid[0]), int(centre[1] * maps.grid[1])
    nearest = maps.nearest_step(step)
    title = f"{maps.model}, {maps.layers[layer]}" + (f", step {maps.steps[nearest]}" if len(maps.steps) > 1 else "")
    similarity = maps.similarity(nearest, layer, row * maps.grid[1] + column)
    return SimilarityMap(title=title, image=maps.image, map=similarity, patch=(row, column))


def _in_two_images(first: TokenMaps, second: TokenMaps, selection: Mapping[str, Any]) -> list[SimilarityMap]:
    """The cosine of a patch of one image to all of its own image and to all of another one."""
    both = first, second
    asked = both[selection.get("asked", 0)]
    if not 0 <= selection["patch"] < asked.tokens.num_tokens:
        raise ValueError(f"patch {selection['patch']} is not one of 0..{asked.tokens.num_tokens - 1}")
    layer = _find(selection["layer"], first.layers, "layer")
    step = first.steps[first.nearest_step(selection["step"])]
    places = [(one.nearest_step(step), one.find_layer(selection["layer"], layer)) for one in both]
    theirs = places[both.index(asked)]
    shown = []
    for one, ours in zip(both, places, strict=True):
        similarity = one.similarity_of(asked, theirs, ours, selection["patch"])
        patch = selection["patch"] if one is asked else int(similarity.argmax())
        title = f"{one.image_name}: {one.model}, {one.layers[ours[1]]}"
        title += f", step {one.steps[ours[0]]}" if len(one.steps) > 1 else ""
        marked = divmod(patch, one.grid[1])
        shown.append(SimilarityMap(title=title, image=one.image, map=similarity, patch=marked, found=one is not asked))
    return shown


class TokenExplorer(anywidget.AnyWidget):
    """The explorer in a notebook. The traits follow the picture, and the picture follows the traits.

    Attributes:
        image, left, right: Indices of the image and of the models shown; `right` is -1 where only one is shown.
        other: Index of a second image, in which the patch is looked for by the left model; -1 for none. It takes the
            place of `right`.
        asked: 1 where the patch is one of the second image, which is then looked for in the first; else 0.
        show: One of `SHOW`: similarity to the patch; the first three principal components of the tokens as colours, of
            each image or shared by all; the lengths of the tokens.
        patch: Row-major index in the grid of the left model; -1, or one the image does not have, means its centre.
        layer: Index of the layer of the left model.
        step: Training step; the nearest one kept is shown.
        selection: The same in names, with the range of similarities to the other patches: a dict fit for JSON.
        maps: The maps it was made with.
    """

    _esm = MODULE  # both files, for a page can import no second one
    meta = T.Dict().tag(sync=True)
    data = T.Bytes().tag(sync=True)
    image = T.Int(0).tag(sync=True)
    patch = T.Int(-1).tag(sync=True)
    layer = T.Int(0).tag(sync=True)
    step = T.Int(0).tag(sync=True)
    left = T.Int(0).tag(sync=True)
    right = T.Int(-1).tag(sync=True)
    other = T.Int(-1).tag(sync=True)
    asked = T.Int(0).tag(sync=True)
    show = T.Enum(SHOW, SHOW[0]).tag(sync=True)
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
        other: str | int | None = None,
        show: str = SHOW[0],
        colours: Mapping[str, str] | None = None,
    ) -> None:
        """Packs the maps for the browser.

        Args:
            maps: Every image of every model once (`token_maps.merge_steps` joins snapshots).
            image: Name or index of the image shown first.
            patch: Row and column of the patch chosen first; None takes the centre.
            layer: Name or index of the layer; None takes the last.
            step: Training step; None takes the last.
            left: Name or index of the model.
            right: Name or index of the model beside it; None shows one model alone.
            other: Name or index of a second image, to look for the patch in; None for none.
            show: One of `SHOW`.
            colours: As in `pack_for_browser`.

        Raises:
            ValueError: If the maps do not fit together, or a name or index is not among them.
        """
        self._table = [list(row.values()) for row in maps_by_image(maps).values()]
        self._colours = colours
        self.maps = tuple(maps)
        packed = pack_for_browser(maps, colours=colours)
        images, models = packed.meta["images"], [model["name"] for model in packed.meta["models"]]
        image_index, left_index = _find(image, images, "image"), _find(left, models, "model")
        first = self._table[image_index][left_index]
        h, w = first.grid
        super().__init__(
            meta=packed.meta,
            data=packed.tokens,
            image=image_index,
            patch=_patch(*((h // 2, w // 2) if patch is None else patch), first.grid),
            layer=_find(len(first.layers) - 1 if layer is None else layer, first.layers, "layer"),
            step=first.steps[-1] if step is None else step,
            left=left_index,
            right=-1 if right is None else _find(right, models, "model"),
            other=-1 if other is None else _find(other, images, "image"),
            show=show,
        )
        self.observe(self._name_selection, list(STATE))
        self._name_selection()

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
        index = self.image if image is None else _find(image, self.meta["images"], "image")
        first = self._table[index][self.left]
        changes = {"image": index, "patch": _patch(row, column, first.grid)}
        if layer is not None:
            changes["layer"] = _find(layer, first.layers, "layer")
        if step is not None:
            changes["step"] = step
        with self.hold_sync(), self.hold_trait_notifications():
            for name, value in changes.items():
                setattr(self, name, value)

    def similarity_maps(self, selection: Mapping[str, Any] | None = None) -> list[SimilarityMap]:
        """What is shown now, or what another selection shows, as arrays for a figure."""
        return similarity_maps(self.maps, self.selection if selection is None else selection)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The widget, and its offline form: what the notebook's file shows once its kernel is gone."""
        from toco_lab.explorers.saved_explorer import saved_explorer_html

        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:  # closed
            return None
        data, metadata = bundle
        state = {name: getattr(self, name) for name in STATE}
        element_id = f"token-explorer-{secrets.token_hex(4)}"
        html = saved_explorer_html(self.maps, element_id, state=state, colours=self._colours)
        return {**data, "text/html": html}, metadata

    @T.validate("image", "left", "right", "other", "asked", "layer", "patch")
    def _check_range(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        if not hasattr(self, "_table"):  # a trait's default, before there are maps
            return value
        lowest = -1 if name in ("right", "other", "patch") else 0
        count = {
            "image": len(self._table),
            "other": len(self._table),
            "asked": 2,
            "left": len(self._table[0]),
            "right": len(self._table[0]),
            "layer": max(len(maps.layers) for row in self._table for maps in row),
            "patch": max(maps.tokens.num_tokens for row in self._table for maps in row),
        }[name]
        if not lowest <= value < count:
            raise T.TraitError(f"{name} must be in {lowest}..{count - 1}, got {value}")
        return value

    def _name_selection(self, _change: Any = None) -> None:
        """Write `selection`. The browser writes the same; this is for a kernel without one."""
        row = self._table[self.image]
        first = row[self.left]
        other = self._table[self.other][self.left] if self.other not in (-1, self.image) else None
        asked = other if other is not None and self.asked else first
        h, w = asked.grid
        patch = self.patch if 0 <= self.patch < h * w else h // 2 * w + w // 2
        selection = {
            "image": first.image_name,
            "patch": patch,
            "row": patch // w,
            "column": patch % w,
            "layer": first.layers[min(self.layer, len(first.layers) - 1)],
            "step": first.steps[first.nearest_step(self.step)],
            "left": first.model,
            "right": row[self.right].model if self.right >= 0 and other is None else None,
            "other": None if other is None else other.image_name,
            "asked": int(asked is not first),
            "show": self.show,
        }
        ranges = [_range(shown) for shown in similarity_maps(self.maps, selection)]
        self.selection = selection | {"similarity": dict(zip(("left", "right"), [*ranges, None], strict=False))}


def _range(shown: SimilarityMap) -> dict[str, float]:
    """Similarity of the chosen patch to all others, to four digits."""
    others = shown["map"].astype(float).ravel()
    if not shown.get("found"):  # it is one of them
        others = np.delete(others, np.ravel_multi_index(shown["patch"], shown["map"].shape))
    others = others if len(others) else np.ones(1)
    return {
        "minimum": round(others.min(), 4),
        "mean": round(others.mean(), 4),
        "maximum": round(others.max(), 4),
    }


def _find(wanted: str | int, names: Sequence[str], what: str) -> int:
    """Index of a name, or of an index (a negative one counts from the end)."""
    if isinstance(wanted, str) and wanted in names:
        return list(names).index(wanted)
    if not isinstance(wanted, str) and -len(names) <= wanted < len(names):
        return int(wanted) % len(names)
    raise ValueError(f"there is no {what} {wanted!r}; there is {', '.join(map(repr, names))}")


def _patch(row: int, column: int, grid: tuple[int, int]) -> int:
    """Row-major index of a patch."""
    if not (0 <= row < grid[0] and 0 <= column < grid[1]):
        raise ValueError(
            f"patch ({row}, {column}) lies outside the grid of {counted(grid[0], 'row')} and "
            f"{counted(grid[1], 'column')}"
        )
    return int(row) * grid[1] + int(column)
