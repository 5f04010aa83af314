"""A CAM explorer of one model."""

import pytest
import torch

from toco_lab.config import Config
from toco_lab.explorers.cam_explorer import CamExplorer
from toco_lab.method.model import ToCo


@pytest.fixture(scope="module")
def pair() -> tuple[ToCo, Config]:
    """A model of random weights, read only."""
    cfg = Config.preset("smoke")
    torch.manual_seed(0)
    return ToCo(cfg).eval(), cfg


@pytest.fixture
def explorer(pair) -> CamExplorer:
    return CamExplorer(pair)
