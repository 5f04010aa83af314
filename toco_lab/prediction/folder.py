"""Predictions of many image files, into a folder: continued after a stop, with a protocol, and a sheet to look at."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toco_lab.data.classes import DataError
from toco_lab.data.images import header, read_rgb, sizes
from toco_lab.evaluation.label_folder import check_protocol, write_protocol
from toco_lab.evaluation.prediction import BATCH
from toco_lab.files import check_writable, in_words
from toco_lab.methods import has_cams
from toco_lab.prediction.output import OutputFolder, Row
from toco_lab.prediction.pictures_given import ImageFile, image_files
from toco_lab.prediction.predictor import Predictor, check_batch_size
from toco_lab.prediction.recipe import Recipe
from toco_lab.prediction.sheet import SHEET_IMAGES, write_sheet
from toco_lab.progress import progress_bar
from toco_lab.runs.environment import environment
from toco_lab.runs.locks import only_worker
from toco_lab.words import counted

MADE_WITH = "made_with"  # key of the protocol that may differ between two calls


@dataclass(frozen=True)
class FolderPredictions:
    """What lies in a folder of predictions after a call.

    Attributes:
        out: The folder.
        made: Images predicted now.
        kept: Images whose files were there already.
        failed: File -> why it could not be predicted.
        without_class: Images, among all, in which no class counts as present.
    """

    out: Path
    made: int
    kept: int
    failed: dict[str, str] = field(default_factory=dict)
    without_class: int = 0

    def __str__(self) -> str:
        """In a few lines."""
        there = f", {self.kept} were there already" if self.kept else ""
        lines = [f"{self.out}: {counted(self.made, 'image')} predicted{there}"]
        if self.without_class:
            lines.append(
                f"no class is present in {counted(self.without_class, 'image')}: a lower --label-threshold finds more"
            )
        return "\n".join(lines)


def predict_folder(
    model: Predictor,
    images: Sequence[Path | str],
    out: Path | str,
    *,
    scores: bool = False,
    boxes: bool = False,
    batch_size: int = BATCH,
    sheet: int = SHEET_IMAGES,
    progress: bool = True,
    **options: Any,
) -> FolderPredictions:
    """Predict image files into a folder; see `output` for what lies in it.

    A call that was stopped continues when it is made again, and ends with the same bytes. What cannot be read stops
    nothing: it is among `failed`, and tried again by the next call.

    Args:
        model: From `toco_lab.load`.
        images: Files, folders and patterns, see `pictures_given.image_files`.
        out: The folder; made if needed.
        scores: Also write the soft scores of the CAMs.
        boxes: Also draw the boxes of the objects, and write them in COCO's format.
        batch_size: Most images of one size that share a pass.
        sheet: Images of the contact sheet, from the first on; 0 writes none.
        progress: Show a progress bar, on a terminal.
        **options: As in `Predictor.predict`.

    Raises:
        FileNotFoundError: If a path or pattern means no image.
        ValueError: For a wrong option, if the folder holds predictions of another protocol or something else, or if
            another process writes there.
        OSError: Before the work, if nothing can be written there.
    """
    recipe, out = model.recipe(**options), Path(out)
    check_batch_size(batch_size)
    if type(sheet) is not int or sheet < 0:
        raise ValueError(f"sheet must be a number of images, 0 for no sheet, got {sheet!r}")
    record = model.protocol(recipe)
    check_protocol(out, record, "predictions", apart=[MADE_WITH])
    files = image_files(images, outside=out)
    check_writable(out / "protocol.json")
    with only_worker(out, "writes predictions there"):
        write_protocol(out, record | {MADE_WITH: _made_with(model, batch_size)})
        folder = OutputFolder(out, model.class_names, scores=scores, boxes=boxes, cams=has_cams(model.cfg))
        # an image in tiles fills its passes alone, and several of thousands of pixels would fill the memory
        work = _Work(model, recipe, folder, 1 if recipe.tiles else batch_size)
        with progress_bar(files, "predict", shown=progress) as bar:
            for done in work.groups(files):
                bar.update(done)
        folder.finish(work.rows)
        shown = [file for file in files if str(file.path) not in work.failed and file.name in work.rows]
        if sheet and shown:
            write_sheet(
                folder, shown[:sheet], work.rows, of=len(shown), title=f"{model.name}: {counted(len(shown), 'image')}"
            )
    empty = sum(not work.rows[file.name]["present"] for file in shown)
    return FolderPredictions(out, work.made, work.kept, work.failed, empty)


class _Work:
    """The images of one call.

    Attributes:
        rows: Lines of labels.csv by image, those of earlier calls among them.
        made, kept: Numbers of images.
        failed: File -> reason.
    """

    def __init__(self, model: Predictor, recipe: Recipe, folder: OutputFolder, batch_size: int) -> None:
        self.model, self.recipe, self.folder, self.batch_size = model, recipe, folder, batch_size
        self.rows: dict[str, Row] = dict(folder.rows())
        self.made = self.kept = 0
        self.failed: dict[str, str] = {}
        folder.begin(self.rows)  # half a last line is gone

    def groups(self, files: Sequence[ImageFile]) -> Iterator[int]:
        """Predict what is not there, group by group; gives how many images each group had.

        Which images share a pass depends on the files alone. If one of a group is missing, the whole group is made
        again: a group of another size rounds differently, and a continued call would not end with the same bytes.
        """
        groups = self._by_size(files)
        yield len(self.failed)
        for group in groups:
            hashes = {file: _hash(file.path) for file in group}
            missing = [file for file in group if not self.folder.holds(self.rows.get(file.name), hashes[file])]
            pictures = self._read(missing)
            if pictures:
                pictures |= self._read([file for file in group if file not in missing])
                whole = [file for file in group if file in pictures]
                self._predict(whole, pictures, hashes, {file.name for file in missing})
            else:
                self.kept += len(group) - len(missing)
            yield len(group)

    def _by_size(self, files: Sequence[ImageFile]) -> list[list[ImageFile]]:
        """Files of one size together, at most a batch of them, in the order in which each size comes first."""
        by_size: dict[tuple[int, int], list[ImageFile]] = {}
        for file in files:
            try:
                by_size.setdefault(sizes(header(file.path))[0], []).append(file)
            except (DataError, OSError) as error:
                self._fail(file, error)
        step = self.batch_size
        return [same[start : start + step] for same in by_size.values() for start in range(0, len(same), step)]

    def _read(self, files: Sequence[ImageFile]) -> dict[ImageFile, np.ndarray]:
        found = {}
        for file in files:
            try:
                found[file] = read_rgb(file.path)
            except (DataError, OSError) as error:
                self._fail(file, error)
        return found

    def _predict(
        self,
        group: Sequence[ImageFile],
        pictures: Mapping[ImageFile, np.ndarray],
        hashes: Mapping[ImageFile, str],
        missing: set[str],
    ) -> None:
        """Predict a group, and write each image and then its line."""
        named = [(file.name, pictures[file]) for file in group]
        try:
            for file, prediction in zip(group, self.model.predict_group(named, self.recipe), strict=True):
                self.folder.write(prediction)
                row = self.folder.row(prediction, file.path.name, hashes[file])
                self.folder.add_row(row)
                self.rows[file.name] = row
                self.made += file.name in missing
                self.kept += file.name not in missing
        except DataError as error:  # too small: all of them are of one size
            for file in group:
                self._fail(file, error)

    def _fail(self, file: ImageFile, error: Exception) -> None:
        self.failed[str(file.path)] = in_words(str(error))


def _hash(path: Path) -> str:
    """First twelve hex digits of a file's SHA-256; "" for one that may not be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]
    except OSError:
        return ""


def _made_with(model: Predictor, batch_size: int) -> dict[str, Any]:
    """What does not define a prediction but may change its last digits, and where the weights were found."""
    about = environment(str(model.device))
    record = {"model": model.name, "chosen": model.chosen, "batch_size": batch_size, "python": about["python"],
              "packages": about["packages"], "device": about["device"], "git": about["git"]}  # fmt: skip
    return json.loads(json.dumps(record))
