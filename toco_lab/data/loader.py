"""Batches of training views, and whole images for evaluation, from any data set."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from toco_lab.backbones.pixels import denormalise, normalise
from toco_lab.config import Config
from toco_lab.data.classes import DataError
from toco_lab.data.clip_motion import clip_motion
from toco_lab.data.readers import FRAMES, ClipReader, Reader, open_dataset
from toco_lab.data.training_masks import TrainingMasks
from toco_lab.data.views import TrainViews, Views, apply_views, draw_views
from toco_lab.method.batch import Batch
from toco_lab.methods import reads_images_without_mask, reads_masks

VIEWS = tuple(field.name for field in fields(Views))


@dataclass(frozen=True)
class TrainSample:
    """The views of one training image, its label, float32 (C,) in {0, 1}, and its mask, int64 (S, S).

    The mask is None where the run reads none, and 255 everywhere where this image has none. `flow` (2, S, S) and
    `holds` (S, S) bool are the motion to the other frame of the pair, see `Batch`; None unless the run reads them.
    """

    name: str
    views: Views
    label: Tensor
    mask: Tensor | None = None
    has_mask: bool = False
    flow: Tensor | None = None
    holds: Tensor | None = None


class TrainSamples(Dataset[TrainSample]):
    """Training samples by position: sample p depends on (cfg.seed, p) alone, epochs are permutations of the images.

    Where only some images have a mask, every other sample is one of these, and those between are of all images; or, in
    a method that learns from masks alone, every sample is.

    With `cfg.train_on_clips` two samples, 2p and 2p + 1, are neighbouring frames of a clip that share all draws, and
    epochs are permutations of these pairs.
    """

    def __init__(self, cfg: Config, mean: Sequence[float], std: Sequence[float]) -> None:
        """Open the training split; `mean` and `std` as in `normalise`.

        Raises:
            DataError: See `open_dataset`; if images without a class are left out, and no other is there.
        """
        self.seed, self.reader, self.views = cfg.seed, open_dataset(cfg, cfg.train_split), TrainViews(cfg, mean, std)
        self.masks = TrainingMasks.of(cfg, self.reader) if reads_masks(cfg) else None
        every = range(len(self.reader)) if cfg.train_on_empty else _with_a_class(self.reader, cfg.train_split)
        self.pairs = isinstance(self.reader, ClipReader)
        if self.pairs:
            every = [index for index in every if (index + 1) % FRAMES]  # by its first frame, so not by a clip's last
        with_mask: Sequence[int] = every
        if self.masks is not None and self.masks.images is not None:
            with_mask = sorted(set(every) & set(self.masks.images))
        self._with_mask = frozenset(with_mask) if self.masks else frozenset()
        # taken in turn, each in its own order
        both = reads_images_without_mask(cfg) and len(with_mask) < len(every)
        self._turns: tuple[Sequence[int], ...] = (with_mask, every) if both else (with_mask,)

    def __getitem__(self, position: int) -> TrainSample:
        """Sample `position`, 0-based; an image without a class is all background."""
        index, seed = self.drawn(position)
        label = self.reader.image_label(index)
        views = self.views(self.reader.image(index), seed)
        has_mask, mask = index in self._with_mask, None
        if self.masks is not None:
            mask = self.views.mask(self.masks[index], seed) if has_mask else self.views.no_mask()
        motion = self._motion(index, position % 2, seed) if self.views.cfg.w_temporal > 0 else ()
        return TrainSample(self.reader.names[index], views, torch.from_numpy(label), mask, has_mask, *motion)

    def drawn(self, position: int) -> tuple[int, int]:
        """Which image of the reader sample `position` is, and the seed of its views."""
        position, later = divmod(position, 2) if self.pairs else (position, 0)
        turn, images = position // len(self._turns), self._turns[position % len(self._turns)]
        epoch, place = divmod(turn, len(images))
        index = images[int(_permutation(self.seed, epoch, len(images))[place])] + later
        return index, int(np.random.SeedSequence([self.seed, 1, position]).generate_state(1)[0])

    def _motion(self, index: int, later: int, seed: int) -> tuple[Tensor, Tensor]:
        """The motion from a frame of a pair, its later one or not, to the other one, in their view."""
        assert isinstance(self.reader, ClipReader)  # `Config` sees to it
        cfg, (clip, frame) = self.views.cfg, divmod(index, FRAMES)
        motion = clip_motion(self.reader.stream, clip, cfg.crop_size, estimated=cfg.clip_flow == "estimated")
        return self.views.motion(*motion(frame, frame - 1 if later else frame + 1), seed)


def _with_a_class(reader: Reader, split: str) -> list[int]:
    """The images of a training split that show a class; all labels are read."""
    found = [index for index in range(len(reader)) if reader.image_label(index).any()]
    if not found:
        raise DataError(
            f"no image of {split!r} in {reader.root} has a class, and train_on_empty leaves out those without one: "
            "nothing is left to learn from. Label some"
        )
    return found


def seen_views(
    cfg: Config, mean: Sequence[float], std: Sequence[float], *, positions: Sequence[int] = range(3)
) -> list[dict[str, Any]]:
    """What a training step sees of some samples, for `figures.view_panels`.

    Args:
        cfg: As in `train_loader`.
        mean: Of each channel, see `normalise`.
        std: Of each channel.
        positions: Samples, 0-based; step k of a run takes those from k * batch_size on.

    Returns:
        Of each sample its name, the original (H, W, 3) uint8, `view2_box` (top, left, height, width) in it,
        `valid_box` (top, bottom, left, right) in the views of the crop's size, and the views as uint8 pictures.

    Raises:
        DataError: See `open_dataset`.
    """
    samples, rows = TrainSamples(cfg, mean, std), []
    for position in positions:
        index, seed = samples.drawn(position)
        original = samples.reader.image(index)
        draws = draw_views(cfg, original.shape[:2], seed)
        views = apply_views(cfg, original, draws, mean, std)
        shown = {"first view": views.image, "local view": views.local_source, "second view": views.view2}
        rows.append(
            {
                "name": samples.reader.names[index],
                "original": original,
                "view2_box": draws.view2_box,
                "valid_box": tuple(views.valid_box.tolist()),
                "views": {f"{name}, {view.shape[-1]} px": _picture(view, mean, std) for name, view in shown.items()},
            }
        )
    return rows


def _picture(view: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """A normalised view as (S, S, 3) uint8."""
    return denormalise(view, mean, std).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def train_loader(
    cfg: Config, mean: Sequence[float], std: Sequence[float], *, start_step: int = 0, places: range | None = None
) -> Iterable[Batch]:
    """The batches of steps `start_step` .. `cfg.steps - 1`.

    Sample j of step k depends only on (seed, k * batch_size + j). A continued run therefore sees the batches it would
    have seen, whatever `num_workers` and the number of processes. No random number of the training process is used.

    Args:
        cfg: Data set, views and batch size.
        mean: Of each channel, see `normalise`.
        std: Of each channel.
        start_step: First step, 0-based.
        places: Which samples of each batch to give, this process's share; None takes all.

    Raises:
        DataError: See `open_dataset`; while iterating, for a file that cannot be read.
    """
    mine = range(cfg.batch_size) if places is None else places
    return DataLoader(
        TrainSamples(cfg, mean, std),
        batch_size=len(mine),
        sampler=[step * cfg.batch_size + place for step in range(start_step, cfg.steps) for place in mine],
        num_workers=cfg.num_workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(cfg.seed),  # otherwise each epoch draws from the global one
    )


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch]).permutation(length)


def _collate(samples: list[TrainSample]) -> Batch:
    views = {name: torch.stack([getattr(sample.views, name) for sample in samples]) for name in VIEWS}
    label = torch.stack([sample.label for sample in samples])
    max_present = int(label.count_nonzero(1).max())  # counted here: on a GPU it would have to be waited for
    masks = [sample.mask for sample in samples if sample.mask is not None]
    flows = [sample.flow for sample in samples if sample.flow is not None]
    holds = [sample.holds for sample in samples if sample.holds is not None]
    return Batch(
        names=[sample.name for sample in samples], image_label=label, max_present=max_present,
        mask=torch.stack(masks) if masks else None,
        has_mask=[sample.has_mask for sample in samples] if masks else None,
        flow=torch.stack(flows) if flows else None, holds=torch.stack(holds) if holds else None, **views,
    )  # fmt: skip


@dataclass(frozen=True)
class EvalSample:
    """One whole image at native size."""

    name: str
    image: Tensor  # (3, H, W) normalised
    raw: np.ndarray  # (H, W, 3) uint8
    mask: Tensor | None  # (H, W) int64 labels; None if the split has none
    image_label: Tensor | None  # (C,) float in {0, 1}; None if it would come from a mask that is not there


class EvalSamples(Dataset[EvalSample]):
    """The samples of a split in list order; iterate over it, or hand it to a DataLoader with `batch_size=None`."""

    def __init__(self, cfg: Config, mean: Sequence[float], std: Sequence[float], split: str) -> None:
        """Open the split; see `eval_samples`."""
        self.reader, self.mean, self.std = open_dataset(cfg, split), mean, std
        self.label_from_mask = cfg.label_source == "masks"
        self.length = min(len(self.reader), cfg.val_images or len(self.reader))

    def __len__(self) -> int:
        """Number of samples."""
        return self.length

    def has_masks(self) -> list[bool]:
        """Whether each sample has a mask."""
        return self.reader.has_masks()[: self.length]

    def __getitem__(self, index: int) -> EvalSample:
        """Sample `index`; IndexError at the end, so that `for sample in samples` works."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        raw, mask = self.reader.image(index), self.reader.mask(index)
        known = mask is not None or not self.label_from_mask
        return EvalSample(
            name=self.reader.names[index],
            image=normalise(torch.from_numpy(raw).permute(2, 0, 1).contiguous(), self.mean, self.std),
            raw=raw,
            mask=None if mask is None else torch.from_numpy(mask).long(),
            image_label=torch.from_numpy(self.reader.image_label(index)) if known else None,
        )


def eval_samples(cfg: Config, mean: Sequence[float], std: Sequence[float], split: str | None = None) -> EvalSamples:
    """The first `cfg.val_images` (0 = all) samples of a split.

    Args:
        cfg: Names the data set.
        mean: Of each channel, see `normalise`.
        std: Of each channel.
        split: Name of the list; None takes `cfg.val_split`.

    Raises:
        DataError: See `open_dataset`.
    """
    return EvalSamples(cfg, mean, std, split or cfg.val_split)
