"""From one image to the views a training step needs: geometry, colours, and where the image lies in its padding.

Everything works on tensors of one sample. Coordinates are pixels; boxes are (top, bottom, left, right), half-open.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from toco_lab.backbones.pixels import normalise
from toco_lab.config import Config

BLUR_SIGMA = (0.1, 2.0)  # pixels; the range of DINO's views, which the method takes over


SOLARISE_THRESHOLD = 128 / 255  # brighter values are inverted (DINO)


@dataclass(frozen=True)
class Views:
    """The views of one image, normalised; S is `crop_size`, s is `view2_size`.

    Attributes:
        image: (3, S, S), the first global view, which is also the image that is classified and segmented.
        view2: (3, s, s), the second global view: a random resized crop.
        local_source: (3, S, S), the geometry of `image` with colours of its own; local crops are cut from it.
        valid_box: (4,) int64, top, bottom, left, right of the image inside its padding, half-open.
    """

    image: Tensor
    view2: Tensor
    local_source: Tensor
    valid_box: Tensor


class TrainViews:
    """Makes the training views of an image.

    `image` is scaled at random and cropped at random to S x S; where the scaled image is smaller, it lies at a random
    place in padding. Colours change before padding, so neither the contrast jitter nor the blur sees it. Padding is 0
    after normalisation, which is the mean colour, or with `cfg.padding="black"` (released) grey level 0. Every view is
    flipped, jittered, turned grey and blurred with its own draws, with one exception: `local_source` flips together
    with `image`, because crops are placed on it by a mask that was computed on `image`.

    Quirks of the released code: `cfg.flip_views_independently` gives `local_source` a flip of its own, so that the mask
    is mirrored against it in half of the samples; `cfg.flip_valid_box=False` leaves the box where it was before the
    flip. Neither changes any other random number, so an ablation compares the same crops.
    """

    def __init__(self, cfg: Config, mean: Sequence[float], std: Sequence[float]) -> None:
        """Read sizes and probabilities from `cfg`; `mean` and `std` as in `normalise`."""
        self.cfg, self.mean, self.std = cfg, mean, std
        blur1, blur2, blur_local = cfg.blur_probability
        self._colours1 = _colours(cfg, blur1)
        self._colours2 = _colours(cfg, blur2, cfg.solarise_probability)
        self._colours_local = _colours(cfg, blur_local)
        self._resized_crop = v2.RandomResizedCrop(
            cfg.view2_size, scale=cfg.view2_scale, interpolation=v2.InterpolationMode.BICUBIC
        )

    def __call__(self, image: np.ndarray, seed: int) -> Views:
        """Views of `image`, uint8 (H, W, 3); the same for the same `seed`, whatever else the process does."""
        cfg = self.cfg
        pixels = torch.from_numpy(image).permute(2, 0, 1)  # (3, H, W)
        with _isolated(seed):
            content, box = self._scale_and_crop(pixels)
            flip, own_flip, flip2 = (torch.rand(3) < cfg.flip_probability).tolist()
            flip_local = own_flip if cfg.flip_views_independently else flip
            view2 = self._colours2(_unit(self._resized_crop(pixels)))
            return Views(
                image=self._pad(self._colours1(content), box, flip),
                view2=self._normalise(view2.flip(-1) if flip2 else view2).contiguous(),
                local_source=self._pad(self._colours_local(content), box, flip_local),
                valid_box=torch.tensor(_mirror(box, cfg.crop_size) if flip and cfg.flip_valid_box else box),
            )

    def _scale_and_crop(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int, int, int]]:
        """The part of the scaled image that the crop shows, (3, h, w) in 0..1, and its box in the crop."""
        side = self.cfg.crop_size
        low, high = self.cfg.scale_range
        scale = low + (high - low) * torch.rand(()).item()
        pixels = functional.resize(pixels, [max(1, round(scale * size)) for size in pixels.shape[-2:]])
        height, width = (min(side, size) for size in pixels.shape[-2:])
        y, x = _offset(pixels.shape[-2] - height), _offset(pixels.shape[-1] - width)
        top, left = _offset(side - height), _offset(side - width)
        return _unit(pixels[:, y : y + height, x : x + width]), (top, top + height, left, left + width)

    def _pad(self, content: Tensor, box: tuple[int, int, int, int], flip: bool) -> Tensor:
        top, bottom, left, right = box
        canvas = content.new_zeros(3, self.cfg.crop_size, self.cfg.crop_size)
        if self.cfg.padding == "black":
            canvas = self._normalise(canvas)
        canvas[:, top:bottom, left:right] = self._normalise(content)
        return canvas.flip(-1) if flip else canvas

    def _normalise(self, view: Tensor) -> Tensor:
        return normalise(255 * view, self.mean, self.std)


class ColourJitter(v2.ColorJitter):
    """torchvision's jitter with the same draws and, within 2e-6, the same colours; its hue takes a third of the time.

    Hue was more than half of the time of a training sample (`benchmarks/loader.py`).
    """

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """(3, H, W) in 0..1 with the drawn factors applied in the drawn order; hue is number 3 of it."""
        order, shift = params["fn_idx"].tolist(), params["hue_factor"]
        place = order.index(3)
        inpt = super().transform(inpt, params | {"fn_idx": order[:place]})
        inpt = inpt if shift is None else shift_hue(inpt, shift)
        return super().transform(inpt, params | {"fn_idx": order[place + 1 :]})


def shift_hue(image: Tensor, shift: float) -> Tensor:
    """(3, H, W) RGB in 0..1 with its hue turned by `shift` (1 is the whole circle); saturation and value of HSV stay.

    Without a table of sectors: at hue h (0..6) a channel is V - (V - min) clamp(min(k, 4 - k), 0, 1), where k is h + 5
    modulo 6 for red, h + 3 for green and h + 1 for blue.
    """
    high, low = image.amax(0), image.amin(0)
    red, green, blue = image
    spread = high - low
    scale = 1 / spread.clamp(min=1e-12)  # a grey pixel has any hue: its spread is 0 below as well
    hue = torch.where(
        high == red,
        (green - blue) * scale,
        torch.where(high == green, (blue - red) * scale + 2, (red - green) * scale + 4),
    )
    shifted = torch.empty_like(image)
    for channel, offset in enumerate((5, 3, 1)):
        place = (hue + (offset + 6 * shift)).remainder_(6)
        torch.addcmul(high, spread, torch.minimum(place, 4 - place).clamp_(0, 1), value=-1, out=shifted[channel])
    return shifted


class RandomBlur(nn.Module):
    """Gaussian blur of a (..., H, W) float image with probability p, width uniform in `BLUR_SIGMA`.

    Two one-dimensional passes of shifted sums: on a CPU eight times as fast as torchvision's blur, which convolves in
    two dimensions. The border is repeated outwards, as PIL does, so the image may be smaller than the kernel.
    """

    def __init__(self, p: float) -> None:
        """`p`: probability of a blur."""
        super().__init__()
        self.p = p

    def forward(self, image: Tensor) -> Tensor:
        """The image, blurred or not."""
        if torch.rand(()).item() >= self.p:
            return image
        return gaussian_blur(image, torch.empty(()).uniform_(*BLUR_SIGMA).item())


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """(C, H, W) float image convolved with a Gaussian of `sigma` pixels, cut off at 3 sigma; borders repeated."""
    radius = math.ceil(3 * sigma)
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1)]
    image = nn.functional.pad(image[None], (radius,) * 4, mode="replicate")[0]
    for dim in (-1, -2):
        size = image.shape[dim] - 2 * radius
        blurred = torch.zeros_like(image.narrow(dim, 0, size))
        for offset, weight in enumerate(weights):
            blurred.add_(image.narrow(dim, offset, size), alpha=weight / sum(weights))
        image = blurred
    return image


def _colours(cfg: Config, blur: float, solarise: float = 0.0) -> nn.Sequential:
    """Changes of the colours of one view, (3, H, W) in 0..1; changes of probability 0 are left out."""
    steps = [
        (cfg.jitter_probability, lambda p: v2.RandomApply([ColourJitter(*cfg.jitter)], p)),
        (cfg.grey_probability, v2.RandomGrayscale),
        (blur, RandomBlur),
        (solarise, lambda p: v2.RandomSolarize(SOLARISE_THRESHOLD, p)),
    ]
    return nn.Sequential(*(make(p) for p, make in steps if p > 0))


@contextlib.contextmanager
def _isolated(seed: int) -> Iterator[None]:
    """Inside this context random numbers come from `seed` alone, on one thread; the caller's state returns afterwards.

    torchvision draws from torch's global generator. Only the CPU generator is seeded: `torch.manual_seed` would reseed
    CUDA as well. There is one thread because the sum in the contrast jitter depends on how it is split: loader
    processes have one thread, the training process has several, and both must give the same bits.
    """
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _unit(pixels: Tensor) -> Tensor:
    return pixels.float() / 255


def _offset(slack: int) -> int:
    return int(torch.randint(slack + 1, ()))


def _mirror(box: tuple[int, int, int, int], width: int) -> tuple[int, int, int, int]:
    top, bottom, left, right = box
    return top, bottom, width - right, width - left
