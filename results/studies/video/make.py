"""What the study of video measures beyond its grid: mIoU and steadiness of CAMs fused over time, of each finished run.

Run by `python -m toco_lab study video`.
"""

from pathlib import Path

from toco_lab.evaluation.clip_scores import measure_clips
from toco_lab.reports.studies import Study, write_results
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model

TITLES = {"miou": "mIoU of clips", "consistency": "consistency"}


def write(study: Study, root: Path) -> str:
    """Table, summary and figure of the finished runs, with their scores on clips."""
    return write_results(study, root, measures=measures)


def measures(run: RunDir) -> dict[str, float]:
    """Scores of a run on clips by heading, of each way to fuse."""
    table = measure_clips(*load_run_model(run), progress=False).table.set_index("fusion")
    scores = [(score, fusion) for score in TITLES for fusion in table.index]
    return {f"{TITLES[score]}, {fusion}": float(table.loc[fusion, score]) for score, fusion in scores}
