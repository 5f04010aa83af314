"""What the study on other photographs tells beside its grid: refined CAMs, CRF, image labels, too much foreground.

Run by `python -m toco_lab study photographs_msrc`.
"""

from pathlib import Path

from toco_lab.reports.studies import Study, labels_and_activation, write_results
from toco_lab.runs.scores import SHOWN

BESIDE = ("cam_refined_mIoU", "cam_refined_tuned_mIoU", "seg_crf_mIoU", "positive_cosine", "negative_cosine")


def write(study: Study, root: Path) -> str:
    """Table, summary and figure of the finished runs."""
    return write_results(study, root, scores=(*SHOWN, *BESIDE), measures=labels_and_activation)
