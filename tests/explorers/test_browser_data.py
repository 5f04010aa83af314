"""What travels to the browser: every token where the JSON says it is, equal pictures once, large ones as JPEG."""

import base64
import io
import json

import numpy as np
from helpers.token_records import small_maps
from PIL import Image

from toco_lab.explorers.browser_data import pack_for_browser, picture_url


def test_the_data_holds_every_slab_where_it_says():
    maps = [small_maps(seed=0), small_maps(seed=5, model="b", image_name="y")]
    maps += [small_maps((7,), seed=6, model="b", image=maps[0].image), small_maps((0,), image_name="y", seed=8)]
    packed = pack_for_browser(maps, colours={"b": "#123456"})
    meta = json.loads(json.dumps(packed.meta))
    assert meta["images"] == ["x", "y"]
    assert meta["models"] == [{"name": "a", "colour": None}, {"name": "b", "colour": "#123456"}]
    order = [[maps[0], maps[2]], [maps[3], maps[1]]]
    seen = 0
    for row, expected in zip(meta["maps"], order, strict=True):
        for entry, one in zip(row, expected, strict=True):
            values = np.frombuffer(packed.tokens, np.int8, len(one.tokens.values), entry["offset"])
            assert np.array_equal(values, one.tokens.values)
            assert entry["widths"] == one.tokens.widths.tolist() and entry["error"] == one.tokens.error
            assert (entry["grid"], entry["steps"]) == ([3, 4], list(one.steps))
            picture = meta["pictures"][entry["picture"]]
            file = io.BytesIO(base64.b64decode(picture["url"].removeprefix("data:image/png;base64,")))
            assert np.array_equal(np.asarray(Image.open(file)), one.image)
            assert (picture["height"], picture["width"]) == (6, 8)
            seen += len(values)
    assert seen == len(packed.tokens)
    assert len(meta["pictures"]) == 3  # both models saw the same x


def test_large_photographs_travel_as_jpeg():
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    assert picture_url(noise).startswith("data:image/jpeg;base64,")
    assert picture_url(np.zeros((300, 300, 3), np.uint8)).startswith("data:image/png;base64,")
