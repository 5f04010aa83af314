"""What the study of a few masks draws: the segmentation against the number of masks, a curve for each way to use them.

Run by `python -m toco_lab study few_masks`.
"""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from toco_lab.figures.colours import assign_colours
from toco_lab.figures.printed import line_panels
from toco_lab.reports.studies import Study, write_results
from toco_lab.vocabulary import CAM, MIOU, SEG, TITLES, TUNED

LEVELS = {"ToCo": "image labels alone (ToCo)", "true masks of all": "true masks of all"}  # rows drawn as level lines
PANELS = {f"{SEG}_{MIOU}": f"{TITLES[SEG]}, mIoU", f"{TUNED[CAM]}_{MIOU}": "final CAM, tuned threshold, mIoU"}


def write(study: Study, root: Path) -> str:
    """Table and summary of the finished runs, and their curves."""
    return write_results(study, root, picture=picture)


def picture(frame: pd.DataFrame) -> Figure:
    """mIoU in points against the number of masks: mean over seeds, and one standard deviation as a band."""
    points = curves(frame)
    ticks = dict(points.drop_duplicates("x")[["x", "masks"]].itertuples(index=False))
    colours = assign_colours(points["line"])
    return line_panels(points, colours=colours, x_title="training scenes with a mask, of 1,000", ticks=ticks)


def curves(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per point as `line_panels` takes it; `masks` is the number of masks, x its place among those asked for.

    Args:
        frame: One line per run: row ("masks and labels, 8": way and number), seed, scores.
    """
    parted = frame["row"].str.extract(r"(.*), (\d+|all)$")
    asked = sorted(parted[1].dropna().unique(), key=lambda masks: 1000 if masks == "all" else int(masks))
    rows = []
    for score, panel in PANELS.items():
        runs = frame.assign(line=parted[0], masks=parted[1], value=100 * frame[score]).dropna(subset="value")
        for row, line in LEVELS.items():
            level = runs[runs["row"] == row]
            rows += [_point(panel, line, x, masks, level["value"]) for x, masks in enumerate(asked) if len(level)]
        for (line, masks), own in runs.dropna(subset="masks").groupby(["line", "masks"], sort=False):
            rows.append(_point(panel, line, asked.index(masks), masks, own["value"]))
    return pd.DataFrame(rows).sort_values("x", kind="stable", ignore_index=True)


def _point(panel: str, line: str, x: int, masks: str, values: pd.Series) -> dict[str, str | float | bool]:
    mean, sd = values.mean(), values.std()
    return {"panel": panel, "line": line, "x": x, "masks": masks, "mean": mean, "low": mean - sd, "high": mean + sd,
            "apart": False}  # fmt: skip
