"""Layers of a model as views, and how alike they are."""

import numpy as np
import pytest
import torch
from helpers.smoothing import tokens_by_hand

from toco_lab.smoothing.formulas import layer_cka
from toco_lab.smoothing.layers import layer_similarity, layers_of
from toco_lab.vocabulary import SITES


def test_views_know_the_block_before_and_its_attention(vit):
    image = torch.randn(1, 3, 32, 32)
    layers = {(layer.site, layer.number): layer.view for layer in layers_of(vit, image, sites=SITES, attention=True)}
    sites = tokens_by_hand(vit, image[0])
    for number in (2, 3):
        view = layers["after block", number]
        torch.testing.assert_close(view.previous_tokens, sites["after block", number - 1][:, 1:])
        torch.testing.assert_close(view.previous_attention, layers["after block", number - 1].attention)
        torch.testing.assert_close(view.class_token, sites["after block", number][:, 0])
        torch.testing.assert_close(view.embedding, vit.patch_embed(image).flatten(1, 2))  # before positions
    first = layers["after block", 1]
    assert first.previous_tokens is None and first.previous_attention is None
    assert layers["final norm", 3].attention is None and layers["after attention", 2].attention is None


def test_layer_similarity_is_the_mean_over_images(vit):
    images = torch.randn(2, 3, 32, 32)
    matrix = layer_similarity(vit, images)
    one = []
    for image in images:
        tokens = tokens_by_hand(vit, image)
        one.append(layer_cka([tokens["after block", layer][:, 1:] for layer in (1, 2, 3)])[0].numpy())
    np.testing.assert_allclose(matrix.to_numpy(), np.mean(one, axis=0), atol=1e-5)
    assert list(matrix.index) == list(matrix.columns) == [1, 2, 3]
    with pytest.raises(ValueError, match="no images"):
        layer_similarity(vit, [])
