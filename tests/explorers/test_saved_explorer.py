"""The token explorer in the file of a notebook: its offline form, within a number of bytes."""

import base64
import json
import re
import zlib

import numpy as np
import pytest
from helpers.token_records import small_maps, two_models

from toco_lab.explorers import saved_explorer
from toco_lab.explorers.saved_explorer import SAVED, saved_explorer_html
from toco_lab.explorers.token_explorer import TokenExplorer
from toco_lab.tokens.token_maps import thin_layers


def parts(html: str) -> tuple[dict, dict, int]:
    """Meta, state and the number of bytes of tokens."""
    meta, state = json.loads(re.search(r'-meta">(.*?)</script>', html)[1])
    return meta, state, len(zlib.decompress(base64.b64decode(re.search(r'-data">(.*?)</script>', html)[1])))


def test_the_widget_brings_its_offline_form() -> None:
    maps = two_models()
    explorer = TokenExplorer(maps, image=1, patch=(2, 3), layer="block 2", right="b")
    data, _ = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    meta, state, size = parts(data["text/html"])
    assert meta["images"] == ["cat", "</script>dog"] and size == sum(int(one.tokens.slab_bytes.sum()) for one in maps)
    chosen = {"image": 1, "patch": 2 * 8 + 3, "layer": 1, "step": 20, "left": 0, "right": 1}
    assert state == chosen | {"other": -1, "asked": 0, "show": "similarity"}
    assert SAVED in data["text/html"] and "This copy" not in data["text/html"]


def test_two_on_one_page_have_ids_of_their_own() -> None:
    explorer = TokenExplorer([small_maps()])
    ids = {re.search(r'<div id="([\w-]+)"', explorer._repr_mimebundle_()[0]["text/html"])[1] for _ in range(2)}
    assert len(ids) == 2


@pytest.mark.parametrize(("share", "steps", "images", "says"), [
    (1.0, 4, 3, ""),
    (0.6, 2, 3, "2 of 4 training steps"),
    (0.2, 1, 2, "1 of 4 training steps, all but 1 image"),
    (0.1, 1, 1, "1 of 4 training steps, all but 2 images"),
])  # fmt: skip
def test_too_many_tokens_are_thinned_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, share: float, steps: int, images: int, says: str
) -> None:
    maps = [small_maps((0, 10, 20, 30), image_name=name, seed=seed) for seed, name in enumerate("xyz")]
    most = round(share * sum(int(one.tokens.slab_bytes.sum()) for one in maps))
    monkeypatch.setattr(saved_explorer, "SAVED_BYTES", most)
    html = saved_explorer_html(maps, "here", state={"image": 2, "step": 30, "left": 0, "layer": 0})
    meta, state, size = parts(html)
    assert size <= most and len(meta["images"]) == images and len(meta["maps"][0][0]["steps"]) == steps
    assert meta["images"][state["image"]] == "z", "the image that is shown is the last to go"
    assert (f"holds {says};" in html) if says else ("This copy" not in html)


def test_a_second_image_that_is_shown_stays_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = [small_maps((0,), image_name=name, seed=seed) for seed, name in enumerate("xyz")]
    monkeypatch.setattr(
        saved_explorer, "SAVED_BYTES", round(0.7 * sum(int(one.tokens.slab_bytes.sum()) for one in maps))
    )
    html = saved_explorer_html(maps, "here", state={"image": 2, "left": 0, "layer": 0, "other": 1})
    meta, state, _ = parts(html)
    assert meta["images"] == ["y", "z"] and (state["image"], state["other"]) == (1, 0)


def test_of_one_large_image_some_layers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a ViT-B at 448 pixels, whose tokens have 2.6 MB."""
    maps = small_maps((0,), layers=5)
    most = round(0.6 * int(maps.tokens.slab_bytes.sum()))
    monkeypatch.setattr(saved_explorer, "SAVED_BYTES", most)
    state = {"image": 0, "left": 0, "layer": 3, "patch": 7}
    html = saved_explorer_html([maps], "here", state=state)
    meta, state, size = parts(html)
    (entry,) = meta["maps"][0]
    assert size <= most and entry["layers"] == ["block 1", "block 3", "final norm"] and state["layer"] == 1
    assert "holds 3 of 5 layers;" in html
    thinned = thin_layers(maps, most)
    for index, layer in enumerate((0, 2, 4)):
        np.testing.assert_array_equal(thinned.similarity(0, index, 7), maps.similarity(0, layer, 7))
