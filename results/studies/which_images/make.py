"""What the study of images measures beyond its grid: mIoU by size, what every scene gains, and the extreme scenes.

Run by `python -m toco_lab study which_images`. Beside the table of runs it writes `gains.csv`, a line per scene.
"""

from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from toco_lab.data.classes import PALETTE
from toco_lab.evaluation import GainsOfRuns, SizeBounds, bounds_of, images_of_run
from toco_lab.figures import pictures
from toco_lab.files import atomic_write
from toco_lab.reports.by_image import gains_of_rows, sizes_of_run
from toco_lab.reports.studies import Study, markdown_lines, write_results
from toco_lab.runs.run_dir import RunDir
from toco_lab.runs.scores import size_score
from toco_lab.vocabulary import CAM, CAM_TUNED, TITLES

PAIRS = (("baseline", "+ PTC"), ("baseline + seg + reg", "+ PTC + seg + reg"))
TARGETS = (CAM, CAM_TUNED)
SHOWN = 3  # scenes at either end of the picture


def write(study: Study, root: Path) -> str:
    """Table by size, gains of scenes, and the picture of the extreme ones."""
    gains = {
        (before, after, target): gains_of_rows(study.grid, before, after, root, target=target, progress=False)
        for before, after in PAIRS
        for target in TARGETS
    }
    first = next(iter(gains.values()))
    bounds = bounds_of(images_of_run(first.pairs[0].before, progress=False).table)
    text = write_results(
        study, root, measures=partial(sizes, bounds=bounds),
        notes=[f"Sizes: {bounds}; without background, the mean over six classes.", "", *notes(gains)],
        picture=lambda _: picture(gains[(*PAIRS[0], CAM_TUNED)]),
    )  # fmt: skip
    frames = [
        one.frame.assign(row=after, against=before, target=target) for (before, after, target), one in gains.items()
    ]
    with atomic_write(study.folder / "gains.csv", "w") as file:
        pd.concat(frames).round(4).to_csv(file, index=False, lineterminator="\n")
    return text


def sizes(run: RunDir, bounds: SizeBounds) -> dict[str, float]:
    """mIoU of the final CAM by size, and how far small objects are from large ones in points, at both thresholds."""
    found = sizes_of_run(run, TARGETS, bounds)
    behind = {
        f"small minus large, {TITLES[target]}": 100
        * (found[size_score(target, "small")] - found[size_score(target, "large")])
        for target in TARGETS
    }
    return found | behind


def notes(gains: dict[tuple[str, str, str], GainsOfRuns]) -> list[str]:
    """Two tables: how many scenes gain and how far seeds agree, and what goes with the gain."""
    titles = {key: f"{key[1]} against {key[0]}, {TITLES[key[2]]}" for key in gains}
    counts = [
        (
            titles[key], f"{100 * one.frame['gain'].mean():+.1f}", (one.frame["gain"] > 0).sum(),
            (one.frame["gain"] < 0).sum(), (one.frame["better"] == one.by_seed.shape[1]).sum(),
            (one.frame["better"] == 0).sum(), f"{one.agreement:.2f}",
        )
        for key, one in gains.items()
    ]  # fmt: skip
    heading = ["", "mean gain", "gain", "lose", "gain in every seed", "gain in none", "agreement of two seeds"]
    lines = [
        "What each of the 100 scenes gains in its own mIoU (background included), in points, mean over the seeds; the "
        "agreement is the rank", "correlation of the gains of two seeds, mean over pairs of seeds.", "",
        *markdown_lines(heading, counts), "",
        "Rank correlation of the gain of a scene with what is on it, 95 % interval, scenes; each holds for itself.", "",
    ]  # fmt: skip
    related = {title: gains[key].relations.set_index("relation") for key, title in titles.items()}
    words = pd.DataFrame({title: [_cell(line) for _, line in one.iterrows()] for title, one in related.items()})
    names = next(iter(related.values())).index
    return [
        *lines,
        *markdown_lines(["", *words], ([name, *cells] for name, cells in zip(names, words.to_numpy(), strict=True))),
        "",
    ]


def _cell(line: pd.Series) -> str:
    star = "*" * bool(line["low"] > 0 or line["high"] < 0)
    return f"{line['rho']:+.2f} [{line['low']:+.2f}, {line['high']:+.2f}]{star} ({int(line['images'])})"


def picture(gains: GainsOfRuns) -> Figure:
    """The scenes that gain most and least at the tuned threshold, each in the seed that is most like its mean."""
    return pictures.cam_gallery(
        gains.pictures(SHOWN), palette=PALETTE, class_names=gains.class_names, names=gains.captions(SHOWN), size=1.6,
        title=f"final CAM at the tuned threshold, {gains.after} against {gains.before}: largest gains, largest losses",
    )  # fmt: skip
