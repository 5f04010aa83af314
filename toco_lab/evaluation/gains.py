"""Which images gain and which lose between two models, seed by seed: a pure function of pixel counts.

A gain of a single image is the difference of its mIoU. Two seeds of one config may disagree about it: read `agreement`
before a picture is taken for an effect. `gains_of_runs` makes the counts of runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from toco_lab.evaluation.object_size import image_scores
from toco_lab.words import counted

SIMILARITY = "similarity"  # column: of the tokens after the last block of the first model
RELATED = {
    "classes": "number of classes",
    "foreground": "share of the image that is object",
    "smallest": "share of its smallest class",
    "largest": "share of its largest class",
    SIMILARITY: "similarity of its tokens after the last block, before",
}  # column of the frame -> what it is, in the order of the table of relations


@dataclass(frozen=True, eq=False)
class ImageGains:
    """What every image gains.

    Attributes:
        frame: A row per image, the largest gain first: image, before, after (mIoU of the image, mean over seeds), gain,
            sd (of the gain over seeds; NaN for one), better (in how many seeds it gains), classes, foreground,
            smallest, largest (see `image_scores`), and similarity where runs have it.
        by_seed: Gain of every image (rows) in every seed (columns).
        target: Of whose label maps.
        before, after: Names of the two.
    """

    frame: pd.DataFrame
    by_seed: pd.DataFrame
    target: str
    before: str
    after: str

    @property
    def agreement(self) -> float:
        """How much two seeds agree on which images gain: mean rank correlation over pairs of seeds, in [-1, 1]; NaN for
        one seed.
        """
        ranks = self.by_seed.corr(method="spearman").to_numpy()
        others = ranks[np.triu_indices(len(ranks), 1)]
        return float(others.mean()) if len(others) else float("nan")

    def typical_seed(self, image: str) -> int:
        """The seed in which an image gains most nearly what it gains on average: the one to look at."""
        gains = self.by_seed.loc[image]
        return int((gains - gains.mean()).abs().idxmin())

    @property
    def relations(self) -> pd.DataFrame:
        """`relations` of the frame."""
        return relations(self.frame)

    def extremes(self, number: int = 3) -> list[str]:
        """Names of the images that gain most and least, best first; each once.

        Raises:
            ValueError: If the number is not positive.
        """
        if number < 1:
            raise ValueError(f"number must be at least 1, got {number}")
        names = self.frame["image"].tolist()
        return list(dict.fromkeys([*names[:number], *names[-number:]]))

    def __str__(self) -> str:
        """The counts, the extremes and the relations, as text."""
        gain, seeds = self.frame["gain"], self.by_seed.shape[1]
        agreed = f"; two seeds agree by a rank correlation of {self.agreement:.2f}" if seeds > 1 else ""
        first, last = self.frame.iloc[0], self.frame.iloc[-1]
        return "\n".join(
            [
                f"{self.target}: {self.after} against {self.before}, {counted(len(gain), 'image')}, "
                f"{counted(seeds, 'seed')}: {100 * gain.mean():+.1f} points of mIoU of an image, {(gain > 0).sum()} "
                f"gain, {(gain < 0).sum()} lose{agreed}",
                f"best {first['image']} {100 * first['gain']:+.1f}, worst {last['image']} {100 * last['gain']:+.1f}",
                self.relations.to_string(index=False, float_format="{:+.2f}".format),
            ]
        )


def image_gains(
    before: Mapping[int, pd.DataFrame],
    after: Mapping[int, pd.DataFrame],
    *,
    names: Sequence[str] = ("before", "after"),
    covariates: pd.DataFrame | None = None,
) -> ImageGains:
    """What every image gains, from pixel counts.

    Args:
        before, after: Seed -> rows of `ImageCounts.table` of one target; the seeds that both have are paired.
        names: Of the two.
        covariates: Further columns of the frame, with the name of the image as index.

    Raises:
        ValueError: If no seed is common, a table is of several targets or of another one, or the true masks of an image
            differ.
    """
    seeds = [seed for seed in before if seed in after]
    if not seeds:
        raise ValueError(f"no seed in common: {sorted(before)} and {sorted(after)}")
    tables = [one[seed] for seed in seeds for one in (before, after)]
    target = _one_target(tables)
    _check_truth(tables)
    first, then = (pd.DataFrame({seed: _miou(one[seed]) for seed in seeds}) for one in (before, after))
    by_seed = (then - first).rename_axis(columns="seed")
    frame = pd.DataFrame({
        "before": first.mean(axis=1), "after": then.mean(axis=1), "gain": by_seed.mean(axis=1),
        "sd": by_seed.std(axis=1), "better": (by_seed > 0).sum(axis=1),
    })  # fmt: skip
    shown = image_scores(tables[0]).set_index("image")
    frame = frame.join(shown[["classes", "foreground", "smallest", "largest"]])
    if covariates is not None:
        frame = frame.join(covariates)
    frame = frame.sort_values("gain", ascending=False, kind="stable").reset_index()
    return ImageGains(frame, by_seed, target, names[0], names[1])


def _miou(counts: pd.DataFrame) -> pd.Series:
    return image_scores(counts).set_index("image")["miou"]


def _one_target(tables: Sequence[pd.DataFrame]) -> str:
    targets = list(dict.fromkeys(name for table in tables for name in table["target"].unique()))
    if len(targets) != 1:
        raise ValueError(f"gains are of one target, got {', '.join(targets) or 'none'}: take ImageCounts.of(target)")
    return targets[0]


def _check_truth(tables: Sequence[pd.DataFrame]) -> None:
    """Refuse to compare different images of one name."""
    truths = [table[table["truth"] > 0].set_index(["image", "label"])["truth"].sort_index() for table in tables]
    for truth in truths[1:]:
        if not truth.equals(truths[0]):
            joint = pd.concat([truths[0], truth], axis=1).fillna(0)
            unlike = joint.index[joint.iloc[:, 0] != joint.iloc[:, 1]][0][0]
            raise ValueError(f"the images are not the same: the true mask of {unlike} differs, or one lacks it")


def relations(frame: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Rank correlation of the gain with what is on the image.

    The mIoU before is left out on purpose: the gain is a difference to it, so that they are correlated by chance alone.

    Args:
        frame: Of `ImageGains`; of `RELATED` the columns that it has.
        confidence: Of the interval, in (0, 1).

    Returns:
        A row per column: relation, rho (Spearman, in [-1, 1]; NaN where all values are equal), low, high (interval by
        Fisher's z with the variance 1.06 / (n - 3); NaN below four images), images. Each interval holds for itself.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    from scipy.special import ndtri

    lines = []
    for column, title in RELATED.items():
        if column not in frame:
            continue
        known = frame[["gain", column]].dropna()
        count, constant = len(known), known.nunique().min() < 2
        rho = np.nan if constant else known["gain"].rank().corr(known[column].rank())
        half = ndtri(0.5 + confidence / 2) * np.sqrt(1.06 / (count - 3)) if count > 3 else np.nan
        z = np.arctanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12))
        lines.append((title, rho, np.tanh(z - half), np.tanh(z + half), count))
    return pd.DataFrame(lines, columns=["relation", "rho", "low", "high", "images"])
