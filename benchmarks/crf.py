"""What the dense CRF costs, where its time goes, and how it grows with pixels and with classes.

`dense_crf` of 10 iterations, beside it the bilateral lattice alone (`Lattice`): building it, and one filtering. The
picture is made here: smooth shapes with noise of 6 grey levels, which give about 0.3 lattice vertices a pixel, as
photographs of VOC and COCO do on average (0.02 to 0.7 among a dozen of them). The number of vertices, and not only of
pixels, sets the cost of the blur. One thread, processor seconds; sizes and classes take turns in a round.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import CPU, clock_of, growth_exponent, rounds, timed
from benchmarks.run import Case, markdown_table
from toco_lab.method.crf import dense_crf
from toco_lab.method.lattice import Lattice, bilateral_features

SIGMA_XY, SIGMA_RGB = 121, 5  # those of `dense_crf`
NOISE = 6.0  # standard deviation in grey levels
BUILD, FILTER, CRF, REST = "lattice", "one filtering", "dense CRF", "rest"


@dataclass(frozen=True)
class Setting:
    """Which points are measured.

    Attributes:
        sizes: (H, W) of the pictures, with `many` classes.
        classes: Numbers of classes, with the second size.
        many: Classes at every size (21: VOC with background).
        profiled: The size whose time is told by part: that of VOC's photographs.
    """

    sizes: Sequence[tuple[int, int]] = ((112, 112), (224, 224), (375, 500), (500, 667))
    classes: Sequence[int] = (1, 5, 21, 81)
    many: int = 21
    profiled: tuple[int, int] = (375, 500)

    def points(self) -> list[tuple[int, int, int]]:
        """(H, W, classes) of every point, each once."""
        by_size = [(*size, self.many) for size in self.sizes]
        return list(dict.fromkeys(by_size + [(*self.sizes[1], count) for count in self.classes]))


def photo(height: int, width: int, *, seed: int = 0) -> Tensor:
    """A picture that is photo-like to a bilateral filter, (3, H, W) whole grey levels; scaled, its shapes stay."""
    rng = np.random.default_rng(seed)
    y, x = ((np.arange(side) + 0.5) / side for side in (height, width))
    slope = rng.uniform(-60, 60, (2, 3))
    image = rng.uniform(60, 200, 3) + slope[0] * y[:, None, None] + slope[1] * x[None, :, None]
    for _ in range(12):
        centre, radius = rng.uniform(0, 1, 2), rng.uniform(0.05, 0.3, 2)
        distance = ((y[:, None] - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2
        inside = 1 / (1 + np.exp((distance - 1).clip(-1, 1) * 30))[..., None]
        shaded = rng.uniform(20, 235, 3) * (1 - 0.4 * distance.clip(0, 1))[..., None]
        image = image + (shaded - image) * inside
    image += rng.normal(0, NOISE, (height, width, 1)) + rng.normal(0, NOISE / 2, (height, width, 3))
    return torch.from_numpy(image.clip(0, 255).round()).permute(2, 0, 1).float()


def make_calls(height: int, width: int, num_classes: int, device: torch.device = CPU) -> dict[str, Callable[[], Any]]:
    """Build, filter and the whole, on one picture."""
    generator = torch.Generator().manual_seed(0)
    image = photo(height, width).to(device)
    probability = torch.rand(1, num_classes, height, width, generator=generator).softmax(1).to(device)
    features = bilateral_features(image[None], SIGMA_XY, SIGMA_RGB)
    lattice = Lattice(features)
    rows = probability.flatten(2)[0].T.contiguous()
    return {
        BUILD: lambda: Lattice(features),
        FILTER: lambda: lattice.filter_rows(rows),
        CRF: lambda: dense_crf(image, probability),
    }


def measure(setting: Setting, repeats: int) -> pd.DataFrame:
    """Rows of kind `seconds` (see `measure_points`), `exponent` (`growth`) and `share` (`profile`)."""
    table = measure_points(setting.points(), repeats)
    shares = pd.DataFrame(profile(*setting.profiled, setting.many).items(), columns=["part", "share"])
    shares = shares.assign(height=setting.profiled[0], width=setting.profiled[1], classes=setting.many)
    kinds = {"seconds": table, "exponent": growth(table, setting.many), "share": shares}
    return pd.concat([part.assign(kind=kind) for kind, part in kinds.items()], ignore_index=True)


def measure_points(points: Sequence[tuple[int, int, int]], repeats: int, device: torch.device = CPU) -> pd.DataFrame:
    """A row per (height, width, classes): seconds of each part."""
    calls = {(*point, name): call for point in points for name, call in make_calls(*point, device).items()}
    median, rows = rounds(calls, repeats, clock_of(device)).median(), []
    for height, width, classes in points:
        row = {"height": height, "width": width, "pixels": height * width, "classes": classes}
        row |= {name: median[height, width, classes, name] for name in (BUILD, FILTER, CRF)}
        rows.append(row)
    return pd.DataFrame(rows)


def profile(height: int, width: int, num_classes: int) -> dict[str, float]:
    """Share of the CRF's time by part: building both lattices, the three steps of filtering, softmax, the rest."""
    crf = make_calls(height, width, num_classes)[CRF]
    crf()
    with (
        filter_steps() as steps,
        timed({"construction": [(Lattice, "__init__")], "softmax": [(Tensor, "softmax")]}) as others,
    ):
        began = time.process_time()
        crf()
        whole = time.process_time() - began
    parts = {"construction": others["construction"]} | steps | {"softmax": others["softmax"]}
    parts[REST] = whole - sum(parts.values())
    return {part: spent / whole for part, spent in parts.items()}


