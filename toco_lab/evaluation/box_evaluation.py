"""Boxes and instance masks of a model, scored on a split, with their protocol."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from toco_lab.backbones.modes import evaluating
from toco_lab.config import Config
from toco_lab.data.classes import class_names
from toco_lab.data.instances import LEAST_AREA, Instance, true_instances
from toco_lab.data.loader import EvalSample, EvalSamples, eval_samples
from toco_lab.evaluation.box_scores import ALL, AP, OVERLAP, BoxScores, best_overlaps, localised
from toco_lab.evaluation.boxes import PEAK_DISTANCE, check_rule, class_instances
from toco_lab.evaluation.evaluate import protocol_record
from toco_lab.evaluation.of_runs import measure_run
from toco_lab.evaluation.prediction import (
    BATCH,
    grouped_by_size,
    label_above,
    multi_scale_segmentation,
    native_cams,
    strongest_class,
)
from toco_lab.evaluation.samples import image_label_of
from toco_lab.evaluation.thresholds import curve_thresholds, tune_thresholds
from toco_lab.files import require
from toco_lab.method.cam import at_evaluation_size
from toco_lab.method.face import CamModel
from toco_lab.method.present import PresentClasses
from toco_lab.methods import has_decoder, learns_segmentation
from toco_lab.progress import progress_bar
from toco_lab.runs.run_dir import RunDir
from toco_lab.vocabulary import CAM, SEG
from toco_lab.words import counted

Source = Literal["cam", "seg"]
Threshold = Literal["tuned", "configured"]
WHOLE_IMAGE = "whole image"  # the row of the trivial baseline: one box around the image for each of its classes
MAX_BOX_ACC = "max_box_acc"


@dataclass(frozen=True)
class BoxEvaluation:
    """Scores of the boxes and instance masks of one model on one split.

    Attributes:
        table: A row for all classes and one per class, rule by rule: rule, the columns of `BoxScores.table`, and, for
            all classes of a CAM, max_box_acc with max_box_threshold: CorLoc at the threshold at which it is highest on
            these very images, an upper bound. The last rule is `WHOLE_IMAGE`.
        protocol: Everything that defines the numbers.
    """

    table: pd.DataFrame
    protocol: dict[str, Any]

    def __str__(self) -> str:
        """A row per rule in per cent, and below it what the numbers depend on."""
        means = self.table[self.table["class"] == ALL].set_index("rule")
        scores = ["corloc", MAX_BOX_ACC, *AP.values()]
        shown = (100 * means[scores]).join(means[["pairs", "objects", "predicted"]])
        record = self.protocol
        threshold = record["background_threshold"]
        of = f"threshold {threshold:g} ({record['threshold_from']})" if record["source"] == CAM else "decoder"
        return "\n".join(
            [
                shown.to_string(float_format="{:.1f}".format, na_rep="-"),
                f"per cent; {record['source']}, {of}; {counted(record['images'], 'image')} of {record['dataset']} "
                f"{record['split']}; objects: {record['objects_from']}; checkpoint {record['checkpoint']}, seed "
                f"{record['seed']}",
            ]
        )


@dataclass(frozen=True)
class _ClassMaps:
    """What a model says of one image.

    Attributes:
        numbers: Its classes, 1..C.
        scores: A map of each, (H, W) in [0, 1].
        probabilities: Of each, in [0, 1].
        score, winner: (H, W), the score of the strongest class and that class; of a segmentation 1 and its label.
        distance: Of peaks, in pixels along rows and columns.
    """

    numbers: list[int]
    scores: np.ndarray
    probabilities: list[float]
    score: Tensor
    winner: Tensor
    distance: tuple[int, int]

    def instances(self, rule: str, threshold: float | None) -> list[Instance]:
        """All objects; `threshold` of a CAM, None for a segmentation."""
        label = label_above(self.score, self.winner, threshold or 0.0).numpy()
        return [
            one
            for number, scores, probability in zip(self.numbers, self.scores, self.probabilities, strict=True)
            for one in class_instances(
                scores, label == number, number, rule=rule, probability=probability, distance=self.distance,
                threshold=threshold,
            )
        ]  # fmt: skip


@torch.no_grad()
def measure_boxes(
    model: CamModel,
    cfg: Config,
    *,
    rules: Sequence[str] = ("components",),
    source: Source = "cam",
    threshold: Threshold = "tuned",
    split: str | None = None,
    checkpoint: str = "",
    progress: bool = True,
) -> BoxEvaluation:
    """Score the boxes and instance masks that a model gives on a split; see `BoxScores` for the scores.

    Args:
        model: It is put into evaluation mode, and its mode is restored afterwards.
        cfg: Protocol: sizes, scales, thresholds.
        rules: How regions become objects, among `boxes.RULES`; one pass over the images serves all.
        source: `cam` takes the final CAM, masked by the true image labels and above the threshold; `seg` the decoder's
            segmentation and its softmax, all classes of the label map.
        threshold: Of a CAM: `tuned` is best for the mIoU of training images (`tune_thresholds`), or the config's where
            none can be chosen; `configured` is the config's.
        split: None takes `cfg.val_split`.
        checkpoint: Hash of the weights, for the protocol.
        progress: Show a progress bar.

    Raises:
        ValueError: For an unknown rule, source or threshold, a model without decoder and `seg`, or an image without
            mask or label.
        DataError: If a file of the split cannot be read.
    """
    require(model, CamModel, "model", ": load_run_model(run) loads one")
    require(cfg, Config, "cfg", ": it is that of the run, run.config()")
    rules = tuple(dict.fromkeys([rules] if isinstance(rules, str) else rules))
    _check(cfg, rules, source, threshold)
    split = split or cfg.val_split
    samples = eval_samples(cfg, model.mean, model.std, split)
    origin, true_of = true_instances(cfg, samples.reader, split)
    with evaluating(model):
        chosen, chosen_from = chosen_threshold(model, cfg, source, threshold, samples, progress=progress)
        title = f"boxes {split}" if progress else ""
        table = _scored(model, cfg, samples, true_of, rules, chosen, title)
    protocol = protocol_record(cfg, source, split, len(samples), checkpoint)
    for name in ("target", "miou_over", "ignored_label", "boundary_width"):  # of label maps
        protocol.pop(name)
    about = {"what": "boxes and instance masks", "source": source, "rules": list(rules), "objects_from": origin}
    protocol = about | protocol | {
        "background_threshold": chosen, "threshold_from": chosen_from, "least_area": LEAST_AREA,
        "peak_distance_tokens": PEAK_DISTANCE, "corloc_iou": OVERLAP,
        "score": "mean of the map inside the mask x sigmoid of the image logit",
        "max_box_acc_thresholds": list(curve_thresholds(cfg)) if source == CAM else None,
    }  # fmt: skip
    return BoxEvaluation(table, protocol)


def boxes_of_run(
    run: RunDir,
    *,
    rules: Sequence[str] = ("components",),
    source: Source = "cam",
    threshold: Threshold = "tuned",
    split: str | None = None,
    device: str = "auto",
    progress: bool = True,
) -> BoxEvaluation:
    """Score the boxes of a run's last checkpoint, and write boxes.csv and boxes.json into its folder.

    A split other than `val_split` has files of its own, boxes_<split>.csv and .json. Arguments and errors as in
    `measure_boxes`.

    Raises:
        ValueError: If another process is at work in the folder of the run, or `run` is none.
        OSError: Before the work, if nothing can be written there.
    """
    require(run, RunDir, "run", ": open one with RunDir(folder)")
    measure = partial(measure_boxes, rules=rules, source=source, threshold=threshold, progress=progress)
    return measure_run(run, "boxes", measure, split=split, device=device)


def _check(cfg: Config, rules: Sequence[str], source: str, threshold: str) -> None:
    if not rules:
        raise ValueError("rules must name at least one rule")
    for rule in rules:
        check_rule(rule)
    if source not in get_args(Source):
        raise ValueError(f"source must be one of {', '.join(get_args(Source))}, got {source!r}")
    check_threshold(threshold)
    if source == SEG and not learns_segmentation(cfg):
        why = "a run whose w_seg is 0" if has_decoder(cfg) else f"method {cfg.method!r}"
        raise ValueError(f"{why} trains no decoder, so that there is no source seg: take cam")


def check_threshold(threshold: str) -> None:
    """ValueError if `threshold` is no value of `Threshold`."""
    if threshold not in get_args(Threshold):
        raise ValueError(f"threshold must be one of {', '.join(get_args(Threshold))}, got {threshold!r}")


def chosen_threshold(
    model: CamModel, cfg: Config, source: str, threshold: str, samples: EvalSamples, *, progress: bool
) -> tuple[float | None, str | None]:
    """The background threshold and where it is from; None of a segmentation."""
    if source == SEG:
        return None, None
    if threshold == "configured" or not cfg.threshold_images:
        return cfg.background_threshold, "the config"
    tuned = tune_thresholds(model, cfg, [CAM], samples.reader.names[: len(samples)], progress=progress)
    if tuned.absent:
        return cfg.background_threshold, f"the config, because {tuned.absent}"
    record = tuned.record(CAM)
    return tuned.of(CAM), f"best mIoU of {record['threshold_from']}"


def _scored(
    model: CamModel,
    cfg: Config,
    samples: EvalSamples,
    true_of: Callable[[int], list[Instance]],
    rules: Sequence[str],
    threshold: float | None,
    title: str,
) -> pd.DataFrame:
    """`BoxEvaluation.table`; a `threshold` of None takes the segmentation. A progress bar has the `title`."""
    scores = {rule: BoxScores(class_names(cfg)) for rule in (*rules, WHOLE_IMAGE)}
    tried = () if threshold is None else curve_thresholds(cfg)
    overlaps: dict[str, dict[float, list[float]]] = {rule: {one: [] for one in tried} for rule in rules}
    index = 0
    with progress_bar(range(len(samples)), title, shown=bool(title)) as bar:
        for group in grouped_by_size(iter(samples), BATCH):
            for sample, maps in zip(group, _maps_of(model, cfg, group, of_cam=threshold is not None), strict=True):
                true, size = true_of(index), sample.raw.shape[:2]
                for rule in rules:
                    scores[rule].add(maps.instances(rule, threshold), true, size)
                    for one, found in overlaps[rule].items():
                        found += best_overlaps(maps.instances(rule, one), true).values()
                present = (image_label_of(sample).nonzero().flatten() + 1).tolist()
                scores[WHOLE_IMAGE].add([Instance(number, np.ones(size, bool)) for number in present], true, size)
                index += 1
            bar.update(len(group))
    return _table(scores, overlaps)


def _table(scores: Mapping[str, BoxScores], overlaps: Mapping[str, Mapping[float, Sequence[float]]]) -> pd.DataFrame:
    parts = []
    for rule, one in scores.items():
        table = one.table()
        accuracy = {threshold: localised(found) for threshold, found in overlaps.get(rule, {}).items()}
        best = max(accuracy, key=lambda threshold: accuracy[threshold], default=math.nan)
        table.insert(0, "rule", rule)
        place = table.columns.get_loc("corloc") + 1
        is_all = table["class"] == ALL
        table.insert(place, MAX_BOX_ACC, np.where(is_all, accuracy.get(best, math.nan), math.nan))
        table.insert(place + 1, "max_box_threshold", np.where(is_all, best, math.nan))
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def _maps_of(model: CamModel, cfg: Config, group: Sequence[EvalSample], *, of_cam: bool) -> Iterator[_ClassMaps]:
    """The maps of images of one size, by the final CAM or by the segmentation."""
    image = torch.stack([sample.image for sample in group]).to(next(model.parameters()).device)
    if of_cam:
        label = torch.stack([image_label_of(sample) for sample in group]).to(image.device)
        cams = native_cams(model, cfg, image, label)
        maps, logits, there = cams.cam, cams.logits, cams.present
        score, winner = strongest_class(maps, there)
    else:
        shares = multi_scale_segmentation(
            model, image, cfg.eval_seg_scales, fusion=cfg.eval_fusion, flip=cfg.eval_seg_flip
        ).softmax(1)
        winner = shares.max(1).indices
        shown = torch.zeros_like(shares[:, :, 0, 0]).scatter(1, winner.flatten(1), 1.0)
        there = PresentClasses.of(shown[:, 1:])
        maps, score = there.gather(shares[:, 1:]), torch.ones_like(shares[:, 0])
        logits = model(at_evaluation_size(image, cfg.eval_cam_size), segment=False).logits
    probabilities = logits.double().sigmoid()
    distance = _peak_distance(model, cfg.eval_cam_size if of_cam else 0, image)
    for place, is_there in enumerate(there.mask):
        index = there.index[place][is_there]
        yield _ClassMaps(
            numbers=(index + 1).tolist(),
            scores=maps[place][is_there].float().cpu().numpy(),
            probabilities=probabilities[place, index].tolist(),
            score=score[place].cpu(),
            winner=winner[place].cpu(),
            distance=distance,
        )


def _peak_distance(model: CamModel, side: int, image: Tensor) -> tuple[int, int]:
    """`PEAK_DISTANCE` tokens in pixels of the image along rows and columns; the model sees it at side x side, or at its
    own size where `side` is 0.
    """
    rows, columns = (PEAK_DISTANCE * model.patch_size * length / (side or length) for length in image.shape[-2:])
    return max(1, round(rows)), max(1, round(columns))
