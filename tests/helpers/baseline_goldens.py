"""The golden arrays of the peers: made by the authors' own code, each file with its sizes in `meta`.

The folder is read from the environment variable TOCO_GOLDENS_BASELINES (default: `shared/goldens_baselines` beside the
project); other cases of the same kind can be put there.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from toco_lab.config import Config

GIVEN = os.environ.get("TOCO_GOLDENS_BASELINES")
GOLDENS = Path(GIVEN or Path(__file__).parents[3] / "shared" / "goldens_baselines")
needed = pytest.mark.skipif(  # a folder that was asked for must be there
    not GIVEN and not GOLDENS.is_dir(),
    reason=f"no golden arrays at {GOLDENS}; TOCO_GOLDENS_BASELINES names another folder",
)


def load_golden(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arrays of a file as tensors, and what its `meta` says."""
    with np.load(GOLDENS / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta"}
        return arrays, json.loads(str(file["meta"])) if "meta" in file.files else {}


def config_of(meta: dict[str, Any], method: str) -> Config:
    """A config whose model has the sizes of a file."""
    names = {"img_size": "image_size", "patch_size": "patch_size", "embed_dim": "embed_dim", "depth": "depth"}
    sizes = {field: meta[key] for key, field in names.items()} | {"num_heads": meta["num_heads"]}
    backbone = "deit_tiny_distilled_patch16_224" if meta.get("distilled") else "vit_tiny_patch16_224"
    unit = meta["patch_size"]
    return Config.preset("smoke").replace(
        method=method, backbone=backbone, num_classes=meta["num_classes"], crop_size=8 * unit, local_crop_size=2 * unit,
        **sizes,
    )  # fmt: skip


def part(arrays: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The arrays below a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def assert_near(found: Tensor, expected: Tensor, rel: float, name: str = "") -> None:
    """The largest difference over the largest expected value is at most `rel`."""
    assert found.shape == expected.shape, (name, found.shape, expected.shape)
    error = (found.detach() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    assert error <= rel, f"{name}: {error:.2e} > {rel:.0e}"
