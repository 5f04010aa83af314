"""Time from a slider's move in the kernel to the new PNG.

Each move sets `low` to another value: thresholds, IoU, four panels, PNG and text. Random weights: the time of a move
does not depend on them, nor on the encoder, which runs when an image is set and never again.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from benchmarks.run import Case, markdown_table
from toco_lab.config import Config
from toco_lab.data.toy import make_scene
from toco_lab.explorers.cam_explorer import CamExplorer
from toco_lab.method.model import ToCo

MOVES = 10  # a round
SETTINGS = {
    "toy": Config.preset("toy"),
    "vit_s": Config.preset("voc_vit_b").replace(backbone="vit_small_patch16_224", pretrained=False),
}


def make_data(root: Path, side: int) -> None:
    """A VOC folder with one image of side x side pixels: a toy scene, whose classes 1..6 pass for VOC's."""
    scene = make_scene(0, 1, size=side)
    for folder, file, array in (
        ("JPEGImages", "scene.png", scene.image),
        ("SegmentationClass", "scene.png", scene.mask),
    ):
        (root / folder).mkdir(parents=True)
        Image.fromarray(array).save(root / folder / file)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("scene\n")


def move_times(cfg: Config, moves: int) -> tuple[float, list[float]]:
    """Milliseconds until an image is there, and of each of so many moves."""
    torch.manual_seed(0)
    model = ToCo(cfg)
    began = time.perf_counter()
    explorer = CamExplorer((model, cfg))
    opening, times = time.perf_counter() - began, []
    for low in np.linspace(0.05, 0.6, moves):
        began = time.perf_counter()
        explorer.low.value = round(float(low), 3)
        times.append(1000 * (time.perf_counter() - began))
    return 1000 * opening, times


def measure(cfg: Config, repeats: int) -> pd.DataFrame:
    """One row: milliseconds to the first picture, and of a move."""
    side = cfg.eval_cam_size or cfg.crop_size
    with tempfile.TemporaryDirectory() as folder:
        if cfg.dataset == "voc":
            make_data(Path(folder), side)
            cfg = cfg.replace(data_root=folder)
        opening, times = move_times(cfg, MOVES * repeats)
    image = f"{side} x {side}, {cfg.num_classes} classes"
    move = {"move_ms": np.median(times), "p95_ms": np.percentile(times, 95)}
    return pd.DataFrame([{"image": image, "first_ms": opening} | move])


def section(rows: pd.DataFrame) -> list[str]:
    """One line."""
    cells = [[row.image, f"{row.first_ms:.0f}", f"{row.move_ms:.0f}", f"{row.p95_ms:.0f}"] for row in rows.itertuples()]
    return markdown_table(["image", "first picture, ms", "slider move, median ms", "p95, ms"], cells)


CASE = Case(
    about="CAM explorer: thresholds, pseudo label, IoU, four panels, PNG. The clock's time, one thread;\n"
    f"{MOVES} moves a round. The encoder runs when an image is set, never again.",
    settings=SETTINGS,
    measure=measure,
    section=section,
)
