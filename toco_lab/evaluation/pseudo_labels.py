"""Pseudo labels of a trained run: what a multi-stage method hands over to its fully-supervised stage.

This file says which labels there are, how they are made from one pair of CAMs, and what defines them; `label_folder`
says where they are written.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toco_lab.backbones.pixels import denormalise
from toco_lab.backbones.weights import weights_hash
from toco_lab.config import Config
from toco_lab.data.classes import DataError, class_names
from toco_lab.data.loader import EvalSample, EvalSamples, eval_samples
from toco_lab.evaluation.evaluate import protocol_record
from toco_lab.evaluation.label_folder import LabelFolder, check_output, image_files, place_image
from toco_lab.evaluation.label_summary import PseudoLabels, Tally, first_names, is_constant
from toco_lab.evaluation.prediction import BATCH, given_targets, grouped_by_size, native_cams, predict
from toco_lab.evaluation.samples import image_label_of
from toco_lab.files import check_writable, require
from toco_lab.method.cam import Cams
from toco_lab.method.crf import crf_label, dense_crf
from toco_lab.method.face import CamModel
from toco_lab.method.labels import confident_label
from toco_lab.method.refine import refine_cam
from toco_lab.methods import has_cams
from toco_lab.peers.refinement import refine_between
from toco_lab.progress import progress_bar
from toco_lab.runs.locks import only_worker
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model
from toco_lab.training.processes import resolve_device
from toco_lab.vocabulary import CAM, CAM_AUX, CAM_REFINED, SEG
from toco_lab.words import counted

# kind of label -> what the protocol calls it
KINDS = {"seed": CAM, "refined": CAM_REFINED, "crf": "cam_crf", "aux": CAM_AUX, SEG: SEG}
DEFAULT_KINDS = ("seed", "refined", "crf")
SCORED = {"seed": CAM, "aux": CAM_AUX}  # kinds that have soft scores, and the field of `Cams` they come from
PATIENCE = 50  # a model is given up if all labels of so many images are constant


@dataclass(frozen=True)
class Thresholds:
    """Background scores: above `high` a class, at or below `low` background, 255 between; none if they are equal.

    Raises:
        ValueError: If they are out of order or outside [0, 1].
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        """Checks the order."""
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"thresholds need 0 <= low <= high <= 1, got {self.low} and {self.high}")


