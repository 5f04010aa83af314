"""The command `train`: its options are made from the fields of Config, so a field exists once."""

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Union, get_type_hints

import tyro

from toco_lab.commands.measure import _print_scores
from toco_lab.config import Config, config_differences
from toco_lab.presets import PRESETS
from toco_lab.runs.run_dir import RunDir


@dataclasses.dataclass(kw_only=True)
class RunOptions:
    """Options of `train` that are no Config fields."""

    released: bool = False
    """switch on every quirk of the authors' released code; options that differ from the preset still count"""
    root: Path = Path("results")
    """folder that holds the runs"""
    name: str | None = None
    """folder name below it; None takes <preset>-<digest>-s<seed>"""
    evaluate: bool = True
    """score the trained model and measure its over-smoothing"""
    dry_run: bool = False
    """say what would be done, and do nothing"""


def _train_options(preset: str) -> type:
    """RunOptions plus every field of Config, with the help text of the field and the default of the preset."""
    cfg, hints = Config.preset(preset), get_type_hints(Config)
    options = [
        (
            f.name,
            Annotated[hints[f.name], tyro.conf.arg(help=f.metadata["help"])],
            dataclasses.field(default=getattr(cfg, f.name)),
        )
        for f in dataclasses.fields(Config)
        if f.name != "preset_name"
    ]
    made = dataclasses.make_dataclass("TrainOptions", options, bases=(RunOptions,), kw_only=True)
    made.preset = preset
    about = f"{cfg.dataset}, {cfg.backbone}, {cfg.steps} steps of {cfg.batch_size} images"
    return Annotated[made, tyro.conf.subcommand(preset, description=about, prefix_name=False)]


TrainOptions = Union[tuple(map(_train_options, PRESETS))]  # noqa: UP007 (made at runtime)


def _config(options: RunOptions) -> Config:
    """The Config that the options stand for."""
    base = Config.preset(options.preset)
    names = [field.name for field in dataclasses.fields(Config) if field.name != "preset_name"]
    changed = {name: value for name in names if (value := getattr(options, name)) != getattr(base, name)}
    return (base.released() if options.released else base).replace(**changed)


def train(options: tyro.conf.OmitArgPrefixes[TrainOptions]) -> None:
    """Train, or continue, a run of a preset; then evaluate it and measure over-smoothing.

    Several GPUs: torchrun --nproc-per-node 4 -m toco_lab train ... shares each batch and the evaluation out.
    """
    from toco_lab.training.processes import everywhere, is_first, process_group

    with process_group():
        first = is_first()
        begun = _begin(options) if first else None
        [(path, gap), *_] = everywhere(begun)  # the first process makes the folder, the others wait for it
        if path is None:
            return
        from toco_lab import experiment

        run = RunDir(path)
        evaluation = experiment.make(run) if options.evaluate else experiment.train(run)
    if first:
        if options.evaluate:
            _print_scores(evaluation)
            if gap:
                print(f"no mIoU: {gap}")
        print(f"done: {run.path}")


def _begin(options: RunOptions) -> tuple[Path | None, str]:
    """The folder of the run that the options ask for, made and described; None after a dry run. With it, why the
    validation split has no mIoU ("" where it has).
    """
    from toco_lab.data.own_folder import resolve
    from toco_lab.data.readers import missing_truth
    from toco_lab.experiment import open_run
    from toco_lab.training.processes import micro_batches, num_processes

    cfg = resolve(_config(options))
    parts = micro_batches(cfg.batch_size, cfg.accumulate, num_processes())
    if parts != cfg.accumulate:
        print(
            f"accumulate {cfg.accumulate} -> {parts}: {num_processes()} processes share a batch of {cfg.batch_size} "
            f"images, and means of losses are over micro-batches. With --accumulate {parts} any number of processes "
            "that divides it continues this run"
        )
        cfg = cfg.replace(accumulate=parts)
    tuned = Config.preset(options.preset)
    if (cfg.learning_rate, cfg.steps) == (tuned.learning_rate, tuned.steps) and cfg.batch_size != tuned.batch_size:
        print(
            f"warning: a batch of {cfg.batch_size} images, but the preset's learning rate {tuned.learning_rate} and "
            f"its {tuned.steps} steps were chosen for {tuned.batch_size}"
            + (
                f". Too little memory? --accumulate {tuned.batch_size} keeps the batch, one image at a time"
                if cfg.batch_size < tuned.batch_size
                else ""
            )
        )
    if options.dry_run:
        _dry_run(cfg, options)
        return None, ""
    run = open_run(cfg, options.root, name=options.name)
    gap = missing_truth(cfg) if options.evaluate or cfg.val_every else ""
    if gap:
        print(f"no mIoU: {gap}")
    print(f"run folder: {run.path}")
    return run.path, gap


def _dry_run(cfg: Config, options: RunOptions) -> None:
    """What the command would do, need and take; a data set that is not there yet does not stop it."""
    import torch

    from toco_lab.data.classes import DataError
    from toco_lab.data.readers import open_dataset
    from toco_lab.training.cost import measured_rate, step_cost
    from toco_lab.training.processes import num_processes, resolve_device

    path = options.root / (options.name or cfg.run_name())
    state = RunDir(path).status() if (path / "config.json").is_file() else {"state": "new", "step": 0}
    print(f"run folder: {path} ({state['state']}, step {state['step']})")
    parts = f"in {cfg.accumulate} micro-batches" if cfg.accumulate > 1 else "at once"
    print(f"training:   {cfg.steps} steps of {cfg.batch_size} images {parts}")
    for split in dict.fromkeys((cfg.train_split, cfg.val_split)):
        try:
            found = f"{len(open_dataset(cfg, split))} images"
        except DataError as error:
            found = f"NOT READY: {error}"
        print(f"data:       {cfg.dataset} {split}: {found}")
    weights = cfg.weights or "downloaded by timm where they are not on this machine yet"
    print(f"backbone:   {cfg.backbone}, " + (f"weights: {weights}" if cfg.pretrained else "random weights"))
    device = resolve_device(cfg.device)
    print(f"device:     {device}" + (f", {num_processes()} processes" if num_processes() > 1 else ""))
    gpus = torch.cuda.device_count()
    if gpus > 1 and num_processes() == 1 and cfg.device == "auto":
        print(f"            {gpus} GPUs are here: torchrun --nproc-per-node {gpus} -m toco_lab train ... uses them all")
    cost = step_cost(cfg, processes=num_processes())
    rate = measured_rate(cfg, device, cost=cost)
    left = cfg.steps - state["step"]
    print(
        f"memory:     {cost.memory_bytes / 2**30:.1f} GiB a process at least: {cost.weight_bytes / 2**30:.1f} for "
        f"{cost.parameters / 1e6:.0f} million weights with gradients and moments, "
        f"{cost.activation_bytes / 2**30:.1f} of activations (--checkpoint-blocks, --accumulate and --precision bf16 "
        "lower them)"
    )
    print(
        f"time:       {left} steps of {cost.flops / 1e12:.2g} TFLOP at {rate / 1e12:.2g} TFLOP/s, measured just now: "
        f"about {timedelta(seconds=round(left * cost.flops / rate))} for the encoder passes; the rest of a step comes "
        "on top"
    )
    print("fields that differ from the defaults of Config:")
    for name, values in config_differences({"default": Config(), "here": cfg}).items():
        print(f"  {name} = {values['here']!r} (default {values['default']!r})")
