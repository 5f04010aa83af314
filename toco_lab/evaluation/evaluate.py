"""Evaluation of a model: mIoU of its CAMs and segmentation, F1 of its image labels, and the protocol of each number."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from toco_lab.backbones.modes import evaluating, weights_cast_once
from toco_lab.backbones.weights import weights_hash
from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.data.classes import label_names
from toco_lab.data.convert import preparation
from toco_lab.data.images import RULE
from toco_lab.data.loader import EvalSample, EvalSamples, eval_samples
from toco_lab.data.masks import check_classes_shown
from toco_lab.evaluation.boundary import WIDTH
from toco_lab.evaluation.counts import Counts
from toco_lab.evaluation.crop_objects import CropObjects
from toco_lab.evaluation.example_maps import map_rows
from toco_lab.evaluation.gallery import NUM_IMAGES, save_gallery
from toco_lab.evaluation.partial import Partial
from toco_lab.evaluation.prediction import BATCH, FUSIONS, given_targets, grouped_by_size, learnt_targets, predict
from toco_lab.evaluation.samples import image_label_of
from toco_lab.evaluation.thresholds import CURVE, MADE_FROM, TunedThresholds, tune_thresholds
from toco_lab.files import check_writable, require
from toco_lab.method.face import CamModel
from toco_lab.methods import has_cams
from toco_lab.progress import progress_bar
from toco_lab.runs.environment import git_revision
from toco_lab.runs.locks import only_worker
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model
from toco_lab.training.processes import everywhere, is_first, num_processes, rank, resolve_device, share, wait
from toco_lab.vocabulary import (
    BACKGROUND,
    CAM,
    CAM_AUX,
    CAM_REFINED,
    LABELS,
    MEAN_SCORES,
    SEG,
    SEG_CRF,
    TUNED,
    VALIDATED,
)
from toco_lab.words import counted

# what can be measured; `seg_crf` is measured as well where the config asks for it, `labels` along with the CAMs, and
# each CAM a second time at the threshold that is best on training images
TARGETS = (CAM, CAM_AUX, CAM_REFINED, SEG)
EMPTY, LEARNT = 0.1, 0.5  # IoU of a CAM below which it is empty, F1 of image labels above which they are learnt

Observe = Callable[[Sequence[EvalSample], Mapping[str, Tensor]], None]
Show = Callable[[int, Mapping[str, Mapping[str, np.ndarray | None]]], None]


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one split.

    Attributes:
        table: A row per target and class: target, class, iou, over_activation, boundary_iou. Rows with class `mIoU` are
            the means (of the over-activation: over foreground classes that are predicted; of the boundary IoU: over the
            classes of the mIoU); the row `F1` of target `labels` has its score in `iou`. A CAM has a second target,
            `cam_tuned` beside `cam`: the same at the background threshold that is best on training images. Where none
            could be chosen, that is one row `mIoU` of NaN.
        protocol: For each target, everything that defines its number; `not_defined` says why there is none.
        gallery: Maps of the first images, by image name, for `gallery.save_gallery`; as many as were asked for.
        curve: mIoU of `cam` and `cam_aux` at every threshold, on the training images and on the split, columns
            `thresholds.CURVE`.
    """

    table: pd.DataFrame
    protocol: dict[str, dict[str, Any]]
    gallery: dict[str, dict[str, np.ndarray | None]] = field(default_factory=dict)
    curve: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=CURVE))

    @property
    def scores(self) -> dict[str, float]:
        """Mean score of each target: {"cam": 0.52, ...}, in [0, 1]."""
        means = self.table[self.table["class"].isin(MEAN_SCORES)]
        return dict(zip(means["target"], means["iou"], strict=True))

    @property
    def summary(self) -> pd.DataFrame:
        """One row per target: the mean score, over-activation and boundary IoU in per cent, and its protocol record."""
        means = self.table[self.table["class"].isin(MEAN_SCORES)].set_index("target")
        per_cent = 100 * means.reindex(columns=["over_activation", "boundary_iou"])
        return pd.DataFrame(
            [
                {"target": target, "score": 100 * score, **per_cent.loc[target], **self.protocol[target]}
                for target, score in self.scores.items()
            ]
        )

    @property
    def empty_cam_note(self) -> str:
        """What to do where the image labels are right and the final CAM shows next to nothing; "" elsewhere."""
        record = self.protocol.get(CAM)
        if record is None or "cam_relu" in record:  # no CAM, or one that keeps what is negative
            return ""
        of_classes = self.table[~self.table["class"].isin([*MEAN_SCORES, BACKGROUND])]
        iou, f1 = of_classes.groupby("target")["iou"].mean(), self.scores.get(LABELS, 0.0)
        shown = iou.reindex([CAM, TUNED[CAM]]).max()
        if not (shown < EMPTY and f1 > LEARNT):
            return ""
        return (
            f"the final CAM shows next to nothing (IoU of the classes without background {100 * shown:.1f}) although "
            f"the image labels are right (F1 {100 * f1:.1f}): where every token is negative, the ReLU of the CAM "
            "leaves an empty map; --no-cam-relu keeps it (docs: Other domains, Maps that come out empty)"
        )


