"""The classes present in each image: the only ones whose maps are computed."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.config import IGNORE_INDEX


@dataclass(frozen=True)
class PresentClasses:
    """The classes present in each of B images, as lists of one length S.

    An image shows few of the C classes. Maps of its present classes alone, (B, S, H, W), are smaller than maps of all
    classes, (B, C, H, W), so everything that is expensive per map works on the former. S is the number of classes in
    the image that shows most; the lists of the other images are filled up with absent classes.

    Attributes:
        index: (B, S) int64 in 0..C-1: the present classes of each image in ascending order, then absent ones.
        mask: (B, S) bool, False where the class is one of the absent ones.
        num_classes: C.
    """

    index: Tensor
    mask: Tensor
    num_classes: int

    @classmethod
    def of(cls, image_label: Tensor, max_present: int | None = None) -> "PresentClasses":
        """The present classes of image labels, (B, C) in {0, 1}.

        Args:
            image_label: 1 where the class is present.
            max_present: S, where the caller knows that no image shows more classes; further ones would be dropped.
                None counts them, and the host then waits for labels that are on a GPU.
        """
        if max_present is None:
            max_present = int(image_label.count_nonzero(1).max())
        order = image_label.bool().int().argsort(dim=1, descending=True, stable=True)  # present classes first
        index = order[:, : max(1, max_present)]
        return cls(index, image_label.gather(1, index) != 0, image_label.shape[1])

    def gather(self, maps: Tensor) -> Tensor:
        """Maps of all classes, (..., B, C, h, w), to maps of the present ones, (..., B, S, h, w).

        Raises:
            ValueError: If the maps do not fit the image labels.
        """
        if maps.shape[-4:-2] != (len(self.index), self.num_classes):
            raise ValueError(f"image_label {(len(self.index), self.num_classes)} does not fit maps {tuple(maps.shape)}")
        return maps[..., self._images, self.index, :, :]

    def scatter(self, maps: Tensor) -> Tensor:
        """The inverse of `gather`: (..., B, S, h, w) to (..., B, C, h, w), with maps of 0 for absent classes."""
        dense = maps.new_zeros(*maps.shape[:-3], self.num_classes, *maps.shape[-2:])
        dense[..., self._images, self.index, :, :] = maps * self.mask[:, :, None, None]
        return dense

    def dense(self) -> "PresentClasses":
        """The same with a place for every class, S = C: class c is number c of each list."""
        every = torch.arange(self.num_classes, device=self.index.device).expand(len(self.index), -1)
        present = torch.zeros_like(every, dtype=torch.bool).scatter(1, self.index, self.mask)
        return PresentClasses(every, present, self.num_classes)

    def class_label(self, label: Tensor) -> Tensor:
        """Translate a label map from places in the lists to classes.

        Args:
            label: (B, h, w) int64: 0 background, s + 1 for the class `index[:, s]`, 255 ignored.

        Returns:
            (B, h, w) int64: 0 background, 1..C classes, 255 ignored.
        """
        numbers = F.pad(self.index + 1, (1, 0))  # (B, 1 + S)
        place = label.flatten(1)
        classes = numbers.gather(1, place.clamp(max=numbers.shape[1] - 1))
        return classes.where(place != IGNORE_INDEX, place).view_as(label)

    @property
    def _images(self) -> Tensor:
        return torch.arange(len(self.index), device=self.index.device)[:, None]
