"""What the study of training on clips measures beyond its grid: mIoU and steadiness of each frame alone, on toy clips.

Run by `python -m toco_lab study video_training`.
"""

from pathlib import Path

from toco_lab.evaluation.clip_scores import PER_FRAME, SEGMENTED, measure_clips
from toco_lab.reports.studies import Study, write_results
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model

MAPS = {PER_FRAME: "final CAM", SEGMENTED: "segmentation"}
TITLES = {"miou": "mIoU of clips", "consistency": "consistency"}


def write(study: Study, root: Path) -> str:
    """Table, summary and figure of the finished runs, with their scores on clips."""
    return write_results(study, root, measures=measures)


def measures(run: RunDir) -> dict[str, float]:
    """Scores of a run on clips by heading, each frame alone."""
    scored = measure_clips(*load_run_model(run), fusions=[PER_FRAME], progress=False)
    table = scored.table.set_index("fusion")
    return {
        f"{title}, {of_map}": float(table.loc[row, score])
        for score, title in TITLES.items()
        for row, of_map in MAPS.items()
    }
