"""How long the token explorer takes to answer: 200 clicks at random patches and layers, in a real Chromium.

    python benchmarks/token_explorer.py            # about a minute

The tokens are those of a ViT-B/16 with random weights at 448 px: 28 x 28 patches, 12 blocks and the final norm. Time is
counted from the browser's own stamp on the event to the moment the map can be read back from its canvas, and to the
next animation frame, by which the curves are drawn too. Writes benchmarks/results/token_explorer.json and .md.
"""

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch

from toco_lab.data.toy import make_scene
from toco_lab.explorers.quantise import quantise_tokens
from toco_lab.explorers.token_maps import TokenMaps
from toco_lab.explorers.token_page import explorer_html
from toco_lab.files import atomic_write
from toco_lab.runs.environment import environment

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from helpers.browser import offline_page, running_browser

HERE = Path(__file__).parent / "results"
SIZE, PATCH, CLICKS = 448, 16, 200
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


def tokens_of_vit() -> TokenMaps:
    """The token maps of one scene."""
    torch.manual_seed(0)
    net = timm.create_model("vit_base_patch16_224", dynamic_img_size=True).eval()
    pixels = make_scene(0, 0, size=SIZE).image
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        final, blocks = net.forward_intermediates(
            image, indices=None, norm=False, output_fmt="NLC", return_prefix_tokens=False
        )
    layers = [tokens[0] for tokens in blocks] + [final[0, net.num_prefix_tokens :]]
    names = (*(f"block {i}" for i in range(1, len(layers))), "final norm")
    grid = (SIZE // PATCH, SIZE // PATCH)
    return TokenMaps("ViT-B/16", "random", "scene", pixels, grid, (0,), names, quantise_tokens([layers]))


def measure(browser, maps: list[TokenMaps], folder: Path, *, seed: int = 0) -> pd.DataFrame:
    """One row per event: event, drawn and frame in milliseconds."""
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
        for _ in range(CLICKS):
            row, column = (rng.integers(0, side, 2) + 0.5) / side
            page.mouse.click(box["x"] + column * box["width"], box["y"] + row * box["height"])
            page.keyboard.press(rng.choice(["[", "]"]))  # the click put the focus on the picture
        page.wait_for_timeout(200)
        return pd.DataFrame(page.evaluate("window.times"))


def main() -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    maps = tokens_of_vit()
    widths, made = maps.tokens.widths, environment("cpu")
    prepared = time.perf_counter() - begin
    rows = []
    with tempfile.TemporaryDirectory() as folder, running_browser() as browser:
        version = browser.version
        for shown in ([maps], [maps, replace(maps, model="the same again")]):
            times = measure(browser, shown, Path(folder))
            for event, words in (("pointerdown", "click on a patch"), ("keydown", "key to another layer")):
                found = times[times["event"] == event]
                row = {"models": len(shown), "event": words, "count": len(found)}
                for what in ("drawn", "frame"):
                    row |= {f"{what} {name}": found[what].quantile(q) for name, q in (("median", 0.5), ("p95", 0.95))}
                rows.append(row)
    machine = {"cpu": made["device"], "cores": made["cpu_count"], "browser": f"Chromium {version}"}
    about = machine | {
        "dimensions": widths.tolist(),
        "error": maps.tokens.error,
        "megabytes": maps.tokens.values.nbytes / 1e6,
    }
    lines = [
        f"Token explorer on {made['device']}, {made['cpu_count']} cores, {machine['browser']}. ViT-B/16 with random "
        f"weights at {SIZE} px: {SIZE // PATCH} x {SIZE // PATCH} tokens, {widths.shape[1]} layers, {widths.min()} to "
        f"{widths.max()} of {maps.tokens.dim} dimensions ({about['megabytes']:.1f} MB, largest error "
        f"{maps.tokens.error:.3f}; made in {prepared:.0f} s). Milliseconds, median / 95th percentile.",
        "",
        "| models | event | count | map drawn | next frame |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        drawn, frame = (f"{row[f'{what} median']:.1f} / {row[f'{what} p95']:.1f}" for what in ("drawn", "frame"))
        lines.append(f"| {row['models']} | {row['event']} | {row['count']} | {drawn} | {frame} |")
    text = "\n".join(lines) + "\n"
    for end, content in (("md", text), ("json", json.dumps(about | {"rows": rows}, indent=1) + "\n")):
        with atomic_write(HERE / f"token_explorer.{end}", "w") as file:
            file.write(content)
    print(text)


if __name__ == "__main__":
    main()
