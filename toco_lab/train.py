"""Training: optimiser and schedule, one optimiser step, and `fit`, which can be killed and continued at any moment, in
one process or in several.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from toco_lab.checkpoints import (
    CheckpointError,
    find_weights,
    initial_model,
    load_checkpoint,
    save_checkpoint,
    weights_hash,
)
from toco_lab.config import Config
from toco_lab.data import Batch, train_loader
from toco_lab.distributed import is_first, micro_batches, num_processes, rank, total, wait
from toco_lab.encoders import blocks_of
from toco_lab.model import ToCo
from toco_lab.runs import RunDir
from toco_lab.snapshots import probe_samples, save_snapshot, snapshot_steps
from toco_lab.step import LocalViews, LossTerms, StepOutput, compute_losses

KEPT_CHECKPOINTS = 2
VALIDATED = ("cam", "cam_aux", "seg")  # mIoU columns that validation adds to metrics.csv


class TrainingError(RuntimeError):
    """Training can not go on; the message names the step, the cause and the last good checkpoint."""


# --- optimiser and schedule -------------------------------------------------------------------------------------------


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


# --- the loop ---------------------------------------------------------------------------------------------------------


def resolve_device(name: str) -> torch.device:
    """`auto` is this process's CUDA device if there is one, else the CPU.

    Raises:
        ValueError: For a device that is not there.
    """
    available = ["cpu", *(["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])] if (
        torch.cuda.is_available()) else ["cpu"]  # fmt: skip
    if name == "auto":
        return torch.device(f"cuda:{torch.cuda.current_device()}" if len(available) > 1 else "cpu")
    if name not in available:
        raise ValueError(f"device {name!r} is not there; use auto or one of {', '.join(available)}")
    return torch.device(name)


def fit(
    cfg: Config, run: RunDir, *, validate: Callable[[ToCo, int], dict[str, float]] | None = None, progress: bool = True
) -> ToCo:
    """Train, or continue a run from its last checkpoint; a finished run is loaded and returned as it is.

    Killed at any moment and called again it ends with the same numbers (bit-equal on a CPU): batches, augmentation and
    crops depend on (seed, step) alone. Inside `distributed.process_group` all processes call it; the run may be
    continued by another number of them.

    Args:
        cfg: The run's config.
        run: Folder for metrics and checkpoints.
        validate: Called as validate(model, step) every `cfg.val_every` steps; its numbers join metrics.csv.
        progress: Show a progress bar.

    Returns:
        The trained model, in evaluation mode.

    Raises:
        TrainingError: At a NaN or infinite loss: the step, the term and the last good checkpoint are named.
        CheckpointError: If the last checkpoint is damaged; the one before is named.
        ValueError: If the micro-batches do not divide among the processes.
    """
    device = resolve_device(cfg.device)
    torch.manual_seed(cfg.seed)
    checkpoints = run.checkpoints()
    model = (initial_model(cfg) if not checkpoints else ToCo(cfg)).to(device).train()
    learner = Learner.of(model, cfg)
    start, spent = 0, 0.0
    if checkpoints:
        state = load_checkpoint(checkpoints[-1])
        learner.load(state)
        start, spent = state["step"], run.status().get("seconds", 0.0)
    wait()  # every process has read what the first one is about to change
    if is_first():
        if checkpoints:
            run.log(f"continue from {checkpoints[-1].name}")
        _check_initial_weights(cfg, run)
        if start < cfg.steps:
            run.truncate_metrics(start)
            run.set_status("running", step=start, steps=cfg.steps)
        else:
            run.set_status("done", step=start)
    if start >= cfg.steps:
        return model.eval()
    try:
        with compiled(model) if cfg.compile_blocks else nullcontext():
            _loop(learner, cfg, run, start, spent, device, validate, progress and is_first())
    except KeyboardInterrupt:
        run.log("interrupted")  # no failure: the same call continues it
        raise
    except BaseException as error:
        if run.status()["state"] != "failed":  # the first process to fail knows why, the others miss it
            run.set_status("failed", error=f"{type(error).__name__}: {error}")
        run.log(f"failed: {type(error).__name__}: {error}")
        raise
    return model.eval()


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


def _check_initial_weights(cfg: Config, run: RunDir) -> None:
    """Keep the hash of a local weights file in the run; refuse a run that was begun from another one."""
    if not (cfg.pretrained and cfg.weights):
        return
    kept = run.read_json("initial_weights") if (run.path / "initial_weights.json").is_file() else None
    try:
        found = weights_hash(find_weights(cfg.weights))
    except CheckpointError:
        if run.checkpoints():
            return  # continued on a machine without the file, which is not needed any more
        raise
    if kept is None:
        run.write_json("initial_weights", {"file": cfg.weights, "hash": found})
    elif kept["hash"] != found:
        raise ValueError(
            f"{run.path} began from {kept['file']} with hash {kept['hash']}, the file now has {found}. Delete the "
            f"folder to train again, or bring the file back"
        )


def _loop(learner, cfg, run, start, spent, device, validate, progress) -> None:
    """Steps `start` to the end. Losses stay on the device between log rows: no step waits for them."""
    model, began, window = learner.model, time.perf_counter(), []
    kept_steps = snapshot_steps(cfg) if is_first() else ()
    probes = probe_samples(cfg, model) if kept_steps else []
    if start in kept_steps:
        save_snapshot(run, model, cfg, probes, start)
    bar = tqdm(
        train_loader(cfg, model.mean, model.std, start_step=start),
        initial=start,
        total=cfg.steps,
        unit="step",
        desc=run.name,
        disable=not progress,
    )
    for step, batch in enumerate(bar, start):
        output = train_step(learner, batch.to(device), cfg, step)
        window.append(torch.stack([value.double() for value in vars(output.terms).values()]))
        done, last = step + 1, step + 1 == cfg.steps
        save = last or done % cfg.checkpoint_every == 0
        validating = validate is not None and cfg.val_every > 0 and (last or done % cfg.val_every == 0)
        if save or validating or done % cfg.log_every == 0:
            rows = total(torch.stack(window)) / num_processes()
            means = _checked_means(rows.cpu(), done - len(window), run)
            window = []
            row = {"step": done, "lr": learning_rate(cfg, step), "images": done * cfg.batch_size} | means
            row |= {f"val_{name}": math.nan for name in VALIDATED}  # always: validation may be switched on at a resume
            if validating:
                scores = validate(model.eval(), done)
                model.train()
                row |= {f"val_{name}": value for name, value in scores.items()}
            if is_first():
                run.append_metrics(row)
            bar.set_postfix(
                loss=f"{means['total_loss']:.3f}",
                ptc_pos=f"{means['positive_cosine']:.2f}",
                ptc_neg=f"{means['negative_cosine']:.2f}",
            )
        if done in kept_steps or save:
            _check_weights(model, done, run)
        if done in kept_steps:
            save_snapshot(run, model, cfg, probes, done)
        if save and is_first():
            save_checkpoint(run.checkpoint_path(done), learner.state(), done, cfg)
            for old in run.checkpoints()[:-KEPT_CHECKPOINTS]:
                old.unlink()
            seconds = spent + time.perf_counter() - began
            run.set_status("done" if last else "running", step=done, seconds=round(seconds, 2))
    wait()  # the last checkpoint is there for all


def _check_weights(model: ToCo, step: int, run: RunDir) -> None:
    """A checkpoint must be good: raise TrainingError if a weight is not finite, though the losses still were."""
    bad = [name for name, value in model.named_parameters() if not value.isfinite().all()]
    if bad:
        raise TrainingError(
            f"weight {bad[0]} (and {len(bad) - 1} more) is not finite after step {step}; {_last_good(run)}. Lower "
            f"learning_rate, or look at the images of the last steps"
        )


def _last_good(run: RunDir) -> str:
    saved = run.checkpoints()
    return f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"


def _checked_means(window: Tensor, first_step: int, run: RunDir) -> dict[str, float]:
    """Means of the logged terms (steps, terms) as columns of metrics.csv.

    Raises:
        TrainingError: If a loss was not finite at one of these steps.
    """
    names = [field.name for field in fields(LossTerms)]
    num_losses = names.index("total") + 1
    bad = ~window[:, :num_losses].isfinite()
    if bad.any():
        row = int(bad.any(1).nonzero()[0])
        terms = [name for name, is_bad in zip(names[:num_losses], bad[row].tolist(), strict=True) if is_bad]
        raise TrainingError(
            f"loss {', '.join(terms)} is not finite at step {first_step + row}; {_last_good(run)}. Training from it "
            f"again meets the same step: lower learning_rate, look at the images of that step, or set the weight of "
            f"the term to 0"
        )
    return {
        f"{name}_loss" if i < num_losses else name: value
        for i, (name, value) in enumerate(zip(names, window.nanmean(0).tolist(), strict=True))
    }
