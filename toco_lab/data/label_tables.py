"""Tables of image labels as files: made from masks or XML files, for people to read and `label_source` to name."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from toco_lab.config import Config
from toco_lab.data.classes import DataError, class_names
from toco_lab.data.image_labels import onehot, read_xml_names
from toco_lab.data.layouts import LAYOUTS, find_root
from toco_lab.data.own_folder import complete_config
from toco_lab.data.readers import FolderReader
from toco_lab.files import atomic_write
from toco_lab.progress import progress_bar


def label_table(cfg: Config, source: str, *, progress: bool = True) -> dict[str, list[str]]:
    """Class names of every image of a data set, from its masks or XML files.

    Args:
        cfg: Names the data set; its lists do not matter. With `xml` a folder needs no classes: the files name them.
        source: `masks` or `xml`.
        progress: Show a progress bar.

    Raises:
        DataError: If there is no mask or XML file, one is wrong, or the data set has no files.
    """
    if cfg.dataset not in LAYOUTS:
        raise DataError(f"the data set {cfg.dataset!r} makes its images itself: it has no files to read labels from")
    return _table_of_xml(cfg) if source == "xml" else _table_of_masks(cfg, progress=progress)


def _table_of_xml(cfg: Config) -> dict[str, list[str]]:
    layout = LAYOUTS[cfg.dataset]
    folder = find_root(cfg.data_root, layout) / (layout.objects or "Annotations")
    files = sorted(folder.glob("*.xml"))
    if not files:
        raise DataError(f"no XML files in {folder}: put them there, or take --source masks")
    table = {path.stem: list(dict.fromkeys(read_xml_names(path))) for path in files}
    if cfg.dataset != "folder":
        for path in files:
            onehot(table[path.stem], class_names(cfg), str(path))  # raises for an unknown class
    return table


def _table_of_masks(cfg: Config, *, progress: bool) -> dict[str, list[str]]:
    reader = FolderReader(complete_config(cfg.replace(label_source="masks")), None)
    table = {}
    for index, has_mask in enumerate(progress_bar(reader.has_masks(), "labels", unit="mask", shown=progress)):
        if has_mask:
            present = np.flatnonzero(reader.image_label(index))
            table[reader.names[index]] = [reader.classes[place] for place in present]
    if not table:
        folders = " or ".join(LAYOUTS[cfg.dataset].masks)
        raise DataError(f"no masks in {folders} below {reader.root}; try --source xml")
    return table


def write_labels(path: Path, table: Mapping[str, Sequence[str]]) -> None:
    """Write a table of labels as a `.csv` or `.json` that `read_labels` reads.

    Args:
        path: File to write.
        table: Class names by image name.

    Raises:
        DataError: For another extension, or a file that exists: it may be hand-made.
    """
    if path.exists():
        raise DataError(f"{path} exists. Remove it, or choose another --out")
    if path.suffix == ".json":
        text = json.dumps(table, indent=0)
    elif path.suffix == ".csv":
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(
            [("name", "labels"), *((name, ";".join(labels)) for name, labels in table.items())]
        )
        text = buffer.getvalue()
    else:
        raise DataError(f"a label file ends in .csv or .json, got {path}")
    with atomic_write(path, "w") as file:
        file.write(text)
