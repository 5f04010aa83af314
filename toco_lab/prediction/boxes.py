"""Boxes of predictions: objects cut out of the mask, drawn over the image, and as COCO's json of results and images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toco_lab.data.classes import PALETTE
from toco_lab.data.instances import LEAST_AREA, Instance
from toco_lab.figures.pictures import box_pixels

ABOUT = (
    f"8-connected pieces of the mask, by class, from {100 * LEAST_AREA:g} % of the image on; bbox is x, y, width, "
    "height; score is the mean CAM inside, where the method has CAMs, x the score of the class; the mask is that of "
    "protocol.json"
)


def drawn(image: np.ndarray, instances: Sequence[Instance]) -> np.ndarray:
    """The image (H, W, 3) uint8 with the boxes in the colours of their classes, the surest on top."""
    lines = [(one.box, PALETTE[one.number]) for one in sorted(instances, key=lambda one: one.score)]
    return box_pixels(image, lines)


def annotations(instances: Sequence[Instance]) -> list[dict[str, Any]]:
    """COCO's entries of the objects of one image, without its number; masks as compressed run lengths."""
    from pycocotools import mask as runs

    found = []
    for one in instances:
        x0, y0, x1, y1 = one.box
        outline = runs.encode(np.asfortranarray(one.mask.astype(np.uint8)))
        found.append(
            {
                "category_id": one.number, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(one.mask.sum()),
                "iscrowd": 0, "score": round(one.score, 6),
                "segmentation": {"size": list(outline["size"]), "counts": outline["counts"].decode()},
            }
        )  # fmt: skip
    return found


def coco_json(
    classes: Sequence[str], rows: Sequence[Mapping[str, str]], objects: Sequence[Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """An instances json in COCO's format.

    Args:
        classes: Names of the categories 1..C.
        rows: A line of labels.csv for each image; its number is its place, from 1.
        objects: The `annotations` of each image.
    """
    images = [
        {"id": number, "file_name": row["file"], "width": int(row["width"]), "height": int(row["height"])}
        for number, row in enumerate(rows, start=1)
    ]
    entries = [{"image_id": number} | dict(one) for number, found in enumerate(objects, start=1) for one in found]
    return {
        "info": {"description": ABOUT},
        "images": images,
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, start=1)],
        "annotations": [{"id": number} | entry for number, entry in enumerate(entries, start=1)],
    }
