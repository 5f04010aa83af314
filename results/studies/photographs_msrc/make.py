"""What the study on other photographs tells beside its grid: refined CAMs, CRF, image labels, too much foreground.

Run by `python -m toco_lab study photographs_msrc`.
"""

from pathlib import Path

from toco_lab.reports.studies import Study, write_results
from toco_lab.runs.run_dir import RunDir
from toco_lab.runs.scores import SHOWN
from toco_lab.vocabulary import MIOU

BESIDE = ("cam_refined_mIoU", "cam_refined_tuned_mIoU", "seg_crf_mIoU", "positive_cosine", "negative_cosine")


def write(study: Study, root: Path) -> str:
    """Table, summary and figure of the finished runs."""
    return write_results(study, root, scores=(*SHOWN, *BESIDE), measures=measures)


def measures(run: RunDir) -> dict[str, float]:
    """F1 of the image labels, and how much background the CAMs light."""
    table = run.read_table("evaluation")
    means = table[table["class"].isin((MIOU, "F1"))].set_index("target")
    return {
        "F1 of image labels": float(means.loc["labels", "iou"]),
        "over-activation, final CAM": float(means.loc["cam", "over_activation"]),
        "over-activation, auxiliary CAM": float(means.loc["cam_aux", "over_activation"]),
    }
