"""Small data sets for the tests: a VOC folder made on the spot, toy scenes, and where real samples may lie."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toco_lab.config import Config
from toco_lab.data import classes
from toco_lab.data.readers import open_dataset

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SAMPLES = Path(os.environ.get("TOCO_LAB_SAMPLES", Path(__file__).parents[3] / "shared" / "data"))
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no real sample images: {SAMPLES} is not there")
NAMES = ("one", "two", "three")


def make_voc(folder: Path) -> Config:
    """Three images of 30 x 20 pixels; `one` shows a bird (3), `two` a cat (8) and 255, `three` a bird and a cat."""
    root = folder / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation", "Annotations"):
        (root / folder).mkdir(parents=True)
    for name, numbers in zip(NAMES, ([3], [8, 255], [3, 8]), strict=True):
        Image.new("RGB", (30, 20), (200, 100, 50)).save(root / f"JPEGImages/{name}.jpg")
        save_mask(root, name, numbers)
    write_list(root, NAMES)
    return Config.preset("voc_vit_b").replace(
        data_root=str(root), train_split="train", val_split="train", crop_size=112, view2_size=32, steps=1501,
        batch_size=2, num_workers=0,
    )  # fmt: skip


def save_mask(root: Path, name: str, values, folder="SegmentationClass", mode="P", size=(20, 30)) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    for row, value in enumerate(values, start=1):
        mask[row, 5:9] = value
    file = Image.fromarray(mask)
    if mode == "P":
        file.putpalette(classes.PALETTE.tobytes())
    elif mode != "L":
        file = file.convert(mode)
    assert file.mode == mode
    file.save(root / folder / f"{name}.png")
    return mask


def write_list(root: Path, names, split="train") -> None:
    (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{name}\n" for name in names))


def toy(**changes) -> Config:
    return Config.preset("smoke").replace(**({"steps": 6, "batch_size": 3, "train_images": 7} | changes))


def read_everything(cfg: Config, split="train") -> None:
    reader = open_dataset(cfg, split)
    for index in range(len(reader)):
        reader.image(index), reader.mask(index), reader.image_label(index)


def classes_of(label: np.ndarray) -> list[int]:
    return (np.flatnonzero(label) + 1).tolist()


def make_folder(root: Path, table: dict[str, list[str]] | None = None, suffix: str = ".csv") -> Config:
    """images/ with one picture for each name of `TABLE`, and a table of labels if there is one."""
    (root / "images").mkdir(parents=True)
    for index, name in enumerate(TABLE):
        noise = np.random.default_rng(index).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / f"images/{name}.jpg")
    if table is not None and suffix == ".csv":
        rows = "".join(f"{name},{';'.join(labels)}\n" for name, labels in table.items())
        (root / "labels.csv").write_text("\ufeffname,labels\n" + rows, encoding="utf-8")  # as Excel writes it
    elif table is not None:
        (root / "labels.json").write_text(json.dumps(table))
    return Config.preset("folder").replace(data_root=str(root))


def write_xml(root: Path, name: str, *objects: str) -> None:
    (root / "Annotations").mkdir(exist_ok=True)
    parts = "".join(f"<object><name>{item}</name></object>" for item in objects)
    (root / f"Annotations/{name}.xml").write_text(f"<annotation>{parts}</annotation>")


TABLE = {"one": ["cat"], "two": ["dog", "ant"], "three": ["cat"], "four": ["ant"], "five": ["dog"], "six": []}

# options of a run of two small steps
SMALL = (
    "--backbone deit_tiny_patch16_224 --depth 4 --embed-dim 24 --num-heads 2 --no-pretrained --crop-size 64 "
    "--local-crop-size 32 --num-local-crops 2 --view2-size 32 --decoder-width 16 --head-hidden 32 --head-bottleneck 16 "
    "--head-out 32 --steps 2 --batch-size 2 --warmup-steps 1 --seg-start-step 1 --par-iterations 2 --num-workers 0 "
    "--eval-cam-size 64 --eval-seg-scales 1.0 --val-images 2 --device cpu"
).split()
