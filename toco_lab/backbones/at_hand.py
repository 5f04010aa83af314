"""Which pretrained weights lie on this machine already, so that timm needs no network for them."""

from pathlib import Path

import timm
import torch
from huggingface_hub import try_to_load_from_cache

_FILES = ("model.safetensors", "pytorch_model.bin")  # that timm looks for on the Hugging Face hub


def weights_at_hand(name: str) -> bool:
    """Whether timm finds the pretrained weights of a model in a cache of this machine; nothing is loaded.

    Args:
        name: timm's, with or without the tag of the weights.
    """
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None:
        return False
    if cfg.hf_hub_id:
        return any(isinstance(try_to_load_from_cache(cfg.hf_hub_id, file), str) for file in _FILES)
    return bool(cfg.url) and Path(torch.hub.get_dir(), "checkpoints", Path(str(cfg.url)).name).is_file()
