"""CAMs of toy clips fused over time, scored: mIoU, and how steady the labels are along the true motion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from toco_lab.backbones.modes import evaluating
from toco_lab.backbones.pixels import normalise
from toco_lab.config import Config
from toco_lab.data.classes import class_names
from toco_lab.data.clip_motion import true_motion
from toco_lab.data.loader import eval_samples
from toco_lab.data.toy import TOY_CLASSES
from toco_lab.data.toy_clips import DRIFT, SPEED, Clip, make_clip
from toco_lab.evaluation.box_evaluation import Threshold, check_threshold, chosen_threshold
from toco_lab.evaluation.evaluate import protocol_record
from toco_lab.evaluation.of_runs import measure_run
from toco_lab.evaluation.over_time import fuse_over_time
from toco_lab.evaluation.prediction import BATCH, label_above, native_cams, predict, strongest_class
from toco_lab.evaluation.scores import confusion_matrix, iou_scores
from toco_lab.files import require
from toco_lab.method.face import CamModel
from toco_lab.method.flow import ABSOLUTE, PATCH, RADIUS, RELATIVE, SIDE, WINDOW, EstimatedMotion, Motion, warp
from toco_lab.method.present import PresentClasses
from toco_lab.methods import has_cams, learns_segmentation
from toco_lab.progress import progress_bar
from toco_lab.runs.run_dir import RunDir
from toco_lab.vocabulary import CAM, SEG
from toco_lab.words import counted

PER_FRAME, STILL, ESTIMATED, TRUE = "per frame", "mean without warping", "estimated flow", "true flow"
FUSIONS = (PER_FRAME, STILL, ESTIMATED, TRUE)  # rows of the table; the last one is the ceiling
SEGMENTED = "segmentation, per frame"  # one more row, where a run trains its decoder
CLIPS, FRAMES, STREAM = 20, 8, 1  # clips that are measured, their frames, and the stream: validation's
SCORES = ("miou", "consistency", "flipped")


@dataclass(frozen=True, eq=False)
class ClipEvaluation:
    """Scores of one model on toy clips.

    Attributes:
        table: A row for each fusion asked for, and `SEGMENTED` of a run that trains a decoder: fusion, and in [0, 1]:
            `miou` over all frames; `consistency`, the mIoU between the labels of a frame, warped to the next one by the
            true flow, and the labels of the next one, over pixels that both frames show and classes that either has;
            `flipped`, the share of these pixels whose two labels differ.
        protocol: Everything that defines the numbers.
        clip: The first clip.
        labels: Of the first clip, by fusion: (T, H, W) uint8.
    """

    table: pd.DataFrame
    protocol: dict[str, Any]
    clip: Clip
    labels: Mapping[str, np.ndarray]

    def __str__(self) -> str:
        """The table in per cent, and below it what it depends on."""
        record = self.protocol
        shown = (100 * self.table.set_index("fusion")[list(SCORES)]).to_string(float_format="{:.1f}".format)
        flow = ""
        if "flow_error" in record:
            flow = (
                f"estimated flow is {record['flow_error']:.2f} pixels off on average (no flow: "
                f"{record['motion']:.2f}); "
            )
        return (
            f"{shown}\nper cent; final CAM, true labels of the clip, threshold {record['background_threshold']:g} "
            f"({record['threshold_from']}); {counted(record['clips'], 'toy clip')} of "
            f"{counted(record['frames'], 'frame')}, {counted(record['window'], 'neighbour')} on each side; "
            f"{flow}checkpoint {record['checkpoint']}, seed {record['seed']}"
        )


class LabelCounts:
    """What the labels of clips are counted into, clip by clip."""

    def __init__(self, num_labels: int) -> None:
        """Nothing is counted yet; `num_labels` is C + 1."""
        self._truth = torch.zeros(num_labels, num_labels, dtype=torch.int64)
        self._steps = torch.zeros_like(self._truth)

    def add(self, labels: Tensor, clip: Clip) -> None:
        """Count the labels (T, H, W) of a clip: against its masks, and each frame against the one before."""
        num_labels, labels = len(self._truth), labels.long().cpu()
        self._truth += confusion_matrix(labels, torch.from_numpy(clip.mask).long(), num_labels)
        for frame in range(1, len(clip)):
            flow, seen = true_motion(clip)(frame, frame - 1)
            before = warp(labels[frame - 1][None, None].float(), flow[None], nearest=True)[0, 0].long()
            self._steps += confusion_matrix(labels[frame][seen], before[seen], num_labels)

    def scores(self, over: str = "present") -> dict[str, float]:
        """`SCORES`; `over` as in `iou_scores`."""
        steps = iou_scores(self._steps)
        values = iou_scores(self._truth, over=over).miou, steps.iou.nanmean(), 1 - steps.pixel_accuracy
        return dict(zip(SCORES, (value.item() for value in values), strict=True))


@torch.no_grad()
def measure_clips(
    model: CamModel,
    cfg: Config,
    *,
    clips: int = CLIPS,
    frames: int = FRAMES,
    window: int = WINDOW,
    threshold: Threshold = "tuned",
    fusions: Sequence[str] = FUSIONS,
    stream: int = STREAM,
    checkpoint: str = "",
    progress: bool = True,
) -> ClipEvaluation:
    """Score the final CAM of each frame alone, and averaged over time in three ways (`fusions`), on toy clips; and
    the segmentation of each frame alone, which knows no image label, where the run has learnt one.

    The encoder sees each frame once; all rows share its CAMs and the threshold. The true image label of a clip, the
    classes that any of its frames shows, masks the CAMs of all of its frames.

    Args:
        model: It is put into evaluation mode, and its mode is restored afterwards.
        cfg: Protocol: sizes, scales, thresholds. Clips have the size of its crops.
        clips: How many.
        frames: Of each clip, at least 2.
        window: Neighbours on each side.
        threshold: Of the CAM: `tuned` is best for the mIoU of training images (single ones), `configured` the config's.
        fusions: Rows of the table, some of `FUSIONS`. Without the estimated flow it takes a quarter of the time.
        stream: Seed of the clips.
        checkpoint: Hash of the weights, for the protocol.
        progress: Show a progress bar.

    Raises:
        ValueError: If the classes are not those of toy scenes, the method has no CAM, fusions are none or have other
            names, or a number is too small.
    """
    require(model, CamModel, "model", ": load_run_model(run) loads one")
    require(cfg, Config, "cfg", ": it is that of the run, run.config()")
    _check(cfg, clips, window)
    check_threshold(threshold)
    if not fusions or not set(fusions) <= set(FUSIONS):
        raise ValueError(f"fusions must be some of {', '.join(FUSIONS)}, got {list(fusions)}")
    named = (*fusions, SEGMENTED) if learns_segmentation(cfg) else tuple(fusions)
    counts = {fusion: LabelCounts(cfg.num_classes + 1) for fusion in named}
    first: tuple[Clip, dict[str, np.ndarray]] | None = None
    errors: list[tuple[float, float]] = []
    with evaluating(model):
        samples = eval_samples(cfg, model.mean, model.std)
        chosen, chosen_from = chosen_threshold(model, cfg, CAM, threshold, samples, progress=progress)
        with progress_bar(range(clips), "clips", unit="clip", shown=progress) as bar:
            for index in bar:
                clip = make_clip(stream, index, frames, cfg.crop_size)
                estimated = EstimatedMotion(torch.from_numpy(clip.image).permute(0, 3, 1, 2).float(), window=window)
                motions = {PER_FRAME: None, STILL: None, ESTIMATED: estimated, TRUE: true_motion(clip)}
                followed = {fusion: motions[fusion] for fusion in fusions}
                labels = _labels_of(model, cfg, clip, followed, window, chosen or 0.0)
                for fusion, count in counts.items():
                    count.add(labels[fusion], clip)
                if ESTIMATED in fusions:  # the flow is matched where it is asked for, so others do not wait for it
                    errors.append(_errors(clip, estimated))
                if first is None:
                    first = clip, {fusion: label.to(torch.uint8).numpy() for fusion, label in labels.items()}
    assert first is not None  # there is a clip
    rows = [{"fusion": fusion} | count.scores(cfg.miou_over) for fusion, count in counts.items()]
    protocol = protocol_record(cfg, CAM, f"clips of stream {stream}", clips * frames, checkpoint) | {
        "what": "CAMs fused over time, on toy clips", "clips": clips, "frames": frames, "window": window,
        "image_label": "true, of the whole clip", "background_threshold": chosen, "threshold_from": chosen_from,
        "most_speed": SPEED, "most_drift": DRIFT,
        "consistency_over": "labels of the frame before, warped by the true flow, where both frames show the pixel",
    }  # fmt: skip
    if errors:
        error, motion = np.mean(errors, axis=0).tolist()
        protocol |= {"flow": flow_record(), "flow_error": error, "motion": motion}
    protocol.pop("boundary_width")
    return ClipEvaluation(pd.DataFrame(rows), protocol, *first)


def clips_of_run(
    run: RunDir,
    *,
    clips: int = CLIPS,
    frames: int = FRAMES,
    window: int = WINDOW,
    threshold: Threshold = "tuned",
    device: str = "auto",
    progress: bool = True,
) -> ClipEvaluation:
    """`measure_clips` of a run's last checkpoint; writes video.csv and video.json into its folder.

    Raises:
        ValueError: As `measure_clips`; if another process is at work in the folder of the run, or `run` is none.
        OSError: Before the work, if nothing can be written there.
    """
    require(run, RunDir, "run", ": open one with RunDir(folder)")
    _check(run.config(), clips, window)
    measure = partial(measure_clips, clips=clips, frames=frames, window=window, threshold=threshold, progress=progress)

    def of_no_split(model: CamModel, cfg: Config, *, split: str | None, checkpoint: str) -> ClipEvaluation:
        return measure(model, cfg, checkpoint=checkpoint)

    return measure_run(run, "video", of_no_split, split=None, device=device)


def flow_record() -> dict[str, Any]:
    """How flow is estimated, for a protocol."""
    check = f"|f + b|^2 < {RELATIVE:g} (|f|^2 + |b|^2) + {ABSOLUTE:g}"
    return {"by": "block matching", "radius": RADIUS, "patch": PATCH, "side": SIDE, "holds_where": check}


def _check(cfg: Config, clips: int, window: int) -> None:
    if cfg.dataset != "toy" or class_names(cfg) != TOY_CLASSES:
        what = f"dataset {cfg.dataset!r}" if cfg.dataset != "toy" else f"toy_world {cfg.toy_world!r}"
        raise ValueError(
            f"only toy scenes have clips with a true motion, and the run is of {what}: give a folder of frames or a "
            "video"
        )
    if not has_cams(cfg):
        raise ValueError(f"method {cfg.method!r} has no CAM to fuse over time")
    if clips < 1:
        raise ValueError(f"clips must be at least 1, got {clips}")
    if window < 1:
        raise ValueError(f"window must be at least 1 frame, got {window}")


def _labels_of(
    model: CamModel, cfg: Config, clip: Clip, motions: Mapping[str, Motion | None], window: int, threshold: float
) -> dict[str, Tensor]:
    """Labels (T, H, W) of a clip by fusion, on the CPU; `motions` says what each fusion follows."""
    device = next(model.parameters()).device
    image = normalise(torch.from_numpy(clip.image).permute(0, 3, 1, 2), model.mean, model.std).to(device)
    label = torch.from_numpy(clip.image_label).to(device).expand(len(clip), -1)
    pieces = list(zip(image.split(BATCH), label.split(BATCH), strict=True))
    parts = [native_cams(model, cfg, *piece) for piece in pieces]
    maps = torch.cat([part.cam for part in parts]).float().cpu()  # (T, S, H, W)
    there = PresentClasses.of(label.cpu())
    fused = {
        fusion: maps if fusion == PER_FRAME else fuse_over_time(maps, motion, window=window)
        for fusion, motion in motions.items()
    }
    labels = {fusion: label_above(*strongest_class(one, there), threshold) for fusion, one in fused.items()}
    if learns_segmentation(cfg):
        labels[SEGMENTED] = torch.cat([predict(model, cfg, *piece, (SEG,))[SEG].cpu() for piece in pieces])
    return labels


def _errors(clip: Clip, estimated: EstimatedMotion) -> tuple[float, float]:
    """Mean distance in pixels of the estimated from the true flow to the next frame, and of no flow at all."""
    found = torch.cat([estimated.flow(frame, frame + 1) for frame in range(len(clip) - 1)])
    true, seen = torch.from_numpy(clip.forward).permute(0, 3, 1, 2), torch.from_numpy(~clip.occluded)
    error, motion = ((one.square().sum(1).sqrt()[seen]).mean().item() for one in (found - true, true))
    return error, motion
