"""What a run reached, and how each score is shown."""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from toco_lab.config import Config, config_differences
from toco_lab.runs.listing import SCORED_IMAGES, boundary_scores, count_range, final_scores, images_evaluated
from toco_lab.runs.run_dir import RunDir
from toco_lab.vocabulary import (
    AFTER_BLOCK,
    BOUNDARY,
    CAM,
    CAM_AUX,
    CAM_AUX_TUNED,
    CAM_REFINED,
    CAM_REFINED_TUNED,
    CAM_TUNED,
    MEAN_ABSOLUTE_COSINE,
    MEAN_SCORES,
    MIOU,
    NEGATIVE_COSINE,
    POSITIVE_COSINE,
    SEG,
    SEG_CRF,
    SIZES,
)
from toco_lab.vocabulary import TITLES as TARGET_TITLES


@dataclass(frozen=True)
class Score:
    """How a score of a run is shown: its title, the factor on the stored value, decimals, and which way is good.

    Attributes:
        title: For tables and figures.
        factor: 100 turns a share into points.
        digits: Decimals shown.
    """

    title: str
    factor: float = 1.0
    digits: int = 2


SCORES = {
    f"{CAM}_{MIOU}": Score("final CAM", 100, 1),
    f"{CAM_TUNED}_{MIOU}": Score("final CAM, tuned threshold", 100, 1),
    f"{CAM_AUX}_{MIOU}": Score(TARGET_TITLES[CAM_AUX], 100, 1),
    f"{CAM_AUX_TUNED}_{MIOU}": Score(TARGET_TITLES[CAM_AUX_TUNED], 100, 1),
    f"{CAM_REFINED}_{MIOU}": Score(TARGET_TITLES[CAM_REFINED], 100, 1),
    f"{CAM_REFINED_TUNED}_{MIOU}": Score(TARGET_TITLES[CAM_REFINED_TUNED], 100, 1),
    f"{SEG}_{MIOU}": Score(TARGET_TITLES[SEG], 100, 1),
    f"{SEG_CRF}_{MIOU}": Score(TARGET_TITLES[SEG_CRF], 100, 1),
    f"{CAM}_{BOUNDARY}": Score("final CAM, boundary IoU", 100, 1),
    f"{CAM_REFINED}_{BOUNDARY}": Score(f"{TARGET_TITLES[CAM_REFINED]}, boundary IoU", 100, 1),
    f"{SEG}_{BOUNDARY}": Score(f"{TARGET_TITLES[SEG]}, boundary IoU", 100, 1),
    "cam_threshold": Score("tuned threshold, final CAM"),
    "cam_aux_threshold": Score("tuned threshold, auxiliary CAM"),
    "similarity_first": Score("similarity, first block"),
    "similarity_last": Score("similarity, last block"),
    "positive_cosine": Score(TARGET_TITLES["positive_cosine"]),
    "negative_cosine": Score(TARGET_TITLES["negative_cosine"]),
}


def size_score(target: str, size: str) -> str:
    """Name of the mIoU over what is small, middle or large, like cam_small_mIoU; `reports.by_image` measures it."""
    return f"{target}_{size}_{MIOU}"


BY_SIZE = {
    size_score(target, size): Score(f"{SCORES[f'{target}_{MIOU}'].title}, {size} objects", 100, 1)
    for target in (CAM, CAM_TUNED, CAM_AUX, CAM_AUX_TUNED, SEG)
    for size in SIZES
}  # not among the scores of every run: they need another pass
TITLES = {name: score.title for name, score in (SCORES | BY_SIZE).items()}


def shown_as(score: str) -> Score:
    """How a score is shown; one that is not known here has its name as title."""
    return (SCORES | BY_SIZE).get(score, Score(score))


SHOWN = (
    f"{CAM}_{MIOU}",
    f"{CAM_TUNED}_{MIOU}",
    f"{CAM_AUX}_{MIOU}",
    f"{CAM_AUX_TUNED}_{MIOU}",
    f"{SEG}_{MIOU}",
    "similarity_last",
)  # of an ablation, unless asked for others


THRESHOLDS = {CAM_TUNED: "cam_threshold", CAM_AUX_TUNED: "cam_aux_threshold"}  # target -> score: what was chosen


