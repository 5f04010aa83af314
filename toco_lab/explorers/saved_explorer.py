"""The token explorer as it stays in the file of a notebook: its offline form, with as many tokens as fit well."""

from collections.abc import Mapping, Sequence

from toco_lab.explorers.token_page import explorer_html
from toco_lab.tokens.token_maps import TokenMaps, thin_steps
from toco_lab.words import counted

SAVED = 'class="saved-token-explorer"'  # marks the HTML
SAVED_BYTES = 1_200_000  # of tokens; a third more as text


def saved_explorer_html(
    maps: Sequence[TokenMaps], element_id: str, *, state: Mapping[str, int], colours: Mapping[str, str] | None = None
) -> str:
    """A token explorer that needs neither a kernel nor a network, as a piece of HTML.

    Of more tokens than `SAVED_BYTES` first the training steps in between are left out, then the last images; it says
    so. Where not even one image fits, it says that alone.

    Args:
        maps: As for `TokenExplorer`.
        element_id: Id of its element.
        state: The traits of `TokenExplorer` when it was shown.
        colours: As in `pack_for_browser`.
    """
    names = list(dict.fromkeys(one.image_name for one in maps))
    shown = names[state["image"]]
    for count in range(len(names), 0, -1):
        first = [name for name in names if name != shown][: count - 1]
        kept = [name for name in names if name == shown or name in first]
        chosen = [one for one in maps if one.image_name in kept]
        thinned = [thin_steps(one, SAVED_BYTES // len(chosen)) for one in chosen]
        if sum(one.tokens.values.nbytes for one in thinned) <= SAVED_BYTES:
            said = _left_out(maps, thinned, len(names) - count)
            html = explorer_html(
                thinned, element_id=element_id, colours=colours, **(dict(state) | {"image": kept.index(shown)})
            )
            return f"<div {SAVED}>{html}<p>{said}</p></div>"
    return f"<div {SAVED}><p>The tokens are too many for a saved notebook; run it to see the token explorer.</p></div>"


def _left_out(maps: Sequence[TokenMaps], kept: Sequence[TokenMaps], images: int) -> str:
    """What the copy lacks, as a sentence; nothing where it lacks nothing."""
    steps, left = max(len(one.steps) for one in maps), max(len(one.steps) for one in kept)
    parts = [f"{left} of {counted(steps, 'training step')}"] if left < steps else []
    parts += [f"all but {counted(images, 'image')}"] if images else []
    return f"This copy in the saved notebook holds {' and '.join(parts)}; run the notebook to see all." if parts else ""
