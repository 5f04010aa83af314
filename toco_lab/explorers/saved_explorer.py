"""The token explorer as it stays in the file of a notebook: its offline form, with as many tokens as fit well."""

from collections.abc import Mapping, Sequence
from typing import Any

from toco_lab.explorers.token_page import explorer_html
from toco_lab.tokens.token_maps import TokenMaps, maps_by_image, thin_layers, thin_steps
from toco_lab.words import counted

SAVED = 'class="saved-token-explorer"'  # marks the HTML
SAVED_BYTES = 1_200_000  # of tokens; a third more as text


def saved_explorer_html(
    maps: Sequence[TokenMaps], element_id: str, *, state: Mapping[str, Any], colours: Mapping[str, str] | None = None
) -> str:
    """A token explorer that needs neither a kernel nor a network, as a piece of HTML.

    Of more tokens than `SAVED_BYTES` first the training steps in between are left out, then the last images, then
    layers in between; it says so.

    Args:
        maps: As for `TokenExplorer`.
        element_id: Id of its element.
        state: The traits of `TokenExplorer` when it was shown.
        colours: As in `pack_for_browser`.
    """
    table = maps_by_image(maps)
    names = list(table)
    shown = names[state["image"]]
    second = names[state["other"]] if state.get("other", -1) >= 0 else shown
    kept, thinned = _fitting(table, {shown, second})
    models = list(table[shown])
    before = table[shown][models[state["left"]]].layers
    after = next(one for one in thinned if (one.image_name, one.model) == (shown, models[state["left"]])).layers
    layer = min(range(len(after)), key=lambda index: abs(before.index(after[index]) - state["layer"]))
    places = {"image": kept.index(shown), "layer": layer}
    if second != shown:
        places["other"] = kept.index(second)
    html = explorer_html(thinned, element_id=element_id, colours=colours, **{**state, **places})
    return f"<div {SAVED}>{html}<p>{_left_out(maps, thinned, len(table) - len(kept))}</p></div>"


def _fitting(table: Mapping[str, Mapping[str, TokenMaps]], shown: set[str]) -> tuple[list[str], list[TokenMaps]]:
    """The images whose maps fit, and these maps; what is shown stays."""
    others = [name for name in table if name not in shown]
    for count in range(len(others), -1, -1):
        kept = [name for name in table if name in shown or name in others[:count]]
        chosen = [one for name in kept for one in table[name].values()]
        share = SAVED_BYTES // len(chosen)
        thinned = [thin_steps(one, share) for one in chosen]
        if sum(one.tokens.slab_bytes.sum() for one in thinned) <= SAVED_BYTES:
            return kept, thinned
    return kept, [thin_layers(one, share) for one in thinned]


def _left_out(maps: Sequence[TokenMaps], kept: Sequence[TokenMaps], images: int) -> str:
    """What the copy lacks, as a sentence; nothing where it lacks nothing."""
    parts = []
    for kind in ("steps", "layers"):
        there, left = (max(len(getattr(one, kind)) for one in some) for some in (maps, kept))
        word = "training step" if kind == "steps" else "layer"
        parts += [f"{left} of {counted(there, word)}"] if left < there else []
    parts += [f"all but {counted(images, 'image')}"] if images else []
    return f"This copy in the saved notebook holds {', '.join(parts)}; run the notebook to see all." if parts else ""
