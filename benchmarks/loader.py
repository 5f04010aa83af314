"""Training images a second per loader process at full augmentation, and what the time goes to.

Processor time of one thread, which is what a loader process has: a busy machine does not change it much. Images of
VOC's most common size are made of toy scenes. The last line says how many processes (`num_workers`) feed steps of 4
images that take a quarter of a second each. The paper's 3.6 hours for 20,000 steps on two A100 are 0.65 seconds; the
quarter stands for a GPU that is more than twice as fast as both.
"""

import math
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from torchvision.transforms.v2 import functional

from benchmarks.measure import Places, timed
from benchmarks.run import Case, markdown_table
from toco_lab.config import Config
from toco_lab.data import colours, views
from toco_lab.data.loader import TrainSamples
from toco_lab.data.readers import FolderReader
from toco_lab.data.toy import make_scene

SIZE = (500, 375)  # width and height of half of VOC's images
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STEP_IMAGES, STEP_SECONDS = 4, 0.25
PARTS: Places = {
    "decode JPEG": [(FolderReader, "image")],
    "label from mask": [(FolderReader, "image_label")],
    "draw": [(views, "draw_views")],
    "resize and crop": [(views, "_scaled_crop")],
    "crop of view 2": [(views, "_resized_crop")],
    "jitter": [(colours, "apply_jitter")],
    "grey": [(functional, "rgb_to_grayscale")],
    "blur": [(colours, "gaussian_blur")],
    "solarise": [(functional, "solarize")],
    "normalise": [(views, "normalise")],
}


def make_data(root: Path, count: int) -> None:
    """A VOC folder of toy scenes, whose classes 1..6 pass for VOC's."""
    names = [f"scene{index}" for index in range(count)]
    for below in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / below).mkdir(parents=True)
    for index, name in enumerate(names):
        scene = make_scene(0, index, size=SIZE[1])
        grain = np.random.default_rng(index).integers(-9, 9, scene.image.shape)  # photographs are not smooth
        Image.fromarray((scene.image.astype(int) + grain).clip(0, 255).astype(np.uint8)).resize(SIZE).save(
            root / f"JPEGImages/{name}.jpg", quality=90
        )
        Image.fromarray(scene.mask).resize(SIZE, Image.Resampling.NEAREST).save(root / f"SegmentationClass/{name}.png")
    (root / "ImageSets/Segmentation/train_aug.txt").write_text("\n".join(names))


def parts_of(samples: TrainSamples, count: int) -> dict[str, float]:
    """Milliseconds per image of each part and of the whole, over `count` samples."""
    samples[0]  # first calls are slower
    with timed(PARTS) as seconds:
        began = time.process_time()
        for position in range(count):
            samples[position]
        whole = time.process_time() - began
    seconds["rest"] = whole - sum(seconds.values())
    parts = sorted(seconds.items(), key=lambda item: -item[1])
    return {name: 1000 * spent / count for name, spent in [*parts, ("all", whole)]}


def measure(images: int, repeats: int) -> pd.DataFrame:
    """A row per part of the work on one image, over so many images: milliseconds, medians over rounds."""
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), min(images, 24))
        cfg = Config.preset("voc_vit_b").replace(data_root=folder, num_workers=0)
        found = pd.DataFrame([parts_of(TrainSamples(cfg, MEAN, STD), images) for _ in range(repeats)]).median()
    return pd.DataFrame({"part": found.index, "ms": found.to_numpy(), "pixels": cfg.crop_size})


def section(rows: pd.DataFrame) -> list[str]:
    """What the time goes to, and how many processes feed a GPU."""
    whole = rows.loc[rows["part"] == "all", "ms"].iloc[0]
    cells = [[row.part, f"{row.ms:.1f}", f"{row.ms / whole:.0%}"] for row in rows.itertuples()]
    rate, needed = 1000 / whole, STEP_IMAGES / STEP_SECONDS
    return [
        *markdown_table([f"part, {rows['pixels'].iloc[0]} pixels", "ms an image", "share"], cells), "",
        f"{rate:.1f} images a second per process; {needed:.1f} a second need {math.ceil(needed / rate)} processes.",
    ]  # fmt: skip


CASE = Case(
    about="Training images of one loader process at full augmentation. Processor milliseconds, one thread.",
    settings={"voc": 60},  # images
    measure=measure,
    section=section,
)
