"""Scores for data in which many images show no class: Dice, how well images are told apart, area found on empty ones.

`evaluate` masks a CAM by the true image labels, so that nothing is ever found on an empty image. Here the classifier's
own labels mask it as well (`CAM_OWN`), as they do in `predict`, where nobody knows the true ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from toco_lab.backbones.modes import evaluating
from toco_lab.config import Config
from toco_lab.data.classes import class_names
from toco_lab.data.loader import EvalSample, eval_samples
from toco_lab.data.masks import check_classes_shown
from toco_lab.evaluation.box_evaluation import Threshold, check_threshold, chosen_threshold
from toco_lab.evaluation.box_scores import ALL
from toco_lab.evaluation.evaluate import protocol_record
from toco_lab.evaluation.of_runs import measure_run
from toco_lab.evaluation.prediction import BATCH, NativeCams, grouped_by_size, label_above, native_cams, predict
from toco_lab.evaluation.samples import image_label_of, mask_of
from toco_lab.evaluation.scores import confusion_matrix, dice_of_iou, iou_scores, label_auc
from toco_lab.files import require
from toco_lab.method.face import CamModel
from toco_lab.methods import has_cams, learns_segmentation
from toco_lab.progress import progress_bar
from toco_lab.runs.run_dir import RunDir
from toco_lab.vocabulary import CAM, LABELS, SEG
from toco_lab.words import counted

CAM_OWN = "cam_own"  # the final CAM of the classes that the classifier itself finds present
COLUMNS = ("target", "class", "iou", "dice", "label_auc", "empty_area")


@dataclass(frozen=True)
class DomainEvaluation:
    """Scores of one model on one split.

    Attributes:
        table: A row per target and class, and one of all classes, columns `COLUMNS`, in [0, 1]. `iou` and `dice` are of
            one confusion matrix over all images; of all classes, the mean over foreground classes in the truth.
            `label_auc` is that of the image logits, target `labels`. `empty_area` is the mean share of the pixels of an
            image without any class that are given the class, or any: NaN without such images, and of `cam`, to which
            the true labels say that nothing is there.
        protocol: Everything that defines the numbers.
    """

    table: pd.DataFrame
    protocol: dict[str, Any]

    @property
    def means(self) -> pd.DataFrame:
        """The rows of all classes, by target."""
        return self.table[self.table["class"] == ALL].set_index("target").drop(columns="class")

    def __str__(self) -> str:
        """The means in per cent, and below them what they depend on."""
        record = self.protocol
        shown = (100 * self.means).to_string(float_format="{:.1f}".format, na_rep="-")
        of = f"threshold {record['background_threshold']:g} ({record['threshold_from']}); " if CAM in shown else ""
        return (
            f"{shown}\nper cent; {of}{counted(record['images'], 'image')} of {record['dataset']} {record['split']}, "
            f"{record['empty_images']} without a class; checkpoint {record['checkpoint']}, seed {record['seed']}"
        )


class MaskCounts:
    """What label maps are counted into, image by image: a confusion matrix, and the area found on empty images."""

    def __init__(self, num_classes: int) -> None:
        """Nothing is counted yet; `num_classes` is C."""
        self._matrix = torch.zeros(num_classes + 1, num_classes + 1, dtype=torch.int64)
        self._area = torch.zeros(num_classes + 1, dtype=torch.float64)  # sum over empty images of the share of a label
        self.empty = 0

    def add(self, prediction: Tensor, truth: Tensor, image_label: Tensor) -> None:
        """Count label maps (B, H, W) with their true ones, 255 ignored; an image is empty by its label (B, C)."""
        labels = len(self._matrix)
        self._matrix += confusion_matrix(prediction, truth, labels).cpu()
        for found in prediction[~image_label.any(1)]:
            self._area += torch.bincount(found.flatten().cpu(), minlength=labels).double() / found.numel()
            self.empty += 1

    def rows(self, target: str, names: Sequence[str]) -> list[tuple[str, str, float, float, float, float]]:
        """Rows of `DomainEvaluation.table`, of each class by its name and of all."""
        iou, seen = iou_scores(self._matrix).iou[1:], self._matrix.sum(1)[1:] > 0
        dice = dice_of_iou(iou)
        nan = float("nan")
        told = target == CAM or self.empty == 0  # then true labels say that nothing is there, or no image is empty
        area = torch.full_like(dice, nan) if told else self._area[1:] / self.empty
        each = zip(names, iou.tolist(), dice.tolist(), area.tolist(), strict=True)
        rows = [(target, name, one, other, nan, there) for name, one, other, there in each]
        means = iou[seen].mean().item(), dice[seen].mean().item()
        return [*rows, (target, ALL, *means, nan, area.sum().item())]


@torch.no_grad()
def measure_domain(
    model: CamModel,
    cfg: Config,
    *,
    threshold: Threshold = "tuned",
    split: str | None = None,
    checkpoint: str = "",
    progress: bool = True,
) -> DomainEvaluation:
    """Score the final CAM, masked by true and by own image labels, the segmentation and the image labels.

    Args:
        model: It is put into evaluation mode, and its mode is restored afterwards.
        cfg: Protocol: sizes, scales, thresholds.
        threshold: Of the CAMs: `tuned` is best for the mIoU of training images (`tune_thresholds`), or the config's
            where none can be chosen; `configured` is the config's.
        split: None takes `cfg.val_split`.
        checkpoint: Hash of the weights, for the protocol.
        progress: Show a progress bar.

    Raises:
        ValueError: For an unknown threshold, or an image without mask or label.
        DataError: If a file of the split cannot be read, or no mask has a pixel of a class.
    """
    require(model, CamModel, "model", ": load_run_model(run) loads one")
    require(cfg, Config, "cfg", ": it is that of the run, run.config()")
    check_threshold(threshold)
    split, names = split or cfg.val_split, class_names(cfg)
    samples = eval_samples(cfg, model.mean, model.std, split)
    check_classes_shown(samples.reader, split, len(samples))
    targets = [*((CAM, CAM_OWN) if has_cams(cfg) else ()), *((SEG,) if learns_segmentation(cfg) else ())]
    counts = {target: MaskCounts(cfg.num_classes) for target in targets}
    logits, labels = [], []
    with evaluating(model):
        source = CAM if has_cams(cfg) else SEG
        chosen, chosen_from = chosen_threshold(model, cfg, source, threshold, samples, progress=progress)
        with progress_bar(range(len(samples)), f"domain {split}", shown=progress) as bar:
            for group in grouped_by_size(iter(samples), BATCH):
                found, seen = _label_maps(model, cfg, group, targets, chosen)
                label = torch.stack([image_label_of(sample) for sample in group])
                truth = torch.stack([mask_of(sample) for sample in group])
                for target, count in counts.items():
                    count.add(found[target].cpu(), truth, label)
                logits.append(seen.cpu())
                labels.append(label)
                bar.update(len(group))
    auc, empty = label_auc(torch.cat(logits), torch.cat(labels)), int((~torch.cat(labels).any(1)).sum())
    nan = float("nan")
    rows = [row for target, count in counts.items() for row in count.rows(target, names)]
    rows += [(LABELS, name, nan, nan, one, nan) for name, one in zip(names, auc.tolist(), strict=True)]
    rows.append((LABELS, ALL, nan, nan, auc.nanmean().item(), nan))
    protocol = protocol_record(cfg, source, split, len(samples), checkpoint)
    for name in ("target", "miou_over", "boundary_width", "true_labels_mask_cam"):  # of one target of `evaluate`
        protocol.pop(name)
    about = {"what": "Dice, AUC of image labels, area on empty images", "targets": targets, "empty_images": empty}
    own = {"background_threshold": chosen, "threshold_from": chosen_from, "own_labels": "image logit above 0",
           "seg_scales": list(cfg.eval_seg_scales), "seg_flip": cfg.eval_seg_flip}  # fmt: skip
    return DomainEvaluation(pd.DataFrame(rows, columns=list(COLUMNS)), about | protocol | own)


def domain_of_run(
    run: RunDir,
    *,
    threshold: Threshold = "tuned",
    split: str | None = None,
    device: str = "auto",
    progress: bool = True,
) -> DomainEvaluation:
    """`measure_domain` of a run's last checkpoint; writes domain.csv and domain.json into its folder.

    A split other than `val_split` has files of its own, domain_<split>.csv and .json.

    Raises:
        ValueError: As `measure_domain`; if another process is at work in the folder of the run, or `run` is none.
        OSError: Before the work, if nothing can be written there.
    """
    require(run, RunDir, "run", ": open one with RunDir(folder)")
    measure = partial(measure_domain, threshold=threshold, progress=progress)
    return measure_run(run, "domain", measure, split=split, device=device)


def _label_maps(
    model: CamModel, cfg: Config, group: Sequence[EvalSample], targets: Sequence[str], threshold: float | None
) -> tuple[Mapping[str, Tensor], Tensor]:
    """Label maps (B, H, W) of images of one size, by target, and their image logits (B, C)."""
    device = next(model.parameters()).device
    image = torch.stack([sample.image for sample in group]).to(device)
    label = torch.stack([image_label_of(sample) for sample in group]).to(device)
    found = predict(model, cfg, image, label, [SEG]) if SEG in targets else {}
    if CAM not in targets:
        return found, model(image, segment=False).logits
    cams = native_cams(model, cfg, image, lambda logits: torch.maximum(label, (logits > 0).to(label.dtype)))
    for target, shown in ((CAM, label), (CAM_OWN, (cams.logits > 0).to(label.dtype))):
        found[target] = _label_of(cams, shown, threshold or 0.0)
    return found, cams.logits


def _label_of(cams: NativeCams, image_label: Tensor, threshold: float) -> Tensor:
    """The strongest of the classes of an image label (B, C), (B, H, W), where it exceeds the threshold, else 0."""
    shown = image_label.gather(1, cams.present.index) * cams.present.mask
    score, place = (cams.cam * shown[:, :, None, None]).max(dim=1)
    return label_above(score, cams.present.class_label(place + 1), threshold)
