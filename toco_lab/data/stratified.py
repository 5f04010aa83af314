"""Lists of images in which every class has its share, where images may show several classes."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

_SEED = 0  # a split belongs to the data, not to a run


def stratified_validation(labels: np.ndarray, share: float, candidates: np.ndarray | None = None) -> np.ndarray:
    """Which images to validate on, bool (N,): about `share` of all, and of each class, the same every time.

    One image after the other is chosen: of the combination of classes that brings the numbers of images of each class
    nearest to what so many images should hold, and of that at random. Images without a class count as one more class.
    No class loses its last training image, unless nothing else is left to choose.

    Args:
        labels: Which classes an image shows, (N, C) in {0, 1}.
        share: In (0, 1); one image at least is chosen.
        candidates: Which images may be chosen, bool (N,); None allows all.
    """
    shown = np.asarray(labels) > 0
    shown = np.hstack([shown, ~shown.any(1, keepdims=True)]).astype(float)
    every, order = shown.sum(0), np.random.default_rng(_SEED).permutation(len(shown))
    if candidates is not None:
        order = order[candidates[order]]
    kinds, kind_of = np.unique(shown[order], axis=0, return_inverse=True)
    left = [list(order[kind_of.ravel() == kind]) for kind in range(len(kinds))]
    chosen, inside = np.zeros(len(shown), bool), np.zeros(shown.shape[1])
    for count in range(1, max(1, round(share * len(shown))) + 1):
        last = (kinds[:, :-1] * (every - inside < 2)[:-1]).any(1)  # of a class, in what is left to train on
        distance = np.abs(inside + kinds - every * count / len(shown)).sum(1)
        distance[last | [not images for images in left]] = np.inf
        best = distance.argmin()
        if np.isinf(distance[best]):
            break
        chosen[left[best].pop()] = True
        inside += kinds[best]
    if not chosen.any():
        chosen[order[0]] = True
    return chosen


def class_by_class(
    candidates: Sequence[int], label_of: Callable[[int], np.ndarray], count: int, seed: int
) -> list[int]:
    """Images of which so few are chosen that chance alone could miss a class.

    The class of which the chosen images show fewest is next, and the first image that shows it, in an order drawn by
    the seed, is chosen. Images without a class count as one class more. The first k of n images are those that a call
    for k gives, and no more labels are read than needed.

    Args:
        candidates: Images that may be chosen.
        label_of: Which classes an image shows, (C,) in {0, 1}.
        count: How many to choose, at most as many as there are candidates.
        seed: Of the order.

    Returns:
        The chosen images in the order in which they were chosen.
    """
    order = np.random.default_rng([seed, 2]).permutation(np.asarray(candidates)).tolist()

    @functools.cache
    def shown(image: int) -> np.ndarray:
        label = np.asarray(label_of(image)) > 0
        return np.append(label, not label.any())

    inside = np.zeros(len(shown(order[0])))
    waiting = [iter(order) for _ in inside]  # of each class, the images that were not yet looked at
    chosen: dict[int, None] = {}  # in order, and quick to ask
    while len(chosen) < count:
        for kind in inside.argsort(kind="stable"):
            found = next((image for image in waiting[kind] if image not in chosen and shown(image)[kind]), None)
            if found is not None:
                chosen[found] = None
                inside += shown(found)
                break
    return list(chosen)
