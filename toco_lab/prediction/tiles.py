"""Images of thousands of pixels: windows that overlap by half, what a model says of them averaged where they overlap.

The model sees windows of the size it was trained on. Memory grows with the image, for its maps of the present classes,
and not with the number of windows: what is averaged lies on the CPU, and only one row of windows of it has every class.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from toco_lab.backbones.pixels import normalise
from toco_lab.config import Config
from toco_lab.data.windows import window_starts
from toco_lab.evaluation.prediction import BATCH, multi_scale_segmentation
from toco_lab.method.cam import at_evaluation_size, normalised, resize_each, summed_maps
from toco_lab.method.face import CamModel
from toco_lab.method.present import PresentClasses

TILES_FUSED = "mean over windows; CAMs before their normalisation, image logits by their maximum"
MapsOf = Callable[[Tensor], Tensor]  # windows (B, 3, h, w) -> their maps (B, K, h, w)


def tile_step(side: int) -> int:
    """Pixels from one window to the next: half of its side."""
    return max(1, side // 2)


def tile_starts(length: int, side: int) -> list[int]:
    """Where windows of a side begin along a length, so that each overlaps the next by half, the last one by more.

    Example:
        >>> tile_starts(250, 100), tile_starts(80, 100)
        ([0, 50, 100, 150], [0])
    """
    return window_starts(length, side, tile_step(side))


class Tiled:
    """An image in windows, and what a model says of it."""

    def __init__(self, model: CamModel, cfg: Config, raw: np.ndarray, side: int, *, flip: bool = True) -> None:
        """Nothing is computed yet.

        Args:
            model: In evaluation mode.
            cfg: Scales of CAMs and segmentation, `eval_cam_size`: that which each window is resized to for its CAMs.
            raw: (H, W, 3) uint8.
            side: Of a window, in pixels; an image that is smaller along an axis has one window there.
            flip: CAMs also come from the mirror images.
        """
        self._model, self._cfg, self._raw, self._side, self._flip = model, cfg, raw, side, flip
        self._size = raw.shape[0], raw.shape[1]

    @torch.no_grad()
    def logits(self) -> Tensor:
        """The largest image logit of any window, (1, C): what is in one window is in the image."""
        found = [
            self._model(at_evaluation_size(image, self._cfg.eval_cam_size), segment=False).logits.float().cpu()
            for top in tile_starts(self._size[0], self._side)
            for _, image in self._row(top)
        ]
        return torch.cat(found).amax(0, keepdim=True)

    @torch.no_grad()
    def cams(self, classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """CAM and auxiliary CAM of some classes, 0..C-1, each (P, H, W) float32 in [0, 1), normalised as one image.

        A window that shows nothing of a class adds little: the maps are averaged before they are stretched to [0, 1).
        """
        maps = torch.zeros(2, len(classes), *self._size)
        if len(classes):
            asked = torch.zeros(1, self._model.num_classes)
            asked[:, list(classes)] = 1

            def maps_of(image: Tensor) -> Tensor:
                present = PresentClasses.of(asked.to(image.device).expand(len(image), -1), len(classes))
                resized = at_evaluation_size(image, self._cfg.eval_cam_size)
                found = summed_maps(
                    self._model, resized, self._cfg.cam_scales, present=present, flip=self._flip,
                    relu=self._cfg.cam_relu,
                )  # fmt: skip
                return resize_each(found, image.shape[-2:]).transpose(0, 1).flatten(1, 2)  # (B, 2 P, h, w)

            for top, rows in self._averaged(maps_of):
                maps[:, :, top : top + rows.shape[1]] = rows.unflatten(0, (2, -1))
            maps = normalised(self._model, maps)
        return maps[0].numpy(), maps[1].numpy()

    def segmentation(self) -> np.ndarray:
        """The decoder's label map, (H, W) uint8: the class with the largest mean logit."""
        cfg, mask = self._cfg, np.zeros(self._size, np.uint8)

        def maps_of(image: Tensor) -> Tensor:
            return multi_scale_segmentation(
                self._model, image, cfg.eval_seg_scales, fusion=cfg.eval_fusion, flip=cfg.eval_seg_flip
            )

        for top, rows in self._averaged(maps_of):
            mask[top : top + rows.shape[1]] = rows.max(0).indices.to(torch.uint8).numpy()
        return mask

    def _averaged(self, maps_of: MapsOf) -> Iterator[tuple[int, Tensor]]:
        """Maps of the whole image from top to bottom: the first row of each part, and the part (K, h, W) on the CPU."""
        height, width = self._size
        tops = tile_starts(height, self._side)
        sums, counts = torch.zeros(0, min(self._side, height), width), torch.zeros(min(self._side, height), width)
        for top, following in zip(tops, [*tops[1:], height], strict=True):
            for lefts, image in self._row(top):
                found = maps_of(image).float().cpu()
                if not len(sums):
                    sums = found.new_zeros(found.shape[1], *counts.shape)
                for left, one in zip(lefts, found, strict=True):
                    sums[..., left : left + one.shape[-1]] += one
                    counts[:, left : left + one.shape[-1]] += 1
            done = following - top
            yield top, sums[:, :done] / counts[:done]
            sums, counts = (torch.cat([one[..., done:, :], torch.zeros_like(one[..., :done, :])], -2)
                            for one in (sums, counts))  # fmt: skip

    def _row(self, top: int) -> Iterator[tuple[list[int], Tensor]]:
        """The windows that begin at a row: where they begin, at most a batch of them, and their pixels, normalised."""
        device, lefts = next(self._model.parameters()).device, tile_starts(self._size[1], self._side)
        for first in range(0, len(lefts), BATCH):
            some = lefts[first : first + BATCH]
            cut = [self._raw[top : top + self._side, left : left + self._side] for left in some]
            pixels = torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2).contiguous()
            yield some, torch.stack([normalise(one, self._model.mean, self._model.std) for one in pixels]).to(device)


def strongest_above(maps: np.ndarray, classes: Sequence[int], threshold: float) -> np.ndarray:
    """Label map (H, W) uint8 of maps (P, H, W) of classes 0..C-1: the strongest that exceeds a threshold, else 0."""
    if not len(classes):
        return np.zeros(maps.shape[1:], np.uint8)
    numbers = np.array([number + 1 for number in classes], np.uint8)
    return np.where(maps.max(0) <= np.float32(threshold), 0, numbers[maps.argmax(0)]).astype(np.uint8)
