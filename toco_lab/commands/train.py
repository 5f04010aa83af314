"""The command `train`. Its options are made from the fields of Config, so that each field is written down once."""

import contextlib
import dataclasses
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Union, get_type_hints

import tyro

from toco_lab.commands.parser import HELP, given_options, refuse_given
from toco_lab.commands.trained import print_doubtful_truth, print_scores
from toco_lab.config import Config, config_differences
from toco_lab.presets import PRESETS
from toco_lab.trackers.tracker import TrackerName
from toco_lab.words import counted, duration, program

if TYPE_CHECKING:
    import torch

    from toco_lab.runs.run_dir import RunDir

CONFIG_FIELDS = [field for field in dataclasses.fields(Config) if field.name != "preset_name"]
USUAL_FIELDS = (  # with `UsualOptions` what `--help` shows
    "data_root", "backbone", "crop_size", "steps", "batch_size", "learning_rate", "w_ptc", "w_ctc", "seed", "device",
)  # fmt: skip


@dataclasses.dataclass(kw_only=True)
class UsualOptions:
    """Options of `train` that are no Config fields, and that `--help` shows."""

    root: Path = Path("results")
    """folder that holds the runs"""
    name: str | None = None
    """folder name below it; None takes <preset>-<digest>-s<seed>"""
    dry_run: bool = False
    """say what would be done and how long it takes on this machine, and do nothing"""
    save_config: Path | None = None
    """write the complete config into this file (.yaml or .json), for `train --config FILE`, and do nothing else"""


@dataclasses.dataclass(kw_only=True)
class TrainOptions(UsualOptions):
    """Options of `train` that are no Config fields; `options_of` adds the ones that are."""

    base: ClassVar[Config]  # from which the options start: of a preset, or of a file

    measure: bool = True
    """time a few steps in a dry run"""
    released: bool = False
    """switch on every quirk of the authors' released code; options that are given win over it"""
    evaluate: bool = True
    """score the trained model and measure its over-smoothing"""
    log_to: tuple[TrackerName, ...] = ()
    """also tell these trackers every row, score and CAM; each needs its package, see docs/tracking.md"""

    @property
    def preset(self) -> Config:
        """The preset of the base; where it has none, `Config` itself."""
        return Config.preset(self.base.preset_name) if self.base.preset_name in PRESETS else Config()

    def config(self) -> Config:
        """The Config that the options stand for; DataError if one of them has no effect."""
        from toco_lab.data.unused import refuse_unused

        base, given = self.base, given_options()
        values = {field.name: getattr(self, field.name) for field in CONFIG_FIELDS}
        changed = {name: value for name, value in values.items() if name in given or value != getattr(base, name)}
        cfg = (base.released() if self.released else base).replace(**changed)
        refuse_unused(cfg, [*changed, *config_differences({"preset": self.preset, "file": base})])
        for name in ("weights", "weights_tag"):
            if name in changed and getattr(cfg, name) and not cfg.pretrained:
                raise ValueError(
                    f"{name}={getattr(cfg, name)!r} has no effect: pretrained is False, so the weights are random. "
                    "Give --pretrained, or leave it out"
                )
        return cfg


# --- the options that a command line can mean -------------------------------------------------------------------------


def options_of(cfg: Config, *, usual: bool = False) -> type:
    """`TrainOptions` and every field of Config, the usual ones first, with help text and the config's value.

    Args:
        cfg: The config from which the options start.
        usual: The usual ones alone, for `--help`; nothing is parsed with them.
    """
    types, fields = get_type_hints(Config), {field.name: field for field in CONFIG_FIELDS}
    names = USUAL_FIELDS if usual else dict.fromkeys((*USUAL_FIELDS, *fields))
    made: list[tuple[str, Any, Any]] = []
    for name in names:
        default = dataclasses.field(default=getattr(cfg, name))
        made.append((name, Annotated[types[name], tyro.conf.arg(help=fields[name].metadata["help"])], default))
    bases, shared = (UsualOptions if usual else TrainOptions,), {"base": cfg}
    return dataclasses.make_dataclass("TrainOptions", made, bases=bases, namespace=shared, kw_only=True)


def options_of_preset(preset: str) -> type[TrainOptions]:
    """`options_of` a preset."""
    return options_of(Config.preset(preset))


def _options_of_line(words: Sequence[str]) -> Any:
    """The options that a line can mean: of each preset, or of a config file, which takes the place of a preset."""
    path, preset, _ = config_file(words)
    asked = set(HELP) & set(words)
    if path is not None and not asked:
        from toco_lab.runs.config_file import read_config

        return options_of(read_config(path, preset=preset))
    usual = bool(asked) and "--help-all" not in words
    named = [word for word in words[1:2] if word in PRESETS]
    hint = "\n\nThe usual options; --help-all shows every field of the config." if named and usual else ""
    made = (
        # of presets that are not named few options are enough
        _of_preset(name, usual=usual or name not in (named or PRESETS), hint=hint)
        for name in PRESETS
    )
    return Union[tuple(made)]  # noqa: UP007 (made at runtime)


def _of_preset(preset: str, *, usual: bool, hint: str) -> Any:
    """The options of a preset as a command of their own, with one line about it, and a hint, for `--help`."""
    cfg = Config.preset(preset)
    about = f"{cfg.dataset}, {cfg.backbone}, {counted(cfg.steps, 'step')} of {counted(cfg.batch_size, 'image')}"
    made = options_of(cfg, usual=usual)
    return Annotated[made, tyro.conf.subcommand(preset, description=about + hint, prefix_name=False)]


