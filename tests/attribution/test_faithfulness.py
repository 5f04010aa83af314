"""Insertion, deletion and the pointing game, against loops over copies made by hand."""

import math

import numpy as np
import pytest
import timm
import torch
from helpers.attributions import SIZES, spread, tiny
from torchvision.transforms.functional import gaussian_blur as torchvision_blur

from toco_lab.attribution import faithfulness
from toco_lab.attribution.faithfulness import (
    area,
    gaussian_blur,
    map_scores,
    pointing_distance,
    removal_order,
    score_name,
    scorer,
)

H, W = 24, 32


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(1, 3, H, W, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def maps() -> torch.Tensor:
    """Two maps without equal pixels."""
    generator = torch.Generator().manual_seed(2)
    return torch.stack([torch.randperm(H * W, generator=generator).view(H, W) / (H * W) for _ in range(2)])


def headless():
    torch.manual_seed(0)
    return spread(timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **(SIZES | {"num_classes": 0})))


def probability(model, picture, c):
    """The class score by the definition of each kind of model."""
    out = model(picture)
    if hasattr(out, "logits"):
        return 1 / (1 + math.exp(-out.logits[0, c].item()))
    return (out[0, c].exp() / out[0].exp().sum()).item()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["class", "toco"])
@pytest.mark.parametrize("baselines", [("blur", "mean"), ("mean", "blur")])
def test_curves_equal_the_loops(kind, baselines, image, maps):
    model, steps, c = tiny(kind), 5, 3
    empty = {"mean": torch.zeros_like(image), "blur": gaussian_blur(image, 0.1 * H)}
    found = map_scores(
        model, image, maps, c, steps=steps, insertion_baseline=baselines[0], deletion_baseline=baselines[1]
    )
    assert len(found) == 2
    for one, scores in zip(maps, found, strict=True):
        by_importance = sorted(((one[y, x].item(), y, x) for y in range(H) for x in range(W)), reverse=True)
        for k in range(steps + 1):
            moved = np.zeros((H, W), bool)
            for _, y, x in by_importance[: k * H * W // steps]:
                moved[y, x] = True
            put_in = torch.where(torch.from_numpy(moved), image, empty[baselines[0]])
            taken = torch.where(torch.from_numpy(moved), empty[baselines[1]], image)
            assert scores.insertion[k].item() == pytest.approx(probability(model, put_in, c), abs=1e-5)
            assert scores.deletion[k].item() == pytest.approx(probability(model, taken, c), abs=1e-5)
        for values, got in ((scores.insertion, scores.insertion_area), (scores.deletion, scores.deletion_area)):
            by_trapezoids = sum((values[k] + values[k + 1]).item() / 2 for k in range(steps)) / steps
            assert got == pytest.approx(by_trapezoids, abs=1e-6)


@torch.no_grad()
def test_without_a_classifier_the_embedding_is_compared_with_that_of_the_whole_image(image, maps):
    model = headless().eval()
    scores = map_scores(model, image, maps[:1], steps=4)[0]
    assert scores.insertion[-1].item() == scores.deletion[0].item() == pytest.approx(1)
    rank = removal_order(maps[0])
    half = torch.where(rank < H * W // 2, image, gaussian_blur(image, 0.1 * H))
    a, b = model(half)[0], model(image)[0]
    assert scores.insertion[2].item() == pytest.approx((a @ b / (a.norm() * b.norm())).item(), abs=1e-5)
    assert score_name(model) == "cosine to the embedding of the whole image"


def test_copies_go_through_the_encoder_together_and_in_evaluation_mode(image, maps, monkeypatch):
    model, seen = tiny("toco").train(), []
    model.encoder.patch_embed.register_forward_hook(
        lambda part, inputs, _: seen.append((len(inputs[0]), part.training))
    )
    map_scores(model, image, maps, 1, steps=9)
    assert seen == [(1, False)] * 3 + [(8, False)] * 4  # the whole and the two baselines once, for both maps
    assert model.training
    together = map_scores(model, image, maps, 1, steps=9)[0].insertion
    monkeypatch.setattr(faithfulness, "MOST_COPIES", 3)
    torch.testing.assert_close(map_scores(model, image, maps, 1, steps=9)[0].insertion, together)


def test_order_of_pixels_and_of_equal_ones():
    order = removal_order(torch.tensor([[0.2, 0.9], [0.5, 0.1]]))
    assert order.tolist() == [[2, 0], [1, 3]]
    flat = removal_order(torch.zeros(20, 20))
    assert sorted(flat.flatten().tolist()) == list(range(400)) and torch.equal(flat, removal_order(torch.zeros(20, 20)))
    upper = (flat[:10] < 200).float().mean().item()
    assert 0.4 < upper < 0.6, "equal pixels must not go from top to bottom"


def test_area_by_hand():
    assert area(torch.tensor([0.0, 1.0])) == 0.5
    assert area(torch.tensor([0.0, 1.0, 1.0])) == 0.75


def test_blur_is_that_of_torchvision(image):
    sigma = 2.0
    expected = torchvision_blur(image, [13, 13], [sigma, sigma])
    torch.testing.assert_close(gaussian_blur(image, sigma), expected, atol=1e-5, rtol=1e-4)
    strong = gaussian_blur(image, 8.0)  # wider than the image is
    assert strong.isfinite().all() and strong.std() < 0.2 * image.std()


# --- pointing game ----------------------------------------------------------------------------------------------------


def test_distance_to_the_class_by_hand():
    where = torch.zeros(6, 8, dtype=torch.bool)
    where[0, 0:2] = True

    def pointing_at(row, column):
        score_map = torch.zeros(6, 8)
        score_map[row, column] = 1
        return pointing_distance(score_map, where)

    assert pointing_at(0, 1) == 0
    assert pointing_at(3, 5) == pytest.approx(5)  # 3 down, 4 right of (0, 1)
    assert pointing_distance(torch.ones(6, 8), where) == math.inf, "a flat map points nowhere"
    assert math.isnan(pointing_distance(torch.rand(6, 8), torch.zeros(6, 8, dtype=torch.bool)))


def test_distance_is_in_pixels_of_the_mask():
    where = torch.zeros(60, 80, dtype=torch.bool)
    where[:, :5] = True
    score_map = torch.zeros(6, 8)
    score_map[3, 7] = 1
    distance = pointing_distance(score_map, where)
    assert 68 <= distance <= 75  # the maximum is near column 75, the class ends at column 4


def test_no_mask_is_no_distance(image, maps):
    model = tiny("toco")
    assert all(math.isnan(one.distance) for one in map_scores(model, image, maps, 1, steps=2))
    where = torch.zeros(H, W, dtype=torch.bool)
    where[divmod(int(maps[1].argmax()), W)] = True
    assert [one.distance for one in map_scores(model, image, maps, 1, steps=2, on_class=where)][1] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 1}, "steps must be a whole number from 2"),
        ({"steps": 2.0}, "steps must be a whole number from 2"),
        ({"insertion_baseline": "grey"}, "a baseline must be one of mean, blur, got 'grey'"),
        ({"maps": torch.rand(H, W)}, r"maps must be of shape \(M, h, w\)"),
        ({"maps": torch.full((1, H, W), math.nan)}, "maps hold NaN"),
        ({"image": torch.rand(2, 3, H, W)}, "one image"),
        ({"image": torch.rand(1, 3, H, W).byte()}, "not normalised"),
        ({"class_index": 5}, "not one of the model's 5 classes"),
        ({"class_index": None}, "class_index must be a whole number"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes, message, image, maps):
    arguments = {"image": image, "maps": maps, "class_index": 1, "steps": 2} | changes
    with pytest.raises(ValueError, match=message):
        map_scores(tiny("toco"), **arguments)


def test_scores_are_probabilities(image):
    with torch.no_grad():
        for kind in ("toco", "class"):
            model = tiny(kind)
            values = torch.stack([scorer(model, image, c)(image) for c in range(5)])
            assert ((values >= 0) & (values <= 1)).all()
            if kind == "class":
                assert values.sum().item() == pytest.approx(1)
