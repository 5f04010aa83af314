"""The command `boxes`: boxes and instance masks of a trained run, scored."""

from pathlib import Path
from typing import Literal

import tyro


def boxes(
    run: tyro.conf.Positional[Path],
    rule: tuple[Literal["components", "largest", "peaks"], ...] = ("components",),
    source: Literal["cam", "seg"] = "cam",
    threshold: Literal["tuned", "configured"] = "tuned",
    split: str | None = None,
    device: str = "auto",
) -> None:
    """Score boxes and instance masks made of a run's maps: CorLoc, MaxBoxAcc, average precision at IoU 0.25 and 0.5.

    Writes boxes.csv and boxes.json into the run's folder; `docs/boxes.md` says what the numbers say.

    Args:
        run: Folder of the run.
        rule: How the region of a class becomes objects: components (its pieces), largest (one, as TS-CAM), peaks
            (pieces cut where the map has several peaks). Several can be given.
        source: cam (final CAM, true image labels) or seg (the decoder's segmentation).
        threshold: Of the CAM: tuned is best for the mIoU of training images, configured that of the config.
        split: List to score; None takes the one of the config.
        device: auto, cpu, cuda ...
    """
    from toco_lab.evaluation.box_evaluation import boxes_of_run
    from toco_lab.runs.run_dir import RunDir

    found = boxes_of_run(RunDir(run), rules=rule, source=source, threshold=threshold, split=split, device=device)
    print(f"\n{found}")
