"""The classes present in each image."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.config import IGNORE_INDEX


@dataclass(frozen=True)
class Slots:
    """The classes present in each image of a batch, in the first of S slots: what costs time need not see the others.

    Attributes:
        classes: (B, S) int64, class index of each slot: present ones in order, absent ones behind them.
        present: (B, S) bool, whether the class of the slot is there.
        num_classes: C.
    """

    classes: Tensor
    present: Tensor
    num_classes: int

    @classmethod
    def of(cls, image_label: Tensor, most: int | None = None) -> "Slots":
        """Slots of image labels, (B, C) in {0, 1}.

        Args:
            most: Their number: a bound the caller knows on the present classes of one image, further ones would be
                dropped. None counts, for which the host waits where the labels are on a GPU.
        """
        most = max(1, int(image_label.count_nonzero(1).max()) if most is None else most)
        classes = image_label.bool().int().argsort(dim=1, descending=True, stable=True)[:, :most]
        return cls(classes, image_label.gather(1, classes) != 0, image_label.shape[1])

    def take(self, maps: Tensor) -> Tensor:
        """Maps of classes, (..., B, C, h, w), to maps of slots, (..., B, S, h, w).

        Raises:
            ValueError: If they do not fit the image labels.
        """
        if maps.shape[-4:-2] != (len(self.classes), self.num_classes):
            raise ValueError(
                f"image_label {(len(self.classes), self.num_classes)} does not fit maps {tuple(maps.shape)}"
            )
        return maps[..., self._images, self.classes, :, :]

    def spread(self, maps: Tensor) -> Tensor:
        """The way back, to (..., B, C, h, w); maps of absent classes are 0."""
        spread = maps.new_zeros(*maps.shape[:-3], self.num_classes, *maps.shape[-2:])
        spread[..., self._images, self.classes, :, :] = maps * self.present[:, :, None, None]
        return spread

    def class_label(self, label: Tensor) -> Tensor:
        """A label map in slots, (B, h, w): 0 background, 1..S slots, 255 ignored; the same with 1..C classes."""
        numbers = F.pad(self.classes + 1, (1, 0))  # (B, 1 + S)
        slot = label.flatten(1)
        return numbers.gather(1, slot.clamp(max=numbers.shape[1] - 1)).where(slot != IGNORE_INDEX, slot).view_as(label)

    @property
    def _images(self) -> Tensor:
        return torch.arange(len(self.classes), device=self.classes.device)[:, None]
