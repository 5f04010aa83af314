"""The teacher of a second stage: a finished run whose segmentation another model learns beside its masks."""

import torch
from torch import Tensor

from toco_lab.backbones.pixels import denormalise, normalise
from toco_lab.config import Config
from toco_lab.data.classes import class_names
from toco_lab.method.face import CamModel
from toco_lab.methods import has_decoder, learns_segmentation
from toco_lab.peers.supervised import Teacher
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model
from toco_lab.words import counted


def check_finished(run: RunDir) -> Config:
    """The config of a run that was trained to its end.

    Raises:
        ValueError: If it was not.
    """
    cfg = run.config()
    if not run.checkpoint_path(cfg.steps).is_file():
        step = counted(run.status()["step"], "step")
        raise ValueError(
            f"{run.path} is not finished ({run.state()}, {step} of {cfg.steps}): train it to its end first"
        )
    return cfg


def check_teacher(cfg: Config) -> RunDir:
    """The run that `cfg.soft_teacher` names; its model is not loaded.

    Raises:
        ValueError: If there is no run that is finished, or its segmentation is none of the same classes.
    """
    run = RunDir(cfg.soft_teacher)
    there = check_finished(run)
    if not learns_segmentation(there):
        why = "its w_seg is 0" if has_decoder(there) else f"method {there.method!r} has no decoder"
        raise ValueError(
            f"soft_teacher {run.path} has no segmentation to learn from: {why}. Take another run, or hard labels alone"
        )
    if (theirs := class_names(there)) != (ours := class_names(cfg)):
        raise ValueError(
            f"soft_teacher {run.path} knows {', '.join(theirs)}; this run is to learn {', '.join(ours)}: take a "
            "teacher of the same classes"
        )
    return run


def open_teacher(cfg: Config, student: CamModel) -> Teacher:
    """What `Supervised.teacher` calls: the run's segmentation of images as they are normalised for the student.

    The teacher is in evaluation mode, and nothing of it has a gradient. Errors as in `check_teacher` and
    `load_run_model`.
    """
    model, _ = load_run_model(check_teacher(cfg), next(student.parameters()).device)
    model.requires_grad_(False)
    alike = (model.mean, model.std) == (student.mean, student.std)

    @torch.no_grad()
    def segment(image: Tensor) -> Tensor:
        if not alike:
            image = normalise(denormalise(image, student.mean, student.std), model.mean, model.std)
        logits = model(image).seg_logits
        assert logits is not None  # `check_teacher` has looked
        return logits

    return segment
