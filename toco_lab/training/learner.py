"""One optimiser step: the model, its losses, the optimiser and the gradient scaler, in one process or in several."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from toco_lab.backbones.kinds import blocks_of
from toco_lab.backbones.modes import weights_cast_once
from toco_lab.config import Config
from toco_lab.method.batch import Batch
from toco_lab.method.face import CamModel
from toco_lab.method.step import LocalViews, LossTerms, StepOutput, compute_losses
from toco_lab.peers.supervised import Supervised
from toco_lab.training.optimiser import build_optimizer, set_learning_rate
from toco_lab.training.processes import micro_batches, num_processes, rank
from toco_lab.training.teacher import open_teacher
from toco_lab.words import counted


class _Losses(nn.Module):
    """`compute_losses` as the forward pass of a module, so that DistributedDataParallel sees every use of a weight."""

    def __init__(self, model: CamModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> StepOutput:
        return compute_losses(self.model, *args, **kwargs)


@dataclass(frozen=True)
class Learner:
    """A model and all that a training step needs beside it.

    Attributes:
        model: In training mode.
        optimizer: See `build_optimizer`.
        scaler: Scales the loss where the encoder computes in fp16, so that its gradients do not vanish; otherwise it
            does nothing.
        losses: `compute_losses` of the model as a module; in several processes it averages their gradients.
    """

    model: CamModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    losses: nn.Module

    @classmethod
    def of(cls, model: CamModel, cfg: Config) -> "Learner":
        """A learner before its first step. Several processes must all call it; they get the weights of the first one.

        Raises:
            ValueError: If the micro-batches of the config do not divide among the processes, or the teacher that the
                config names cannot be one.
        """
        device = next(model.parameters()).device
        if isinstance(model, Supervised) and cfg.soft_teacher:
            model.teacher = open_teacher(cfg, model)
        losses: nn.Module = _Losses(model)
        if cfg.accumulate % num_processes():
            needed = micro_batches(cfg.batch_size, cfg.accumulate, num_processes())
            raise ValueError(
                f"accumulate {cfg.accumulate} does not divide among {counted(num_processes(), 'process')}; set "
                f"it to {counted(needed, 'micro-batch')}. It is no default because "
                "PTC and the segmentation loss are means over a micro-batch"
            )
        if num_processes() > 1:  # a term of weight 0 leaves its head without gradient: unused parameters
            ids = [device] if device.type == "cuda" else None
            losses = DistributedDataParallel(
                losses, device_ids=ids, find_unused_parameters=True, broadcast_buffers=False
            )
        scaler = torch.amp.GradScaler(device.type, enabled=cfg.precision == "fp16")
        return cls(model, build_optimizer(model, cfg), scaler, losses)

    def state(self) -> dict[str, Any]:
        """State dicts of the model, the optimiser and, where it does something, the scaler; `load` reads them."""
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

    The teacher moves first, as in the released code. With several micro-batches, losses that are means over a batch
    (PTC's pairs, segmentation pixels) become means over micro-batches.

    Args:
        learner: Changed.
        batch: This process's share of the batch.
        cfg: Weights, thresholds, schedule.
        step: 0-based.
        views: Local views to use in place of drawn ones, see `compute_losses`; they need `cfg.accumulate` 1.

    Returns:
        The `StepOutput` of the last micro-batch; its terms are the averages over this process's micro-batches.

    Raises:
        ValueError: For `views` and several micro-batches.
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
        generator = torch.Generator().manual_seed(hash((cfg.seed, step, rank() * parts + part)) % 2**63)
        micro_batch, losses = batch[part * size : (part + 1) * size], learner.losses
        last = part == parts - 1
        # gradients are averaged over the processes once, after the last micro-batch
        local = losses.no_sync() if isinstance(losses, DistributedDataParallel) and not last else nullcontext()
        with local:
            with weights_cast_once(learner.model):
                output = losses(micro_batch, cfg, step, views=views, generator=generator)
            learner.scaler.scale(output.terms.total / parts).backward()
        outputs.append(output)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    return replace(outputs[-1], terms=_mean([output.terms for output in outputs]))


def _mean(terms: Sequence[LossTerms]) -> LossTerms:
    """The mean of each term, without gradient."""
    named = [one.named() for one in terms]
    return LossTerms(**{name: torch.stack([one[name].detach() for one in named]).mean() for name in named[0]})


@contextmanager
def compiled(model: CamModel) -> Iterator[None]:
    """Inside this context torch.compile compiles each block of the encoder; forward hooks added to them do not run.

    The pass of the last block that gives CTC's class token alone is not compiled.
    """
    blocks = blocks_of(model.encoder)
    for block in blocks:
        block.compile()
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None  # torch has no public way back
