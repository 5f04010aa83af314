"""The command `train`. Its options are made from the fields of Config, so that each field is written down once."""

import contextlib
import dataclasses
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Union, get_type_hints

import tyro

from toco_lab.commands.parser import given_options
from toco_lab.commands.trained import print_doubtful_truth, print_scores
from toco_lab.config import Config, config_differences
from toco_lab.presets import PRESETS
from toco_lab.trackers.tracker import TrackerName
from toco_lab.words import counted

if TYPE_CHECKING:
    import torch

    from toco_lab.runs.run_dir import RunDir

CONFIG_FIELDS = [field for field in dataclasses.fields(Config) if field.name != "preset_name"]


@dataclasses.dataclass(kw_only=True)
class TrainOptions:
    """Options of `train`. Those below are not Config fields; `options_of_preset` adds the ones that are."""

    preset: ClassVar[str]

    released: bool = False
    """switch on every quirk of the authors' released code; options that are given win over it"""
    root: Path = Path("results")
    """folder that holds the runs"""
    name: str | None = None
    """folder name below it; None takes <preset>-<digest>-s<seed>"""
    evaluate: bool = True
    """score the trained model and measure its over-smoothing"""
    log_to: tuple[TrackerName, ...] = ()
    """also tell these trackers every row, score and CAM; each needs its package, see docs/tracking.md"""
    dry_run: bool = False
    """say what would be done, and do nothing"""

    def config(self) -> Config:
        """The Config that the options stand for; DataError if one of them has no effect."""
        from toco_lab.data.unused import refuse_unused

        base = Config.preset(self.preset)
        values = {field.name: getattr(self, field.name) for field in CONFIG_FIELDS}
        given = given_options()
        changed = {name: value for name, value in values.items() if name in given or value != getattr(base, name)}
        cfg = (base.released() if self.released else base).replace(**changed)
        refuse_unused(cfg, changed)
        for name in ("weights", "weights_tag"):
            if name in changed and getattr(cfg, name) and not cfg.pretrained:
                raise ValueError(
                    f"{name}={getattr(cfg, name)!r} has no effect: pretrained is False, so the weights are random. "
                    "Give --pretrained, or leave it out"
                )
        return cfg


def options_of_preset(preset: str) -> type[TrainOptions]:
    """`TrainOptions` and every field of Config, with the field's help text and the preset's value as default."""
    cfg, types = Config.preset(preset), get_type_hints(Config)
    fields: list[tuple[str, Any, Any]] = []
    for field in CONFIG_FIELDS:
        default = dataclasses.field(default=getattr(cfg, field.name))
        fields.append((field.name, Annotated[types[field.name], tyro.conf.arg(help=field.metadata["help"])], default))
    return dataclasses.make_dataclass(
        "TrainOptions", fields, bases=(TrainOptions,), namespace={"preset": preset}, kw_only=True
    )


def _command_of_preset(preset: str) -> Any:
    """The options of a preset as a command of their own, with one line about it for `--help`."""
    cfg = Config.preset(preset)
    about = f"{cfg.dataset}, {cfg.backbone}, {counted(cfg.steps, 'step')} of {counted(cfg.batch_size, 'image')}"
    return Annotated[options_of_preset(preset), tyro.conf.subcommand(preset, description=about, prefix_name=False)]


if TYPE_CHECKING:
    OptionsOfAnyPreset = TrainOptions
else:
    OptionsOfAnyPreset = Union[tuple(map(_command_of_preset, PRESETS))]  # noqa: UP007 (made at runtime)


def train(options: tyro.conf.OmitArgPrefixes[OptionsOfAnyPreset]) -> None:
    """Train, or continue, a run of a preset; then evaluate it and measure over-smoothing.

    Several GPUs: torchrun --nproc-per-node 4 -m toco_lab train ... shares each batch and the evaluation out.
    """
    from toco_lab import experiment
    from toco_lab.runs.run_dir import RunDir
    from toco_lab.training.processes import everywhere, is_first, process_group

    with process_group():
        opened = _open_run(options) if is_first() else None
        path = everywhere(opened.path if opened else None)[
            0
        ]  # the first process makes the folder, the others wait for it
        if path is None:
            return
        run = opened or RunDir(path)
        evaluation = experiment.make(run, log_to=options.log_to) if options.evaluate else None
        if evaluation is None:
            experiment.train(run, log_to=options.log_to)
        if not is_first():
            return
    if evaluation is not None:
        print_scores(evaluation)
        _print_missing_truth(run.config())
        print_doubtful_truth(run.config())
    print(f"done: {run.path}")


def _open_run(options: TrainOptions) -> "RunDir | None":
    """Make the folder of the run that the options ask for, and say what is worth knowing; None after a dry run."""
    from toco_lab.data.classes import DataError
    from toco_lab.data.own_folder import complete_config
    from toco_lab.experiment import open_run
    from toco_lab.runs.names import check_run_name
    from toco_lab.trackers.tracker import check_trackers

    check_run_name(options.name)
    check_trackers(options.log_to)  # what is not installed is said before there is a folder
    cfg = _shared_out(complete_config(options.config()))
    _warn_of_batch_size(cfg, Config.preset(options.preset))
    if options.dry_run:
        print(*_outlook(cfg, options), sep="\n")
        with contextlib.suppress(DataError):  # said already: the data are not ready
            _print_usage(cfg)
        return None
    if options.evaluate or cfg.val_every:
        _print_missing_truth(cfg)  # masks that cannot be scored are refused before there is a folder
        print_doubtful_truth(cfg)
    _print_usage(cfg)  # labels that cannot be read are refused before as well
    run = open_run(cfg, options.root, name=options.name)
    print(f"run folder: {run.path}")
    return run


