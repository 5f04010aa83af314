"""Time from a slider's move in the kernel to the new PNG, as a Markdown table.

    python benchmarks/cam_explorer.py

Each move sets `low` to another value: thresholds, IoU, four panels, PNG and text. Random weights: the time of a move
does not depend on them, nor on the encoder, which runs when an image is set and never again.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from toco_lab.config import Config
from toco_lab.data.toy import make_scene
from toco_lab.explorers.cam_explorer import CamExplorer
from toco_lab.method.model import ToCo

MODELS = {
    "toy": Config.preset("toy"),
    "ViT-S/16": Config.preset("voc_vit_b").replace(backbone="vit_small_patch16_224", pretrained=False),
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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--moves", type=int, default=30)
    moves = parser.parse_args().moves
    torch.set_num_threads(1)
    print("| model | image | first picture, ms | slider move, median ms | p95, ms |\n|---|---|---|---|---|")
    for name, cfg in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            side = cfg.eval_cam_size or cfg.crop_size
            if cfg.dataset == "voc":
                make_data(Path(folder), side)
                cfg = cfg.replace(data_root=folder)
            opening, times = move_times(cfg, moves)
        numbers = f"{opening:.0f} | {np.median(times):.0f} | {np.percentile(times, 95):.0f}"
        print(f"| {name} | {side} x {side}, {cfg.num_classes} classes | {numbers} |")


if __name__ == "__main__":
    main()
