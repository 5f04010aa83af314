"""Parity with arrays computed by DuPL's code: its falling threshold and its noise filter.

The folder is read from the environment variable TOCO_GOLDENS_BASELINES (default: `shared/goldens_baselines` beside the
project); every size comes from the files.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from toco_lab.method.falling_threshold import half_cosine, largest_of_present
from toco_lab.method.labels import confident_label
from toco_lab.method.noise import LEAST_LOSS, fit_two_gaussians, ignore_noise
from toco_lab.method.present import PresentClasses

GIVEN = os.environ.get("TOCO_GOLDENS_BASELINES")
FILE = Path(GIVEN or Path(__file__).parents[3] / "shared" / "goldens_baselines") / "successors.npz"
pytestmark = pytest.mark.skipif(  # a folder that was asked for must be there
    not GIVEN and not FILE.is_file(), reason=f"no golden arrays at {FILE}; TOCO_GOLDENS_BASELINES names another folder"
)


def load(part: str) -> dict[str, torch.Tensor]:
    """Arrays of a part as tensors, without its name: floats as they are, integers as int64."""
    with np.load(FILE, allow_pickle=False) as file:
        arrays = {key.removeprefix(part): file[key] for key in file.files if key.startswith(part)}
    return {key: torch.from_numpy(v if v.dtype.kind == "f" else v.astype(np.int64)) for key, v in arrays.items()}


def test_falling_threshold():
    golden = load("dupl/")
    start, low, length, example = 0.7, 0.25, 100, 40  # constants of the file's description
    steps, targets = golden["threshold_steps"].tolist(), golden["threshold_target"].tolist()
    found = [[half_cosine(start, end, step, length) for end in targets] for step in steps]
    torch.testing.assert_close(torch.tensor(found), golden["thresholds"], rtol=0, atol=1e-6)

    present = PresentClasses.of(golden["image_label"])
    high = largest_of_present([half_cosine(start, end, example, length) for end in targets], present)
    torch.testing.assert_close(high, golden["image_high"], rtol=0, atol=1e-6)
    label = confident_label(present.gather(golden["cam"]), present, low=low, high=high, valid_box=golden["box"])
    assert torch.equal(label, golden["label"])


def test_noise_filter():
    golden = load("dupl/noise_")
    label, loss = golden["label"][None], golden["ce"][None]
    kept = ignore_noise(label, loss)
    assert (kept[0] == golden["kept"]).float().mean() >= 0.999
    assert (kept != label).any(), "the filter acts on this image"
    counted = (label != 0) & (label != 255) & (loss > LEAST_LOSS)
    means = fit_two_gaussians(loss.flatten(1), counted.flatten(1)).mean[0].sort().values
    torch.testing.assert_close(means, golden["means"].sort().values, rtol=1e-3, atol=1e-3)
