"""The authors' released checkpoints: their names and ours, and a run made of one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from toco_lab.backbones.weights import CheckpointError, check_floating, check_tensors, read_weights, some, weights_hash
from toco_lab.config import Config
from toco_lab.method.model import ToCo
from toco_lab.runs.names import check_run_name
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import save_checkpoint
from toco_lab.training.learner import Learner
from toco_lab.words import counted

RELEASED_NAMES = {  # our parameter prefix -> the authors'
    "decoder.conv1.": "decoder.conv6.",
    "decoder.conv2.": "decoder.conv7.",
    "decoder.conv3.": "decoder.conv8.",
    "projection_head.directions": "proj_head.last_layer.weight_v",
    "teacher_head.directions": "proj_head_t.last_layer.weight_v",
    "projection_head.": "proj_head.",
    "teacher_head.": "proj_head_t.",
}


GAINS = ("proj_head.last_layer.weight_g", "proj_head_t.last_layer.weight_g")  # weight norm's gain, fixed at 1


@dataclass(frozen=True)
class ImportReport:
    """What `import_released` found.

    Attributes:
        missing: Names our model has and the file lacks; they keep their values.
        unexpected: Names of the file that nothing here uses.
        unused: The tensors behind `unexpected`, to be exported again.
    """

    missing: list[str]
    unexpected: list[str]
    unused: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        """Both lists in words."""
        return f"missing: {', '.join(self.missing) or 'none'}; unexpected: {', '.join(self.unexpected) or 'none'}"


def import_released(model: ToCo, source: Path | str | Mapping[str, Tensor]) -> ImportReport:
    """Load a checkpoint of the authors (DataParallel state dict or plain) into a model of the same sizes.

    Args:
        model: Changed in place.
        source: File, or a state dict already read.

    Raises:
        CheckpointError: If the file is unreadable, nothing in it fits, a shape differs, or a weight-norm gain is not 1.
    """
    state = dict(source) if isinstance(source, Mapping) else read_weights(source)
    where = "the checkpoint" if isinstance(source, Mapping) else str(source)
    state = {str(name).removeprefix("module."): value for name, value in state.items()}
    ours = {released_name(name): name for name in model.state_dict()}
    if not any(name in ours for name in state):
        raise CheckpointError(f"no parameter of {where} is known; it begins with {', '.join(list(state)[:3])}")
    check_tensors({name: value for name, value in state.items() if name in ours or name in GAINS}, where)
    gains = {name: state.pop(name) for name in GAINS if name in state}
    for name, gain in gains.items():
        if not torch.all(gain == 1):
            raise CheckpointError(
                f"{name} of {where} is not all ones; this model fixes the gain of the projection head at 1"
            )
    known = {ours[name]: value for name, value in state.items() if name in ours}
    unused = {name: value for name, value in state.items() if name not in ours}
    check_floating(known, model, where)
    own = model.state_dict()
    _check_classes(known, own, where)
    others = [
        f"{released_name(name)} ({_sizes(value)}, expected {_sizes(own[name])})"
        for name, value in known.items()
        if value.shape != own[name].shape
    ]
    if others:
        raise CheckpointError(f"{where} is of a model of other sizes; set them in the config: {some(others)}")
    missing = model.load_state_dict(known, strict=False).missing_keys
    return ImportReport([released_name(name) for name in missing], list(unused), unused)


def _check_classes(known: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str) -> None:
    """CheckpointError for another number of classes: the usual reason why sizes differ."""
    there, here = len(known.get("classifier.weight", own["classifier.weight"])), len(own["classifier.weight"])
    if there != here:
        raise CheckpointError(
            f"{where} is of a model of {there} classes, the config has num_classes={here}. Take the preset of "
            "its data set"
        )


def _sizes(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "one number"


def export_released(model: ToCo, unused: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The model as a state dict with the authors' names; `ImportReport.unused` brings back what only their file has."""
    state = {released_name(name): value.detach().clone() for name, value in model.state_dict().items()}
    for head, gain in zip((model.projection_head, model.teacher_head), GAINS, strict=True):
        state[gain] = torch.ones_like(head.directions[:, :1])
    return state | dict(unused or {})


def released_name(name: str) -> str:
    """The authors' name of one of our parameters."""
    for ours, theirs in RELEASED_NAMES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def run_of_released(
    cfg: Config, checkpoint: Path, root: Path | str = "results", *, name: str | None = None
) -> tuple[RunDir, ImportReport]:
    """A finished run whose weights are the authors' checkpoint, and what was found in that file.

    Args:
        cfg: The config the checkpoint belongs to, with the released behaviour.
        checkpoint: The authors' file.
        root: Folder that holds the runs.
        name: Folder name below it; None takes the name of the file.

    Raises:
        CheckpointError: See `import_released`, and if the file lacks a parameter that a score depends on, which would
            stay random; the projection heads of CTC are not among them.
        ValueError: For a name that is none of a folder below `root`.
    """
    check_run_name(name)
    model = ToCo(cfg)
    found = import_released(model, checkpoint)
    if needed := [name for name in found.missing if not name.startswith(("proj_head.", "proj_head_t."))]:
        raise CheckpointError(
            f"{checkpoint} lacks {counted(len(needed), 'parameter')} of the model, which would stay random: "
            f"{some(needed)}. Fetch it again, or take the preset it belongs to"
        )
    run = RunDir.create(cfg, root, name=name or f"released-{checkpoint.stem}")
    save_checkpoint(run.checkpoint_path(cfg.steps), Learner.of(model, cfg).state(), cfg.steps, cfg)
    run.set_status("done", step=cfg.steps)
    run.log(f"imported {checkpoint} ({weights_hash(checkpoint)}); {found}")
    return run, found