def _shared_out(cfg: Config) -> Config:
    """The config with as many micro-batches as its processes can share."""
    from toco_lab.training.processes import micro_batches, num_processes

    parts = micro_batches(cfg.batch_size, cfg.accumulate, num_processes())
    if parts != cfg.accumulate:
        shared = counted(num_processes(), "process shares", "processes share")
        print(
            f"accumulate {cfg.accumulate} -> {parts}: {shared} a batch of {counted(cfg.batch_size, 'image')}, and "
            f"means of losses are over micro-batches. With --accumulate {parts} any number of processes that divides "
            "it continues this run"
        )
    return cfg.replace(accumulate=parts)


def _warn_of_batch_size(cfg: Config, tuned: Config) -> None:
    """Say so if the batch differs from the preset's, and the learning rate and the steps that belong to it do not."""
    if (cfg.learning_rate, cfg.steps) != (tuned.learning_rate, tuned.steps) or cfg.batch_size == tuned.batch_size:
        return
    hint = f". Too little memory? --accumulate {tuned.batch_size} keeps the batch, one image at a time"
    print(
        f"warning: a batch of {counted(cfg.batch_size, 'image')}, but the preset's learning rate "
        f"{tuned.learning_rate} and its {counted(tuned.steps, 'step')} were chosen for {tuned.batch_size}"
        f"{hint if cfg.batch_size < tuned.batch_size else ''}"
    )


def _print_missing_truth(cfg: Config) -> None:
    from toco_lab.data.readers import missing_truth

    if reason := missing_truth(cfg):
        print(f"no mIoU: {reason}")


def _print_usage(cfg: Config) -> None:
    from toco_lab.data.usage import folder_usage

    if usage := folder_usage(cfg):
        print(*usage.lines(), sep="\n")


# --- a dry run --------------------------------------------------------------------------------------------------------


def _outlook(cfg: Config, options: TrainOptions) -> Iterator[str]:
    """What the command would do, need and take, as lines; a data set that is not there yet does not stop it."""
    from toco_lab.runs.run_dir import RunDir
    from toco_lab.training.processes import resolve_device

    path = options.root / (options.name or cfg.run_name())
    run = RunDir(path) if (path / "config.json").is_file() else None
    state, step = (run.state(), run.status()["step"]) if run else ("new", 0)
    yield f"run folder: {path} ({state}, step {step})"
    parts = f"in {counted(cfg.accumulate, 'micro-batch')}" if cfg.accumulate > 1 else "at once"
    yield f"training:   {counted(cfg.steps, 'step')} of {counted(cfg.batch_size, 'image')} {parts}"
    for split in dict.fromkeys((cfg.train_split, cfg.val_split)):
        yield f"data:       {cfg.dataset} {split}: {_data_there(cfg, split)}"
    weights = cfg.weights or "downloaded by timm where they are not on this machine yet"
    yield f"backbone:   {cfg.backbone}, " + (f"weights: {weights}" if cfg.pretrained else "random weights")
    device = resolve_device(cfg.device)
    yield from _device_lines(cfg, device)
    yield from _cost_lines(cfg, device, cfg.steps - step)
    yield "fields that differ from the defaults of Config:"
    for name, values in config_differences({"default": Config(), "here": cfg}).items():
        yield f"  {name} = {values['here']!r} (default {values['default']!r})"


def _data_there(cfg: Config, split: str) -> str:
    """How many images a split has, or why it cannot be read yet."""
    from toco_lab.data.classes import DataError
    from toco_lab.data.readers import open_dataset

    try:
        return counted(len(open_dataset(cfg, split)), "image")
    except DataError as error:
        return f"NOT READY: {error}"


def _device_lines(cfg: Config, device: "torch.device") -> Iterator[str]:
    """The device, and a hint where more GPUs are there than are used."""
    import torch

    from toco_lab.training.processes import num_processes

    yield f"device:     {device}" + (f", {counted(num_processes(), 'process')}" if num_processes() > 1 else "")
    gpus = torch.cuda.device_count()
    if gpus > 1 and num_processes() == 1 and cfg.device == "auto":
        yield f"            {gpus} GPUs are here: torchrun --nproc-per-node {gpus} -m toco_lab train ... uses them all"


def _cost_lines(cfg: Config, device: "torch.device", steps_left: int) -> Iterator[str]:
    """Memory of a process, and the time that the steps to come will take at the speed measured now."""
    from toco_lab.training.cost import measured_rate, step_cost
    from toco_lab.training.processes import num_processes

    cost = step_cost(cfg, processes=num_processes())
    rate = measured_rate(cfg, device, cost=cost)
    yield (
        f"memory:     {cost.memory_bytes / 2**30:.1f} GiB a process at least: {cost.weight_bytes / 2**30:.1f} for "
        f"{cost.parameters / 1e6:.0f} million weights with gradients and moments, "
        f"{cost.activation_bytes / 2**30:.1f} of activations (--checkpoint-blocks, --accumulate and --precision bf16 "
        "lower them)"
    )
    yield (
        f"time:       {counted(steps_left, 'step')} of {cost.flops / 1e12:.2g} TFLOP at {rate / 1e12:.2g} "
        f"TFLOP/s, measured just now: about {timedelta(seconds=round(steps_left * cost.flops / rate))} for the "
        "encoder passes; the rest of a step comes on top"
    )
