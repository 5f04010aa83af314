"""`fit`: training that can be killed and continued at any moment, in one process or in several."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toco_lab.backbones.weights import CheckpointError, find_weights, weights_hash
from toco_lab.config import Config
from toco_lab.data.loader import train_loader
from toco_lab.files import in_words
from toco_lab.method.face import CamModel
from toco_lab.peers.build import build_model
from toco_lab.progress import progress_bar
from toco_lab.runs.locks import only_worker
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import initial_model, load_checkpoint, save_checkpoint
from toco_lab.training.finite import check_weights, mean_terms
from toco_lab.training.learner import Learner, compiled, train_step
from toco_lab.training.optimiser import learning_rate
from toco_lab.training.probe import probe_classifiers
from toco_lab.training.processes import is_first, num_processes, resolve_device, share, total, wait
from toco_lab.vocabulary import COLUMNS_ADDED_LATER, CROP_OBJECTS, VALIDATED

KEPT_CHECKPOINTS = 2

Validate = Callable[[CamModel, int], dict[str, float]]
Snapshot = Callable[[CamModel, int], None]
OnRow = Callable[[Mapping[str, Any]], None]


def fit(
    cfg: Config,
    run: RunDir,
    *,
    validate: Validate | None = None,
    snapshot: Snapshot | None = None,
    on_row: OnRow | None = None,
    progress: bool = True,
) -> CamModel:
    """Train, or continue a run from its last checkpoint; a finished run is loaded and returned as it is.

    A run that is killed at any moment and continued ends with the same numbers (bit-equal on a CPU): batches,
    augmentation and crops depend on (seed, step) alone. Inside `process_group` all processes call it; another number of
    processes may continue the run.

    Args:
        cfg: The run's config.
        run: Folder for metrics and checkpoints.
        validate: Called as validate(model, step) every `cfg.val_every` steps; its numbers join metrics.csv.
        snapshot: Called as snapshot(model, step) at the `snapshot_steps`, by the first process alone.
        on_row: Called with each row of metrics.csv once it is written, by the first process alone.
        progress: Show a progress bar.

    Returns:
        The trained model, in evaluation mode.

    Raises:
        TrainingError: At a NaN or infinite loss or weight: the step, the term and the last good checkpoint are named.
        CheckpointError: If the last checkpoint is damaged; the one before is named.
        ValueError: If the micro-batches do not divide among the processes, the run began from other weights, or another
            process is at work in its folder.
    """
    run.begin()
    finished = run.checkpoint_path(cfg.steps).is_file()  # then it is only read
    with only_worker(run.path) if is_first() and not finished else nullcontext():
        return _fit(cfg, run, validate, snapshot, on_row, progress=progress)


def _fit(
    cfg: Config,
    run: RunDir,
    validate: Validate | None,
    snapshot: Snapshot | None,
    on_row: OnRow | None,
    *,
    progress: bool,
) -> CamModel:
    """`fit`, by the only process (or group of processes) at this run."""
    torch.manual_seed(cfg.seed)
    checkpoints = run.checkpoints()
    learner, start = _learner(cfg, checkpoints, progress=progress and is_first())
    seconds = run.status().get("seconds", 0.0) if checkpoints else 0.0
    wait()  # every process has read what the first one is about to change
    if is_first():
        _prepare_run(cfg, run, start, checkpoints)
    if start < cfg.steps:
        training = _Training(cfg, run, learner, start, seconds, validate, snapshot if is_first() else None, on_row)
        with _failures_recorded(run), compiled(learner.model) if cfg.compile_blocks else nullcontext():
            training.make_steps(progress=progress and is_first())
    return learner.model.eval()


def snapshot_steps(cfg: Config) -> set[int]:
    """The steps after which a run keeps tokens: evenly spaced, 0 (before training) and the last among them."""
    last = max(cfg.token_snapshots - 1, 1)
    return {round(cfg.steps * i / last) for i in range(cfg.token_snapshots)}


def _learner(cfg: Config, checkpoints: list[Path], *, progress: bool) -> tuple[Learner, int]:
    """A new learner, or the one of the last checkpoint, and the number of steps it has made."""
    model = build_model(cfg) if checkpoints else initial_model(cfg)
    model = model.to(resolve_device(cfg.device))
    if cfg.probe_heads and not checkpoints:
        probe_classifiers(model.eval(), cfg, progress=progress)
    learner = Learner.of(model.train(), cfg)
    if not checkpoints:
        return learner, 0
    state = load_checkpoint(checkpoints[-1], cfg, model=learner.model, optimizer=learner.optimizer)
    learner.load(state)
    return learner, state["step"]


def _prepare_run(cfg: Config, run: RunDir, start: int, checkpoints: list[Path]) -> None:
    """Bring the files of a run to the step it starts from."""
    if checkpoints:
        run.log(f"continue from {checkpoints[-1].name}")
    _check_initial_weights(cfg, run)
    if start < cfg.steps:
        run.truncate_metrics(start)
        run.set_status("running", step=start, steps=cfg.steps)
    else:
        run.set_status("done", step=start)


def _check_initial_weights(cfg: Config, run: RunDir) -> None:
    """Keep the hash of a local weights file in the run; refuse a run that was begun from another one."""
    if not (cfg.pretrained and cfg.weights):
        return
    kept = run.read_json("initial_weights") if (run.path / "initial_weights.json").is_file() else None
    try:
        now = weights_hash(find_weights(cfg.weights))
    except CheckpointError:
        if run.checkpoints():
            return  # continued on a machine without the file, which is not needed any more
        raise
    if kept is None:
        run.write_json("initial_weights", {"file": cfg.weights, "hash": now})
    elif kept["hash"] != now:
        raise ValueError(
            f"{run.path} began from {kept['file']} with hash {kept['hash']}, the file now has {now}. Delete the "
            f"folder to train again, or bring the file back"
        )


@contextmanager
def _failures_recorded(run: RunDir) -> Iterator[None]:
    """Write an error into the run's status and log before it goes on; an interruption is no failure.

    Where the system refuses to write that too (the disk is full), the error goes on without a record.
    """
    try:
        yield
    except KeyboardInterrupt:
        with suppress(OSError):
            run.log("interrupted")  # the same call continues it
        raise
    except BaseException as error:
        said = f"{type(error).__name__}: {in_words(str(error))}"
        with suppress(OSError):
            if run.status()["state"] != "failed":  # the first process to fail knows why, the others miss it
                run.set_status("failed", error=said)
            run.log(f"failed: {said}")
        raise


@dataclass
class _Training:
    """The steps of one call of `fit`.

    Attributes:
        cfg: The run's config.
        run: Gets the rows of metrics.csv and the checkpoints, from the first process.
        learner: Has made `start` steps.
        start: First step, 0-based.
        seconds: What earlier calls took until step `start`.
        validate: See `fit`.
        snapshot: See `fit`; None in every process but the first.
        on_row: See `fit`.
        terms: `LossTerms` of each step since the last row, (terms,) float64. They stay on the device until a row is
            written, so that no step waits for them.
        names: Of the terms.
    """

    cfg: Config
    run: RunDir
    learner: Learner
    start: int
    seconds: float
    validate: Validate | None
    snapshot: Snapshot | None
    on_row: OnRow | None
    terms: list[Tensor] = field(default_factory=list)
    names: Sequence[str] = ()

    def make_steps(self, *, progress: bool) -> None:
        """Steps `start` to the end of the config."""
        cfg, model, began = self.cfg, self.learner.model, time.perf_counter()
        device = next(model.parameters()).device
        batches = train_loader(cfg, model.mean, model.std, start_step=self.start, places=share(cfg.batch_size))
        bar = progress_bar(batches, self.run.name, cfg.steps, unit="step", initial=self.start, shown=progress)
        self._keep_tokens(self.start)
        for step, batch in enumerate(bar, self.start):
            output = train_step(self.learner, batch.to(device), cfg, step)
            named = output.terms.named()
            self.terms.append(torch.stack([value.double() for value in named.values()]))
            self.names = list(named)
            done = step + 1
            save = self._due(done, cfg.checkpoint_every)
            score = self.validate is not None and cfg.val_every > 0 and self._due(done, cfg.val_every)
            if save or score or done % cfg.log_every == 0:
                means = self._write_row(done, score=score)
                bar.set_postfix(
                    loss=f"{means['total_loss']:.3f}",
                    ptc_pos=f"{means['positive_cosine']:.2f}",
                    ptc_neg=f"{means['negative_cosine']:.2f}",
                )
            if save:
                check_weights(model, done, self.run)
            self._keep_tokens(done)
            if save and is_first():
                self._save(done, self.seconds + time.perf_counter() - began)
        wait()  # the last checkpoint is there for all

    def _due(self, done: int, every: int) -> bool:
        return done % every == 0 or done == self.cfg.steps

    def _write_row(self, done: int, *, score: bool) -> dict[str, float]:
        """A row of metrics.csv, with validation if `score`; gives the means of the terms since the last row."""
        terms = total(torch.stack(self.terms)) / num_processes()
        means = mean_terms(terms.cpu(), self.names, done - len(self.terms), self.run)
        self.terms = []
        # always: validation may be switched on when a run continues
        scores = dict.fromkeys(VALIDATED + CROP_OBJECTS, math.nan)
        if score and self.validate is not None:
            scores |= self.validate(self.learner.model.eval(), done)
            self.learner.model.train()
        if is_first():
            row = {"step": done, "lr": learning_rate(self.cfg, done - 1), "images": done * self.cfg.batch_size} | means
            row |= {f"val_{name}": value for name, value in scores.items()}
            there = self.run.metrics_columns()
            missing = set(COLUMNS_ADDED_LATER).difference(there) if there else ()
            row = {name: value for name, value in row.items() if name not in missing}
            self.run.append_metrics(row)
            if self.on_row:
                self.on_row(row)
        return means

    def _keep_tokens(self, done: int) -> None:
        if self.snapshot and done in snapshot_steps(self.cfg):
            check_weights(self.learner.model, done, self.run)
            self.snapshot(self.learner.model, done)

    def _save(self, done: int, seconds: float) -> None:
        """A checkpoint in place of the oldest one, then the status, which must never name a step without a file."""
        save_checkpoint(self.run.checkpoint_path(done), self.learner.state(), done, self.cfg)
        for old in self.run.checkpoints()[:-KEPT_CHECKPOINTS]:
            old.unlink()
        self.run.set_status("done" if done == self.cfg.steps else "running", step=done, seconds=round(seconds, 2))
