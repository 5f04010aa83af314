"""Evaluation: mIoU of CAMs, refined CAMs and segmentation, F1 of the image labels, and the protocol beside each
number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from toco_lab.backbones.weights import weights_hash
from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.data.classes import label_names
from toco_lab.data.loader import EvalSample, EvalSamples, eval_samples
from toco_lab.evaluation.gallery import MAPS, NUM_IMAGES, save_gallery
from toco_lab.evaluation.prediction import BATCH, FUSIONS, grouped_by_size, predict
from toco_lab.evaluation.scores import confusion_matrix, iou_scores, label_f1
from toco_lab.method.model import ToCo
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model
from toco_lab.training.loop import VALIDATED
from toco_lab.training.processes import everywhere, is_first, resolve_device, share, total, wait
from toco_lab.vocabulary import CAM, CAM_AUX, CAM_REFINED, F1, LABELS, MEAN_SCORES, MIOU, SEG, SEG_CRF

TARGETS = (CAM, CAM_AUX, CAM_REFINED, SEG)  # `seg_crf` joins where the config asks for it


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one split.

    Attributes:
        table: Tidy: target, class, iou, over_activation. Rows with class `mIoU` are the means (of the over-activation:
            over foreground classes that are predicted); the row `F1` of target `labels` has its score in `iou`.
        protocol: For each target, everything that defines its number.
        gallery: Maps of the first images, by image name, for `gallery.save_gallery`; as many as were asked for.
    """

    table: pd.DataFrame
    protocol: dict[str, dict[str, Any]]
    gallery: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, float]:
        """Mean score of each target: {"cam": 0.52, ...}, in [0, 1]."""
        means = self.table[self.table["class"].isin(MEAN_SCORES)]
        return dict(zip(means["target"], means["iou"], strict=True))

    @property
    def summary(self) -> pd.DataFrame:
        """One row per target: the mean score and the mean over-activation in per cent, and its protocol record."""
        over = self.table[self.table["class"].isin(MEAN_SCORES)].set_index("target")["over_activation"]
        return pd.DataFrame(
            [
                {"target": target, "score": 100 * score, "over_activation": 100 * over[target], **self.protocol[target]}
                for target, score in self.scores.items()
            ]
        )


