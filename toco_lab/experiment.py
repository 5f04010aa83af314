"""ONE run, from its config to its numbers: train it, evaluate it, measure its over-smoothing, keep its tokens.

Commands, sweeps and notebooks all come here, so what one accepts all accept: a folder without lists, validation images
without masks, several processes, a run that was killed.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from toco_lab.config import Config, config_differences
from toco_lab.data.masks import check_classes_shown
from toco_lab.data.own_folder import complete_config, write_split
from toco_lab.data.readers import missing_truth, open_dataset
from toco_lab.data.training_masks import TrainingMasks
from toco_lab.data.unused import refuse_unused
from toco_lab.evaluation.evaluate import Evaluation, evaluate_run, validator
from toco_lab.files import enter_project, require
from toco_lab.method.face import CamModel
from toco_lab.methods import reads_masks
from toco_lab.presets import PRESETS
from toco_lab.relations import never_reached
from toco_lab.runs.names import check_run_name
from toco_lab.runs.run_dir import RunDir
from toco_lab.smoothing.of_runs import smoothing_of_run
from toco_lab.tokens.snapshots import Snapshots
from toco_lab.trackers.logbook import Logbook, tracking
from toco_lab.trackers.tracker import check_trackers
from toco_lab.training.checkpoints import initial_model
from toco_lab.training.loop import fit
from toco_lab.training.processes import everywhere, is_first, resolve_device
from toco_lab.training.teacher import check_teacher
from toco_lab.vocabulary import LABELS


def open_run(cfg: Config, root: Path | str = "results", *, name: str | None = None, make: bool = True) -> RunDir:
    """The folder of a run, new or to be continued; a folder of images gets its classes and its two lists first.

    Args:
        cfg: As the user gave it; the run's own config has the classes of the data set.
        root: Folder that holds the runs.
        name: Folder name below `root`; None takes `cfg.run_name()`.
        make: False makes the folder of a new run only when something is written, see `RunDir.plan`.

    Raises:
        ValueError: If the data set cannot be read, its masks show no class, the masks or the teacher of a second stage
            are not there, a field that differs from the preset is none that it reads, `name` is none of a folder below
            `root`, or the folder holds a run of another config.
    """
    require(cfg, Config, "cfg", ": make one with Config.preset(name)")
    check_run_name(name)
    preset = Config.preset(cfg.preset_name) if cfg.preset_name in PRESETS else Config()
    changed, cfg = config_differences({"preset": preset, "run": cfg}), complete_config(cfg)
    path = Path(root) / (cfg.run_name() if name is None else name)
    is_new = not (path / "config.json").is_file()
    if is_new:
        refuse_unused(cfg, changed)
    train_set = open_dataset(cfg, cfg.train_split)  # what is not there is said before there is a folder
    if reads_masks(cfg):
        TrainingMasks.of(cfg, train_set)
    if cfg.soft_teacher:
        check_teacher(cfg)
    if cfg.label_source == "masks":
        check_classes_shown(train_set, cfg.train_split)
    if is_new and cfg.pretrained and cfg.weights:
        with torch.random.fork_rng(devices=[]):
            initial_model(cfg)  # a weights file that does not fit leaves no run behind
    if drawn := write_split(cfg):
        print(drawn)
    run = (RunDir.create if make else RunDir.plan)(cfg, root, name=name)
    log = run.path / "log.txt"
    for sentence in never_reached(cfg):
        print(f"warning: {sentence}")
        said = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        if run.has_begun and sentence not in said:
            run.log(f"warning: {sentence}")
    return run


def train(run: RunDir, *, log_to: str | Sequence[str] = (), progress: bool = True) -> CamModel:
    """Train a run, or continue it from its last checkpoint; a finished one is loaded and returned as it is.

    With validation where the config asks for it and the images have masks, and with token snapshots of the probe
    images. See `fit` for what a kill, a NaN or several processes do.

    Args:
        run: Its config says everything.
        log_to: Trackers that are told every row and the CAMs of every validation, among `trackers.TRACKERS`. They
            change no number, and stop nothing.
        progress: Show a progress bar.

    Returns:
        The trained model, in evaluation mode.

    Raises:
        ValueError: For a tracker that there is not, or that is not installed; and as `fit`.
    """
    require(run, RunDir, "run", ": open one with RunDir(folder)")
    names = check_trackers(log_to)
    with tracking(run, names if is_first() else ()) as log:
        return _train(run, log, pictures=bool(names), progress=progress)


def _train(run: RunDir, log: Logbook, *, pictures: bool, progress: bool) -> CamModel:
    cfg = run.config()
    scored = cfg.val_every > 0 and not missing_truth(cfg)
    validate = validator(cfg, show=log.pictures if pictures else None) if scored else None
    return fit(cfg, run, validate=validate, snapshot=Snapshots(run), on_row=log.row, progress=progress)


def make(run: RunDir, *, log_to: str | Sequence[str] = (), progress: bool = True) -> Evaluation:
    """Train a run, evaluate it and measure its over-smoothing; what an earlier attempt has finished is not done again,
    unless its file is damaged.

    Inside `process_group` all processes call it: training and evaluation are shared out, the first one measures.

    Args:
        run: Its config says everything.
        log_to: As in `train`; at the end the trackers are told scores, protocol, over-smoothing per layer and CAMs.
        progress: Show progress bars.

    Returns:
        The evaluation, read from the run's folder where it was there already.
    """
    require(run, RunDir, "run", ": open one with RunDir(folder)")
    names = check_trackers(log_to)
    with tracking(run, names if is_first() else ()) as log:
        _train(run, log, pictures=bool(names), progress=progress)
        evaluated = _evaluate_and_measure(run, progress=progress)
        log.finish()
    return evaluated


def _evaluate_and_measure(run: RunDir, *, progress: bool) -> Evaluation:
    cfg = run.config()
    device = str(resolve_device(cfg.device))
    # the first process may have begun to write when another looks
    evaluated, measured = everywhere((_evaluation_there(run), _smoothing_there(run)))[0]
    if not evaluated:
        targets = (LABELS,) if missing_truth(cfg) else None
        evaluated = evaluate_run(run, targets=targets, device=device, progress=progress)
    if not measured and is_first():
        smoothing_of_run(run, device=device, progress=progress)
    return evaluated


def _evaluation_there(run: RunDir) -> Evaluation | None:
    """The evaluation in the folder of a run; None if there is none, or it is damaged and has to be made anew."""
    try:
        return Evaluation(run.read_table("evaluation"), run.read_json("protocol"))
    except (ValueError, FileNotFoundError):
        return None


def _smoothing_there(run: RunDir) -> bool:
    """Whether the folder of a run holds its over-smoothing, undamaged."""
    try:
        return run.is_measured and len(run.read_table("smoothing")) > 0
    except ValueError:
        return False


def start(preset: str, overrides: Mapping[str, Any], run_dir: Path | str) -> tuple[Config, RunDir]:
    """What every notebook begins with: the config that its parameters stand for, and the folder of its run.

    Relative paths count from the project's folder; figures are shown in the notebook and kept in its file. A new run
    begins, and is listed, when it is trained.

    Args:
        preset: Name of a preset; "" takes the config of the run that `run_dir` holds, as it is.
        overrides: Config fields that differ from it.
        run_dir: Folder of the run, new or to be continued.

    Raises:
        ValueError: For an unknown preset or field, overrides without a preset, or a folder that holds a run of another
            config.
        FileNotFoundError: If there is no preset, and no run in the folder.
    """
    require(overrides, Mapping, "overrides", ": config fields and their values, like {'steps': 20}")
    enter_notebook()
    if not preset:
        if overrides:
            raise ValueError("without a preset the run keeps its config: leave overrides empty, or name the preset")
        run = RunDir(run_dir)
        return run.config(), run
    cfg = Config.preset(preset).replace(**overrides)
    run = open_run(cfg, Path(run_dir).parent, name=Path(run_dir).name, make=False)
    return run.config(), run


def enter_notebook() -> Path:
    """Relative paths count from the project's folder, which is returned; figures are shown as pictures.

    plotly's are kept in its own format and as HTML, which an export shows without a network and without the button that
    uploads a figure. Outside a notebook neither matplotlib nor plotly is imported.
    """
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()):
        from toco_lab.figures.saved import show_figures

        shell.run_line_magic("matplotlib", "inline")
        show_figures()
    return enter_project()
