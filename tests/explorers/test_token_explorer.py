"""The token explorer as a widget, in plain Python without a browser; test_token_page.py drives its JavaScript."""

import json

import numpy as np
import pytest
import traitlets
from helpers.token_records import GRID, others, two_images, two_models

from toco_lab.explorers.token_explorer import TokenExplorer, similarity_maps
from toco_lab.tokens.token_maps import TokenMaps


@pytest.fixture(scope="module")
def maps() -> list[TokenMaps]:
    return two_models()


def test_first_view_is_the_centre_of_the_last_layer(maps):
    explorer = TokenExplorer(maps)
    assert (explorer.image, explorer.patch, explorer.layer, explorer.step) == (0, 3 * 8 + 4, 3, 20)
    assert (explorer.left, explorer.right) == (0, -1)
    said = explorer.selection
    assert {key: said[key] for key in ("image", "row", "column", "layer", "step", "left", "right")} == {
        "image": "cat", "row": 3, "column": 4, "layer": "final norm", "step": 20, "left": "a", "right": None,
    }  # fmt: skip
    (panel,) = explorer.similarity_maps()
    assert panel["title"] == "a, final norm, step 20" and panel["patch"] == (3, 4)
    assert np.array_equal(panel["image"], maps[0].image)
    assert np.array_equal(panel["map"], maps[0].tokens.similarity(2, 3, 28).reshape(GRID))
    assert said["similarity"]["left"]["mean"] == pytest.approx(others(panel).mean(), abs=1e-4)
    assert said["similarity"]["left"]["minimum"] == pytest.approx(others(panel).min(), abs=1e-4)
    assert said["similarity"]["left"]["maximum"] == pytest.approx(others(panel).max(), abs=1e-4) != 1
    assert said["similarity"]["right"] is None
    assert json.loads(json.dumps(said)) == said
    explorer.patch = -1
    assert explorer.selection == said  # none chosen: the centre


def test_everything_can_be_chosen_by_name(maps):
    explorer = TokenExplorer(
        maps, image="cat", patch=(5, 7), layer="block 2", step=10, left="b", right="a", colours={"a": "red"}
    )
    assert [model["colour"] for model in explorer.meta["models"]] == ["red", None]
    assert (explorer.image, explorer.patch, explorer.layer, explorer.left, explorer.right) == (0, 47, 1, 1, 0)
    assert [panel["title"] for panel in explorer.similarity_maps()] == ["b, block 2, step 14", "a, block 2, step 10"]
    explorer.select(0, 1, layer=-1, step=3, image=1)
    assert explorer.selection["image"] == "</script>dog"
    assert (explorer.patch, explorer.layer) == (1, 1)  # b has two layers there


def test_select_tells_the_page_once_and_keeps_what_is_not_named(maps, monkeypatch):
    explorer = TokenExplorer(maps, layer="block 3")
    sent = []
    monkeypatch.setattr(explorer, "send_state", lambda key: sent.append({key} if isinstance(key, str) else set(key)))
    explorer.select(1, 2, step=0)
    assert (explorer.patch, explorer.layer, explorer.step) == (10, 2, 0)
    assert sent == [{"patch", "step", "selection"}]
    explorer.right = 1
    assert explorer.selection["right"] == "b"
    assert explorer.selection["similarity"]["right"]["mean"] == pytest.approx(
        others(explorer.similarity_maps()[1]).mean(), abs=1e-4
    )


def test_a_finer_grid_is_matched_by_place_and_a_missing_layer_by_depth(maps):
    selection = {"image": "</script>dog", "patch": 2 * 8 + 5, "layer": "block 3", "step": 20, "left": "a", "right": "b"}
    left, right = similarity_maps(maps, selection)
    assert left["patch"] == (2, 5) and right["patch"] == (5, 11)  # centre of (2, 5) in a grid twice as fine
    assert right["map"].shape == (12, 16)
    assert right["title"] == "b, final norm"  # one step only: not named
    assert np.array_equal(right["map"], maps[3].similarity(0, 1, 5 * 16 + 11))
    assert left["map"][2, 5] == pytest.approx(1) and right["map"][5, 11] == pytest.approx(1)
    by_name = similarity_maps(maps, selection | {"layer": "block 1"})
    assert [panel["title"] for panel in by_name] == ["a, block 1, step 20", "b, block 1"]