def config_file(words: Sequence[str]) -> tuple[Path | None, str | None, list[str]]:
    """The file that `train --config FILE` names, the preset beside it if there is one, and the line without both.

    Raises:
        ValueError: For `--config` without a file, or twice.
    """
    places = [place for place, word in enumerate(words) if word == "--config" or word.startswith("--config=")]
    if words[:1] != ["train"] or not places:
        return None, None, list(words)
    if len(places) > 1:
        raise ValueError("--config is given twice: the first would have no effect. Leave one out")
    place, joined = places[0], words[places[0]].startswith("--config=")
    value = words[place].partition("=")[2] if joined else "".join(words[place + 1 : place + 2])
    if not value or value.startswith("--"):
        raise ValueError("--config needs a file: YAML of config fields, or the config.json of a run")
    rest = [*words[:place], *words[place + (1 if joined else 2) :]]
    preset = rest.pop(1) if rest[1:2] and rest[1] in PRESETS else None
    return Path(value), preset, rest


def train_command(words: Sequence[str]) -> Callable[..., None]:
    """`train` with the options that a line can mean."""
    named = words[:1] == ["train"] or (words[:1] and words[0].startswith("--tyro"))  # a completion has them all
    kind = _options_of_line(words) if named else UsualOptions  # of another command's line the name is all that counts

    def command(options: Any) -> None:
        train(options)

    command.__doc__ = train.__doc__
    plain: Any = tyro.conf.OmitArgPrefixes  # --steps, not --options.steps
    command.__annotations__["options"] = plain[kind]
    return command


def train(options: TrainOptions) -> None:
    """Train, or continue, a run of a preset; then evaluate it and measure over-smoothing.

    `train --config FILE` takes a config file in place of a preset, or the config.json of a run; options win over it.

    Several GPUs: torchrun --nproc-per-node 4 -m toco_lab train ... shares each batch and the evaluation out.
    """
    if options.save_config is not None:
        _save_config(options, options.save_config)
        return
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


def _save_config(options: TrainOptions, path: Path) -> None:
    from toco_lab.data.own_folder import complete_config
    from toco_lab.runs.config_file import write_config

    refuse_given(("dry_run", "name", "root", "evaluate"), "with --save-config: nothing is trained")
    write_config(path, complete_config(options.config()))
    print(f"{path}: `{program()} train --config {shlex.quote(str(path))}` trains it")


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
    _warn_of_batch_size(cfg, options.preset)
    if options.dry_run:
        for line in _outlook(cfg, options):
            print(line, flush=True)
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
    yield from _cost_lines(cfg, device, cfg.steps - step, measure=options.measure)
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


def _cost_lines(cfg: Config, device: "torch.device", steps_left: int, *, measure: bool) -> Iterator[str]:
    """Memory of a process, and the time that the steps to come take on this machine."""
    from toco_lab.training.cost import measured_rate, step_cost
    from toco_lab.training.processes import num_processes
    from toco_lab.training.timing import bf16_gain

    cost = step_cost(cfg, processes=num_processes())
    yield (
        f"memory:     {cost.memory_bytes / 2**30:.1f} GiB a process at least: {cost.weight_bytes / 2**30:.1f} for "
        f"{cost.parameters / 1e6:.0f} million weights with gradients and moments, "
        f"{cost.activation_bytes / 2**30:.1f} of activations (--checkpoint-blocks, --accumulate and --precision bf16 "
        "lower them)"
    )
    if not measure:
        steps = counted(steps_left, "step")
        yield f"time:       {steps} of {cost.flops / 1e12:.2g} TFLOP; without --no-measure a few of them are timed"
        return
    expected = cost.flops / measured_rate(cfg, device, cost=cost)
    yield f"time:       {_time_line(cfg, device, steps_left, expected)}"
    yield from _precision_line(cfg, bf16_gain(device))


def _precision_line(cfg: Config, gain: float) -> Iterator[str]:
    """Whether the other precision is faster here, `gain` times being what bf16 gives."""
    from toco_lab.training.timing import WORTH_IT

    other, factor = {"fp32": ("bf16", gain), "bf16": ("fp32", 1 / gain)}.get(cfg.precision, ("", 0.0))
    if factor > WORTH_IT:
        yield f"precision:  {other} is {factor:.1f} times as fast as {cfg.precision} here: --precision {other}"


def _time_line(cfg: Config, device: "torch.device", steps_left: int, expected: float) -> str:
    """How long training takes, by steps that are timed now; where these would take too long, by `expected` seconds."""
    import torch

    from toco_lab.training.timing import timed_steps

    steps = counted(steps_left, "step")
    try:
        timing = timed_steps(cfg, device, expected=expected)
    except torch.OutOfMemoryError:
        at_once = counted(cfg.batch_size // cfg.accumulate, "image")
        return f"not known: {at_once} at once DO NOT FIT into the memory of {device}. A larger --accumulate needs less"
    if timing is None:
        return (
            f"{steps} would take more than {duration(steps_left * expected)} on {device}, {duration(expected)} each: "
            "too slow to time one, so this is by the speed of an encoder pass, measured just now"
        )
    with_images = f" with {counted(timing.images, 'image')}" if timing.images < timing.micro_batch else ""
    return (
        f"{steps} of {timing.seconds:.3g} s, about {duration(steps_left * timing.seconds)}: "
        f"{counted(timing.steps, 'step')}{with_images} timed on {device} just now; "
        f"{'the linear probe and evaluation come' if cfg.probe_heads else 'evaluation comes'} on top"
    )
