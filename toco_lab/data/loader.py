"""Batches of training views and whole images for evaluation, from any reader."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from toco_lab.backbones.pixels import normalise
from toco_lab.config import Config
from toco_lab.data.readers import open_dataset, training_label
from toco_lab.data.views import TrainViews
from toco_lab.method.batch import TENSORS, Batch


class TrainSamples(Dataset):
    """Training samples by position: sample p depends on (cfg.seed, p) alone, epochs are permutations of the images."""

    def __init__(self, cfg: Config, mean: Sequence[float], std: Sequence[float]) -> None:
        """Opens the training split."""
        self.seed, self.reader, self.views = cfg.seed, open_dataset(cfg, cfg.train_split), TrainViews(cfg, mean, std)

    def __getitem__(self, position: int) -> Batch:
        """A batch of one without its batch axis; DataError if the image has no class."""
        epoch, place = divmod(position, len(self.reader))
        index = int(_permutation(self.seed, epoch, len(self.reader))[place])
        label = training_label(self.reader, index)
        seed = int(np.random.SeedSequence([self.seed, 1, position]).generate_state(1)[0])
        views = self.views(self.reader.image(index), seed)
        name = self.reader.names[index]
        return Batch(
            name, views.image, views.view2, views.local_source, torch.from_numpy(label), views.valid_box,
            max_present=int(np.count_nonzero(label)),
        )  # fmt: skip


def train_loader(
    cfg: Config, mean: Sequence[float], std: Sequence[float], *, start_step: int = 0, places: range | None = None
) -> "DataLoader[Batch]":
    """The batches of steps `start_step` .. `cfg.steps - 1`.

    Stateless: sample j of step k depends only on (seed, k * batch_size + j), so a resumed run sees the batches it would
    have seen, whatever `num_workers` and the number of processes, and no random number of the training process is used.

    Args:
        cfg: Data set, views and batch size.
        mean: See `normalise`.
        std: See `normalise`.
        start_step: First step, 0-based.
        places: This process's share of each batch, as places in it; None takes all.

    Raises:
        DataError: See `open_dataset`; while iterating, for a file that cannot be read or an image without a class.
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


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch]).permutation(length)


def _collate(samples: list[Batch]) -> Batch:
    return Batch(
        names=[sample.names for sample in samples],
        **{name: torch.stack([getattr(sample, name) for sample in samples]) for name in TENSORS},
        max_present=max(sample.max_present for sample in samples),
    )


@dataclass(frozen=True)
class EvalSample:
    """One whole image at native size."""

    name: str
    image: Tensor  # (3, H, W) normalised
    raw: np.ndarray  # (H, W, 3) uint8
    mask: Tensor | None  # (H, W) int64 labels; None if the split has none
    image_label: Tensor | None  # (C,) float in {0, 1}; None if it would come from a mask that is not there


class EvalSamples(Dataset):
    """The samples of a split in list order; iterate over it, or hand it to a DataLoader with `batch_size=None`."""

    def __init__(self, cfg: Config, mean: Sequence[float], std: Sequence[float], split: str) -> None:
        """Opens the split; see `eval_samples`."""
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
    """The first `cfg.val_images` (0 = all) samples of `split` (None: `cfg.val_split`)."""
    return EvalSamples(cfg, mean, std, split or cfg.val_split)
