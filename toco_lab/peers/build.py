"""From a Config to the model of its method: the one place where a model is made."""

from toco_lab.config import Config
from toco_lab.files import require
from toco_lab.method.face import CamModel
from toco_lab.method.model import ToCo
from toco_lab.peers.afa import AFA, ToCoWithAffinity
from toco_lab.peers.getam import GETAM
from toco_lab.peers.mct import MCTformer
from toco_lab.peers.supervised import Supervised
from toco_lab.peers.tscam import TSCAM

MODELS: dict[str, type[CamModel]] = {
    "toco": ToCo, "tscam": TSCAM, "getam": GETAM, "afa": AFA, "mct": MCTformer, "mct_plus": MCTformer,
    "supervised": Supervised,
}  # fmt: skip


def model_class(method: str) -> type[CamModel]:
    """The class of a method's models, by `Config.method`."""
    return MODELS[method]


def build_model(cfg: Config) -> CamModel:
    """A model of `cfg.method` with random weights, in training mode.

    Raises:
        ValueError: If `cfg` is no Config, the backbone cannot be made, or the method needs what it does not have.
    """
    require(cfg, Config, "cfg", ": make one with Config.preset(name)")
    with_affinity = cfg.method == "toco" and cfg.w_aff > 0
    return ToCoWithAffinity(cfg) if with_affinity else model_class(cfg.method)(cfg)
