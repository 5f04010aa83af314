"""AdamW and its learning rate: warm-up, then polynomial decay."""

import torch
from torch import nn

from toco_lab.config import Config
from toco_lab.method.face import CamModel

ENCODER_GROUPS = ("encoder", "encoder norms")


def build_optimizer(model: CamModel, cfg: Config) -> torch.optim.AdamW:
    """AdamW in four groups: encoder, its norms, heads (classifiers, projection head), decoder if there is one.

    The last two learn `cfg.head_lr_factor` times as fast. Weight decay holds for all of them, the norms included, as in
    the released code.
    """
    norms = {id(p) for m in model.encoder.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    encoder = [p for p in model.encoder.parameters() if p.requires_grad]
    groups = [
        (ENCODER_GROUPS[0], [p for p in encoder if id(p) not in norms], 1.0),
        (ENCODER_GROUPS[1], [p for p in encoder if id(p) in norms], 1.0),
        ("heads", model.head_parameters(), cfg.head_lr_factor),
    ]
    if model.decoder is not None:
        groups.append(("decoder", list(model.decoder.parameters()), cfg.head_lr_factor))
    first, second = cfg.betas
    return torch.optim.AdamW(
        [{"name": name, "params": params, "lr_factor": factor} for name, params, factor in groups],
        lr=cfg.learning_rate,
        betas=(first, second),
        weight_decay=cfg.weight_decay,
        fused=True,
    )


def learning_rate(cfg: Config, step: int) -> float:
    """Learning rate of the encoder at the 0-based step k, set before the update; W warm-up steps, T steps in all.

    * k < W: linear, from `warmup_ratio` times the peak up to the peak.
    * W <= k < T: polynomial decay. `schedule="continuous"` counts it from the end of warm-up, so that it starts at the
      peak. `"drop"`, the authors' released code, counts it from step 0, so that the rate drops when warm-up ends.
    * k >= T: the rate of step T - 1.
    """
    step = min(step, cfg.steps - 1)
    if step < cfg.warmup_steps:
        return cfg.learning_rate * (1 - (1 - step / cfg.warmup_steps) * (1 - cfg.warmup_ratio))
    begin = 0 if cfg.schedule == "drop" else cfg.warmup_steps
    return cfg.learning_rate * (1 - (step - begin) / (cfg.steps - begin)) ** cfg.poly_power


def encoder_factor(cfg: Config, step: int) -> float:
    """What the encoder's rate is multiplied by, in [0, 1]: 0 before `encoder_start_step`, then a linear warm-up."""
    if cfg.encoder_start_step == 0:
        return 1.0
    learnt = step - cfg.encoder_start_step + 1
    return min(max(learnt / max(cfg.warmup_steps, 1), 0.0), 1.0)


def set_learning_rate(optimizer: torch.optim.Optimizer, cfg: Config, step: int) -> None:
    """Set the rate of each group for a 0-based step, and let the encoder take part from `encoder_start_step` on.

    A group's rate is `learning_rate` times its factor, an encoder's group's times `encoder_factor` too. An encoder that
    does not learn yet gets no gradient either, so its backward pass costs nothing.
    """
    ramp = encoder_factor(cfg, step)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(cfg, step) * group["lr_factor"]
        if group.get("name") in ENCODER_GROUPS:
            group["lr"] *= ramp
            for weight in group["params"]:
                weight.requires_grad_(ramp > 0)
