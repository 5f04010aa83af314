"""The command `domain`: a trained run scored where many images show no class."""

from pathlib import Path
from typing import Literal

import tyro


def domain(
    run: tyro.conf.Positional[Path],
    threshold: Literal["tuned", "configured"] = "tuned",
    split: str | None = None,
    device: str = "auto",
) -> None:
    """Score a run by Dice, AUC of the image labels, and the area found on images without any class.

    Writes domain.csv and domain.json into the run's folder; `docs/domains.md` says what the numbers say. Below the
    table stands what Otsu's threshold alone reaches on the same images.

    Args:
        run: Folder of the run.
        threshold: Of the CAMs: tuned is best for the mIoU of training images, configured that of the config.
        split: List to score; None takes the one of the config.
        device: auto, cpu, cuda ...
    """
    from toco_lab.data.classes import DataError
    from toco_lab.evaluation.box_scores import ALL
    from toco_lab.evaluation.domain_scores import domain_of_run
    from toco_lab.evaluation.otsu import measure_otsu
    from toco_lab.runs.run_dir import RunDir

    found = domain_of_run(RunDir(run), threshold=threshold, split=split, device=device)
    print(f"\n{found}")
    try:
        otsu = measure_otsu(RunDir(run).config(), split=split).set_index(["class", "target"]).loc[ALL]
    except DataError as error:  # the run has its scores without it
        print(f"Otsu's threshold: not measured, {error}")
        return
    told, area = 100 * otsu.loc["cam", ["iou", "dice"]], 100 * otsu.loc["otsu", "empty_area"]
    print(
        f"Otsu's threshold: IoU {told['iou']:.1f}, Dice {told['dice']:.1f} (true image labels), area on empty images "
        f"{'-' if area != area else f'{area:.1f}'}"
    )
