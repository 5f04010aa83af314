"""The optimiser and its schedule."""

import torch
from torch import nn

from toco_lab.config import Config
from toco_lab.method.model import ToCo


def build_optimizer(model: ToCo, cfg: Config) -> torch.optim.AdamW:
    """AdamW, weight decay on everything, four groups: encoder, its norms, classifiers and head (x10), decoder (x10)."""
    norms = {id(p) for m in model.encoder.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    heads = [*model.projection_head.parameters(), *model.classifier.parameters(), *model.aux_classifier.parameters()]
    encoder = [p for p in model.encoder.parameters() if p.requires_grad]
    groups = [
        ("encoder", [p for p in encoder if id(p) not in norms], 1.0),
        ("encoder norms", [p for p in encoder if id(p) in norms], 1.0),
        ("heads", heads, cfg.head_lr_factor),
        ("decoder", list(model.decoder.parameters()), cfg.head_lr_factor),
    ]
    return torch.optim.AdamW(
        [{"name": name, "params": params, "lr_factor": factor} for name, params, factor in groups],
        lr=cfg.learning_rate,
        betas=cfg.betas,
        weight_decay=cfg.weight_decay,
        fused=True,
    )


def learning_rate(cfg: Config, step: int) -> float:
    """Learning rate of the encoder at a 0-based step k, set before the update.

    1) k < W: linear from warmup_ratio * peak. 2) then polynomial: `continuous` decays over T - W steps from the peak;
    `drop`
    (released) over T steps from step 0, so that the rate falls by a step where warm-up ends. 3) k >= T: the last value.
    """
    step = min(step, cfg.steps - 1)
    if step < cfg.warmup_steps:
        return cfg.learning_rate * (1 - (1 - step / cfg.warmup_steps) * (1 - cfg.warmup_ratio))
    begin = 0 if cfg.schedule == "drop" else cfg.warmup_steps
    return cfg.learning_rate * (1 - (step - begin) / (cfg.steps - begin)) ** cfg.poly_power


def set_learning_rate(optimizer: torch.optim.Optimizer, cfg: Config, step: int) -> None:
    """Give each group its rate for this step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(cfg, step) * group["lr_factor"]