@torch.no_grad()
def evaluate_model(
    model: ToCo,
    cfg: Config,
    *,
    targets: Sequence[str] | None = None,
    split: str | None = None,
    checkpoint: str = "",
    gallery: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Score a model on a split, image by image, keeping confusion matrices only.

    Several processes (`distributed.process_group`) share the images out, dense CRF included; each returns all scores.

    Args:
        model: Its mode is restored afterwards.
        cfg: Protocol: sizes, scales, thresholds, fusion, which classes the mean is over.
        targets: Names of `TARGETS`, `seg_crf`, or `labels` alone; None takes all the config asks for, or `labels` where
            no image has a mask.
        split: None takes `cfg.val_split`.
        checkpoint: Hash of the weights, for the protocol record.
        gallery: Images whose maps are kept, the first ones.
        progress: Show a progress bar.

    Raises:
        ValueError: For an unknown target, or one that needs masks on a split where images have none.
    """
    split = split or cfg.val_split
    samples = eval_samples(cfg, model.mean, model.std, split)
    targets = _targets(cfg, targets, samples, split)
    maps = tuple(target for target in targets if target != LABELS)
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    num_labels = cfg.num_classes + 1
    matrices = {target: torch.zeros(num_labels, num_labels, dtype=torch.int64, device=device) for target in maps}
    f1, kept, mine = torch.zeros(2, dtype=torch.float64, device=device), {}, share(len(samples))
    shown = range(min(gallery, len(samples))) if maps else range(0)
    with tqdm(total=len(mine), unit="image", desc=f"evaluate {split}", disable=not (progress and is_first())) as bar:
        done = mine.start
        for group in grouped_by_size((samples[index] for index in mine), BATCH):
            image = torch.stack([sample.image for sample in group]).to(device)
            label = torch.stack([sample.image_label for sample in group]).to(device)
            predicted = predict(model, cfg, image, label, targets)
            if maps:
                truth = torch.stack([sample.mask for sample in group]).to(device)
                for target in maps:
                    matrices[target] += confusion_matrix(predicted[target], truth, num_labels)
            if LABELS in predicted:
                scores = label_f1(label, predicted[LABELS]).double()
                f1 += torch.stack([scores.sum(), torch.tensor(len(scores), device=device)])
            if first := group[: max(0, shown.stop - done)]:
                kept |= zip((sample.name for sample in first), _map_rows(first, predicted), strict=True)
            done += len(group)
            bar.update(len(group))
    model.train(was_training)
    names = label_names(cfg)
    rows = []
    for target in maps:
        scores = iou_scores(total(matrices[target]).cpu(), over=cfg.miou_over)
        over = scores.over_activation
        rows += [(target, *row) for row in zip(names, scores.iou.tolist(), over.tolist(), strict=True)]
        rows.append((target, MIOU, scores.miou.item(), over[1:].nanmean().item()))
    f1_sum, f1_count = total(f1).tolist()
    if f1_count:
        rows.append((LABELS, F1, f1_sum / f1_count, torch.nan))
    protocol = {
        target: protocol_record(cfg, target, split, len(samples), checkpoint)
        for target in (*maps, *([LABELS] if f1_count else []))
    }
    kept = {name: row for part in everywhere(kept) for name, row in part.items()}
    return Evaluation(pd.DataFrame(rows, columns=["target", "class", "iou", "over_activation"]), protocol, kept)


def _targets(cfg: Config, targets: Sequence[str] | None, samples: EvalSamples, split: str) -> tuple[str, ...]:
    """What is measured; ValueError for an unknown name, or where images lack the masks it needs."""
    known = (*TARGETS, SEG_CRF, LABELS)
    if unknown := set(targets or ()) - set(known):
        raise ValueError(f"unknown target {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    has_mask = samples.has_masks()
    if not targets:
        targets = TARGETS + ((SEG_CRF,) if cfg.eval_crf else ()) if any(has_mask) else (LABELS,)
    if (set(targets) != {LABELS} or samples.label_from_mask) and not all(has_mask):
        raise ValueError(
            f"{has_mask.count(False)} of {len(has_mask)} images of split {split!r} have no mask, the first is "
            f"{samples.reader.names[has_mask.index(False)]}: there is nothing to measure {', '.join(targets)} against. "
            "Put masks there, make a list of the images that have one, or take the target `labels` alone"
        )
    return tuple(targets)


def evaluate_run(
    run: RunDir,
    *,
    targets: Sequence[str] | None = None,
    split: str | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Evaluation:
    """Evaluate a run's last checkpoint; writes evaluation.csv, protocol.json and its gallery into its folder.

    Several processes share the images out, the first one writes. Scores of other targets that the same checkpoint
    already has are kept; another split than `val_split` goes to files of its own, evaluation_<split>.csv and
    protocol_<split>.json, and has no gallery.
    """
    model, cfg = load_run_model(run, resolve_device(device))
    checkpoint = weights_hash(run.checkpoints()[-1])
    suffix = "" if split in (None, cfg.val_split) else f"_{split}"
    new = evaluate_model(
        model, cfg, targets=targets, split=split, progress=progress, checkpoint=checkpoint,
        gallery=0 if suffix else NUM_IMAGES,
    )  # fmt: skip
    table, protocol = new.table, new.protocol
    if (run.path / f"protocol{suffix}.json").is_file():
        old = run.read_json(f"protocol{suffix}")
        kept = [name for name, record in old.items() if record["checkpoint"] == checkpoint and name not in protocol]
        rows = run.read_table(f"evaluation{suffix}")
        table = pd.concat([rows[rows["target"].isin(kept)], table], ignore_index=True)
        protocol = {name: old[name] for name in kept} | protocol
    wait()  # every process has read what the first one changes
    if is_first():
        run.write_table(f"evaluation{suffix}", table)
        run.write_json(f"protocol{suffix}", protocol)
        if new.gallery:
            save_gallery(run, new.gallery, checkpoint)
    wait()
    return Evaluation(table, protocol, new.gallery)


def protocol_record(cfg: Config, target: str, split: str, images: int, checkpoint: str) -> dict[str, Any]:
    """What defines a number: a reader can tell the seed from the mask, masked by true labels or not, CRF or not."""
    is_cam = target.startswith("cam")
    size = f"{cfg.eval_cam_size} x {cfg.eval_cam_size}" if is_cam and cfg.eval_cam_size else "native"
    return {
        "target": target, "dataset": cfg.dataset, "split": split, "images": images, "image_size": size,
        "scales": list(cfg.cam_scales if is_cam else cfg.eval_seg_scales if target.startswith("seg") else [1.0]),
        "flip": is_cam or (target.startswith("seg") and cfg.eval_seg_flip),
        "background_threshold": cfg.background_threshold if is_cam else None,
        "true_labels_mask_cam": is_cam, "par": target == CAM_REFINED, "crf": target == SEG_CRF,
        "fusion": FUSIONS[cfg.eval_fusion] if target.startswith("seg") else FUSIONS["coco"] if is_cam else None,
        "miou_over": cfg.miou_over if target != LABELS else None, "ignored_label": IGNORE_INDEX,
        "checkpoint": checkpoint, "seed": cfg.seed,
    }  # fmt: skip


def validator(cfg: Config, targets: Sequence[str] = VALIDATED) -> Callable[[ToCo, int], dict[str, float]]:
    """What `train.fit` calls every `cfg.val_every` steps: mIoU of the targets on the validation split.

    Segmentation is a single pass, as in the published training log: one scale, no flip.
    """
    quick = cfg.replace(eval_seg_scales=(1.0,), eval_seg_flip=False)

    def validate(model: ToCo, step: int) -> dict[str, float]:
        scores = evaluate_model(model, quick, targets=targets, progress=False).scores
        return {target: scores[target] for target in targets}

    return validate


@torch.no_grad()
def gallery_rows(model: ToCo, cfg: Config, num_images: int = 6, split: str | None = None) -> list[dict[str, Any]]:
    """Rows for `figures.cam_gallery`: image, truth, CAMs (strongest present class), label of the CAM, segmentation.

    Arrays of native size: uint8 image (H, W, 3), float CAMs (H, W) in [0, 1], integer label maps (H, W).
    """
    device, rows = next(model.parameters()).device, []
    for sample in islice(eval_samples(cfg, model.mean, model.std, split), num_images):
        image, label = sample.image[None].to(device), sample.image_label[None].to(device)
        rows += _map_rows([sample], predict(model, cfg, image, label, (CAM, SEG)))
    return rows


def _map_rows(group: Sequence[EvalSample], predicted: dict[str, Tensor]) -> list[dict[str, Any]]:
    """What `predict` found for each of some images, as arrays under the headings of a gallery."""
    keys = dict(zip(MAPS, ("cam_scores", "cam_aux_scores", CAM, SEG), strict=True))
    found = {title: predicted[key].cpu().numpy() for title, key in keys.items() if key in predicted}
    return [
        {"image": sample.raw, "truth": sample.mask.numpy()} | {title: maps[i] for title, maps in found.items()}
        for i, sample in enumerate(group)
    ]