def label_maps(
    cams: Cams,
    pixels: Tensor,
    thresholds: Thresholds,
    *,
    kinds: Iterable[str],
    dilations: Sequence[int],
    num_iter: int,
    refined: Callable[[Thresholds], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Pseudo labels of all kinds that come from CAMs, from one pair of them.

    * `seed`, `aux`: thresholds on the CAM, on the auxiliary CAM (`labels.confident_label`);
    * `refined`: the CAM after PAR (`refine.refine_cam`);
    * `crf`: the CAM after the dense CRF (`crf.crf_label`).

    Args:
        cams: Of the present classes, (B, S, H, W).
        pixels: (B, 3, H, W), values in [0, 255].
        thresholds: With equal ones nothing is ignored.
        kinds: Names of `KINDS` without `seg`.
        dilations, num_iter: Of PAR.
        refined: Makes the labels of the kind `refined` in another way, as `config_refinement` gives it; None takes PAR.

    Returns:
        By kind, (B, H, W) int64: 0 background, 1..C classes, 255 ignored.
    """
    low, high = thresholds.low, thresholds.high
    make = {
        "seed": lambda: confident_label(cams.cam, cams.present, low=low, high=high),
        "aux": lambda: confident_label(cams.cam_aux, cams.present, low=low, high=high),
        "refined": lambda: refined(thresholds) if refined else refine_cam(
            pixels / 255, cams.cam, cams.present, low=low, high=high, dilations=dilations, num_iter=num_iter
        ),
        "crf": lambda: crf_label(pixels, cams.cam, cams.present, low=low, high=high),
    }  # fmt: skip
    return {kind: make[kind]() for kind in kinds}


def config_refinement(model: CamModel, cfg: Config, image: Tensor, cams: Cams) -> Callable[[Thresholds], Tensor] | None:
    """How labels of the kind `refined` are made where `cfg.eval_refine` is not PAR, for `label_maps`; else None."""
    if cfg.eval_refine == "par":
        return None
    return lambda thresholds: refine_between(model, cfg, image, cams, low=thresholds.low, high=thresholds.high)


# --- a whole split ----------------------------------------------------------------------------------------------------


def write_pseudo_labels(
    run: RunDir,
    *,
    split: str | None = None,
    out: Path | str | None = None,
    kinds: Sequence[str] = DEFAULT_KINDS,
    thresholds: Thresholds | None = None,
    scores: bool = False,
    images: str | None = None,
    refine: str | None = None,
    device: str = "auto",
    progress: bool = True,
) -> PseudoLabels:
    """Write the pseudo labels of a split, image by image, from a run's last checkpoint.

    If it is killed and called again, it continues and ends with the same bytes, provided the protocol is the same.
    Kinds may be added later.

    Args:
        run: A trained run.
        split: None takes `cfg.train_split`, of which all images the run trains on are labelled.
        out: None takes pseudo_labels/<split> in the run's folder.
        kinds: Names of `KINDS`, see `label_maps`; `seg` is what `evaluate` calls so. The others come from one CAM pass.
        thresholds: None takes `cfg.background_threshold` alone, as `evaluate` does.
        scores: Write the soft scores of `seed` and `aux` as well, see `label_folder.save_scores`.
        images: Also put the images into the folders: `link` or `copy`. Toy scenes are written as PNGs.
        refine: How the kind `refined` is made, in place of `eval_refine` of the config.
        device: auto, cpu, cuda ...
        progress: Show a progress bar.

    Raises:
        ValueError: If something asked for does not exist; if the output would be read as ground truth, or lies where
            something else does; if the labels of one kind are all constant: the model has learnt nothing; or if
            another process is at work in the folder of the run.
        DataError: If images cannot be read, or have no image label.
        OSError: Before the work, if nothing can be written there.
    """
    require(run, RunDir, "run", ": open one with RunDir(folder)")
    kinds = tuple(dict.fromkeys(kinds))
    _check_request(kinds, scores, images)
    with only_worker(run.path):
        return _label_split(
            run, split, out, kinds, thresholds, device, scores=scores, images=images, refine=refine, progress=progress
        )


def _label_split(
    run: RunDir,
    split: str | None,
    out: Path | str | None,
    kinds: tuple[str, ...],
    thresholds: Thresholds | None,
    device: str,
    *,
    scores: bool,
    images: str | None,
    refine: str | None,
    progress: bool,
) -> PseudoLabels:
    """`write_pseudo_labels`, by the only process at this run."""
    model, cfg = load_run_model(run, resolve_device(device))
    cfg = cfg.replace(eval_refine=refine) if refine else cfg
    _check_given(cfg, kinds)
    split = split or cfg.train_split
    out = Path(out) if out else run.path / "pseudo_labels" / split
    thresholds = thresholds or Thresholds(cfg.background_threshold, cfg.background_threshold)
    # val_images is about evaluation; the training list has its own limit, train_images
    listed = cfg.replace(val_images=0) if split == cfg.train_split else cfg
    samples = eval_samples(listed, model.mean, model.std, split)
    check_output(out, kinds, cfg, samples.reader.root, images=bool(images))
    _check_image_labels(samples, split)
    names, checkpoint = samples.reader.names[: len(samples)], weights_hash(run.checkpoints()[-1])
    records = {kind: kind_record(cfg, kind, split, names, checkpoint, thresholds) for kind in kinds}
    folders = {kind: LabelFolder(out / kind, scored=scores and kind in SCORED) for kind in kinds}
    for kind, folder in folders.items():
        folder.check_protocol(records[kind])
        check_writable(out / kind / "protocol.json")

    originals = image_files(cfg, samples.reader.root) if images else {}
    tally = Tally(kinds, cfg.num_classes)
    labelled = _refuse_constant(_labelled_images(model, cfg, samples, folders, thresholds), kinds)
    for image in progress_bar(labelled, f"pseudo labels {split}", len(samples), shown=progress):
        if not tally.image_labels:  # only now: a model that has learnt nothing leaves no folder behind
            for kind, folder in folders.items():
                folder.write_protocol(records[kind])
        image.write_new(folders)
        if images:
            place_image(out, image.sample, originals.get(image.sample.name), link=images == "link")
        tally.add(image.sample, image.labels)
    for folder in folders.values():
        folder.finish(split, class_names(cfg), tally.image_labels, with_images=bool(images))
    return tally.summary(out, split, cfg)


def kind_record(
    cfg: Config, kind: str, split: str, names: Sequence[str], checkpoint: str, thresholds: Thresholds
) -> dict[str, Any]:
    """What defines the labels of a kind: `evaluate.protocol_record`, and what is particular to labels."""
    record = protocol_record(cfg, KINDS[kind], split, len(names), checkpoint)
    del record["background_threshold"], record["miou_over"], record["boundary_width"]
    record |= {
        "kind": kind,
        "low_threshold": None if kind == SEG else thresholds.low,
        "high_threshold": None if kind == SEG else thresholds.high,
        "par": par_settings(cfg) if kind == "refined" and "par" in cfg.eval_refine else False,
        "crf": crf_settings() if kind == "crf" else False,
        "image_labels": "masks" if cfg.dataset == "toy" else cfg.label_source, "classes": class_names(cfg),
        "names": hashlib.sha256("\n".join(names).encode()).hexdigest()[:12], "config": cfg.digest(),
    }  # fmt: skip
    return json.loads(json.dumps(record))  # lists in place of tuples, as it is read back


def par_settings(cfg: Config) -> dict[str, Any]:
    """What a protocol says of PAR."""
    return {"dilations": cfg.par_dilations, "iterations": cfg.par_iterations, "scale": _defaults(refine_cam)["scale"]}


def crf_settings(
    probability: str = "softmax over a constant background score and the CAM of the present classes",
) -> dict[str, Any]:
    """What a protocol says of the dense CRF, which begins with this probability."""
    return {"probability": probability, **_defaults(dense_crf)}


def _defaults(function: Any) -> dict[str, Any]:
    """Defaults of the keyword-only arguments of a decorated function: the settings it runs with here."""
    return dict(inspect.unwrap(function).__kwdefaults__)


def _check_request(kinds: Sequence[str], scores: bool, images: str | None) -> None:
    unknown = set(kinds) - set(KINDS)
    if unknown or not kinds:
        wrong = f"unknown kind {', '.join(sorted(unknown))}" if unknown else "no kind of pseudo label asked for"
        raise ValueError(f"{wrong}; there are {', '.join(KINDS)}")
    if scores and not set(kinds) & set(SCORED):
        raise ValueError(f"scores belong to {' and '.join(SCORED)}: add one of them to the kinds {', '.join(kinds)}")
    if images not in (None, "link", "copy"):
        raise ValueError(f"images must be 'link' or 'copy', got {images!r}")


def _check_given(cfg: Config, kinds: Sequence[str]) -> None:
    """ValueError for kinds that the method of a config cannot give."""
    if absent := [kind for kind in kinds if not given_targets(cfg, [KINDS[kind] if kind != "crf" else CAM])]:
        what = "has no CAM" if not has_cams(cfg) else "has no decoder"
        raise ValueError(
            f"method {cfg.method!r} {what}, so that there are no labels of kind {', '.join(absent)}: take "
            f"{SEG if not has_cams(cfg) else ', '.join(DEFAULT_KINDS)}"
        )


def _check_image_labels(samples: EvalSamples, split: str) -> None:
    has_mask = samples.has_masks()
    if samples.label_from_mask and not all(has_mask):
        where = f"of {counted(len(samples), 'image')} of {split!r} in {samples.reader.root}"
        raise DataError(
            f"{counted(has_mask.count(False), f'{where} has', f'{where} have')} no mask and "
            f"so no image label, the first is {samples.reader.names[has_mask.index(False)]}: nothing says which "
            "classes of the CAM count. Make a list of the others, or train with a label file (`label_source`)"
        )


# --- image by image ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _LabelledImage:
    """One image with its labels, made now or read back.

    Attributes:
        sample: The image.
        labels: (H, W) uint8 by kind.
        new: Kinds that are still to be written.
        scores: CAMs of the present classes, (P, H, W), by kind, where soft scores are still to be written.
    """

    sample: EvalSample
    labels: dict[str, np.ndarray]
    new: Sequence[str]
    scores: dict[str, Tensor]

    def write_new(self, folders: Mapping[str, LabelFolder]) -> None:
        for kind in self.new:
            if kind in self.scores:
                folders[kind].write_scores(self.sample.name, image_label_of(self.sample), self.scores[kind])
            folders[kind].write(self.sample.name, self.labels[kind])


def _labelled_images(
    model: CamModel, cfg: Config, samples: EvalSamples, folders: Mapping[str, LabelFolder], thresholds: Thresholds
) -> Iterator[_LabelledImage]:
    """Images in order. If a file of a group is missing, the whole group is made again: a group of another size rounds
    differently, and a continued command would not end with the same bytes.
    """
    for group in grouped_by_size(iter(samples), BATCH):
        new = [kind for kind, folder in folders.items() if not all(folder.holds(sample.name) for sample in group)]
        scored = [kind for kind in new if folders[kind].scored]
        made = _label_group(model, cfg, group, new, scored, thresholds) if new else _GroupLabels({}, {})
        for i, sample in enumerate(group):
            yield _LabelledImage(
                sample,
                {kind: made.labels[kind][i] if kind in new else folders[kind].read(sample.name) for kind in folders},
                new,
                {kind: made.scores[kind][i] for kind in scored},
            )


@dataclass(frozen=True, eq=False)
class _GroupLabels:
    """By kind, labels of images of one size, (B, H, W) uint8, and for each image its soft scores, (P, H, W)."""

    labels: dict[str, np.ndarray]
    scores: dict[str, list[Tensor]]


def _label_group(
    model: CamModel,
    cfg: Config,
    group: Sequence[EvalSample],
    kinds: Sequence[str],
    scored: Sequence[str],
    thresholds: Thresholds,
) -> _GroupLabels:
    device = next(model.parameters()).device
    image = torch.stack([sample.image for sample in group]).to(device)
    image_label = torch.stack([image_label_of(sample) for sample in group]).to(device)
    labels, scores = predict(model, cfg, image, image_label, {SEG} & set(kinds)), {}
    if of_cams := [kind for kind in kinds if kind != SEG]:
        cams = native_cams(model, cfg, image, image_label)
        pixels = denormalise(image, model.mean, model.std).clamp(0, 255)
        labels |= label_maps(
            cams, pixels, thresholds, kinds=of_cams, dilations=cfg.par_dilations, num_iter=cfg.par_iterations,
            refined=config_refinement(model, cfg, image, cams),
        )  # fmt: skip
        scores = {
            kind: [maps[mask] for maps, mask in zip(getattr(cams, SCORED[kind]), cams.present.mask, strict=True)]
            for kind in scored
        }
    return _GroupLabels({kind: label.to(torch.uint8).cpu().numpy() for kind, label in labels.items()}, scores)


def _refuse_constant(images: Iterator[_LabelledImage], kinds: Sequence[str]) -> Iterator[_LabelledImage]:
    """`images`, the first of them only once each kind has had a label of more than one value.

    Raises:
        ValueError: If some kind has none in `PATIENCE` images that show a class, or in all images.
    """
    held, constant = [], set(kinds)
    for image in images:
        held.append(image)
        constant -= {kind for kind in kinds if not is_constant(image.labels[kind])}
        if not constant:
            yield from held
            yield from images
            return
        if sum(bool(image_label_of(past.sample).any()) for past in held) >= PATIENCE:
            break
    values = sorted({int(image.labels[kind].flat[0]) for kind in constant for image in held})
    raise ValueError(
        f"every {' and '.join(kind for kind in kinds if kind in constant)} label of the first "
        f"{counted(len(held), 'image')} ({first_names([image.sample.name for image in held])}) is one value "
        f"throughout ({', '.join(map(str, values))}): the CAMs are constant, the model has learnt nothing, or the "
        "thresholds do not fit it. Nothing new was written; train on, or change the thresholds"
    )
