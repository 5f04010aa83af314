"""What the study of boxes measures beyond its grid: CorLoc and average precision of each finished run.

Run by `python -m toco_lab study boxes`.
"""

from pathlib import Path

from toco_lab.config import Config
from toco_lab.evaluation.box_evaluation import WHOLE_IMAGE, Source, measure_boxes
from toco_lab.evaluation.box_scores import ALL
from toco_lab.methods import learns_segmentation
from toco_lab.reports.studies import Study, write_results
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model

RULES = ("components", "peaks")


def write(study: Study, root: Path) -> str:
    """Table, summary and figure of the finished runs, with their boxes."""
    return write_results(study, root, measures=measures)


def measures(run: RunDir) -> dict[str, float]:
    """Scores of a run's boxes by heading, of CAM and segmentation; CorLoc is that of components."""
    model, cfg = load_run_model(run)
    found: dict[str, float] = {}
    for source in sources(cfg):
        table = measure_boxes(model, cfg, rules=RULES, source=source, progress=False).table
        means = table[table["class"] == ALL].set_index("rule")
        found[f"CorLoc, {WHOLE_IMAGE}"] = float(means.loc[WHOLE_IMAGE, "corloc"])
        found[f"CorLoc, {source}"] = float(means.loc["components", "corloc"])
        found |= {f"AP50 of masks, {source}, {rule}": float(means.loc[rule, "mask_ap50"]) for rule in RULES}
    return found


def sources(cfg: Config) -> tuple[Source, ...]:
    """What boxes are made of: a decoder that was not trained says nothing."""
    return ("cam", "seg") if learns_segmentation(cfg) else ("cam",)
