"""From the map of a class to its objects: masks, boxes and scores.

The region of a class is cut into objects by one of `RULES`:

- `components`: its 8-connected pieces; those under `LEAST_AREA` of the image are dropped.
- `largest`: one object, the largest piece, as TS-CAM has it (`toco_lab.peers.boxes.largest_region`).
- `peaks`: its pieces, each cut once more where the map has several peaks (`cut_at_peaks`): objects of one class that
  touch are one piece.

A box is the extent of a mask, half-open (`Instance.box`).
"""

from typing import Literal, get_args

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from toco_lab.data.instances import LEAST_AREA, Instance, components
from toco_lab.files import did_you_mean
from toco_lab.peers.boxes import largest_region

Rule = Literal["components", "largest", "peaks"]
RULES: tuple[str, ...] = get_args(Rule)
PEAK_DISTANCE = 2.0  # tokens: a peak is the maximum of all positions that are no further away, in rows and columns
_NEIGHBOURS = (  # two views of a map, in which pixels that touch stand at one place
    (np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:]),
    (np.s_[:-1, :-1], np.s_[1:, 1:]), (np.s_[:-1, 1:], np.s_[1:, :-1]),
)  # fmt: skip


def check_rule(rule: str) -> None:
    """Raise ValueError for a rule that is not among `RULES`."""
    if rule not in RULES:
        hint = did_you_mean(str(rule), RULES) or f"; there are: {', '.join(RULES)}"
        raise ValueError(f"unknown rule {rule!r}{hint}")


def class_instances(
    scores: np.ndarray,
    where: np.ndarray,
    number: int = 1,
    *,
    rule: str = "components",
    probability: float = 1.0,
    distance: tuple[int, int] = (1, 1),
    threshold: float | None = None,
) -> list[Instance]:
    """The objects of one class in one image.

    Args:
        scores: Map of the class, (H, W) in [0, 1].
        where: (H, W) bool, the region of the class: where it is above the threshold and the strongest, or segmented.
        number: The class, 1..C.
        rule: One of `RULES`.
        probability: Of the class in the image, the sigmoid of its logit.
        distance: Of peaks, in pixels along rows and columns, at least 1.
        threshold: Rule `largest` of a CAM: share of the maximum of `scores` that its region lies above, whatever
            `where` is. None takes the largest piece of `where`.

    Returns:
        The highest score first. A score is the mean of `scores` inside the mask times `probability`.

    Raises:
        ValueError: For an unknown rule, or arrays of two shapes.
    """
    check_rule(rule)
    if scores.ndim != 2 or scores.shape != where.shape:
        raise ValueError(f"scores and where must be (H, W) of one size, got {scores.shape} and {where.shape}")
    least = LEAST_AREA * scores.size
    if rule == "largest":
        unit, share = (where.astype(np.float32), 0.5) if threshold is None else (scores, threshold)
        region = largest_region(unit, share)
        masks = [region] if region.any() else []
    elif rule == "peaks":
        cut = [part for piece in components(where) for part in cut_at_peaks(scores, piece, distance)]
        masks = [mask for mask in cut if mask.sum() >= least]
    else:
        masks = components(where, least=least)
    found = [Instance(number, mask, float(scores[mask].mean()) * probability) for mask in masks]
    return sorted(found, key=lambda one: -one.score)


def cut_at_peaks(scores: np.ndarray, piece: np.ndarray, distance: tuple[int, int]) -> list[np.ndarray]:
    """The parts of a connected piece, one around each peak of the map.

    Every pixel belongs to the peak to which a path leads that stays as high as possible: a watershed whose markers are
    the peaks, computed as a spanning forest rooted in them (watershed cuts; Cousty et al., IEEE TPAMI 2009).
    `scipy.ndimage.watershed_ift` is none of heights: its paths avoid steep steps, and on an even slope one marker takes
    nearly all.

    Args:
        scores: (H, W).
        piece: (H, W) bool, 8-connected, with at least one pixel.
        distance: A peak is the maximum of the piece within so many pixels along rows and columns; pixels of equal
            height that touch are one peak.

    Returns:
        (H, W) bool each, 8-connected and without a common pixel; together they are the piece.
    """
    window = ndimage.find_objects(piece.astype(np.uint8))[0]
    inside, heights = piece[window], scores[window].astype(np.float64)
    masked = np.where(inside, heights, -np.inf)
    highest = ndimage.maximum_filter(masked, size=tuple(2 * one + 1 for one in distance), mode="constant", cval=-np.inf)
    markers, count = ndimage.label(inside & (masked == highest), np.ones((3, 3)))
    if count == 1:
        return [piece]
    basins = np.zeros(piece.shape, int)
    basins[window] = _flooded(heights, inside, markers)
    return [basins == place for place in range(1, count + 1)]


def _flooded(heights: np.ndarray, inside: np.ndarray, markers: np.ndarray) -> np.ndarray:
    """Which marker each pixel of (h, w) `inside` belongs to; 0 outside."""
    place = np.arange(heights.size).reshape(heights.shape)
    root, depth = heights.size, heights.max() - heights + 1  # a weight of 0 would be no edge
    ends, weights = [], []
    for one, other in _NEIGHBOURS:
        both = inside[one] & inside[other]
        ends.append(np.stack([place[one][both], place[other][both]]))
        weights.append(np.maximum(depth[one], depth[other])[both])
    peaks = place[markers > 0]
    ends.append(np.stack([np.full(len(peaks), root), peaks]))
    weights.append(np.full(len(peaks), 0.5))  # below every other: the root is joined to all peaks first
    rows, columns = np.concatenate(ends, axis=1)
    graph = sparse.coo_array((np.concatenate(weights), (rows, columns)), shape=(root + 1, root + 1))
    forest = csgraph.minimum_spanning_tree(graph.tocsr()).tocoo()
    kept = (forest.row != root) & (forest.col != root)
    trees = sparse.coo_array((forest.data[kept], (forest.row[kept], forest.col[kept])), shape=forest.shape)
    count, tree = csgraph.connected_components(trees, directed=False)  # a peak in each; what lies outside is alone
    number = np.zeros(count, int)
    number[tree[peaks]] = markers.flat[peaks]
    return number[tree[:-1]].reshape(heights.shape)
