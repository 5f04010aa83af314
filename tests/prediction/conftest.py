"""A model of the smoke preset, and images that nobody labelled."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toco_lab.data.loader import EvalSample, eval_samples
from toco_lab.prediction.predictor import Predictor
from toco_lab.prediction.source import load
from toco_lab.runs.run_dir import RunDir


@pytest.fixture(scope="module")
def model(smoke_run: RunDir) -> Predictor:
    return load(smoke_run, device="cpu")


@pytest.fixture(scope="module")
def samples(model: Predictor) -> list[EvalSample]:
    """Toy scenes with true labels."""
    return list(eval_samples(model.cfg, model.model.mean, model.model.std))


@pytest.fixture
def photos(tmp_path: Path, samples: list[EvalSample]) -> Path:
    """A folder of five images of two sizes, one of them in a subfolder."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for index, name in enumerate(("a", "b", "more/c", "d")):
        Image.fromarray(samples[index].raw).save(folder / f"{name}.png")
    Image.fromarray(np.ascontiguousarray(samples[0].raw[:70, :80])).save(folder / "e.jpg")
    return folder
