"""Over how many images, and how many runs, the numbers of a table were measured, in words.

Every figure says it; where models or rows differ in it, it says which has how many.
"""

from collections.abc import Iterable, Mapping

import pandas as pd

from toco_lab.vocabulary import ALL_IMAGES
from toco_lab.words import counted


def number_range(values: Iterable[float | str]) -> str:
    """The text "5" or "2 to 5", "" where no number is known. A value may be such a text."""
    numbers = [int(float(part)) for value in values if pd.notna(value) for part in str(value).split(" to ") if part]
    return " to ".join(map(str, dict.fromkeys((min(numbers), max(numbers))))) if numbers else ""


def by_name(counts: Mapping[str, str]) -> str:
    """The text "20 images" where all agree, else "20 images (a, b), 50 images (c)"."""
    names: dict[str, list[str]] = {}
    for name, words in counts.items():
        names.setdefault(words, []).append(name)
    return ", ".join(words if len(names) == 1 else f"{words} ({', '.join(of)})" for words, of in names.items())


def images_measured(rows: pd.DataFrame) -> str:
    """Over how many images each model of a table of `smoothing.smoothing_per_layer` was measured.

    "20 images", "15 to 20 images" where a metric lacks some (pairs of two classes in an image of one), "20 images of
    each of 3 runs", and by model where models differ. "" for a table without the column `image`.

    Args:
        rows: With a column `run` where several runs (seeds of one config) make one model.
    """
    if "image" not in rows:
        return ""
    return by_name({str(model): _of_model(part) for model, part in rows.groupby("model", sort=False)})


def _of_model(rows: pd.DataFrame) -> str:
    single = rows[rows["image"] != ALL_IMAGES]
    if single.empty:
        return "tokens of all images pooled"
    places = [name for name in ("run", "metric", "variant", "site", "layer") if name in rows]
    words = counted(number_range(single.groupby(places)["image"].nunique()), "image")
    runs = rows["run"].nunique() if "run" in rows else 1
    return f"{words} of each of {runs} runs" if runs > 1 else words


def images_tested(quality: pd.DataFrame) -> str:
    """The same of a table of `evaluation.layer_cam_quality`: "50 images, heads trained on 200"."""
    counts = {}
    for model, part in quality.groupby("model", sort=False):
        tested, trained = (number_range(part[name]) for name in ("images", "trained_on"))
        counts[str(model)] = f"{counted(tested, 'image')}, heads trained on {trained}"
    return by_name(counts)
