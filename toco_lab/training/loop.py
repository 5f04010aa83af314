"""`fit`: training that can be killed and continued at any moment, in one process or in several."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields

import torch
from torch import Tensor
from tqdm import tqdm

from toco_lab.backbones.weights import CheckpointError, find_weights, weights_hash
from toco_lab.config import Config
from toco_lab.data.loader import train_loader
from toco_lab.method.model import ToCo
from toco_lab.method.step import LossTerms
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import initial_model, load_checkpoint, save_checkpoint
from toco_lab.training.learner import Learner, compiled, train_step
from toco_lab.training.optimiser import learning_rate
from toco_lab.training.processes import is_first, num_processes, resolve_device, share, total, wait
from toco_lab.vocabulary import CAM, CAM_AUX, SEG

KEPT_CHECKPOINTS = 2


VALIDATED = (CAM, CAM_AUX, SEG)  # mIoU columns that validation adds to metrics.csv


class TrainingError(RuntimeError):
    """Training can not go on; the message names the step, the cause and the last good checkpoint."""


def snapshot_steps(cfg: Config) -> set[int]:
    """The steps after which a run keeps tokens: evenly spaced, 0 (before training) and the last among them."""
    last = max(cfg.token_snapshots - 1, 1)
    return {round(cfg.steps * i / last) for i in range(cfg.token_snapshots)}


def fit(
    cfg: Config,
    run: RunDir,
    *,
    validate: Callable[[ToCo, int], dict[str, float]] | None = None,
    snapshot: Callable[[ToCo, int], None] | None = None,
    progress: bool = True,
) -> ToCo:
    """Train, or continue a run from its last checkpoint; a finished run is loaded and returned as it is.

    Killed at any moment and called again it ends with the same numbers (bit-equal on a CPU): batches, augmentation and
    crops depend on (seed, step) alone. Inside `distributed.process_group` all processes call it; the run may be
    continued by another number of them.

    Args:
        cfg: The run's config.
        run: Folder for metrics and checkpoints.
        validate: Called as validate(model, step) every `cfg.val_every` steps; its numbers join metrics.csv.
        snapshot: Called as snapshot(model, step) at the `snapshot_steps`, by the first process alone.
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
            _loop(learner, cfg, run, start, spent, device, validate, snapshot, progress and is_first())
    except KeyboardInterrupt:
        run.log("interrupted")  # no failure: the same call continues it
        raise
    except BaseException as error:
        if run.status()["state"] != "failed":  # the first process to fail knows why, the others miss it
            run.set_status("failed", error=f"{type(error).__name__}: {error}")
        run.log(f"failed: {type(error).__name__}: {error}")
        raise
    return model.eval()


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


def _loop(learner, cfg, run, start, spent, device, validate, snapshot, progress) -> None:
    """Steps `start` to the end. Losses stay on the device between log rows: no step waits for them."""
    model, began, window = learner.model, time.perf_counter(), []
    kept_steps = snapshot_steps(cfg) if snapshot and is_first() else ()
    if start in kept_steps:
        snapshot(model, start)
    bar = tqdm(
        train_loader(cfg, model.mean, model.std, start_step=start, places=share(cfg.batch_size)),
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
            snapshot(model, done)
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