SMOOTHING_IMAGES = "smoothing_images"  # column: over how many images the cosines are


def images_column(score: str) -> str:
    """Name of the column that says over how many images a score is."""
    return SCORED_IMAGES if score.endswith((*MEAN_SCORES, BOUNDARY, *THRESHOLDS.values())) else SMOOTHING_IMAGES


def run_scores(run: RunDir) -> dict[str, float | str]:
    """What a run reached: its mean scores in [0, 1] as `final_scores`, and the cosines of its patch tokens.

    `cam_threshold`, `cam_aux_threshold`: the background thresholds chosen on training images, at which `cam_tuned_mIoU`
    and `cam_aux_tuned_mIoU` are.
    `cam_boundary`, `cam_refined_boundary`, `seg_boundary`: mean boundary IoU in [0, 1].
    `similarity_first`, `similarity_last`: mean |cos| of all pairs (metric 1a) after the first and the last block, raw;
    `positive_cosine`, `negative_cosine`: of pairs of one class and of two by the true mask, after the last block. With
    them over how many images they are, where that is known: `scored_images`, `smoothing_images` ("2 to 5" where scores
    differ). What was not measured is missing.
    """
    edges = {name: value for name, value in boundary_scores(run).items() if name in SCORES}
    found: dict[str, float | str] = {**final_scores(run), **edges, **tuned_thresholds(run), **images_evaluated(run)}
    if not run.is_measured:
        return found
    frame = run.read_table("smoothing")
    frame = frame[frame["site"] == AFTER_BLOCK]
    groups = frame.groupby(["metric", "variant", "layer"])
    means = groups["value"].mean()
    first, last = frame["layer"].min(), frame["layer"].max()
    wanted = {
        "similarity_first": (*MEAN_ABSOLUTE_COSINE, first),
        "similarity_last": (*MEAN_ABSOLUTE_COSINE, last),
        "positive_cosine": (*POSITIVE_COSINE, last),
        "negative_cosine": (*NEGATIVE_COSINE, last),
    }
    there = {name: place for name, place in wanted.items() if place in means.index}
    found |= {name: float(means[place]) for name, place in there.items()}
    if there and "image" in frame:
        images = groups["image"].nunique()
        found[SMOOTHING_IMAGES] = count_range([int(images[place]) for place in there.values()])
    return found


def tuned_thresholds(run: RunDir) -> dict[str, float]:
    """The background thresholds that an evaluation chose, {"cam_threshold": 0.3, ...}; those that are on record."""
    try:
        protocol = run.read_json("protocol")
        found = {
            name: protocol[target]["background_threshold"] for target, name in THRESHOLDS.items() if target in protocol
        }
    except (OSError, ValueError, KeyError):  # not there or damaged: the scores are shown without
        return {}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def rows_of_runs(runs: Iterable[RunDir]) -> pd.DataFrame:
    """One line per run: row, seed, state, `run_scores`, run (folder name).

    Runs whose configs differ in the seed alone make one row, named by the fields in which the rows differ
    ("w_ctc=0.0, w_ptc=0.0"); a field that no result depends on (device, log interval) makes no row.
    """
    runs = list(runs)
    configs = {run.path: run.config() for run in runs}
    names = _row_names(configs.values())
    lines = []
    for run in runs:
        cfg = configs[run.path]
        line = {"row": names[cfg.digest()], "seed": cfg.seed, "state": run.state()}
        lines.append(line | run_scores(run) | {"run": run.name})
    return pd.DataFrame(lines, columns=None if lines else ["row", "seed", "state", "run"])


def _row_names(configs: Iterable[Config]) -> dict[str, str]:
    """A name for each digest: the fields in which the configs differ, by as few words as tell them apart."""
    unique = {cfg.digest(): cfg for cfg in configs}
    differing = config_differences(unique)
    names = {}
    for digest, cfg in unique.items():
        values = {name: values[digest] for name, values in differing.items() if name != "seed"}
        names[digest] = ", ".join(f"{name}={value}" for name, value in values.items()) or cfg.preset_name or "custom"
    for digest in [digest for digest, name in names.items() if list(names.values()).count(name) > 1]:
        names[digest] += f" ({digest})"
    return names
