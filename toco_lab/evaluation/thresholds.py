"""The background threshold of a CAM that is best on training images, and the score at every threshold of a grid.

At one fixed threshold two models differ by how good their maps are and by how well the threshold happens to fit them.
The second score (`cam_tuned` beside `cam`) takes the second part away: each CAM has the threshold at which it is best
on training images, never on the images that are scored. What the two scores differ in is calibration, a merit of its
own.

Every threshold is counted in one pass: for each truth and strongest class a histogram of the score, from which the
confusion matrix at each threshold follows by sums.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor

from toco_lab.config import Config
from toco_lab.data.classes import DataError
from toco_lab.data.loader import EvalSamples, eval_samples
from toco_lab.evaluation.prediction import BATCH, grouped_by_size, predict
from toco_lab.evaluation.samples import image_label_of, mask_of
from toco_lab.evaluation.scores import iou_scores
from toco_lab.method.face import CamModel
from toco_lab.progress import progress_bar
from toco_lab.training.processes import is_first, share, total
from toco_lab.vocabulary import CAM, CAM_AUX, CAM_REFINED
from toco_lab.words import counted

GRID = tuple(number / 20 for number in range(1, 17))  # 0.05 to 0.80: the thresholds that can be chosen
CURVE = ("target", "split", "tuned_on", "images", "threshold", "miou", "configured", "chosen")  # columns of a curve
MADE_FROM = {CAM: CAM, CAM_AUX: CAM_AUX, CAM_REFINED: CAM}  # target -> the CAM whose threshold it takes


class ThresholdCounts:
    """Pixel counts of one CAM at several background thresholds at once, over the images of this process.

    Attributes:
        thresholds: As given.
        histogram: Pixels by truth, strongest class and how many thresholds lie below its score, flat.
    """

    def __init__(self, thresholds: Sequence[float], num_labels: int, device: torch.device) -> None:
        """`thresholds` ascend, 0 or more; `num_labels` is K, with background."""
        self.thresholds, self._num_labels = tuple(thresholds), num_labels
        self._edges = torch.tensor(self.thresholds, device=device)  # rounded to float32, as a comparison rounds them
        bins = len(self.thresholds) + 1
        self.histogram = torch.zeros(num_labels * num_labels * bins, dtype=torch.int64, device=device)

    def add(self, score: Tensor, winner: Tensor, truth: Tensor) -> None:
        """Count images: score of the strongest class, that class (1..C) and the true label, all (B, H, W).

        Pixels whose truth is none of the K labels do not count.
        """
        known = (truth >= 0) & (truth < self._num_labels)
        passed = torch.bucketize(score[known], self._edges)  # how many thresholds lie below the score
        place = (truth[known] * self._num_labels + winner[known]) * (len(self.thresholds) + 1) + passed
        self.histogram += torch.bincount(place, minlength=len(self.histogram))

    def matrices(self) -> Tensor:
        """Confusion matrices (thresholds, K, K) int64 over the images of all processes, which all must call this.

        Truth in rows. At a threshold a pixel is its strongest class if the score exceeds it, else background.
        """
        histogram = total(self.histogram).cpu().view(self._num_labels, self._num_labels, -1)
        above = histogram.flip(2).cumsum(2).flip(2)[:, :, 1:].movedim(2, 0).clone()  # (thresholds, K, K)
        above[:, :, 0] += histogram.sum((1, 2)) - above.sum(2)
        return above


@dataclass(frozen=True)
class TunedThresholds:
    """The thresholds that were chosen, or why none was.

    Attributes:
        best: CAM target (`cam`, `cam_aux`) -> its threshold.
        images: How many training images it was chosen on.
        absent: Why there is none; "" where `best` has them.
        curve: mIoU at every threshold on the training images, columns `CURVE`.
    """

    best: Mapping[str, float] = field(default_factory=dict)
    images: int = 0
    absent: str = ""
    curve: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=CURVE))

    def of(self, target: str) -> float | None:
        """The threshold of a CAM target; `cam_refined` takes that of `cam`. None where there is none."""
        return self.best.get(MADE_FROM.get(target, ""))

    def record(self, target: str) -> dict[str, float | str | None]:
        """What a protocol says of the threshold of a target's second score."""
        if self.absent:
            return {"background_threshold": None, "threshold_from": None, "not_defined": self.absent}
        unrefined = ", by the CAM before PAR" if target == CAM_REFINED else ""
        return {
            "background_threshold": self.of(target),
            "threshold_from": counted(self.images, "training image") + unrefined,
        }


