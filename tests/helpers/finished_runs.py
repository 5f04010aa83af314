"""Finished runs for tests of what reads run folders, written from formulas in no time."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from toco_lab.config import Config
from toco_lab.reports.comparison import PAIRS
from toco_lab.runs.run_dir import RunDir
from toco_lab.vocabulary import MEAN_ABSOLUTE_COSINE


def make_run(root, *, level=0.6, name=None, **changes):
    """A finished run with every file, written from formulas; `level` is its CAM's mIoU."""
    run = RunDir.create(Config.preset("toy").replace(**changes), root, name=name)
    for step in range(10, 301, 10):
        losses = {"total_loss": 3 / step**0.3, "cls_loss": 1 / step**0.5, "ptc_loss": 0.5 * level, "seg_loss": 0.0}
        run.append_metrics({"step": step, "lr": 1e-4, **losses, "positive_cosine": 0.8, "negative_cosine": level / 2})
    run.set_status("done", step=300, seconds=75.0)
    rows, protocol = [], {}
    for target, score in (("cam", level), ("cam_aux", 0.7), ("seg", level - 0.1)):
        classes = ["background", "disc", "ring", "star"]
        rows += [(target, name, score + i / 20) for i, name in enumerate(classes)] + [(target, "mIoU", score)]
        protocol[target] = {
            "target": target,
            "split": "val",
            "images": 100,
            "scales": [1.0, 0.5, 1.5],
            "flip": True,
            "true_labels_mask_cam": target != "seg",
            "crf": False,
            "miou_over": "present",
            "background_threshold": None,
            "checkpoint": "0123456789ab",
        }
    run.write_table("evaluation", pd.DataFrame([*rows, ("labels", "F1", 0.9)], columns=["target", "class", "iou"]))
    run.write_json("protocol", protocol)
    places = [("after block", "none", layer) for layer in range(1, 13)] + [("final norm", "LayerNorm", 12)]
    rows = [
        (
            run.name,
            "step_00000300",
            *place,
            "patch tokens",
            144,
            image,
            *key,
            np.clip(place[2] / 15 * factor + image / 100, 0, 1),
        )
        for place in places
        for image in range(5)
        for key, factor in ((MEAN_ABSOLUTE_COSINE, 1 - level / 2), (PAIRS[0], 1), (PAIRS[1], 0.5))
    ]
    columns = "model weights site norm layer token_set tokens image metric variant value".split()
    run.write_table("smoothing", pd.DataFrame(rows, columns=columns))
    run.save_figure("cam_gallery", Figure(figsize=(1, 1)))
    return run


def make_gallery(level):
    """Two images of 8 x 12 pixels, their CAM `level` everywhere, class 2 on the left half."""
    rows = {}
    for number, name in enumerate(("one", "two")):
        image = np.full((8, 12, 3), 40 + 90 * number, np.uint8)
        label = np.zeros((8, 12), np.uint8)
        label[:, :6] = 2
        cam = np.full((8, 12), level, np.float32)
        rows[name] = {"image": image, "truth": label, "CAM": cam, "auxiliary CAM": cam / 2, "segmentation": label}
    return rows