@torch.no_grad()
def evaluate_model(
    model: CamModel,
    cfg: Config,
    *,
    targets: Sequence[str] | None = None,
    split: str | None = None,
    checkpoint: str = "",
    gallery: int = 0,
    observe: Observe | None = None,
    keep: Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Score a model on a split, image by image, keeping confusion matrices only.

    Several processes (`processes.process_group`) share the images out, dense CRF included; each returns all scores.
    Each CAM is scored at the config's threshold and, unless `cfg.threshold_images` is 0, at the one that is best on
    training images (`thresholds.tune_thresholds`).

    Args:
        model: It is put into evaluation mode, and its mode is restored afterwards.
        cfg: Protocol: sizes, scales, thresholds, fusion, and which classes the mean is over.
        targets: Names of `TARGETS`, `seg_crf`, or `labels` alone; None takes all the config asks for, or `labels` where
            no image has a mask.
        split: None takes `cfg.val_split`.
        checkpoint: Hash of the weights, for the protocol record.
        gallery: How many images, from the first on, have their maps kept.
        observe: Called with images of one size and what `predict` says of them.
        keep: File name for what is counted so far, written once a minute, each process with its number behind it: an
            evaluation that was killed goes on from there, if `checkpoint` and all else are the same (the thresholds are
            chosen anew). The caller removes the files as soon as the scores are safe; an error removes them as well.
        progress: Show a progress bar.

    Raises:
        ValueError: For an unknown target, one that needs masks on a split where images have none, masks of which none
            has a pixel of a class, or `keep` without a `checkpoint` or with an `observe`, which would not see all.
    """
    require(model, CamModel, "model", ": load_run_model(run) loads one")
    require(cfg, Config, "cfg", ": it is that of the run, run.config()")
    if keep and (observe or not checkpoint):
        raise ValueError("keep needs a checkpoint, which says whose counts they are, and no observe")
    split = split or cfg.val_split
    samples = eval_samples(cfg, model.mean, model.std, split)
    targets = _checked_targets(cfg, targets, samples, split)
    maps = tuple(target for target in targets if target != LABELS)
    if maps:
        check_classes_shown(samples.reader, split, len(samples))
    shown = set(samples.reader.names[: min(gallery, len(samples))]) if maps else set()
    with evaluating(model), weights_cast_once(model):
        tuned = _tuned(model, cfg, maps, samples, progress=progress)
        counts = Counts(cfg, maps, tuned, next(model.parameters()).device)
        title = f"evaluate {split}" if progress else ""
        device = next(model.parameters()).device
        part = _begun(keep, cfg, samples, targets, counts, [split, checkpoint, sorted(shown), device.type])
        try:
            _count(model, cfg, samples, targets, counts, part, shown, title, observe)
        except Exception:  # whoever mends a file or the code begins anew
            part.remove()
            raise
    table, in_mean = counts.table(label_names(cfg))
    protocol = {
        target: protocol_record(cfg, target, split, len(samples), checkpoint) for target in table["target"].unique()
    }
    for target, number in in_mean.items():
        protocol[target]["classes_in_mean"] = number
    for target, second in TUNED.items():
        if tuned and second in protocol:
            protocol[second] |= tuned.record(target)
    rows = {name: row for one in everywhere(part.rows) for name, row in one.items()}
    return Evaluation(table, protocol, rows, counts.curve(split, len(samples)))


def _begun(
    keep: Path | None, cfg: Config, samples: EvalSamples, targets: Sequence[str], counts: Counts, also: Sequence[Any]
) -> Partial:
    """This process's share of the evaluation, with what a killed one has counted of it in `counts`."""
    if keep is None:
        return Partial(None, [])
    images, code = samples.reader.names[: len(samples)], [git_revision(), torch.__version__, BATCH]
    of = [cfg.to_json(), list(images), list(targets), counts.tuned, rank(), num_processes(), code, *also]
    part = Partial(keep.with_name(f"{keep.name}_{rank()}.pt"), of)
    part.take_up(counts)
    return part


def _count(
    model: CamModel,
    cfg: Config,
    samples: EvalSamples,
    targets: Sequence[str],
    counts: Counts,
    part: Partial,
    shown: Collection[str],
    title: str,
    observe: Observe | None,
) -> None:
    """Count what is left of this process's share of the images, and keep the maps of those that are `shown`.

    `title` is that of the progress bar; "" shows none.
    """
    device, mine = next(model.parameters()).device, share(len(samples))
    left = mine[part.done :]
    with progress_bar(left, title, len(mine), initial=part.done, shown=bool(title) and is_first()) as bar:
        for group in grouped_by_size((samples[index] for index in left), BATCH):
            image = torch.stack([sample.image for sample in group]).to(device)
            label = torch.stack([image_label_of(sample) for sample in group]).to(device)
            predicted = predict(model, cfg, image, label, targets, tuned=counts.tuned)
            counts.add(group, label, predicted)
            if observe is not None:
                observe(group, predicted)
            first = [sample for sample in group if sample.name in shown]
            rows = map_rows(first, predicted) if first else []
            part.count(len(group), dict(zip((sample.name for sample in first), rows, strict=True)), counts)
            bar.update(len(group))


def _tuned(
    model: CamModel, cfg: Config, maps: Sequence[str], samples: EvalSamples, *, progress: bool
) -> TunedThresholds | None:
    """The thresholds chosen for the CAMs among `maps`; None where no CAM is scored or no second score is asked for."""
    cams = dict.fromkeys(MADE_FROM[target] for target in maps if target in MADE_FROM)
    if not cams or not cfg.threshold_images:
        return None
    return tune_thresholds(model, cfg, list(cams), samples.reader.names[: len(samples)], progress=progress)


def _checked_targets(cfg: Config, targets: Sequence[str] | None, samples: EvalSamples, split: str) -> tuple[str, ...]:
    """The targets that are measured; errors as in `evaluate_model`."""
    known = (*TARGETS, SEG_CRF, LABELS)
    if unknown := set(targets or ()) - set(known):
        raise ValueError(f"unknown target {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    has_mask = samples.has_masks()
    if not targets:
        targets = _asked_for(cfg) if any(has_mask) else (LABELS,)
    elif absent := sorted(set(targets) - set(given_targets(cfg, targets))):
        why = "trains no decoder" if has_cams(cfg) else "learns from masks and has no CAM"
        raise ValueError(f"method {cfg.method!r} {why}, so that there is no target {', '.join(absent)}")
    if (set(targets) != {LABELS} or samples.label_from_mask) and not all(has_mask):
        where = f"of {counted(len(has_mask), 'image')} of split {split!r}"
        raise ValueError(
            f"{counted(has_mask.count(False), f'{where} has', f'{where} have')} no mask, the first is "
            f"{samples.reader.names[has_mask.index(False)]}: there is nothing to measure {', '.join(targets)} against. "
            "Put masks there, make a list of the images that have one, or take the target `labels` alone"
        )
    return tuple(targets)


def _asked_for(cfg: Config) -> tuple[str, ...]:
    """What a config asks for: its CAMs, or labels where there are none, and the segmentation where one was learnt."""
    segmentation = learnt_targets(cfg, (SEG, SEG_CRF) if cfg.eval_crf else (SEG,))
    return (CAM, CAM_AUX, CAM_REFINED, *segmentation) if has_cams(cfg) else (*segmentation, LABELS)


def evaluate_run(
    run: RunDir,
    *,
    targets: Sequence[str] | None = None,
    split: str | None = None,
    device: str = "auto",
    refine: str | None = None,
    progress: bool = True,
) -> Evaluation:
    """Evaluate a run's last checkpoint and write evaluation.csv, protocol.json, thresholds.csv (`Evaluation.curve`) and
    the gallery into the run's folder. One that is killed goes on where it was.

    Several processes share the images out, and the first one writes. Scores of other targets that the same checkpoint
    already has are kept. A split other than `val_split` has files of its own, evaluation_<split>.csv and so on, and no
    gallery. `refine` takes the place of `eval_refine` of the config, as the protocol of `cam_refined` then says.

    Raises:
        ValueError: If another process is at work in the folder of the run, or `run` is none.
        OSError: Before the work, if nothing can be written there.
    """
    require(run, RunDir, "run", ": open one with RunDir(folder)")
    with only_worker(run.path) if is_first() else nullcontext():
        return _evaluate_run(run, targets, split, device, refine, progress=progress)


def _evaluate_run(
    run: RunDir, targets: Sequence[str] | None, split: str | None, device: str, refine: str | None, *, progress: bool
) -> Evaluation:
    """`evaluate_run`, by the only process (or group of processes) at this run."""
    model, cfg = load_run_model(run, resolve_device(device))
    cfg = cfg.replace(eval_refine=refine) if refine else cfg
    checkpoint = weights_hash(run.checkpoints()[-1])
    suffix = "" if split in (None, cfg.val_split) else f"_{split}"
    if is_first():
        check_writable(run.path / f"protocol{suffix}.json")
    new = evaluate_model(
        model, cfg, targets=targets, split=split, progress=progress, checkpoint=checkpoint,
        gallery=0 if suffix else NUM_IMAGES, keep=run.path / f".evaluation{suffix}",
    )  # fmt: skip
    table, protocol, curve = new.table, new.protocol, new.curve
    rows, old = _kept(run, suffix)
    if kept := [name for name, record in old.items() if record["checkpoint"] == checkpoint and name not in protocol]:
        table = pd.concat([rows[rows["target"].isin(kept)], table], ignore_index=True)
        protocol = {name: old[name] for name in kept} | protocol
        curve = _with_old_curve(run, suffix, kept, curve)
    wait()  # until every process has read what the first one is about to change
    if is_first():
        run.write_table(f"evaluation{suffix}", table)
        run.write_json(f"protocol{suffix}", protocol)
        if len(curve):
            run.write_table(f"thresholds{suffix}", curve)
        else:  # that of another checkpoint
            (run.path / f"thresholds{suffix}.csv").unlink(missing_ok=True)
        if new.gallery:
            save_gallery(run, new.gallery, checkpoint)
        for part in run.path.glob(f".evaluation{suffix}_[0-9]*.pt"):  # of however many processes
            part.unlink(missing_ok=True)
    wait()
    return Evaluation(table, protocol, new.gallery, curve)


def _with_old_curve(run: RunDir, suffix: str, kept: Sequence[str], new: pd.DataFrame) -> pd.DataFrame:
    """A curve, and before it the rows of the CAMs whose scores are kept; a file that is damaged adds nothing."""
    try:
        old = run.read_table(f"thresholds{suffix}")
    except (FileNotFoundError, ValueError):
        return new
    parts = [part for part in (old[old["target"].isin(kept)], new) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else new


def _kept(run: RunDir, suffix: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rows and protocol of the evaluation before; both empty where there is none, or one of its files is damaged."""
    if (run.path / f"protocol{suffix}.json").is_file():
        try:
            return run.read_table(f"evaluation{suffix}"), run.read_json(f"protocol{suffix}")
        except (ValueError, FileNotFoundError) as error:
            if is_first():
                run.log(f"the evaluation is written anew: {error}")
    return pd.DataFrame(), {}


def protocol_record(cfg: Config, target: str, split: str, images: int, checkpoint: str) -> dict[str, Any]:
    """What defines a number: which maps, which images, at which sizes and thresholds, with PAR, CRF or true labels.

    A record of an older version lacks the key `decoder`: files were read by other rules, equal for ordinary photos.
    """
    is_cam = target.startswith("cam")
    size = f"{cfg.eval_cam_size} x {cfg.eval_cam_size}" if is_cam and cfg.eval_cam_size else "native"
    refined = target in (CAM_REFINED, TUNED[CAM_REFINED])
    other: dict[str, Any] = {"refinement": cfg.eval_refine} if refined and cfg.eval_refine != "par" else {}
    other |= {"cam_relu": False} if is_cam and not cfg.cam_relu else {}
    return {
        "target": target, "dataset": cfg.dataset, "split": split, "images": images, "image_size": size,
        "decoder": None if cfg.dataset == "toy" else RULE,  # toy scenes are in no file
        "scales": list(cfg.cam_scales if is_cam else cfg.eval_seg_scales if target.startswith("seg") else [1.0]),
        "flip": is_cam or (target.startswith("seg") and cfg.eval_seg_flip),
        "background_threshold": cfg.background_threshold if is_cam else None,
        "true_labels_mask_cam": is_cam, "par": refined and "par" in cfg.eval_refine,
        "crf": target == SEG_CRF or (refined and cfg.eval_refine == "crf"),
        "fusion": FUSIONS[cfg.eval_fusion] if target.startswith("seg") else FUSIONS["coco"] if is_cam else None,
        "miou_over": cfg.miou_over if target != LABELS else None, "ignored_label": IGNORE_INDEX,
        "boundary_width": WIDTH if target != LABELS else None,
        "checkpoint": checkpoint, "seed": cfg.seed, **other, **preparation(cfg),
    }  # fmt: skip


def validator(
    cfg: Config, targets: Sequence[str] = VALIDATED, *, show: Show | None = None
) -> Callable[[CamModel, int], dict[str, float]]:
    """What `loop.fit` calls every `cfg.val_every` steps: mIoU of the targets on the validation split.

    Segmentation is a single pass, as in the published training log: one scale, no flip. CAMs have the config's
    threshold alone. With CTC and the auxiliary CAM comes what `CropObjects` counts.

    Args:
        cfg: The run's config.
        targets: Names of `TARGETS`; a segmentation that the run does not learn is left out.
        show: Called as show(step, maps of the first images, as in `Evaluation.gallery`); the same in all processes.
    """
    quick = cfg.replace(eval_seg_scales=(1.0,), eval_seg_flip=False, threshold_images=0)
    targets = learnt_targets(cfg, targets)

    def validate(model: CamModel, step: int) -> dict[str, float]:
        crops = CropObjects(cfg) if cfg.w_ctc > 0 and CAM_AUX in targets else None
        observe = crops.add if crops else None
        gallery = NUM_IMAGES if show else 0
        found = evaluate_model(model, quick, targets=targets, gallery=gallery, observe=observe, progress=False)
        if show:
            show(step, found.gallery)
        scores = found.scores
        return {target: scores[target] for target in targets} | (crops.shares() if crops else {})

    return validate
