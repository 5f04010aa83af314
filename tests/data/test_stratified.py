"""Lists in which every class has its share."""

import numpy as np
import pytest

from toco_lab.data.stratified import class_by_class, stratified_validation


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


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("images", "classes"), [(60, 6), (400, 20)])
def test_a_few_images_show_every_class_as_far_as_they_can(seed: int, images: int, classes: int) -> None:
    labels = labels_of(np.random.default_rng(seed), images, classes)
    chosen = class_by_class(range(images), lambda image: labels[image], 2 * classes, seed)
    assert len(set(chosen)) == 2 * classes
    inside, every = labels[chosen].sum(0), labels.sum(0)
    assert (inside >= np.minimum(every, 1)).all()
    for number in range(1, 2 * classes):  # each image brings a class of which those before show fewest
        before, brought = labels[chosen[:number]].sum(0), labels[chosen[number]] > 0
        left = labels[[image for image in range(images) if image not in chosen[:number]]].sum(0) > 0
        assert before[brought].min() == before[left].min()


def test_more_images_hold_those_of_fewer_and_another_seed_draws_others() -> None:
    labels = labels_of(np.random.default_rng(0), 100, 6)

    def chosen(count: int, seed: int = 3) -> list[int]:
        return class_by_class(range(100), lambda image: labels[image], count, seed)

    assert chosen(8) == chosen(16)[:8] == chosen(100)[:8] and sorted(chosen(100)) == list(range(100))
    assert chosen(8) == chosen(8) != chosen(8, seed=4)


def test_images_without_a_class_are_a_class_more_and_labels_are_read_as_far_as_needed() -> None:
    labels, read = np.vstack([np.ones((50, 1)), np.zeros((50, 1))]), []
    chosen = class_by_class(range(10, 90), lambda image: read.append(image) or labels[image], 4, seed=0)
    assert sorted(labels[chosen, 0].tolist()) == [0, 0, 1, 1] and set(chosen) <= set(range(10, 90))
    assert len(read) == len(set(read)) < 20
