"""Token maps: what fits together, files, merging, thinning."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.token_records import small_maps

from toco_lab.tokens.token_maps import (
    TokenMaps,
    load_token_maps,
    maps_by_image,
    merge_steps,
    save_token_maps,
    thin_steps,
)


def test_maps_must_fit_together():
    maps = small_maps()
    for changes, words in (
        ({"grid": (3, 5)}, "grid of 3 x 5"),
        ({"image": maps.image.astype(float)}, "uint8"),
        ({"steps": (0,)}, "1 step and 3 layers"),
        ({"steps": (10, 0)}, "steps must rise"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(maps, **changes)


def test_nearest_step_and_layer():
    maps = small_maps((0, 10, 40))
    assert [maps.nearest_step(step) for step in (-3, 4, 5, 6, 26, 999)] == [0, 0, 0, 1, 2, 2]
    assert [maps.find_layer(*place) for place in (("block 2", 7), ("final norm", 0), ("none", 1), ("none", 9))] == [
        1, 2, 1, 2,
    ]  # fmt: skip


def test_similarity_in_the_shape_of_the_grid():
    maps = small_maps()
    assert np.array_equal(maps.similarity(1, 2, 7).ravel(), maps.tokens.similarity(1, 2, 7))
    assert maps.similarity(1, 2, 7)[1, 3] == pytest.approx(1)  # patch 7 of 3 x 4


def assert_same(one: TokenMaps, other: TokenMaps) -> None:
    for field in ("model", "weights", "image_name", "grid", "steps", "layers"):
        assert getattr(one, field) == getattr(other, field), field
    assert np.array_equal(one.image, other.image)
    for field in ("values", "widths", "errors", "num_tokens", "dim", "bases", "lengths", "length_ends"):
        assert np.array_equal(getattr(one.tokens, field), getattr(other.tokens, field)), field


def test_files_keep_everything(tmp_path):
    maps = small_maps(model="tøco <b>")
    save_token_maps(tmp_path / "a" / "x.npz", maps)
    assert_same(load_token_maps(tmp_path / "a" / "x.npz"), maps)


def test_files_of_earlier_versions_open_without_lengths_and_directions(tmp_path):
    maps = small_maps()
    old = replace(maps, tokens=replace(maps.tokens, bases=None, lengths=None, length_ends=None))
    save_token_maps(tmp_path / "x.npz", old)
    with np.load(tmp_path / "x.npz") as saved:
        assert "bases" not in saved and "lengths" not in saved
    assert_same(load_token_maps(tmp_path / "x.npz"), old)
    mixed = merge_steps([old, replace(maps, steps=(20, 30))])  # what one of them lacks, the whole lacks
    assert mixed.tokens.bases is None and mixed.tokens.lengths is None and len(mixed.steps) == 4


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(FileNotFoundError):
        load_token_maps(path)
    save_token_maps(path, small_maps())
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
        with pytest.raises(ValueError, match=r"x\.npz cannot be read as token maps"):
            load_token_maps(path)


def test_merged_snapshots_keep_their_tokens():
    parts = [small_maps((20,), seed=3), small_maps((0,), seed=1), small_maps((5, 30), seed=2)]
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
    first = small_maps((0,))
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
        ({"tokens": small_maps((1,), dim=8).tokens}, "16 and 8 dimensions"),
    ):
        with pytest.raises(ValueError, match=words):
            merge_steps([first, replace(first, steps=(1,), **changes)])


def test_thinned_steps_keep_both_ends():
    maps = small_maps(tuple(range(0, 90, 10)), layers=1)
    each = maps.tokens.num_tokens * (8 + 1)  # dimensions, and a length
    assert set(maps.tokens.widths.ravel()) == {8} and set(maps.tokens.slab_bytes.ravel()) == {each}
    assert_same(thin_steps(maps, 9 * each), maps)
    for room, steps in ((5.5, (0, 20, 40, 60, 80)), (3, (0, 40, 80)), (2, (0, 80)), (1.9, (80,)), (0, (80,))):
        thin = thin_steps(maps, int(room * each))
        assert thin.steps == steps
        assert thin.tokens.values.size + thin.tokens.lengths.size == len(steps) * each
        assert np.array_equal(thin.tokens.slab(-1 + len(steps), 0), maps.tokens.slab(8, 0))


def test_maps_that_make_no_table():
    with pytest.raises(ValueError, match="at least one image"):
        maps_by_image([])
    with pytest.raises(ValueError, match="two token maps of image 'x' and model 'a'"):
        maps_by_image([small_maps(), small_maps()])
    with pytest.raises(ValueError, match="no token maps of image 'y' for b"):
        maps_by_image([small_maps(), small_maps(model="b"), small_maps(image_name="y")])
