"""From maps to objects: the rules on regions drawn by hand."""

import numpy as np
import pytest
import torch
from helpers.baseline_goldens import load_golden, needed
from scipy import ndimage

from toco_lab.data.instances import components
from toco_lab.evaluation.boxes import RULES, class_instances, cut_at_peaks
from toco_lab.peers.boxes import unit_map


def discs(centres, radius=12, size=(60, 100)):
    """A map that falls from 1 at each centre to 0.5 at the rim, and where it is above 0."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    far = np.min([np.hypot(rows - row, columns - column) for row, column in centres], axis=0)
    return np.where(far <= radius, 1 - 0.5 * far / radius, 0), far <= radius


def boxes(found):
    return [one.box for one in found]


def test_components_and_their_scores():
    scores, where = np.full((20, 20), 0.1), np.zeros((20, 20), bool)
    for region, score in ((np.s_[2:5, 3:9], 0.6), (np.s_[10:12, 10:14], 0.8), (np.s_[19:, 19:], 1.0)):
        scores[region], where[region] = score, True  # the last has one pixel; 0.5 % are two
    found = class_instances(scores, where, 4, probability=0.5)
    assert boxes(found) == [(10, 10, 14, 12), (3, 2, 9, 5)] and [one.number for one in found] == [4, 4]
    assert [one.score for one in found] == pytest.approx([0.4, 0.3])
    assert [one.mask.sum() for one in found] == [8, 18]


def test_a_region_without_a_pixel_has_no_object():
    for rule in RULES:
        assert class_instances(np.zeros((9, 9)), np.zeros((9, 9), bool), rule=rule) == []


def test_largest_is_one_object_with_its_holes():
    scores = np.zeros((40, 40), np.float32)
    scores[2:22, 2:22], scores[4:20, 4:20] = 1.0, 0.0  # a ring of 144 pixels around 256
    scores[25:39, 25:39] = 0.9  # 196 pixels
    ring = class_instances(scores, scores > 0.5, rule="largest")
    assert boxes(ring) == [(2, 2, 22, 22)] and ring[0].mask.sum() == 144 and ring[0].score == 1.0
    assert boxes(class_instances(scores, scores > 0.5)) == [(2, 2, 22, 22), (25, 25, 39, 39)]
    # of a map the threshold is a share of its maximum, whatever the region is
    share = class_instances(0.5 * scores, scores > 2, rule="largest", threshold=0.95)
    assert boxes(share) == [(2, 2, 22, 22)]


@needed
def test_largest_is_the_rule_of_tscam():
    golden, _ = load_golden("tscam")
    maps = unit_map(golden["box_maps"], golden["box_resized"].shape[-1]).numpy()
    thresholds = golden["box_thresholds"].tolist()
    found = [
        [class_instances(one, one > 2, rule="largest", threshold=threshold)[0].box for threshold in thresholds]
        for one in maps
    ]
    assert (torch.tensor(found) - golden["boxes"]).abs().sum() <= 1  # where a value of a map meets the threshold


def test_peaks_split_two_touching_discs_that_components_do_not():
    scores, where = discs([(30, 30), (30, 52)])
    assert boxes(class_instances(scores, where)) == [(18, 18, 65, 43)]
    found = class_instances(scores, where, rule="peaks", distance=(8, 8))
    left, right = sorted(found, key=lambda one: one.box)
    assert not (left.mask & right.mask).any() and np.array_equal(left.mask | right.mask, where)
    assert left.mask[30, 30] and right.mask[30, 52]
    assert left.box[0] == 18 and abs(left.box[2] - 42) <= 2 and abs(right.box[0] - 41) <= 2 and right.box[2] == 65
    # a peak with a higher one nearer than the distance is none
    scores[:, 42:] *= 0.9
    assert len(class_instances(scores, where, rule="peaks", distance=(8, 8))) == 2
    assert boxes(class_instances(scores, where, rule="peaks", distance=(8, 30))) == [(18, 18, 65, 43)]


def test_every_piece_has_a_peak_however_near_a_higher_one_is():
    scores, where = discs([(20, 20)], radius=6)
    scores[20:25, 30:35], where[20:25, 30:35] = 0.3, True  # within the distance of the disc, and lower; 25 pixels < 30
    scores[40:46, 20:26], where[40:46, 20:26] = 0.3, True
    found = class_instances(scores, where, rule="peaks", distance=(30, 30))
    assert boxes(found) == [(14, 14, 27, 27), (20, 40, 26, 46)]


def test_paths_stay_inside_the_piece():
    """A horseshoe with a peak at each end: its middle is far from both, but the ends are near each other outside."""
    piece = np.zeros((30, 40), bool)
    piece[5:10, 5:35] = piece[20:25, 5:35] = piece[5:25, 5:10] = True
    columns = np.broadcast_to(np.arange(40.0), piece.shape)
    scores = np.where(columns > 10, 0.5 + columns / 100, 0.5)
    upper, lower = cut_at_peaks(scores, piece, (3, 3))[-2:]
    assert upper[7, 11:35].all() and not upper[20:25].any(), "the upper arm belongs to the upper peak"
    assert lower[22, 11:35].all() and not lower[5:10].any()


def test_every_pixel_goes_where_a_path_stays_highest(rng):
    """Against the highest of all paths' lowest points, from every peak to every pixel, by repeated relaxation."""
    scores, piece = rng.random((9, 11)), components(rng.random((9, 11)) < 0.8)[0]
    parts = cut_at_peaks(scores, piece, (2, 2))
    assert len(parts) > 2 and (np.sum(parts, axis=0) == piece).all()
    assert all(len(components(part)) == 1 for part in parts)
    inside = np.where(piece, scores, -1)
    near = [inside[max(0, i - 2) : i + 3, max(0, j - 2) : j + 3].max() for i, j in np.ndindex(piece.shape)]
    peaks = [(i, j) for (i, j), most in zip(np.ndindex(piece.shape), near, strict=True) if inside[i, j] == most > 0]
    assert [sum(part[peak] for peak in peaks) for part in parts] == [1] * len(peaks)
    peaks.sort(key=lambda peak: next(place for place, part in enumerate(parts) if part[peak]))
    bottleneck = np.full((len(peaks), *piece.shape), -1.0)
    for reached, peak in zip(bottleneck, peaks, strict=True):
        reached[peak] = scores[peak]
        for _ in range(piece.size):
            around = ndimage.maximum_filter(reached, 3, mode="constant", cval=-1)
            reached[:] = np.where(piece, np.maximum(reached, np.minimum(around, scores)), -1)
    for row, column in np.argwhere(piece):
        own = next(place for place, part in enumerate(parts) if part[row, column])
        assert bottleneck[own, row, column] == bottleneck[:, row, column].max()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="unknown rule 'peak', did you mean 'peaks'"):
        class_instances(np.zeros((4, 4)), np.zeros((4, 4), bool), rule="peak")
    with pytest.raises(ValueError, match=r"of one size, got \(4, 4\) and \(4, 5\)"):
        class_instances(np.zeros((4, 4)), np.zeros((4, 5), bool))
