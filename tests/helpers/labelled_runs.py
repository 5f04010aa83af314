"""Runs with random weights, which need no training to make pseudo labels, and readers of what was written."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from helpers.folders import make_voc
from toco_lab.config import Config
from toco_lab.data.own_folder import complete_config
from toco_lab.evaluation.label_summary import PseudoLabels
from toco_lab.evaluation.pseudo_labels import KINDS
from toco_lab.method.model import ToCo
from toco_lab.runs.run_dir import RunDir

SMALL = {
    "backbone": "vit_tiny_patch16_224", "pretrained": False, "patch_size": 8, "image_size": 64, "embed_dim": 24,
    "depth": 4, "num_heads": 2, "decoder_width": 8, "head_hidden": 16, "head_bottleneck": 8, "head_out": 16,
    "par_dilations": (1, 2), "par_iterations": 2, "eval_cam_size": 64, "cam_scales": (1.0, 0.5), "num_workers": 0,
}  # fmt: skip
CAM_KINDS = tuple(kind for kind in KINDS if kind != "seg")  # pseudo labels that are made from CAMs


def make_run(cfg: Config, folder: Path, *, flat=False) -> RunDir:
    """A run with random weights; `flat` with a classifier that says the same everywhere."""
    torch.manual_seed(0)
    run, model = RunDir.create(cfg, folder, name="run"), ToCo(cfg)
    for head in (model.classifier, model.aux_classifier):
        torch.nn.init.constant_(head.weight, 0) if flat else torch.nn.init.normal_(head.weight)
    path = run.checkpoint_path(1)
    path.parent.mkdir()
    torch.save({"model": model.state_dict(), "optimizer": {}, "step": 1, "config": cfg.to_json()}, path)
    return run


def voc_run(tmp_path: Path, **changes) -> RunDir:
    return make_run(make_voc(tmp_path).replace(**(SMALL | changes)), tmp_path)


def read_png(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def as_folder(written: PseudoLabels, kind: str, split: str = "val") -> Config:
    """What a second stage would train on."""
    root = written.out / kind
    return complete_config(Config.preset("folder").replace(data_root=str(root), train_split=split, val_split=split))