def tune_thresholds(
    model: CamModel, cfg: Config, cams: Collection[str], scored: Collection[str], *, progress: bool = True
) -> TunedThresholds:
    """Choose the background threshold of each CAM on `cfg.threshold_images` training images, one pass over them.

    The images are spread evenly over the training list, because a list may be sorted by class. Only images with a mask
    count, and none that is scored. The best threshold is the one of `GRID` with the highest mIoU over the classes that
    occur in these masks, the lowest one of equals. Several processes share the images out; all choose the same.

    Args:
        model: In evaluation mode.
        cfg: Names the training list and everything the CAMs depend on.
        cams: Among `cam` and `cam_aux`.
        scored: Names of the images that are scored.
        progress: Show a progress bar.

    Raises:
        DataError: If a chosen image or mask cannot be read.
    """
    found = _training_images(model, cfg, scored)
    if isinstance(found, str):
        return TunedThresholds(absent=found)
    samples, chosen = found
    device, mine = next(model.parameters()).device, share(len(chosen))
    counts = {cam: ThresholdCounts(curve_thresholds(cfg), cfg.num_classes + 1, device) for cam in cams}
    with progress_bar(mine, "choose thresholds", shown=progress and is_first()) as bar:
        for group in grouped_by_size((samples[chosen[place]] for place in mine), BATCH):
            image = torch.stack([sample.image for sample in group]).to(device)
            label = torch.stack([image_label_of(sample) for sample in group]).to(device)
            truth = torch.stack([mask_of(sample) for sample in group]).to(device)
            predicted = predict(model, cfg, image, label, cams)
            for cam, count in counts.items():
                count.add(predicted[f"{cam}_scores"], predicted[f"{cam}_winners"], truth)
            bar.update(len(group))
    best, curves = {}, []
    for cam, count in counts.items():
        rows = curve_rows(count, cfg, cam, cfg.train_split, len(chosen), over="present", tuned_on=True)
        allowed = rows[rows["threshold"].isin(GRID) & rows["miou"].notna()]
        if allowed.empty:
            return TunedThresholds(
                absent=f"no mask of {counted(len(chosen), 'training image')} has a pixel that counts"
            )
        best[cam] = float(allowed.loc[allowed["miou"].idxmax(), "threshold"])
        curves.append(rows)
    return TunedThresholds(best, len(chosen), curve=mark_chosen(pd.concat(curves, ignore_index=True), best))


def _training_images(model: CamModel, cfg: Config, scored: Collection[str]) -> tuple[EvalSamples, list[int]] | str:
    """The training samples and which of them a threshold is chosen on; or why it cannot be chosen."""
    try:
        samples = eval_samples(cfg.replace(val_images=0), model.mean, model.std, cfg.train_split)
    except DataError as error:  # scores of a finished run need no training images
        return f"the training images {cfg.train_split!r} cannot be read: {error}"
    masked = [index for index, has_mask in enumerate(samples.has_masks()) if has_mask]
    if not masked:
        return f"no training image of {cfg.train_split!r} has a mask"
    names, scored = samples.reader.names, set(scored)
    masked = [index for index in masked if names[index] not in scored]
    if not masked:
        return f"all training images of {cfg.train_split!r} that have a mask are among those that are scored"
    number = min(cfg.threshold_images, len(masked))
    return samples, [masked[place * len(masked) // number] for place in range(number)]


def curve_thresholds(cfg: Config) -> tuple[float, ...]:
    """The thresholds that a curve shows: `GRID` and the config's own."""
    return tuple(sorted({*GRID, cfg.background_threshold}))


def curve_rows(
    counts: ThresholdCounts, cfg: Config, target: str, split: str, images: int, *, over: str, tuned_on: bool
) -> pd.DataFrame:
    """mIoU (`over` as in `iou_scores`) at every threshold, columns `CURVE`; all processes must call this."""
    matrices = counts.matrices()
    rows = [
        (target, split, tuned_on, images, threshold, iou_scores(matrix, over=over).miou.item(),
         threshold == cfg.background_threshold, False)
        for threshold, matrix in zip(counts.thresholds, matrices, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=CURVE)


def mark_chosen(curve: pd.DataFrame, best: Mapping[str, float]) -> pd.DataFrame:
    """A curve whose column `chosen` marks the threshold of each target."""
    return curve.assign(chosen=curve["threshold"] == curve["target"].map(dict(best)))
