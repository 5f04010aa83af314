"""The colours of one view: what is drawn, and what a draw does to the pixels.

Drawing and applying are apart, so that a test can give the numbers and a picture can say them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import ImageFilter
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from toco_lab.files import did_you_mean

BLUR_SIGMA = (0.1, 2.0)  # pixels; the range of DINO's views, which the method takes over
SOLARISE_THRESHOLD = 128  # grey level; it and brighter ones are inverted (DINO)
JITTER: dict[str, Callable[[Any, float], Any]] = {  # of tensors and PIL images; in the order of torchvision's numbers
    "brightness": functional.adjust_brightness,
    "contrast": functional.adjust_contrast,
    "saturation": functional.adjust_saturation,
    "hue": functional.adjust_hue,
}


@dataclass(frozen=True)
class ColourDraws:
    """The colour changes of one view, in the order they are applied; without arguments nothing changes.

    Attributes:
        jitter: Pairs of a name of `JITTER` and its factor, in the drawn order; empty: no jitter. 1 leaves brightness,
            contrast and saturation as they are; a hue is turned by its number, 1 being the whole circle.
        grey: The view loses its colours.
        blur: Sigma of the Gaussian in pixels; 0: no blur.
        solarise: Bright values are inverted, those of `SOLARISE_THRESHOLD` and above.
    """

    jitter: tuple[tuple[str, float], ...] = ()
    grey: bool = False
    blur: float = 0.0
    solarise: bool = False

    def __post_init__(self) -> None:
        """Check the names and the sigma."""
        for name, _ in self.jitter:
            if name not in JITTER:
                raise ValueError(f"jitter changes {', '.join(JITTER)}, and not {name!r}{did_you_mean(name, JITTER)}")
        if self.blur < 0:
            raise ValueError(f"blur must not be negative, got {self.blur}")


def draw_colours(
    jitter: tuple[float, ...], *, jitter_probability: float, grey: float, blur: float, solarise: float = 0.0
) -> ColourDraws:
    """Draw the changes of one view from torch's global generator; a change of probability 0 takes no number from it.

    Args:
        jitter: Strength of brightness, contrast, saturation and hue, as `torchvision.transforms.v2.ColorJitter` has it.
        jitter_probability: Of all four together.
        grey: Probability.
        blur: Probability; the sigma is uniform in `BLUR_SIGMA`.
        solarise: Probability.
    """
    changes = _draw_jitter(jitter) if happens(jitter_probability) else ()
    is_grey = happens(grey)
    sigma = torch.empty(()).uniform_(*BLUR_SIGMA).item() if happens(blur) else 0.0
    return ColourDraws(changes, is_grey, sigma, happens(solarise))


def happens(probability: float) -> bool:
    """Draw whether something of this probability happens; probability 0 takes no number from the generator."""
    return probability > 0 and bool(torch.rand(()) < probability)


def apply_colours(pixels: Tensor, draws: ColourDraws) -> Tensor:
    """The view in other colours, float (3, H, W) in 0..1; the input is left alone.

    >>> apply_colours(torch.full((3, 2, 2), 0.75), ColourDraws(solarise=True))[0].tolist()
    [[0.25, 0.25], [0.25, 0.25]]
    """
    pixels = apply_jitter(pixels, draws.jitter)
    if draws.grey:
        pixels = functional.rgb_to_grayscale(pixels, num_output_channels=3)
    if draws.blur > 0:
        pixels = gaussian_blur(pixels, draws.blur)
    return functional.solarize(pixels, SOLARISE_THRESHOLD / 255) if draws.solarise else pixels


def apply_jitter(pixels: Tensor, jitter: tuple[tuple[str, float], ...]) -> Tensor:
    """The changes of `ColourDraws.jitter` in their order, float (3, H, W) in 0..1."""
    for name, factor in jitter:
        change = shift_hue if name == "hue" else JITTER[name]
        pixels = change(pixels, factor)
    return pixels


def apply_colours_as_released(pixels: Tensor, draws: ColourDraws) -> Tensor:
    """The same changes by PIL, uint8 (3, H, W): each is cut to whole grey levels, and the hue circle has 255 steps.

    >>> apply_colours_as_released(torch.full((3, 2, 2), 191, dtype=torch.uint8), ColourDraws(solarise=True))[0].tolist()
    [[64, 64], [64, 64]]
    """
    picture = functional.to_pil_image(pixels)
    for name, factor in draws.jitter:
        picture = JITTER[name](picture, factor)
    if draws.grey:
        picture = functional.rgb_to_grayscale(picture, num_output_channels=3)
    if draws.blur > 0:
        picture = picture.filter(ImageFilter.GaussianBlur(draws.blur))
    if draws.solarise:
        picture = functional.solarize(picture, SOLARISE_THRESHOLD)
    return functional.pil_to_tensor(picture)


def shift_hue(image: Tensor, shift: float) -> Tensor:
    """(3, H, W) RGB in 0..1 with its hue turned by `shift` (1 is the whole circle); saturation and value of HSV stay.

    Within 3e-6 of torchvision's in a third of its time, which was more than half of a training sample's
    (`benchmarks/loader.py`). Without a table of sectors: at hue h (0..6) a channel is
    V - (V - min) clamp(min(k, 4 - k), 0, 1), where k is h + 5 modulo 6 for red, h + 3 for green and h + 1 for blue.
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


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """(C, H, W) float image convolved with a Gaussian of `sigma` pixels, cut off at 3 sigma; borders repeated.

    Two one-dimensional passes of shifted sums: on a CPU eight times as fast as torchvision's blur, which convolves in
    two dimensions. The border is repeated outwards, as PIL does, so the image may be smaller than the kernel.
    """
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


def _draw_jitter(strengths: tuple[float, ...]) -> tuple[tuple[str, float], ...]:
    """The numbers that torchvision's `ColorJitter` draws: the order of the four changes, then a factor for each."""
    drawn = v2.ColorJitter(*strengths).make_params([])
    names = [list(JITTER)[number] for number in drawn["fn_idx"].tolist()]
    factors = {name: drawn[f"{name}_factor"] for name in names}
    return tuple((name, factors[name]) for name in names if factors[name] is not None)  # None: of strength 0
