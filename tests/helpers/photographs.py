"""Toy scenes written as photographs: JPEGs of several sizes, with a table of labels or in a folder for each class."""

from pathlib import Path

import numpy as np
from PIL import Image

from toco_lab.data.classes import save_mask
from toco_lab.data.toy import TOY_CLASSES, make_scene

SIZES = ((160, 120), (120, 160), (144, 144))


def write_photographs(root: Path, count: int, *, subfolders: bool = False, masks: bool = False) -> list[str]:
    """Write `count` photographs into `root`/images; gives their names.

    Args:
        root: New folder.
        count: How many.
        subfolders: One object each, in a subfolder of its class; else several, with a row in labels.csv.
        masks: Also write masks and classes.txt.
    """
    names, rows = [f"DSC_{1000 + index}" for index in range(count)], ["name,labels"]
    for index, name in enumerate(names):
        scene = make_scene(7, index, size=96, single_object=subfolders)
        shown = [TOY_CLASSES[k] for k in range(len(TOY_CLASSES)) if (scene.mask == k + 1).any()]
        folder = root / "images" / (shown[0] if subfolders else "")
        folder.mkdir(parents=True, exist_ok=True)
        size = SIZES[index % len(SIZES)]
        Image.fromarray(scene.image).resize(size, Image.Resampling.BICUBIC).save(folder / f"{name}.jpg", quality=95)
        rows.append(f"{name},{';'.join(shown)}")
        if masks:
            mask = Image.fromarray(scene.mask).resize(size, Image.Resampling.NEAREST)
            save_mask(root / "masks" / f"{name}.png", np.asarray(mask))
    if not subfolders:
        (root / "labels.csv").write_text("\n".join(rows) + "\n")
    if masks:
        (root / "classes.txt").write_text("\n".join(TOY_CLASSES) + "\n")
    return names
