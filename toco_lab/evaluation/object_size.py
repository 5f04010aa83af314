"""Scores of single images, and of objects by their size: pure functions of pixel counts (`image_counts`).

The size of a class in an image is the share of the image that its true mask covers, over the pixels that count. Several
objects of one class are one size: masks of classes do not tell them apart.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd

from toco_lab.vocabulary import MIOU, SIZES

ANY_SIZE = "any size"
SCORES_BY_SIZE = ("iou", "image_iou", "recall", "over_activation", "whole_image")


@dataclass(frozen=True)
class SizeBounds:
    """Where sizes begin, as shares of the image.

    Attributes:
        middle: A share below this one is small.
        large: A share from this one on is large.

    Raises:
        ValueError: If they are not 0 < middle <= large < 1.
    """

    middle: float
    large: float

    def __post_init__(self) -> None:
        """Check the order."""
        if not 0 < self.middle <= self.large < 1:
            raise ValueError(f"bounds of sizes must be 0 < middle <= large < 1, got {self.middle} and {self.large}")

    @classmethod
    def thirds(cls, shares: Iterable[float]) -> Self:
        """Bounds that part some shares into thirds, rounded to three decimals.

        Raises:
            ValueError: If there are no shares.
        """
        known = np.asarray(list(shares), float)
        if not len(known):
            raise ValueError("no image shows a class: there is nothing to part into sizes")
        middle, large = np.quantile(known, [1 / 3, 2 / 3]).round(3).clip(0.001, 0.999)
        return cls(float(middle), float(large))

    def size_of(self, share: float) -> str:
        """One of `SIZES`."""
        return SIZES[(share >= self.middle) + (share >= self.large)]

    def __str__(self) -> str:
        """The bounds in words."""
        return f"small: below {self.middle:.1%} of the image, large: from {self.large:.1%} on"


def bounds_of(counts: pd.DataFrame) -> SizeBounds:
    """Thirds of the pairs of an image and a class that it shows.

    Args:
        counts: Rows of `ImageCounts.table`.

    Raises:
        ValueError: If no image shows a class.
    """
    shown = _shown(counts).drop_duplicates(["image", "label"])
    return SizeBounds.thirds(shown["truth"] / shown["pixels"])


def scores_by_size(counts: pd.DataFrame, bounds: SizeBounds | None = None) -> pd.DataFrame:
    """Scores of each class by the size at which an image shows it.

    Only images whose truth shows a class count for it: what is predicted in others has no size. For a CAM masked by the
    true image labels that is all there is; for a segmentation `evaluation.csv` counts those pixels as well.

    Args:
        counts: Rows of `ImageCounts.table`.
        bounds: Where sizes begin; None parts the pairs of image and class into thirds.

    Returns:
        A row per target, class and size, `ANY_SIZE` last, and after the classes the mean over those that have this size
        (class mIoU; without background): target, class, size, iou (of the pixels of all these images together),
        image_iou (mean over images), recall, over_activation (share of the predicted pixels that are not it; NaN where
        nothing is predicted), whole_image (iou if the whole image were labelled so: what size alone gives), images
        (pairs of image and class), classes (1, or how many the mean is over). A size without pairs has no row.

    Raises:
        ValueError: If no image shows a class.
    """
    bounds = bounds or bounds_of(counts)
    shown = _shown(counts)
    shown = shown.assign(
        size=[bounds.size_of(share) for share in shown["truth"] / shown["pixels"]],
        image_iou=shown["hits"] / (shown["truth"] + shown["predicted"] - shown["hits"]),
    )
    parts = pd.concat([shown, shown.assign(size=ANY_SIZE)], ignore_index=True)
    parts["size"] = pd.Categorical(parts["size"], [*SIZES, ANY_SIZE], ordered=True)
    keys = ["target", "label", "class", "size"]
    sums = parts.groupby(keys, observed=True)[["truth", "predicted", "hits", "pixels"]].sum()
    table = pd.DataFrame({
        "iou": sums["hits"] / (sums["truth"] + sums["predicted"] - sums["hits"]),
        "image_iou": parts.groupby(keys, observed=True)["image_iou"].mean(),
        "recall": sums["hits"] / sums["truth"],
        "over_activation": 1 - sums["hits"] / sums["predicted"],
        "whole_image": sums["truth"] / sums["pixels"],
        "images": parts.groupby(keys, observed=True).size(),
    }).reset_index()  # fmt: skip
    means = table.groupby(["target", "size"], observed=True)
    mean = means[list(SCORES_BY_SIZE)].mean().join(means.agg(images=("images", "sum"), classes=("images", "size")))
    table = pd.concat([table.assign(classes=1), mean.reset_index().assign(**{"class": MIOU})], ignore_index=True)
    order = {target: place for place, target in enumerate(dict.fromkeys(counts["target"]))}
    table["place"] = table["target"].map(order)
    table = table.sort_values(["place", "label", "size"], na_position="last", kind="stable", ignore_index=True)
    return table[["target", "class", "size", *SCORES_BY_SIZE, "images", "classes"]].astype({"size": str})


def image_scores(counts: pd.DataFrame) -> pd.DataFrame:
    """The mIoU of every image by itself, and what is on it.

    Args:
        counts: Rows of `ImageCounts.table`.

    Returns:
        A row per target and image: target, image, miou (mean IoU over the classes that its truth shows, background
        included, as `miou_over: present` has it), classes (without background), foreground (share of the image),
        smallest, largest (share of the class that covers least and most; NaN where the truth shows none).
    """
    found = counts.assign(
        iou=counts["hits"] / (counts["truth"] + counts["predicted"] - counts["hits"]),
        share=counts["truth"] / counts["pixels"],
    )
    found = found[found["truth"] > 0]
    keys = ["target", "image"]
    objects = found[found["label"] > 0].groupby(keys, sort=False)["share"]
    table = found.groupby(keys, sort=False)["iou"].mean().rename("miou").to_frame()
    table = table.join(objects.agg(classes="size", foreground="sum", smallest="min", largest="max"))
    return table.fillna({"classes": 0, "foreground": 0.0}).astype({"classes": int}).reset_index()


def _shown(counts: pd.DataFrame) -> pd.DataFrame:
    """The rows of classes, without background, that the truth of an image shows.

    Raises:
        ValueError: If there are none.
    """
    shown = counts[(counts["label"] > 0) & (counts["truth"] > 0)]
    if shown.empty:
        raise ValueError("no image shows a class: there are no objects whose size could be told")
    return shown
