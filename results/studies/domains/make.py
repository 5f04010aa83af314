"""What the study of domains measures beyond its grid: Dice, AUC of image labels, area on empty images, and Otsu's rows.

Run by `python -m toco_lab study domains`.
"""

from pathlib import Path

import pandas as pd

from toco_lab.config import Config
from toco_lab.evaluation.box_scores import ALL
from toco_lab.evaluation.domain_scores import CAM_OWN, measure_domain
from toco_lab.evaluation.otsu import UNTOLD, measure_otsu
from toco_lab.reports.studies import Study, write_results
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model
from toco_lab.vocabulary import CAM, LABELS, SEG

TITLES = {CAM: "final CAM", CAM_OWN: "final CAM, own labels", SEG: "segmentation"}
AUC = "AUC of image labels"


def write(study: Study, root: Path) -> str:
    """Table, summary and figure of the finished runs, with their further scores and a row of Otsu for each world."""
    worlds = {run.config.toy_world: run.config for run in study.grid.runs(root)}
    lines = [otsu_line(cfg) for cfg in worlds.values()]
    return write_results(study, root, measures=measures, further_rows=pd.DataFrame(lines))


def measures(run: RunDir) -> dict[str, float]:
    """Further scores of a run by heading; a score is left out where a run has none, as of a decoder not trained."""
    means = measure_domain(*load_run_model(run), progress=False).means
    found = {AUC: float(means.loc[LABELS, "label_auc"])}
    for target, title in TITLES.items():
        if target in means.index:
            found |= scores_of(title, float(means.loc[target, "dice"]), float(means.loc[target, "empty_area"]))
    return found


def otsu_line(cfg: Config) -> dict[str, float | str | int]:
    """The line of a world: true image labels for IoU and Dice, none for the area on empty images."""
    means = measure_otsu(cfg).set_index(["class", "target"]).loc[ALL]
    dice, area = float(means.loc[CAM, "dice"]), float(means.loc[UNTOLD, "empty_area"])
    told = scores_of(TITLES[CAM], dice) | scores_of(TITLES[CAM_OWN], float(means.loc[UNTOLD, "dice"]), area)
    return {"row": f"{cfg.toy_world}, Otsu", "seed": 0, **told}


def scores_of(title: str, dice: float, empty_area: float = float("nan")) -> dict[str, float]:
    """Dice and the area on empty images by heading, the latter where it is defined."""
    area = {f"area on empty images, {title}": empty_area} if empty_area == empty_area else {}
    return {f"Dice, {title}": dice} | area