def test_a_patch_is_looked_for_in_another_image():
    maps = two_images()
    explorer = TokenExplorer(maps, other="dog", patch=(2, 3), layer="block 1", step=0)
    own, there = explorer.similarity_maps()
    unit = [one.tokens.unit_tokens(0, 0) for one in maps]
    assert np.allclose(there["map"].ravel(), unit[1] @ unit[0][2 * 8 + 3], atol=1e-6)
    assert np.allclose(own["map"].ravel(), unit[0] @ unit[0][2 * 8 + 3], atol=1e-6)
    assert own["patch"] == (2, 3) and np.ravel_multi_index(there["patch"], (5, 7)) == there["map"].argmax()
    assert (own["found"], there["found"], there["title"]) == (False, True, "dog: a, block 1, step 0")
    said = explorer.selection
    assert (said["image"], said["other"], said["asked"], said["right"]) == ("cat", "dog", 0, None)
    assert said["similarity"]["right"]["maximum"] == pytest.approx(there["map"].max(), abs=1e-4)
    assert json.loads(json.dumps(said)) == said
    explorer.asked, explorer.patch = 1, 4 * 7 + 6  # a patch of the second image in the first
    assert (explorer.selection["row"], explorer.selection["column"]) == (4, 6)
    back, own = explorer.similarity_maps()
    assert np.allclose(back["map"].ravel(), unit[0] @ unit[1][34], atol=1e-6)
    assert own["patch"] == (4, 6) and back["found"]
    explorer.other = 0  # the image itself: none
    assert explorer.selection["other"] is None and explorer.selection["similarity"]["right"] is None


def test_images_that_were_not_kept_together_are_refused(maps):
    with pytest.raises(ValueError, match="not kept together: keep them again"):
        TokenExplorer(maps, other=1)
    with pytest.raises(ValueError, match="no image 'bird'"):
        TokenExplorer(maps, other="bird")
    with pytest.raises(traitlets.TraitError, match="show"):
        TokenExplorer(maps, show="nothing")


def test_what_is_not_there_is_refused_by_name(maps):
    explorer = TokenExplorer(maps)
    for call, words in (
        (lambda: TokenExplorer([]), "at least one image"),
        (lambda: TokenExplorer(maps[:3]), "every model needs every image"),
        (lambda: TokenExplorer(maps, image="bird"), "no image 'bird'; there is 'cat'"),
        (lambda: TokenExplorer(maps, layer="block 9"), "no layer 'block 9'; there is 'block 1', 'block 2'"),
        (lambda: TokenExplorer(maps, right="c"), "no model 'c'"),
        (lambda: TokenExplorer(maps, patch=(6, 0)), r"patch \(6, 0\) lies outside the grid of 6 rows and 8 columns"),
        (lambda: explorer.select(0, -1), "lies outside"),
        (lambda: explorer.select(0, 0, layer=4), "no layer 4"),
        (lambda: explorer.similarity_maps(explorer.selection | {"patch": 48}), r"patch 48 is not one of 0\.\.47"),
        (lambda: explorer.similarity_maps(explorer.selection | {"left": "c"}), "no model 'c'"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    for name, value in (("image", 2), ("layer", -1), ("left", 2), ("right", -2), ("patch", 999), ("patch", "one")):
        with pytest.raises(traitlets.TraitError, match=name):
            setattr(explorer, name, value)
    assert explorer.selection == TokenExplorer(maps).selection
