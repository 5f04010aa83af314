"""The folder of predictions, written image by image, so that a stopped command continues.

    OUT/masks/<image>.png             palette PNG of the image's size: 0 background, 1..C classes
    OUT/cams/<image>.<class>.png      CAM of each present class over the image
    OUT/scores/<image>.npz            on request: `classes` (P,) uint8, `scores` and `aux` (P, H, W) float16
    OUT/boxes/<image>.png, .json      on request: boxes over the image; its objects, as entries of COCO's json
    OUT/instances.json                on request: the objects of all images, in COCO's format
    OUT/labels.csv                    a line per image: its file, size, present classes, classes in the mask, scores
    OUT/classes.txt                   names of the numbers 1..C
    OUT/protocol.json                 everything that defines these files
    OUT/contact_sheet.html, .png      image, CAMs and mask of the first images

The line of an image in labels.csv is written after its files and has the hash of the image: they are there.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from toco_lab.data.classes import save_mask
from toco_lab.figures.pictures import cam_pixels
from toco_lab.files import append_text, atomic_write
from toco_lab.prediction.boxes import annotations, coco_json, drawn
from toco_lab.prediction.result import Prediction
from toco_lab.runs.small_files import Columns, complete_lines, read_json_file, read_rows

LEAD = ("image", "file", "file_hash", "width", "height", "present", "in_mask")  # columns before the scores
SCORE = "score_"  # begins the name of the column of a class
_REMEDY = "Delete it, and the images are predicted again"
Row = Mapping[str, str]


@dataclass(frozen=True)
class OutputFolder:
    """A folder of predictions.

    Attributes:
        path: OUT.
        classes: Names of the classes 1..C.
        scores: Whether soft scores belong to it.
        boxes: Whether boxes belong to it.
        cams: Whether CAMs belong to it: not those of a method that has none.
    """

    path: Path
    classes: tuple[str, ...]
    scores: bool = False
    boxes: bool = False
    cams: bool = True

    @property
    def table(self) -> Path:
        """labels.csv."""
        return self.path / "labels.csv"

    def mask(self, name: str) -> Path:
        """The mask of an image."""
        return self.path / "masks" / f"{name}.png"

    def overlay(self, name: str, class_name: str) -> Path:
        """The CAM of a class over an image."""
        return self.path / "cams" / f"{name}.{file_words(self.classes)[class_name]}.png"

    def soft_scores(self, name: str) -> Path:
        """The soft scores of an image."""
        return self.path / "scores" / f"{name}.npz"

    def drawn_boxes(self, name: str) -> Path:
        """The boxes of an image, drawn over it."""
        return self.path / "boxes" / f"{name}.png"

    def objects(self, name: str) -> Path:
        """The objects of an image."""
        return self.path / "boxes" / f"{name}.json"

    def files(self, name: str, present: Iterable[str]) -> list[Path]:
        """All files of an image with these present classes."""
        overlays = [self.overlay(name, one) for one in present if self.cams]
        boxes = [self.drawn_boxes(name), self.objects(name)] if self.boxes else []
        return [self.mask(name), *overlays, *([self.soft_scores(name)] if self.scores else []), *boxes]

    def write(self, prediction: Prediction) -> list[Path]:
        """Write the files of a prediction, each whole; its line in labels.csv is `add_row`'s.

        Returns:
            The files.
        """
        name, mapped = prediction.name, prediction.present if self.cams else ()
        save_mask(self.mask(name), prediction.mask)
        for one, cam in zip(mapped, prediction.cams, strict=True):
            with atomic_write(self.overlay(name, one)) as file:
                Image.fromarray(cam_pixels(prediction.image, cam)).save(file, format="PNG")
        if self.scores:
            numbers = np.array([self.classes.index(one) + 1 for one in mapped], np.uint8)
            cams, aux = prediction.cams.astype(np.float16), prediction.cams_aux.astype(np.float16)
            with atomic_write(self.soft_scores(name)) as file:
                np.savez_compressed(file, classes=numbers, scores=cams, aux=aux)
        if self.boxes:
            instances = prediction.instances
            with atomic_write(self.drawn_boxes(name)) as file:
                Image.fromarray(drawn(prediction.image, instances)).save(file, format="PNG")
            with atomic_write(self.objects(name), "w") as file:
                json.dump(annotations(instances), file)
        return self.files(name, prediction.present)

    # --- labels.csv ---------------------------------------------------------------------------------------------------

    def row(self, prediction: Prediction, file: str, file_hash: str) -> dict[str, str]:
        """The line of an image."""
        height, width = prediction.mask.shape
        lead = (prediction.name, file, file_hash, str(width), str(height), ";".join(prediction.present),
                ";".join(prediction.in_mask))  # fmt: skip
        scores = {SCORE + name: f"{prediction.labels[name]:.6f}" for name in self.classes}
        return dict(zip(LEAD, lead, strict=True)) | scores

    def rows(self) -> dict[str, Row]:
        """The lines of labels.csv by image; of two of one image the last. Half a last line does not count.

        Raises:
            ValueError: Naming the file, if it is damaged.
        """
        text = complete_lines(self.table, _REMEDY)
        columns = Columns(text=(*LEAD, *(SCORE + name for name in self.classes)))
        return {row["image"]: row for row in read_rows(self.table, text, columns, _REMEDY)} if text else {}

    def begin(self, rows: Mapping[str, Row]) -> None:
        """Make labels.csv hold exactly these lines, so that further ones can be added."""
        with atomic_write(self.table, "w") as file:
            file.write(self._text(rows.values(), header=True))

    def add_row(self, row: Row) -> None:
        """Add a line to labels.csv."""
        append_text(self.table, self._text([row], header=False))

    def finish(self, rows: Mapping[str, Row]) -> None:
        """Write labels.csv in the order of the names, the list of classes, and the objects of images that have them."""
        self.begin(dict(sorted(rows.items())))
        with atomic_write(self.path / "classes.txt", "w") as file:
            file.write("".join(f"{name}\n" for name in self.classes))
        if self.boxes:
            having = [row for name, row in sorted(rows.items()) if self.objects(name).is_file()]
            objects = [read_json_file(self.objects(row["image"]), [{}], remedy=_REMEDY) for row in having]
            with atomic_write(self.path / "instances.json", "w") as file:
                json.dump(coco_json(self.classes, having, objects), file)
        for left in self.path.rglob(".*.tmp"):  # by a killed command
            left.unlink(missing_ok=True)

    def holds(self, row: Row | None, file_hash: str) -> bool:
        """Whether all files of the image with this line are there, made of the file with this hash."""
        if row is None or row["file_hash"] != file_hash:
            return False
        return all(path.is_file() for path in self.files(row["image"], present_in(row)))

    def _text(self, rows: Iterable[Row], *, header: bool) -> str:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, [*LEAD, *(SCORE + name for name in self.classes)], lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue()


def present_in(row: Row) -> list[str]:
    """The present classes of a line of labels.csv."""
    return row["present"].split(";") if row["present"] else []


def file_words(classes: Sequence[str]) -> dict[str, str]:
    """A word for each class that a file name can hold: `hot dog` -> `hot_dog`; numbered where two are equal."""
    words = {name: re.sub(r"[^\w-]+", "_", name) for name in classes}
    count = Counter(word.casefold() for word in words.values())
    return {
        name: word if count[word.casefold()] == 1 else f"{word}_{classes.index(name) + 1}"
        for name, word in words.items()
    }
