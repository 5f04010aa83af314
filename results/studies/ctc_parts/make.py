"""What ctc_parts measures beyond its grid: recall on heads and on bodies, and a picture of what CTC completes.

Run by `python -m toco_lab study ctc_parts`.
"""

from pathlib import Path

from matplotlib.figure import Figure

from toco_lab.data.classes import PALETTE
from toco_lab.data.toy_parts import PARTS_CLASSES
from toco_lab.evaluation import gallery_rows, recall_by_part
from toco_lab.figures import pictures
from toco_lab.reports.contrast import contrast_measures
from toco_lab.reports.studies import Study, write_results
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model
from toco_lab.vocabulary import CAM, CAM_AUX

SHOWN = ("1 animal, + PTC", "1 animal, + PTC + CTC")  # rows of which the picture has the final CAM, first seed


def write(study: Study, root: Path) -> str:
    """Table and summary of the finished runs; the picture where both of its runs are there, else every run a dot."""
    first = {run.row: RunDir(run.folder) for run in reversed(study.grid.runs(root))}
    there = all((first[row].path / "protocol.json").is_file() for row in SHOWN)
    return write_results(study, root, measures=measures, picture=(lambda _: picture(first)) if there else None)


def measures(run: RunDir) -> dict[str, float]:
    """Recall of both CAMs by part, at the threshold of the config, and what the other studies of CTC measure."""
    table = recall_by_part(*load_run_model(run), targets=(CAM, CAM_AUX)).set_index(["target", "part"])["recall"]
    titles = {CAM: "final CAM", CAM_AUX: "auxiliary CAM"}
    recalls = {
        f"recall on {part}, {title}": float(table[target, place])
        for target, title in titles.items()
        for place, part in (("head", "heads"), ("body", "bodies"))
    }
    return recalls | contrast_measures(run)


def picture(runs: dict[str, RunDir], num_images: int = 6) -> Figure:
    """The same scenes with the final CAM of the two rows, and with the auxiliary CAM that PTC and CTC both read."""
    plain, contrasted = (gallery_rows(*load_run_model(runs[row]), num_images) for row in SHOWN)
    rows = [
        {
            "image": one["image"],
            "truth": one["truth"],
            "auxiliary CAM, + PTC": one["auxiliary CAM"],
            "final CAM, + PTC": one["CAM"],
            "final CAM, + PTC + CTC": other["CAM"],
        }
        for one, other in zip(plain, contrasted, strict=True)
    ]
    return pictures.cam_gallery(rows, palette=PALETTE, class_names=("background", *PARTS_CLASSES))
