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
    "Config": "config",
    "RunDir": "runs.run_dir",
    "list_runs": "runs.listing",
    "make_scene": "data.toy",
    "resolve": "data.own_folder",
    "open_dataset": "data.readers",
    "eval_samples": "data.loader",
    "ToCo": "method.model",
    "initial_model": "training.checkpoints",
    "load_run_model": "training.checkpoints",
    "multi_scale_cam": "method.cam",
    "fit": "training.loop",
    "evaluate_run": "evaluation.evaluate",
    "write_pseudo_labels": "evaluation.pseudo_labels",
    "smoothing_per_layer": "smoothing.per_layer",
    "smoothing_of_run": "smoothing.per_layer",
    "layer_cam_quality": "evaluation.cam_per_layer",
    "maps_of_run": "explorers.snapshots",
    "CamSession": "explorers.cam_session",
    "CamExplorer": "explorers.cam_explorer",
    "TokenExplorer": "explorers.token_explorer",
    "RunBrowser": "explorers.run_browser",
    "build_report": "reports.page",
    "Grid": "sweeps.grid",
    "run_sweep": "sweeps.sweep",
}


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
