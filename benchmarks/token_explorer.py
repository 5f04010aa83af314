"""How long the token explorer takes to answer clicks at random patches and layers, in a real Chromium.

The tokens are those of a ViT-B/16 with random weights at 448 px: 28 x 28 patches, 12 blocks and the final norm. Time is
counted from the browser's own stamp on the event to the moment the map can be read back from its canvas, and to the
next animation frame, by which the curves are drawn too.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch

from benchmarks.run import Case, markdown_table
from toco_lab.data.toy import make_scene
from toco_lab.explorers.token_page import explorer_html
from toco_lab.tokens.quantise import quantise_tokens
from toco_lab.tokens.token_maps import TokenMaps

SIZE, PATCH, CLICKS = 448, 16, 50  # clicks a round
EVENTS = {"pointerdown": "click on a patch", "keydown": "key to another layer"}
WATCH = """() => {
    window.times = [];
    const canvas = document.querySelector(".toco-token-explorer").shadowRoot.querySelector("canvas");
    for (const kind of ["pointerdown", "keydown"]) {
        document.addEventListener(kind, (event) => {  // after the explorer's own listener
            const row = {event: kind};
            canvas.getContext("2d").getImageData(0, 0, 1, 1);
            row.drawn = performance.now() - event.timeStamp;
            requestAnimationFrame(() => { row.frame = performance.now() - event.timeStamp; window.times.push(row); });
        });
    }
    // the explorer keeps its keys to itself: let them through to be timed
    KeyboardEvent.prototype.stopPropagation = () => {};
}"""


def tokens_of(name: str) -> TokenMaps:
    """The token maps of one scene."""
    torch.manual_seed(0)
    net = timm.create_model(name, dynamic_img_size=True).eval()
    pixels = make_scene(0, 0, size=SIZE).image
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        final, blocks = net.forward_intermediates(
            image, indices=None, norm=False, output_fmt="NLC", return_prefix_tokens=False
        )
    layers = [tokens[0] for tokens in blocks] + [final[0, net.num_prefix_tokens :]]
    names = (*(f"block {i}" for i in range(1, len(layers))), "final norm")
    grid = (SIZE // PATCH, SIZE // PATCH)
    return TokenMaps(name, "random", "scene", pixels, grid, (0,), names, quantise_tokens([layers]))


def answers(browser, maps: list[TokenMaps], folder: Path, clicks: int, *, seed: int = 0) -> pd.DataFrame:
    """One row per event: event, drawn and frame in milliseconds."""
    from helpers.browser import offline_page

    rng, side = np.random.default_rng(seed), SIZE // PATCH
    path = folder / "page.html"
    page_of = explorer_html(maps, right=len(maps) - 1 or -1)
    path.write_text(f'<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,">{page_of}', encoding="utf-8")
    with offline_page(browser, path, viewport={"width": 1200, "height": 1000}) as page:
        page.locator(".toco-token-explorer[data-state]").wait_for()
        page.wait_for_timeout(500)
        page.evaluate(WATCH)
        picture = page.locator(".picture").first
        box = picture.bounding_box()
        for _ in range(clicks):
            row, column = (rng.integers(0, side, 2) + 0.5) / side
            page.mouse.click(box["x"] + column * box["width"], box["y"] + row * box["height"])
            page.keyboard.press(rng.choice(["[", "]"]))  # the click put the focus on the picture
        page.wait_for_timeout(200)
        return pd.DataFrame(page.evaluate("window.times"))


def measure(name: str, repeats: int) -> pd.DataFrame:
    """A row per kind of event, with one model and with two side by side: milliseconds, median and 95th percentile."""
    from helpers.browser import running_browser

    maps = tokens_of(name)
    rows = []
    with tempfile.TemporaryDirectory() as folder, running_browser() as browser:
        version = browser.version
        for shown in ([maps], [maps, replace(maps, model="the same again")]):
            times = answers(browser, shown, Path(folder), CLICKS * repeats)
            for event, words in EVENTS.items():
                found = times[times["event"] == event]
                row = {"models": len(shown), "event": words, "count": len(found)}
                for what in ("drawn", "frame"):
                    row |= {f"{what}_{title}": found[what].quantile(q) for title, q in (("median", 0.5), ("p95", 0.95))}
                rows.append(row)
    widths = maps.tokens.widths
    return pd.DataFrame(rows).assign(
        browser=f"Chromium {version}", backbone=name, layers=widths.shape[1], fewest=widths.min(), most=widths.max(),
        dim=maps.tokens.dim, error=maps.tokens.error, megabytes=maps.tokens.values.nbytes / 1e6,
    )  # fmt: skip


def section(rows: pd.DataFrame) -> list[str]:
    """How the tokens travel, then the times."""
    one = rows.iloc[0]
    cells = [
        [row.models, row.event, row.count_, f"{row.drawn_median:.1f} / {row.drawn_p95:.1f}",
         f"{row.frame_median:.1f} / {row.frame_p95:.1f}"]
        for row in rows.rename(columns={"count": "count_"}).itertuples()
    ]  # fmt: skip
    return [
        f"{one['backbone']} with random weights at {SIZE} px in {one['browser']}: {SIZE // PATCH} x {SIZE // PATCH}",
        f"tokens, {one['layers']} layers, {one['fewest']} to {one['most']} of {one['dim']} dimensions "
        f"({one['megabytes']:.1f} MB, largest error {one['error']:.3f}).", "",
        *markdown_table(["models", "event", "count", "map drawn", "next frame"], cells),
    ]  # fmt: skip


def missing() -> str:
    """A browser, most often."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    try:
        import pytest
        from helpers.browser import running_browser
    except ImportError:
        return "needs the extra `test` (pytest and playwright)"
    try:
        with running_browser():
            return ""
    except pytest.skip.Exception:
        return "no Chromium here"


CASE = Case(
    about="Token explorer: from an event to its picture in a real browser. Milliseconds, median / 95th percentile.",
    settings={"vit_b": "vit_base_patch16_224"}, measure=measure, section=section, missing=missing,
)  # fmt: skip
