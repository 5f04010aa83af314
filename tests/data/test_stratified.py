"""Lists in which every class has its share."""

import numpy as np
import pytest

from toco_lab.data.stratified import stratified_validation


def labels_of(rng: np.random.Generator, images: int, classes: int) -> np.ndarray:
    """One to two classes an image, some far rarer than others."""
    odds = np.linspace(1, 0.05, classes) / np.linspace(1, 0.05, classes).sum()
    labels = np.zeros((images, classes))
    for row in labels:
        row[rng.choice(classes, rng.integers(1, 3), replace=False, p=odds)] = 1
    return labels


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("images", "classes"), [(30, 3), (100, 6), (400, 20)])
def test_every_class_has_its_share(seed: int, images: int, classes: int) -> None:
    labels = labels_of(np.random.default_rng(seed), images, classes)
    chosen = stratified_validation(labels, 0.2)
    assert chosen.sum() == round(0.2 * images)
    inside, every = labels[chosen].sum(0), labels.sum(0)
    assert (np.abs(inside - 0.2 * every) <= 1 + 0.05 * every).all(), (inside, every)
    drawn = np.zeros(images, bool)
    drawn[np.random.default_rng(seed).permutation(images)[: chosen.sum()]] = True
    spread = [np.abs(labels[mine].sum(0) - 0.2 * every).sum() for mine in (chosen, drawn)]
    assert spread[0] <= spread[1]
    assert ((every < 2) | (labels[~chosen].sum(0) > 0)).all(), "a class that could be trained cannot be"
    assert np.array_equal(chosen, stratified_validation(labels, 0.2))


def test_few_images_and_masks_that_only_some_have() -> None:
    two = np.eye(2)
    assert stratified_validation(two, 0.2).sum() == 1  # the only one of its class: nothing else can be chosen
    one_class = np.ones((5, 1))
    assert stratified_validation(one_class, 0.2).sum() == 1
    negatives = np.vstack([np.ones((5, 1)), np.zeros((5, 1))])
    assert negatives[stratified_validation(negatives, 0.2)].ravel().tolist() in ([0, 1], [1, 0])
    masked = np.arange(20) % 4 == 0
    labels = labels_of(np.random.default_rng(1), 20, 3)
    chosen = stratified_validation(labels, 0.2, masked)
    assert 1 <= chosen.sum() <= 4 and not chosen[~masked].any()
