"""Two lists of images in which every class has its share, where images may show several classes."""

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
