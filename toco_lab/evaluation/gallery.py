"""Galleries: images with truth, CAMs and predictions, made by a model or read from the folder of a run.

A run keeps the gallery of its first validation images, shrunk to a few hundred kilobytes. With it runs are shown side
by side, the same images on the same scale, without their models.
"""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from toco_lab.files import DAMAGED_NPZ, atomic_write
from toco_lab.runs.run_dir import RunDir
from toco_lab.vocabulary import CAM, CAM_AUX, SEG, TITLES
from toco_lab.words import program

NUM_IMAGES = 6  # in the gallery of a run
EDGE = 256  # longest side of an image in it, in pixels
MAPS = (TITLES[CAM], TITLES[CAM_AUX], "CAM as label", TITLES[SEG])  # headings of the maps, in the order shown
_FORMAT = 1  # of the saved file
_QUALITY = 85  # of a picture as WebP; 100 is best


@dataclass(frozen=True, eq=False)
class Gallery:
    """Some images of one checkpoint.

    Attributes:
        checkpoint: Hash of the weights.
        rows: Image name -> {"image": uint8 (H, W, 3), "truth": labels (H, W), CAMs: floats (H, W) in [0, 1], label
            maps: uint8 (H, W)}, as `figures.cam_gallery` takes them; maps that were not evaluated are absent.
    """

    checkpoint: str
    rows: dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class JointRow:
    """What several runs make of one image.

    Attributes:
        name: Of the image.
        image: uint8 (H, W, 3).
        truth: Labels (H, W), if known.
        maps: One of `MAPS` -> run name -> (H, W), as in `Gallery`.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray | None
    maps: dict[str, dict[str, np.ndarray]]


def save_gallery(run: RunDir, rows: Mapping[str, Mapping[str, np.ndarray | None]], checkpoint: str) -> None:
    """Write a run's gallery; maps the same checkpoint already has are kept.

    Args:
        run: Its folder.
        rows: As in `Gallery`, of any size. They are shrunk to `EDGE`, and scores are rounded to 1/255.
        checkpoint: Hash of the weights.
    """
    before = None
    with contextlib.suppress(ValueError):  # a damaged one is replaced
        before = load_gallery(run)
    if before and before.checkpoint == checkpoint:
        rows = {name: before.rows.get(name, {}) | dict(row) for name, row in rows.items()}
    arrays: dict[str, Any] = {
        "about": np.array(json.dumps({"format": _FORMAT, "checkpoint": checkpoint, "names": list(rows)}))
    }
    for i, row in enumerate(rows.values()):
        for title, array in row.items():
            if array is not None:
                arrays[f"{i}/{title}"] = _packed(np.asarray(array))
    with atomic_write(run.gallery_path) as file:
        np.savez(file, **arrays)


def load_gallery(run: RunDir) -> Gallery | None:
    """The gallery of a run; None if it has none.

    Raises:
        ValueError: If the file is damaged; the message names it.
    """
    if not run.gallery_path.is_file():
        return None
    try:
        with np.load(run.gallery_path) as file:
            about = json.loads(file["about"].item())
            if about["format"] != _FORMAT:
                raise ValueError(f"format {about['format']}, not {_FORMAT}")
            rows: list[dict[str, np.ndarray]] = [{} for _ in about["names"]]
            for key in file.files:
                index, slash, title = key.partition("/")
                if slash:
                    rows[int(index)][title] = _unpacked(file[key], title)
            if not all("image" in row for row in rows):
                raise ValueError("an image is missing")
            return Gallery(str(about["checkpoint"]), dict(zip(map(str, about["names"]), rows, strict=True)))
    except (*DAMAGED_NPZ, OSError, IndexError) as error:
        raise ValueError(
            f"{run.gallery_path} cannot be read ({error}); `{program()} evaluate {run.path}` writes it again"
        ) from error


def joint_rows(galleries: Mapping[str, Gallery]) -> list[JointRow]:
    """The images of several runs, each once; a different image of the same name gets a row of its own.

    Args:
        galleries: By run name.
    """
    joint: dict[tuple[str, bytes], JointRow] = {}
    for run, gallery in galleries.items():
        for name, row in gallery.rows.items():
            key = name, repr(row["image"].shape).encode() + row["image"].tobytes()
            joint_row = joint.setdefault(key, JointRow(name, row["image"], row.get("truth"), {}))
            for title in MAPS:
                if title in row:
                    joint_row.maps.setdefault(title, {})[run] = row[title]
    return list(joint.values())


def side_by_side(runs: Mapping[str, RunDir], title: str = TITLES[CAM]) -> list[dict[str, np.ndarray]]:
    """One kind of map of several runs on the same images, as `figures.cam_gallery` takes them: a column for each run.

    Args:
        runs: By the heading of their column.
        title: One of `MAPS`.

    Returns:
        Per image: image, truth if known, and the map of each run that has it.

    Raises:
        ValueError: If a run has no gallery yet, or a damaged one; the message says how to write it.
    """
    galleries = {}
    for name, run in runs.items():
        gallery = load_gallery(run)
        if gallery is None:
            raise ValueError(f"{run.path} has no gallery yet; `{program()} evaluate {run.path}` writes it")
        galleries[name] = gallery
    return [
        {"image": row.image} | ({} if row.truth is None else {"truth": row.truth}) | row.maps.get(title, {})
        for row in joint_rows(galleries)
    ]


def encode_picture(pixels: np.ndarray | Image.Image, *, lossless: bool = False) -> bytes:
    """A picture, (H, W, 3) or (H, W) uint8, as WebP: good enough for the eye, or `lossless`."""
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    picture.save(file, "webp", quality=_QUALITY, method=2, lossless=lossless)
    return file.getvalue()


def _packed(array: np.ndarray) -> np.ndarray:
    """The bytes of a WebP file, 1-D uint8."""
    size = _small(array.shape[:2])
    if array.ndim == 3:
        return np.frombuffer(encode_picture(_resized(array, size, Image.Resampling.LANCZOS)), np.uint8)
    scores = np.issubdtype(array.dtype, np.floating)
    levels = (np.rint(255 * array.clip(0, 1)) if scores else array).astype(np.uint8)
    method = Image.Resampling.BOX if scores else Image.Resampling.NEAREST  # labels cannot be averaged
    return np.frombuffer(encode_picture(_resized(levels, size, method), lossless=True), np.uint8)


def _resized(array: np.ndarray, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    picture = Image.fromarray(array)
    return picture if picture.size == size else picture.resize(size, method)


def _unpacked(array: np.ndarray, title: str) -> np.ndarray:
    picture = Image.open(io.BytesIO(array.tobytes()))
    if title == "image":
        return np.asarray(picture.convert("RGB"))
    levels = np.asarray(picture.convert("L"))
    return levels.astype(np.float32) / 255 if title in MAPS[:2] else levels


def _small(shape: Sequence[int]) -> tuple[int, int]:
    """Width and height, at most `EDGE`."""
    factor = min(1.0, EDGE / max(shape))
    return max(1, round(shape[1] * factor)), max(1, round(shape[0] * factor))