@contextmanager
def filter_steps() -> Iterator[dict[str, float]]:
    """Processor seconds of splat, blur and slice in every filtering inside: its `embedding_bag`s, in this order."""
    bag, filter_rows, seconds = F.embedding_bag, Lattice.filter_rows, {"splat": 0.0, "blur": 0.0, "slice": 0.0}

    def split(lattice: Lattice, rows: Tensor) -> Tensor:
        order = iter(["splat", *["blur"] * (lattice.shape[1] + 1), "slice"])

        def one(*arguments: Any, **options: Any) -> Tensor:
            began = time.process_time()
            found = bag(*arguments, **options)
            seconds[next(order)] += time.process_time() - began
            return found

        with patch.object(F, "embedding_bag", one):
            return filter_rows(lattice, rows)

    with patch.object(Lattice, "filter_rows", split):
        yield seconds


def growth(table: pd.DataFrame, many: int) -> pd.DataFrame:
    """Exponents of the seconds of each part: in pixels at `many` classes, in classes at the size with most of them."""
    by_size = table[table["classes"] == many]
    counts = table.groupby("pixels")["classes"].nunique()
    by_class = table[table["pixels"] == counts.idxmax()]
    rows = []
    for over, points in (("pixels", by_size), ("classes", by_class)):
        if points[over].nunique() > 1:
            found = {part: growth_exponent(points[over], points[part]) for part in (BUILD, FILTER, CRF)}
            rows.append({"over": over, "points": len(points)} | found)
    return pd.DataFrame(rows)


def section(rows: pd.DataFrame) -> list[str]:
    """Seconds, growth, profile."""
    points, exponents, shares = (rows[rows["kind"] == kind] for kind in ("seconds", "exponent", "share"))
    seconds = [
        [f"{row['height']:.0f} x {row['width']:.0f}", f"{row['classes']:.0f}", f"{row[BUILD]:.3f}",
         f"{row[FILTER]:.4f}", f"{row[CRF]:.3f}"]
        for _, row in points.iterrows()
    ]  # fmt: skip
    grown = [[row["over"], *(f"{row[part]:.2f}" for part in (BUILD, FILTER, CRF))] for _, row in exponents.iterrows()]
    one = shares.iloc[0]
    return [
        *markdown_table(["pixels", "classes", BUILD, FILTER, CRF], seconds), "",
        "Seconds grow as a power of pixels, of classes, with the exponent:", "",
        *markdown_table(["over", BUILD, FILTER, CRF], grown), "",
        f"Where the CRF's time goes, {one['height']:.0f} x {one['width']:.0f}, {one['classes']:.0f} classes:", "",
        *markdown_table(["part", "share"], [[row.part, f"{row.share:.0%}"] for row in shares.itertuples()]),
    ]  # fmt: skip


CASE = Case(
    about="Dense CRF of 10 iterations and its bilateral lattice. Processor seconds, one thread, medians over rounds;\n"
    f"a made-up picture with noise of {NOISE:g} grey levels.",
    settings={"photo": Setting()}, measure=measure, section=section,
)  # fmt: skip
