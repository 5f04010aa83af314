"""Where the weights of a prediction come from: a run, a checkpoint file (also the authors'), the best of a sweep."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from toco_lab.backbones.weights import CheckpointError, read_weights, some, weights_hash
from toco_lab.config import Config
from toco_lab.files import did_you_mean
from toco_lab.method.model import ToCo
from toco_lab.prediction.predictor import Predictor
from toco_lab.runs.listing import final_scores, find_runs, images_evaluated
from toco_lab.runs.run_dir import RunDir
from toco_lab.runs.small_files import Columns, read_json_file, read_table_file
from toco_lab.training.checkpoints import load_run_model, model_of_checkpoint
from toco_lab.training.processes import resolve_device
from toco_lab.training.released import import_released
from toco_lab.vocabulary import CAM, MIOU
from toco_lab.words import counted, program

BY = f"{CAM}_{MIOU}"  # the score by which the best run is chosen, unless another one is asked for
PRESETS_OF_CLASSES = {20: "voc_vit_b", 80: "coco_vit_b"}  # of a released file: its DeiT and its ViT have one shape
_CLASSIFIER = "classifier.weight"


def load(
    source: RunDir | Path | str, *, device: str = "auto", preset: str | None = None, by: str | None = None
) -> Predictor:
    """A model that predicts, from whatever holds its weights.

    Args:
        source: A run or its folder (the last checkpoint); a checkpoint of a run; a file the authors released; or a
            folder of runs, a sweep's for instance, of which the best is taken.
        device: auto, cpu, cuda ...
        preset: Of a released file: the preset it belongs to; None takes VOC's of 20 and COCO's of 80 classes.
        by: Of several runs: the score that decides, like seg_mIoU; None takes cam_mIoU.

    Raises:
        FileNotFoundError: If there is nothing at `source`.
        CheckpointError: If the weights cannot be used.
        ValueError: If an option has no effect on what is loaded, or no run has the score.
    """
    place = resolve_device(device)
    if isinstance(source, RunDir):
        _refuse(source.path, "is one run", preset=preset, by=by)
        return of_run(source, place)
    path = Path(source)
    if path.is_file():
        _refuse(path, "is one file", by=by)
        return _of_file(path, place, preset)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no run, checkpoint or sweep {path}; `{program()} runs` lists the runs")
    if (path / "config.json").is_file():
        _refuse(path, "is one run", preset=preset, by=by)
        return of_run(RunDir(path), place)
    _refuse(path, "is a folder of runs", preset=preset)
    run, chosen = best_run(path, BY if by is None else by)
    return of_run(run, place, chosen)


def _refuse(path: Path, what: str, **options: str | None) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name} ({value}) has no effect: {path} {what}. Leave it out")


def of_run(run: RunDir, device: torch.device, chosen: str = "") -> Predictor:
    """The predictor of a run's last checkpoint."""
    model, cfg = load_run_model(run, device)
    path = run.checkpoints()[-1]
    step = int(path.stem.removeprefix("step_"))
    return Predictor(model, cfg, name=run.name, checkpoint=weights_hash(path), step=step, chosen=chosen)


# --- files ------------------------------------------------------------------------------------------------------------


def _of_file(path: Path, device: torch.device, preset: str | None) -> Predictor:
    """The predictor of a checkpoint file, of a run or of the authors; it is known by what it holds."""
    state = read_weights(path)
    if {"model", "config"} <= state.keys():
        _refuse(path, "is a checkpoint of a run, which knows its config", preset=preset)
        model, cfg = model_of_checkpoint(path, state)
        step = state["step"]
    else:
        cfg = Config.preset(preset or _preset_of(path, state)).released()
        model, step = ToCo(cfg), cfg.steps
        found = import_released(model, state)
        if needed := [name for name in found.missing if not name.startswith(("proj_head.", "proj_head_t."))]:
            raise CheckpointError(
                f"{path} lacks {counted(len(needed), 'parameter')} of the model, which would stay random: "
                f"{some(needed)}. Fetch it again, or take the preset it belongs to"
            )
    return Predictor(model.eval().to(device), cfg, name=path.stem, checkpoint=weights_hash(path), step=step)


def _preset_of(path: Path, state: Mapping[str, Any]) -> str:
    """The preset of a released file, by its number of classes."""
    weight = next((value for name, value in state.items() if name.removeprefix("module.") == _CLASSIFIER), None)
    if weight is None or not hasattr(weight, "shape"):
        raise CheckpointError(
            f"{path} has no {_CLASSIFIER}: it is neither a checkpoint of a run nor one that the authors released. A "
            "backbone alone predicts nothing; train a run with it, --weights FILE"
        )
    if len(weight) not in PRESETS_OF_CLASSES:
        raise CheckpointError(
            f"{path} has {counted(len(weight), 'class')}: say which preset it belongs to, --preset NAME"
        )
    return PRESETS_OF_CLASSES[len(weight)]


# --- the best of several runs -----------------------------------------------------------------------------------------


def best_run(folder: Path, by: str = BY) -> tuple[RunDir, str]:
    """The run with the highest score in a folder of runs, and in words how it was chosen; the first one of equals.

    A sweep whose runs lie in a folder that it shares with others has those that its sweep.csv lists. A run without a
    checkpoint or without the score does not count.

    Args:
        folder: It holds runs at any depth, or a sweep.csv.
        by: A mean score, like cam_mIoU or seg_mIoU.

    Raises:
        ValueError: If there are no runs, or none has the score.
    """
    scores: dict[Path, float] = {}
    known: set[str] = set()
    runs = _runs_of(folder)
    for run in runs:
        found = final_scores(run)
        known |= found.keys()
        if by in found and run.checkpoints():
            scores[run.path] = found[by]
    if not runs and (folder / "grid.yaml").is_file():
        raise ValueError(
            f"the sweep {folder} is not finished and lists no runs yet: wait for it, or name one of its runs"
        )
    if not runs:
        raise ValueError(f"{folder} is no run (it has no config.json) and holds none")
    if not scores:
        there = (
            f"; there are: {', '.join(sorted(known))}" if known else f": evaluate them first, `{program()} evaluate`"
        )
        raise ValueError(
            f"{counted(len(runs), f'run in {folder} has', f'runs in {folder} have')} no checkpoint with the score "
            f"{by!r}{did_you_mean(by, known) or there}"
        )
    best = max(scores, key=lambda path: scores[path])
    over = images_evaluated(RunDir(best)).get("scored_images")
    images = f" over {counted(over, 'image')}" if over is not None else ""
    return RunDir(best), f"best of {counted(len(scores), 'run')} in {folder} by {by} ({100 * scores[best]:.1f}{images})"


def _runs_of(folder: Path) -> list[RunDir]:
    """The runs of a sweep, or all runs below a folder."""
    table = folder / "sweep.csv"
    if not table.is_file():
        return [RunDir(path) for path in find_runs(folder) if (path / "config.json").is_file()]
    grid = read_json_file(folder / "grid.yaml", {"folder?": "text"}) if (folder / "grid.yaml").is_file() else {}
    home = folder.parent / (grid.get("folder") or folder.name)
    names = read_table_file(table, Columns(text=("run",)))["run"].unique()
    return [RunDir(home / name) for name in names if (home / name / "config.json").is_file()]
