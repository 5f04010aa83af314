"""Token explorers on an offline page: fragments of HTML with the JavaScript and the tokens inside.

They need neither a kernel nor a network: the module is a blob of the page, and the tokens stand in it compressed
(zlib), as base64.
"""

import base64
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from toco_lab.explorers.browser_data import pack_for_browser
from toco_lab.explorers.token_explorer import MODULE, STATE
from toco_lab.tokens.token_maps import TokenMaps


def explorer_module_html() -> str:
    """The JavaScript; a page needs it once, before its first explorer."""
    source = _json(MODULE)
    return (
        f'<script type="application/json" id="token-explorer-module">{source}</script>\n'
        "<script>window.tokenExplorer = import(URL.createObjectURL(new Blob([JSON.parse("
        'document.getElementById("token-explorer-module").textContent)], {type: "text/javascript"})));</script>\n'
    )


def explorer_element_html(
    maps: Sequence[TokenMaps], element_id: str, *, colours: Mapping[str, str] | None = None, **state: int | str
) -> str:
    """One explorer with its tokens inside; `explorer_module_html` must stand above it.

    Args:
        maps: As for `TokenExplorer`.
        element_id: Id of its element, different for each explorer of a page.
        colours: As in `pack_for_browser`.
        **state: First values of the traits of `TokenExplorer`, for instance `right=1` for two models side by side.

    Raises:
        ValueError: If the id is no plain word, a trait is unknown, or the maps do not fit together.
    """
    if not re.fullmatch(r"[A-Za-z][\w-]*", element_id):
        raise ValueError(f"element_id must be a letter, then letters, digits, - or _, got {element_id!r}")
    unknown = sorted(set(state) - set(STATE))
    if unknown:
        raise ValueError(f"unknown state {', '.join(unknown)}; there is {', '.join(STATE)}")
    packed = pack_for_browser(maps, colours=colours)
    data = base64.b64encode(zlib.compress(packed.tokens, 9)).decode()
    return (
        f'<div id="{element_id}"><noscript>The token explorer needs JavaScript.</noscript></div>\n'
        f'<script type="application/json" id="{element_id}-meta">{_json([packed.meta, state])}</script>\n'
        f'<script type="text/plain" id="{element_id}-data">{data}</script>\n'
        "<script>{const part = (end) => document.getElementById("
        f'"{element_id}" + end), [meta, state] = JSON.parse(part("-meta").textContent);\n'
        'const packed = Uint8Array.from(atob(part("-data").textContent), (letter) => letter.charCodeAt(0));\n'
        'const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));\n'
        "Promise.all([tokenExplorer, new Response(stream).arrayBuffer()]).then(([{mount}, bytes]) =>\n"
        'mount(part(""), meta, new Uint8Array(bytes), state));}</script>\n'
    )


def explorer_html(maps: Sequence[TokenMaps], *, element_id: str = "token-explorer", **options: Any) -> str:
    """A fragment that needs nothing else: the module and one explorer; arguments as in `explorer_element_html`."""
    return explorer_module_html() + explorer_element_html(maps, element_id, **options)


def _json(value: Any) -> str:
    """JSON for a script element: nothing in it can end the element."""
    return json.dumps(value).replace("<", "\\u003c")
