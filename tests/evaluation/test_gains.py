"""What images gain, from pixel counts written by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from toco_lab.evaluation.gains import image_gains, relations
from toco_lab.evaluation.image_counts import COLUMNS


def counts_of(hits: dict[str, int], objects: dict[str, int] | None = None, target: str = "cam") -> pd.DataFrame:
    """Images of 100 pixels, one class of 40 pixels unless said, of which so many are hit; nothing else is labelled."""
    rows = []
    for image, hit in hits.items():
        size = (objects or {}).get(image, 40)
        rows += [
            (image, target, 0, "background", 100 - size, 100 - hit, 100 - size, 100),
            (image, target, 1, "cat", size, hit, hit, 100),
        ]
    return pd.DataFrame(rows, columns=COLUMNS)


def miou(hit: int, size: int = 40) -> float:
    return (hit / size + (100 - size) / (100 - hit)) / 2


BEFORE = {0: counts_of({"a": 10, "b": 20, "c": 30}), 1: counts_of({"a": 0, "b": 20, "c": 40})}
AFTER = {1: counts_of({"a": 40, "b": 20, "c": 20}), 0: counts_of({"a": 30, "b": 10, "c": 30}), 7: counts_of({"a": 1})}


def test_gains_are_paired_by_seed_and_sorted():
    found = image_gains(BEFORE, AFTER, names=("plain", "PTC"))
    assert list(found.by_seed.columns) == [0, 1] and (found.before, found.after, found.target) == (
        "plain",
        "PTC",
        "cam",
    )
    of_a = [miou(30) - miou(10), miou(40) - miou(0)]
    assert found.frame["image"].tolist() == ["a", "b", "c"]
    line = found.frame.iloc[0]
    assert line["gain"] == pytest.approx(np.mean(of_a)) and line["sd"] == pytest.approx(np.std(of_a, ddof=1))
    assert line["before"] == pytest.approx((miou(10) + miou(0)) / 2) and line["better"] == 2
    assert found.frame.set_index("image")["better"].to_dict() == {"a": 2, "b": 0, "c": 0}
    assert found.agreement == pytest.approx(spearmanr(found.by_seed[0], found.by_seed[1])[0])
    assert "3 images, 2 seeds" in str(found) and "1 gain, 2 lose" in str(found)


def test_the_typical_seed_is_the_one_nearest_to_the_mean():
    runs = {seed: counts_of({"a": hit, "b": 20}) for seed, hit in ((3, 0), (4, 21), (5, 40))}
    found = image_gains({seed: counts_of({"a": 20, "b": 20}) for seed in runs}, runs)
    assert found.typical_seed("a") == 4
    assert found.extremes(1) == [found.frame["image"].iloc[0], found.frame["image"].iloc[-1]]
    assert sorted(found.extremes(5)) == ["a", "b"]
    with pytest.raises(ValueError, match="at least 1"):
        found.extremes(0)


def test_one_seed_has_no_spread_and_no_agreement():
    found = image_gains({0: BEFORE[0]}, {0: AFTER[0]})
    assert found.frame["sd"].isna().all() and math.isnan(found.agreement) and "agree" not in str(found)


@pytest.mark.parametrize(
    "after, message",
    [
        ({5: AFTER[0]}, "no seed in common"),
        ({0: counts_of({"a": 30, "b": 10, "c": 30}, {"b": 41})}, "true mask of b differs"),
        ({0: counts_of({"a": 30, "b": 10})}, "true mask of c differs, or one lacks it"),
        ({0: counts_of({"a": 30, "b": 10, "c": 30}, target="seg")}, "gains are of one target, got cam, seg"),
    ],
)
def test_what_cannot_be_compared_is_refused(after, message):
    with pytest.raises(ValueError, match=message):
        image_gains({0: BEFORE[0]}, after)


def test_relations_are_rank_correlations_with_ties_and_gaps(rng):
    gain, classes = rng.normal(size=30), rng.integers(1, 4, 30)
    similar = np.where(np.arange(30) < 10, gain**3, np.nan)
    frame = pd.DataFrame({"gain": gain, "classes": classes, "foreground": 0.5, "similarity": similar})
    found = relations(frame).set_index("relation")
    line = found.loc["number of classes"]
    assert line["rho"] == pytest.approx(spearmanr(gain, classes)[0]) and line["images"] == 30
    half = 1.959964 * math.sqrt(1.06 / 27)
    assert math.atanh(line["high"]) - math.atanh(line["rho"]) == pytest.approx(half, rel=1e-5)
    assert math.atanh(line["rho"]) - math.atanh(line["low"]) == pytest.approx(half, rel=1e-5)
    assert math.isnan(found.loc["share of the image that is object", "rho"])  # all equal
    tokens = found.loc["similarity of its tokens after the last block, before"]
    assert tokens["images"] == 10 and tokens["rho"] == pytest.approx(1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        relations(frame, confidence=1)
