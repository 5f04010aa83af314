"""What a training step is given."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """What a training step is given: B images, with S = `crop_size` and s = `view2_side`."""

    names: list[str]
    image: Tensor  # (B, 3, S, S) normalised; it is also the first global view
    view2: Tensor  # (B, 3, s, s) normalised; second global view
    local_source: Tensor  # (B, 3, S, S) the image in other colours; the training step cuts local crops from it
    image_label: Tensor  # (B, C) float in {0, 1}
    valid_box: Tensor  # (B, 4) int64 top, bottom, left, right, half-open: what is not padding
    max_present: int | None = None  # no image shows more classes; None counts them, for which the host waits for a GPU
    mask: Tensor | None = None  # (B, S, S) int64 labels of `image`, 255 not counted; None unless the run reads masks
    has_mask: list[bool] | None = None  # on the host; None: all if there is a `mask`. Without one it is 255 everywhere
    # images 2i and 2i + 1 are frames of a clip: from each one to the other, (B, 2, S, S) pixels to the right and down
    flow: Tensor | None = None  # None unless the run compares frames
    holds: Tensor | None = None  # (B, S, S) bool, where the flow is known and leads to a place in the view

    def __getitem__(self, part: slice) -> "Batch":
        """The images of a slice, for gradient accumulation."""
        has_mask = None if self.has_mask is None else self.has_mask[part]
        return replace(self._map(lambda tensor: tensor[part]), names=self.names[part], has_mask=has_mask)

    @property
    def known(self) -> list[bool]:
        """Whether each image has a true mask; a list on the host, so that nothing waits for a GPU."""
        there = self.mask is not None
        return [there] * len(self.names) if self.has_mask is None else self.has_mask

    def to(self, device: torch.device | str) -> "Batch":
        """A copy on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """A copy in page-locked memory; the loader calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        there = {name: tensor for name in TENSORS if (tensor := getattr(self, name)) is not None}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in there.items()}
        return replace(self, **changed)


# fields that are stacked, cut and moved
TENSORS = tuple(item.name for item in fields(Batch) if item.type in (Tensor, Tensor | None))
