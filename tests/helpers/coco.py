"""A COCO folder made on the spot."""

import json
from pathlib import Path

from PIL import Image

from toco_lab.config import Config
from toco_lab.data.classes import COCO_CLASSES

MISSING_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # of the ids 1..90


IDS = [number for number in range(1, 91) if number not in MISSING_IDS]


CATEGORIES = [{"id": number, "name": name} for number, name in zip(IDS, COCO_CLASSES, strict=True)]


def box(number: int, category: int, left: int, top: int, right: int, bottom: int) -> dict:
    """A rectangle as a polygon, half-open in pixels."""
    outline = [left, top, right, top, right, bottom, left, bottom]
    area = (right - left) * (bottom - top)
    return {"id": number, "image_id": 1, "category_id": category, "iscrowd": 0, "area": area, "segmentation": [outline]}


def crowd(number: int, category: int, columns: int, height: int, width: int) -> dict:
    """The first columns of an image as uncompressed run lengths, which go down the columns."""
    counts = [0, columns * height, (width - columns) * height]
    return {
        "id": number, "image_id": 1, "category_id": category, "iscrowd": 1, "area": columns * height,
        "segmentation": {"counts": counts, "size": [height, width]},
    }  # fmt: skip


def make_coco(root: Path, annotations: list[dict], split: str = "train", **changes) -> Config:
    """A COCO folder with image 1 of 30 x 20 pixels, image 2 without annotation, and no mask and no list."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    images = [{"id": n, "file_name": f"COCO_{split}2014_{n:012d}.jpg", "height": 20, "width": 30} for n in (1, 2)]
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES[::-1]} | changes
    (root / f"annotations/instances_{split}2014.json").write_text(json.dumps(content))
    (root / f"{split}2014").mkdir(exist_ok=True)
    for info in images:
        Image.new("RGB", (30, 20), (200, 100, 50)).save(root / f"{split}2014" / info["file_name"])
    return Config.preset("coco_vit_b").replace(data_root=str(root), val_split="train", num_workers=0)
