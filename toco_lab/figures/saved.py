"""Plotly figures as HTML inside a notebook's file: drawn without a kernel and without a network.

plotly.js is written once, compressed to two fifths, with the first figure. A page that shows a later figure alone
(Colab puts every output into a frame of its own) takes plotly.js from plotly's own address.
"""

import base64
import gzip
import json
import os
import re
import secrets
from functools import cache
from typing import Any

from toco_lab.figures.plotly_style import CONFIG

PLOTLY = "application/vnd.plotly.v1+json"
PACKED = 'id="packed-plotly"'  # marks the output that holds plotly.js
RENDERER = "saved"
_CONFIG = CONFIG | {"responsive": True, "modeBarButtonsToRemove": ["lasso2d", "select2d"]}
_HEIGHT = 450  # pixels, where a figure has none
_DRAW = """<script>{
const place = document.getElementById("%(place)s"), packed = document.getElementById("packed-plotly");
const run = (source) => { new Function("module", "exports", "define", source).call(window); return window.Plotly; };
const unpacked = async () => {
  const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
  return run(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text());
};
const fetched = () => new Promise((resolve, reject) => {
  const script = Object.assign(document.createElement("script"), {src: "%(address)s", onerror: reject});
  script.onload = () => window.Plotly ? resolve(window.Plotly) : reject(new Error("plotly.js did not start"));
  document.head.append(script);
});
window.savedPlotly ??= window.Plotly ? Promise.resolve(window.Plotly) : packed ? unpacked() : fetched();
const figure = JSON.parse(document.getElementById("%(place)s-figure").textContent);
window.savedPlotly.then((plotly) => plotly.newPlot(place, figure.data, figure.layout, %(config)s)).catch(() => {
  place.textContent = "This figure is drawn by plotly.js, which could not be loaded. Run the notebook from its top.";
});
}</script>
"""


def figure_html(figure: dict[str, Any], *, with_script: bool) -> str:
    """A figure as a piece of HTML.

    Args:
        figure: Its data and layout, as in plotly's MIME type.
        with_script: Write plotly.js in front of it, two megabytes; the first figure of a page needs that.
    """
    place = f"plotly-{secrets.token_hex(4)}"
    height = int((figure.get("layout") or {}).get("height") or _HEIGHT)
    content = {"data": figure.get("data", []), "layout": figure.get("layout", {})}
    written = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")  # nothing in it ends the element
    packed = f'<script type="text/plain" {PACKED}>{_packed_plotly()}</script>\n' if with_script else ""
    draw = _DRAW % {"place": place, "address": _address(), "config": json.dumps(_CONFIG)}
    return (
        f'{packed}<div id="{place}" class="plotly-graph-div" style="min-height:{height}px"></div>\n'
        f'<script type="application/json" id="{place}-figure">{written}</script>\n{draw}'
    )


def show_figures() -> None:
    """In a notebook, have figures shown by whatever it runs in, and kept as HTML in its file.

    JupyterLab and VS Code draw plotly's own MIME type. Where plotly knows a place with rules of its own (Colab, Kaggle,
    ...), or PLOTLY_RENDERER names one, that stays.
    """
    import plotly.io
    from plotly.io.base_renderers import MimetypeRenderer

    first = True

    class Saved(MimetypeRenderer):
        """The HTML beside plotly's own MIME type."""

        def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, str]:
            from plotly.utils import PlotlyJSONEncoder

            nonlocal first  # of this kernel; plotly copies its renderers
            with_script, first = first, False
            plain = json.loads(json.dumps(fig_dict, cls=PlotlyJSONEncoder))
            return {"text/html": figure_html(plain, with_script=with_script)}

    known = ("plotly_mimetype", "vscode", "jupyterlab", "plotly_mimetype+notebook")
    if "PLOTLY_RENDERER" not in os.environ and plotly.io.renderers.default in known:
        plotly.io.renderers[RENDERER] = Saved()
        plotly.io.renderers.default = f"plotly_mimetype+{RENDERER}"


@cache
def _packed_plotly() -> str:
    """plotly.js, gzip and base64."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


@cache
def _address() -> str:
    """Where plotly says that this version of plotly.js lies."""
    from plotly.io import to_html

    html = to_html({"data": []}, include_plotlyjs="cdn", full_html=False, validate=False)
    found = re.search(r'src="([^"]+plotly[^"]*\.js)"', html)
    return found[1] if found else ""
