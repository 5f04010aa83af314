"""Token maps: the int8 tokens against exact cosines, the error they claim, files, merging, and what travels."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from toco_lab.explorers.quantise import quantise_tokens
from toco_lab.explorers.token_maps import (
    TokenMaps,
    arrange,
    load_token_maps,
    merge_steps,
    payload,
    picture_url,
    save_token_maps,
    thin_steps,
)


def exact_cosine(tokens: torch.Tensor) -> np.ndarray:
    """cos(x_i, x_j) = x_i . x_j / (|x_i| |x_j|), one pair after the other, in float64; 0 where a token is zero."""
    rows = tokens.double().numpy()
    cosine = np.zeros((len(rows), len(rows)))
    for i, x in enumerate(rows):
        for j, y in enumerate(rows):
            norms = np.sqrt(x @ x) * np.sqrt(y @ y)
            cosine[i, j] = x @ y / norms if norms else 0
    return cosine


def all_similarities(quantised, step=0, layer=0) -> np.ndarray:
    return np.stack([quantised.similarity(step, layer, patch) for patch in range(quantised.num_tokens)])


def low_rank(num_tokens=30, dim=64, rank=5, noise=0.02, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(num_tokens, rank, generator=generator) @ torch.randn(rank, dim, generator=generator)
    sizes = 10 ** torch.randn(num_tokens, 1, generator=generator)  # a cosine does not care about a token's scale
    return sizes * (base + noise * torch.randn(num_tokens, dim, generator=generator))


def maps_of(steps=(0, 10), *, layers=3, model="a", image_name="x", seed=0, dim=16, **changes) -> TokenMaps:
    tokens = quantise_tokens([[low_rank(12, dim, seed=seed + 10 * s + i) for i in range(layers)] for s in steps])
    image = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    names = (*(f"block {i}" for i in range(1, layers)), "final norm")
    return replace(
        TokenMaps(model, f"of {steps[-1]}", image_name, image, (3, 4), tuple(steps), names, tokens), **changes
    )


# --- quantisation -----------------------------------------------------------------------------------------------------


def test_similarity_is_the_cosine_within_the_error_it_claims():
    layers = [low_rank(seed=0), low_rank(seed=1, rank=20)]
    quantised = quantise_tokens([layers, layers[::-1]])
    errors = []
    for step, row in enumerate([layers, layers[::-1]]):
        for layer, tokens in enumerate(row):
            difference = np.abs(all_similarities(quantised, step, layer) - exact_cosine(tokens)).max()
            assert difference == pytest.approx(quantised.errors[step, layer], abs=2e-6)  # measured, not guessed
            errors.append(difference)
    assert quantised.error == pytest.approx(max(errors), abs=2e-6)
    assert 0.001 < quantised.error <= 0.02
    assert quantised.widths.tolist() == [[8, 32], [32, 8]]  # each slab as narrow as it can be


@pytest.mark.parametrize(("max_error", "width"), [(0.3, 16), (0.02, 32), (0.0, 64)])
def test_a_smaller_error_costs_dimensions(max_error, width):
    quantised = quantise_tokens([[low_rank(rank=20)]], max_error=max_error)
    assert quantised.widths.tolist() == [[width]]
    difference = np.abs(all_similarities(quantised) - exact_cosine(low_rank(rank=20))).max()
    assert difference == pytest.approx(quantised.error, abs=2e-6)
    assert (quantised.error <= max_error) == (max_error > 0)  # what int8 alone costs is said, not hidden


def test_zero_equal_and_opposite_tokens():
    tokens = torch.zeros(5, 12)
    tokens[1], tokens[2], tokens[3] = torch.arange(12.0), 7 * torch.arange(12.0), -torch.arange(12.0)
    tokens[4, 0] = 1e-3  # orthogonal to the others
    quantised = quantise_tokens([[tokens]])
    expected = np.zeros((5, 5))
    expected[1:4, 1:4] = [[1, 1, -1], [1, 1, -1], [-1, -1, 1]]
    expected[4, 4] = 1
    assert np.allclose(all_similarities(quantised), expected, atol=1e-6)
    assert quantised.error < 1e-6
    assert quantise_tokens([[torch.zeros(3, 4)]]).similarity(0, 0, 1).tolist() == [0, 0, 0]


def test_constant_tokens_are_equal_at_the_least_width():
    quantised = quantise_tokens([[torch.full((9, 40), 0.3)]])
    assert quantised.widths.tolist() == [[8]]
    assert np.allclose(all_similarities(quantised), 1, atol=1e-6)


def test_tokens_of_a_vision_transformer():
    torch.manual_seed(0)
    net = timm.models.VisionTransformer(img_size=72, patch_size=8, embed_dim=96, depth=3, num_heads=3).eval()
    image = torch.nn.functional.interpolate(torch.randn(1, 3, 6, 6), (72, 72), mode="bicubic")
    with torch.no_grad():
        final, blocks = net.forward_intermediates(
            image, indices=None, norm=False, output_fmt="NLC", return_prefix_tokens=False
        )
    layers = [tokens[0] for tokens in blocks] + [final[0, 1:]]
    quantised = quantise_tokens([layers])
    assert quantised.error <= 0.02 and quantised.dim == 96 and quantised.num_tokens == 81
    assert quantised.widths.max() < 96
    for layer, tokens in enumerate(layers):
        unit = torch.nn.functional.normalize(tokens.double(), dim=1)
        assert (
            np.abs(all_similarities(quantised, layer=layer) - (unit @ unit.T).numpy()).max() <= quantised.error + 1e-6
        )


def test_int8_values_use_their_range_and_lie_in_order():
    quantised = quantise_tokens([[low_rank(seed=0), low_rank(seed=1)], [low_rank(seed=2), low_rank(seed=3)]])
    slabs = [quantised.slab(step, layer) for step in range(2) for layer in range(2)]
    assert np.array_equal(np.concatenate([slab.ravel() for slab in slabs]), quantised.values)
    assert all((np.abs(slab.astype(int)).max(axis=1) == 127).all() for slab in slabs)
    taken = quantised.take([1])
    assert np.array_equal(taken.slab(0, 1), slabs[3]) and taken.errors.tolist() == [quantised.errors[1].tolist()]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([], "same layers"),
        ([[]], "same layers"),
        ([[torch.ones(2, 3)], [torch.ones(2, 3), torch.ones(2, 3)]], r"\[1, 2\] layers"),
        ([[torch.ones(2, 3), torch.ones(2, 4)]], r"\(2, 4\)"),
        ([[torch.ones(1, 2, 3)]], r"\(1, 2, 3\)"),
        ([[torch.ones(2, 3), torch.tensor([[1.0, torch.nan]] * 2)[:, [0, 1, 0]]]], "step 0, layer 1 .* not finite"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(steps, words):
    with pytest.raises(ValueError, match=words):
        quantise_tokens(steps)


# --- maps and files ---------------------------------------------------------------------------------------------------


def test_maps_must_fit_together():
    maps = maps_of()
    for changes, words in (
        ({"grid": (3, 5)}, "grid of 3 x 5"),
        ({"image": maps.image.astype(float)}, "uint8"),
        ({"steps": (0,)}, "1 steps and 3 layers"),
        ({"steps": (10, 0)}, "steps must rise"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(maps, **changes)


def test_nearest_step_and_layer():
    maps = maps_of((0, 10, 40))
    assert [maps.nearest_step(step) for step in (-3, 4, 5, 6, 26, 999)] == [0, 0, 0, 1, 2, 2]
    assert [maps.find_layer(*place) for place in (("block 2", 7), ("final norm", 0), ("none", 1), ("none", 9))] == [
        1, 2, 1, 2,
    ]  # fmt: skip


def test_similarity_in_the_shape_of_the_grid():
    maps = maps_of()
    assert np.array_equal(maps.similarity(1, 2, 7).ravel(), maps.tokens.similarity(1, 2, 7))
    assert maps.similarity(1, 2, 7)[1, 3] == pytest.approx(1)  # patch 7 of 3 x 4


def assert_same(one: TokenMaps, other: TokenMaps) -> None:
    for field in ("model", "weights", "image_name", "grid", "steps", "layers"):
        assert getattr(one, field) == getattr(other, field), field
    assert np.array_equal(one.image, other.image)
    for field in ("values", "widths", "errors", "num_tokens", "dim"):
        assert np.array_equal(getattr(one.tokens, field), getattr(other.tokens, field)), field


def test_files_keep_everything(tmp_path):
    maps = maps_of(model="tøco <b>")
    save_token_maps(tmp_path / "a" / "x.npz", maps)
    assert_same(load_token_maps(tmp_path / "a" / "x.npz"), maps)


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(FileNotFoundError):
        load_token_maps(path)
    save_token_maps(path, maps_of())
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = bytes([whole[middle] ^ 255])
    np.savez(tmp_path / "other.npz", format=1, model="a")
    np.savez(tmp_path / "later.npz", format=99)
    for damaged in (
        b"",
        b"no zip",
        whole[:middle],
        whole[:middle] + flipped + whole[middle + 1 :],
        (tmp_path / "other.npz").read_bytes(),
        (tmp_path / "later.npz").read_bytes(),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x\.npz can not be read as token maps"):
            load_token_maps(path)


def test_merged_snapshots_keep_their_tokens():
    parts = [maps_of((20,), seed=3), maps_of((0,), seed=1), maps_of((5, 30), seed=2)]
    parts = [replace(part, image=parts[0].image) for part in parts]
    merged = merge_steps(parts)
    assert merged.steps == (0, 5, 20, 30)
    assert merged.weights == "of 30"
    for index, (part, step) in enumerate([(1, 0), (2, 0), (0, 0), (2, 1)]):
        for layer in range(3):
            assert np.array_equal(merged.tokens.slab(index, layer), parts[part].tokens.slab(step, layer))
    assert merged.tokens.error == max(part.tokens.error for part in parts)
    assert_same(merge_steps([merged]), merged)


def test_snapshots_that_do_not_belong_together():
    first = maps_of((0,))
    with pytest.raises(ValueError, match="at least one"):
        merge_steps([])
    with pytest.raises(ValueError, match="the same step"):
        merge_steps([first, first])
    for changes, words in (
        ({"model": "b"}, "model: 'a' and 'b'"),
        ({"image_name": "y"}, "image_name"),
        ({"grid": (4, 3)}, "grid"),
        ({"layers": ("1", "2", "3")}, "layers"),
        ({"image": first.image[::-1]}, "pixels of 'x'"),
        ({"tokens": maps_of((1,), dim=8).tokens}, "16 and 8 dimensions"),
    ):
        with pytest.raises(ValueError, match=words):
            merge_steps([first, replace(first, steps=(1,), **changes)])


def test_thinned_steps_keep_both_ends():
    maps = maps_of(tuple(range(0, 90, 10)), layers=1)
    each = maps.tokens.num_tokens * int(maps.tokens.widths[0, 0])
    assert set(maps.tokens.widths.ravel()) == {8}
    assert_same(thin_steps(maps, 9 * each), maps)
    for room, steps in ((5.5, (0, 20, 40, 60, 80)), (3, (0, 40, 80)), (2, (0, 80)), (1.9, (80,)), (0, (80,))):
        thin = thin_steps(maps, int(room * each))
        assert thin.steps == steps
        assert len(thin.tokens.values) == len(steps) * each
        assert np.array_equal(thin.tokens.slab(-1 + len(steps), 0), maps.tokens.slab(8, 0))


# --- to the browser ---------------------------------------------------------------------------------------------------


def test_payload_holds_every_slab_where_it_says():
    maps = [maps_of(seed=0), maps_of(seed=5, model="b", image_name="y")]
    maps += [maps_of((7,), seed=6, model="b", image=maps[0].image), maps_of((0,), image_name="y", seed=8)]
    packed = payload(maps, colours={"b": "#123456"})
    meta = json.loads(json.dumps(packed.meta))
    assert meta["images"] == ["x", "y"]
    assert meta["models"] == [{"name": "a", "colour": None}, {"name": "b", "colour": "#123456"}]
    order = [[maps[0], maps[2]], [maps[3], maps[1]]]
    seen = 0
    for row, expected in zip(meta["maps"], order, strict=True):
        for entry, one in zip(row, expected, strict=True):
            values = np.frombuffer(packed.buffer, np.int8, len(one.tokens.values), entry["offset"])
            assert np.array_equal(values, one.tokens.values)
            assert entry["widths"] == one.tokens.widths.tolist() and entry["error"] == one.tokens.error
            assert (entry["grid"], entry["steps"]) == ([3, 4], list(one.steps))
            picture = meta["pictures"][entry["picture"]]
            file = io.BytesIO(base64.b64decode(picture["url"].removeprefix("data:image/png;base64,")))
            assert np.array_equal(np.asarray(Image.open(file)), one.image)
            assert (picture["height"], picture["width"]) == (6, 8)
            seen += len(values)
    assert seen == len(packed.buffer)
    assert len(meta["pictures"]) == 3  # both models saw the same x


def test_large_photographs_travel_as_jpeg():
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    assert picture_url(noise).startswith("data:image/jpeg;base64,")
    assert picture_url(np.zeros((300, 300, 3), np.uint8)).startswith("data:image/png;base64,")


def test_maps_that_make_no_table():
    with pytest.raises(ValueError, match="at least one image"):
        arrange([])
    with pytest.raises(ValueError, match="two token maps of image 'x' and model 'a'"):
        arrange([maps_of(), maps_of()])
    with pytest.raises(ValueError, match="no token maps of image 'y' for b"):
        arrange([maps_of(), maps_of(model="b"), maps_of(image_name="y")])
