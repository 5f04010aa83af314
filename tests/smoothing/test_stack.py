"""Layers measured together have the values that each has alone."""

import pytest
import torch

from toco_lab.smoothing import stack
from toco_lab.smoothing.catalogue import METRICS, measure
from toco_lab.smoothing.layers import Layer, layers_of
from toco_lab.smoothing.per_layer import OF_ATTENTION, smoothing_per_layer
from toco_lab.smoothing.stack import stack_layers
from toco_lab.smoothing.token_view import TokenView
from toco_lab.vocabulary import SITES


@pytest.mark.parametrize("numbers", [1, 1500, 2**30], ids=["one by one", "in pairs", "all at once"])
def test_layers_together_have_the_values_each_has_alone(vit, numbers, monkeypatch):
    monkeypatch.setattr(stack, "STACK_NUMBERS", numbers)
    image, label = torch.randn(3, 32, 32), torch.randint(0, 3, (32, 32))
    frame = smoothing_per_layer(vit, [image], [label], name="t", sites=SITES)
    expected = {}
    for layer in layers_of(vit, image[None], label[None], sites=SITES, attention=True):
        for key, value in measure(layer.view).items():
            site = "attention" if METRICS[key].row in OF_ATTENTION else layer.site
            if not value.isnan():
                expected[(site, layer.number, *key)] = value.item()
    frame = frame[frame["metric"] != "RankMe"]
    found = frame.set_index(["site", "layer", "metric", "variant"])["value"].to_dict()
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-5, abs=1e-7), key


@pytest.mark.parametrize(("device", "sizes"), [("cpu", [2, 2]), ("meta", [4])])
def test_a_gpu_takes_more_layers_at_a_time(device, sizes):
    side = int((stack.STACK_NUMBERS // 4) ** 0.5)  # tokens: the cosines of two layers are as many as a CPU takes
    views = [TokenView(torch.empty(1, side, 2, device=device), (1, side)) for _ in range(4)]
    layers = [Layer("after block", "none", number, view) for number, view in enumerate(views)]
    assert [len(piece) for piece in stack._pieces(range(4), layers)] == sizes


def test_only_layers_that_follow_each_other_are_stacked(vit):
    views = [layer.view for layer in layers_of(vit, torch.randn(1, 3, 32, 32), attention=True)]
    joined = stack_layers(views)
    assert len(joined.tokens) == 4 and joined.previous_tokens.isnan().all()  # nothing before the first block
    assert joined.attention[3].isnan().all() and not joined.attention[:3].isnan().any()  # the final norm has none
    with pytest.raises(ValueError, match="not those of the layer before"):
        stack_layers([views[0], views[2]])
    with pytest.raises(ValueError, match=r"equal grids, not of tokens \[\(1, 15, 24\), \(1, 16, 24\)\]"):
        stack_layers([views[0], TokenView(torch.ones(1, 15, 24), (3, 5))])
