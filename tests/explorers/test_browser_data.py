"""What travels to the browser: every token where the JSON says it is, equal pictures once, large ones as JPEG."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import torch
from helpers.token_records import small_maps
from PIL import Image

from toco_lab.explorers.browser_data import pack_for_browser, picture_url
from toco_lab.tokens.quantise import quantise_images
from toco_lab.tokens.token_maps import TokenMaps


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
            lengths, (steps, layers) = entry["lengths"], one.tokens.widths.shape
            at = np.frombuffer(packed.tokens, np.uint8, one.tokens.lengths.size, lengths["offset"])
            assert np.array_equal(at, one.tokens.lengths.ravel())
            assert np.allclose(lengths["ends"], one.tokens.length_ends, rtol=1e-2, atol=1e-3)
            assert np.shape(lengths["artifacts"]) == (steps, layers, 2) == (*np.shape(entry["bases"]), 2)
            seen += len(values) + len(at)
    assert seen == len(packed.tokens)
    assert len(meta["pictures"]) == 3  # both models saw the same x


def test_directions_are_named_by_small_numbers_and_artifacts_by_their_share():
    rng = np.random.default_rng(0)
    tokens = [torch.tensor(rng.standard_normal((100, 16)), dtype=torch.float32) for _ in range(3)]
    tokens[1][:5] *= 20
    small = quantise_images([tokens[:2], [tokens[2], tokens[0]]])
    maps = [
        TokenMaps("a", "w", name, np.zeros((10, 10, 3), np.uint8), (10, 10), (0,), ("block 1", "final norm"), one)
        for name, one in zip("xy", small, strict=True)
    ]
    (first,), (second,) = pack_for_browser(maps).meta["maps"]
    assert first["bases"] == second["bases"] == [[0, 1]]
    share, cut = first["lengths"]["artifacts"][0][1]
    normal, long = tokens[1][5:].norm(dim=1), tokens[1][:5].norm(dim=1)
    assert share == 0.05 and normal.max() < cut < long.min()
    assert first["lengths"]["artifacts"][0][0] == [0.0, None]
    old = [replace(one, tokens=replace(one.tokens, bases=None, lengths=None, length_ends=None)) for one in maps]
    packed = pack_for_browser(old)
    assert [row[0][key] for row in packed.meta["maps"] for key in ("bases", "lengths")] == [None] * 4
    assert len(packed.tokens) == sum(one.tokens.values.nbytes for one in maps)


def test_large_photographs_travel_as_jpeg():
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    assert picture_url(noise).startswith("data:image/jpeg;base64,")
    assert picture_url(np.zeros((300, 300, 3), np.uint8)).startswith("data:image/png;base64,")
