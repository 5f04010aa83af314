"""A model and what changes it: one optimiser step, in one process or in several."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from toco_lab.backbones.kinds import blocks_of
from toco_lab.config import Config
from toco_lab.method.batch import Batch
from toco_lab.method.model import ToCo
from toco_lab.method.step import LocalViews, LossTerms, StepOutput, compute_losses
from toco_lab.training.optimiser import build_optimizer, set_learning_rate
from toco_lab.training.processes import micro_batches, num_processes, rank


class _Losses(nn.Module):
    """`compute_losses` as the forward pass of a module, so that DistributedDataParallel sees every use of a weight."""

    def __init__(self, model: ToCo) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> StepOutput:
        return compute_losses(self.model, *args, **kwargs)


@dataclass(frozen=True)
class Learner:
    """A model and what changes it.

    Attributes:
        model: In training mode.
        optimizer: See `build_optimizer`.
        scaler: Scales the loss where the encoder computes in fp16, whose gradients would vanish; else it does nothing.
        losses: `compute_losses` of the model; of several processes it averages their gradients.
    """

    model: ToCo
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    losses: nn.Module

    @classmethod
    def of(cls, model: ToCo, cfg: Config) -> "Learner":
        """A learner that has learnt nothing yet. In several processes all must call it; they get the first's weights.

        Raises:
            ValueError: If the micro-batches of the config do not divide among the processes.
        """
        device, losses = next(model.parameters()).device, _Losses(model)
        if cfg.accumulate % num_processes():
            needed = micro_batches(cfg.batch_size, cfg.accumulate, num_processes())
            raise ValueError(
                f"accumulate {cfg.accumulate} does not divide among {num_processes()} processes; set it to {needed} "
                f"micro-batches. It is no default because PTC and the segmentation loss are means over a micro-batch"
            )
        if num_processes() > 1:  # a term of weight 0 leaves its head without gradient: unused parameters
            ids = [device] if device.type == "cuda" else None
            losses = DistributedDataParallel(
                losses, device_ids=ids, find_unused_parameters=True, broadcast_buffers=False
            )
        scaler = torch.amp.GradScaler(device.type, enabled=cfg.precision == "fp16")
        return cls(model, build_optimizer(model, cfg), scaler, losses)

    def state(self) -> dict[str, Any]:
        """State dicts that `load` reads: of the model, the optimiser, and the scaler where there is one."""
        scaler = {"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {}
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()} | scaler

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


def train_step(
    learner: Learner, batch: Batch, cfg: Config, step: int, *, views: LocalViews | None = None
) -> StepOutput:
    """One optimiser step; the batch is split into `cfg.accumulate` micro-batches whose gradients are averaged.

    Given `views` belong to the whole batch: they need `cfg.accumulate` 1. The teacher moves first, as in the released
    code. Means over a batch (PTC's pairs, segmentation pixels) are then means over micro-batches.

    Args:
        learner: Changed.
        batch: Of several processes, this one's share.
        cfg: Weights, thresholds, schedule.
        step: 0-based.
        views: Local views to use, see `compute_losses`.

    Returns:
        The last micro-batch's `StepOutput`, its terms replaced by the averages over the micro-batches of this process.
    """
    if views is not None and cfg.accumulate > 1:
        raise ValueError(f"views are given for the whole batch, but accumulate is {cfg.accumulate}")
    set_learning_rate(learner.optimizer, cfg, step)
    learner.model.update_teacher()
    learner.optimizer.zero_grad(set_to_none=True)
    parts = cfg.accumulate // num_processes()
    size = len(batch.image) // parts
    outputs = []
    for part in range(parts):
        # a tuple of ints hashes alike in every process
        number = rank() * parts + part
        generator = torch.Generator().manual_seed(hash((cfg.seed, step, number)) % 2**63)
        alone = part + 1 < parts and isinstance(learner.losses, DistributedDataParallel)
        with learner.losses.no_sync() if alone else nullcontext():
            output = learner.losses(batch[part * size : (part + 1) * size], cfg, step, views=views, generator=generator)
            learner.scaler.scale(output.terms.total / parts).backward()
        outputs.append(output)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    means = {
        f.name: torch.stack([getattr(o.terms, f.name).detach() for o in outputs]).mean() for f in fields(LossTerms)
    }
    return StepOutput(
        **{f.name: getattr(outputs[-1], f.name) for f in fields(StepOutput)} | {"terms": LossTerms(**means)}
    )


@contextmanager
def compiled(model: ToCo) -> Iterator[None]:
    """torch.compile each block of the encoder for the length of a block; hooks hung on it there would not be seen.

    The last block of CTC's views, which gives the class token alone, stays as it is.
    """
    blocks = blocks_of(model.encoder)
    for block in blocks:
        block.compile()
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None  # torch has no public way back
