"""What the study of the peers on photographs tells beside its grid: refined CAMs, image labels, too much foreground.

Run by `python -m toco_lab study peers_photographs`.
"""

from pathlib import Path

from toco_lab.reports.studies import Study, labels_and_activation, write_results
from toco_lab.runs.scores import SHOWN

BESIDE = ("cam_refined_tuned_mIoU",)


def write(study: Study, root: Path) -> str:
    """Table, summary and figure of the finished runs."""
    return write_results(study, root, scores=(*SHOWN, *BESIDE), measures=labels_and_activation)
