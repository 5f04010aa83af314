"""Every kind of input, by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where `helpers` lies, as pytest has it

from . import labels, pictures, run_files, settings, weights
from .cases import Maker

KINDS: dict[str, Maker] = {
    "image": pictures.sound_image,
    "image-spoilt": pictures.spoilt_image,
    "image-unfit": pictures.unfit_image,
    "mask": pictures.sound_mask,
    "mask-spoilt": pictures.spoilt_mask,
    "mask-unfit": pictures.unfit_mask,
    "list": labels.list_,
    "labels": labels.table,
    "labels-unfit": labels.table_unfit,
    "labels-spoilt": labels.table_spoilt,
    "labels-npy": labels.npy,
    "xml": labels.xml,
    "coco": labels.coco,
    "folder": labels.folder_,
    "run-file": run_files.run_file,
    "runs-list": run_files.runs_list,
    "checkpoint-spoilt": weights.checkpoint_spoilt,
    "checkpoint-unfit": weights.checkpoint_unfit,
    "weights": weights.weights,
    "released": weights.released,
    "config": settings.config,
    "config-json": settings.config_json,
    "config-file": settings.config_file,
    "grid": settings.grid,
    "command": settings.command,
    "notebook": settings.notebook,
}
