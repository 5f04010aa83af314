"""What the comparison of methods measures beyond its grid: the parts of their maps, and the maps beside each other.

Run by `python -m toco_lab study peers`.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from toco_lab.config import Config
from toco_lab.data.classes import PALETTE
from toco_lab.data.toy import TOY_CLASSES
from toco_lab.evaluation.evaluate import evaluate_model
from toco_lab.evaluation.gallery import side_by_side
from toco_lab.figures import pictures
from toco_lab.method.face import CamModel
from toco_lab.peers.getam import GETAM
from toco_lab.peers.mct import MctFeatures, MCTformer
from toco_lab.peers.tscam import TSCAM, CoupledFeatures
from toco_lab.reports.studies import Study, write_results
from toco_lab.runs.run_dir import RunDir
from toco_lab.runs.scores import SHOWN
from toco_lab.sweeps.grid import PlannedRun
from toco_lab.training.checkpoints import load_run_model
from toco_lab.vocabulary import CAM, CAM_AUX, MIOU, TUNED

SCENES, SIZE = 2, 1.25  # in the picture: rows, and inches of each map
BESIDE = ("cam_refined_tuned_mIoU", "cam_boundary", "cam_refined_boundary")  # scores shown beyond those of every study


class AttentionOfTSCAM(TSCAM):
    """TS-CAM whose own map is the attention of the class token alone, the same for every class."""

    def cams(self, features: CoupledFeatures) -> tuple[Tensor, Tensor]:
        """Attention map and semantic map."""
        _, semantic = super().cams(features)
        return features.attention.detach()[:, None].expand_as(semantic), semantic


class PartsOfMCTformer(MCTformer):
    """MCTformer whose two maps are the two that it fuses."""

    def cams(self, features: MctFeatures) -> tuple[Tensor, Tensor]:
        """Where class tokens look, and the class map of the patches."""
        return features.maps.attention.detach(), features.maps.patch_cam.detach()


def all_blocks(cfg: Config) -> GETAM:
    """GETAM whose map is summed over all blocks."""
    return GETAM(cfg.replace(getam_start=0))


# method -> how its other maps are read, and what the two of them are
PARTS: Mapping[str, tuple[Callable[[Config], CamModel], Mapping[str, str]]] = {
    "tscam": (AttentionOfTSCAM, {CAM: "attention alone"}),
    "getam": (all_blocks, {CAM: "all blocks"}),
    "mct": (PartsOfMCTformer, {CAM: "attention alone", CAM_AUX: "patch map alone"}),
    "mct_plus": (PartsOfMCTformer, {CAM: "attention alone", CAM_AUX: "patch map alone"}),
}


def write(study: Study, root: Path) -> str:
    """Table, summary and picture of the finished runs, and a line for each part of their maps."""
    runs = study.grid.runs(root)
    first = {run.row: RunDir(run.folder) for run in runs if run.seed == runs[0].seed}
    there = all((run.path / "gallery.npz").is_file() for run in first.values())
    made = [run for run in runs if (run.folder / "protocol.json").is_file()]
    return write_results(
        study, root, scores=(*SHOWN, *BESIDE), measures=measures,
        further_rows=pd.DataFrame([line for run in made for line in part_lines(run)]),
        picture=(lambda _: picture(first)) if there else None,
    )  # fmt: skip


def measures(run: RunDir) -> dict[str, float]:
    """F1 of the image labels."""
    table = run.read_table("evaluation").set_index("target")["iou"]
    return {"F1 of image labels": float(table["labels"])}


def part_lines(planned: PlannedRun) -> Iterator[dict[str, float | str | int]]:
    """A line of the table for each other map of a run: final CAM at both thresholds."""
    method = planned.config.method
    if method not in PARTS:
        return
    make, titles = PARTS[method]
    trained, cfg = load_run_model(RunDir(planned.folder))
    model = make(cfg)
    model.load_state_dict(trained.state_dict())
    scores = evaluate_model(model, cfg, targets=tuple(titles), progress=False).scores
    for target, title in titles.items():
        yield {
            "row": f"{planned.row}: {title}", "reference": planned.row, "seed": planned.seed,
            f"{CAM}_{MIOU}": scores[target], f"{TUNED[CAM]}_{MIOU}": scores[TUNED[target]],
        }  # fmt: skip


def picture(runs: dict[str, RunDir]) -> Figure:
    """The final CAM of every method on the same scenes, first seed."""
    rows = side_by_side(runs)[:SCENES]
    return pictures.cam_gallery(rows, palette=PALETTE, class_names=("background", *TOY_CLASSES), size=SIZE)
