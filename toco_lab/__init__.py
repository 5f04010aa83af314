"""A workbench around ToCo (token contrast for weakly-supervised segmentation, CVPR 2023): train, measure, look.

    config    one flat Config per run; presets; strict overrides
       |
    toy, data ---> Batch: two global views, a source of local crops, image labels; never a mask
       |
    model     ViT -> class and patch tokens -> classifiers (CAM, auxiliary CAM), decoder, projection heads
       |
    cam, refine, losses, step ---> train.fit: CAM -> pseudo labels and crops -> PTC, CTC, segmentation
       |
    evaluate, smoothing, layer_cams ---> mIoU with its protocol; every over-smoothing metric, CAM quality, per layer
       |
    runs      everything above lies in one folder per run ---> figures, curves, notebooks (batch), report
       |
    snapshots, session ---> token_explorer, cam_explorer: click and slide, in a notebook or in the report

The public names below are imported when they are first used: `import toco_lab` itself costs nothing.
"""

import importlib
import os
from pathlib import Path
from typing import Any

_HOMES = {
    "Config": "config", "RunDir": "runs", "list_runs": "runs", "make_scene": "toy", "resolve": "folder",
    "open_dataset": "readers", "eval_samples": "data", "ToCo": "model", "initial_model": "checkpoints",
    "load_run_model": "checkpoints", "multi_scale_cam": "cam", "fit": "train", "evaluate_run": "evaluate",
    "write_pseudo_labels": "pseudo_labels", "smoothing_per_layer": "smoothing",
    "smoothing_of_run": "smoothing", "layer_cam_quality": "layer_cams", "maps_of_run": "snapshots",
    "CamSession": "session", "CamExplorer": "cam_explorer", "TokenExplorer": "token_explorer",
    "RunBrowser": "run_browser", "build_report": "report", "Grid": "grid", "run_sweep": "sweep",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]


def enter_project() -> Path:
    """Make the project's folder the current one, for relative paths: a notebook may start in notebooks/.

    Outside a checkout nothing changes.
    """
    here = Path.cwd()
    found = (folder for folder in (here, *here.parents) if (folder / "notebooks" / "00_start_here.ipynb").is_file())
    os.chdir(project := next(found, here))
    return project
