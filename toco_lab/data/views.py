"""From one image to the views a training step needs: geometry, colours, and where the image lies in its padding.

`draw_views` draws the numbers, `apply_views` does what they say. Everything works on tensors of one sample. Coordinates
are pixels; valid boxes are (top, bottom, left, right), half-open.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from toco_lab.backbones.pixels import normalise
from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.data.colours import ColourDraws, apply_colours, apply_colours_as_released, draw_colours
from toco_lab.method.flow import in_image

NO_CHANGE = ColourDraws()
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Turn:
    """How a square view is turned: by quarters against the clock, 0 to 3, then mirrored top to bottom or not."""

    quarters: int = 0
    upside_down: bool = False

    def view(self, pixels: Tensor) -> Tensor:
        """A turned view (..., S, S)."""
        turned = pixels.rot90(self.quarters, (-2, -1)) if self.quarters else pixels
        return turned.flip(-2) if self.upside_down else turned

    def box(self, box: Box, side: int) -> Box:
        """Where the turned view has what was in `box` (top, bottom, left, right) of a view of this side."""
        top, bottom, left, right = box
        for _ in range(self.quarters):  # the last column becomes the first row
            top, bottom, left, right = side - right, side - left, top, bottom
        return (side - bottom, side - top, left, right) if self.upside_down else (top, bottom, left, right)

    def flow(self, flow: Tensor) -> Tensor:
        """A turned view of vectors (2, S, S), which point to the right and down: they turn with it."""
        right, down = self.view(flow)
        for _ in range(self.quarters):
            right, down = down, -right
        return torch.stack([right, -down if self.upside_down else down])


NO_TURN = Turn()


@dataclass(frozen=True)
class Views:
    """The views of one image, normalised; S is `crop_size`, s is `view2_side`.

    Attributes:
        image: (3, S, S), the first global view, which is also the image that is classified and segmented.
        view2: (3, s, s), the second global view: a random resized crop.
        local_source: (3, S, S), the geometry of `image` with colours of its own; local crops are cut from it, and with
            `w_consistency` it is the view that is taught.
        valid_box: (4,) int64, top, bottom, left, right of the image inside its padding, half-open.
    """

    image: Tensor
    view2: Tensor
    local_source: Tensor
    valid_box: Tensor


@dataclass(frozen=True)
class ViewDraws:
    """Every random number in the views of one image: the same numbers give the same views.

    The flips are part of the geometry and not of the colours, because a flip moves the valid box and a colour does not.

    Attributes:
        scaled: Height and width of the scaled image.
        pad: Top and left of the scaled image on its canvas, which is at least as large as the crop.
        start: Top and left of the crop on the canvas.
        view2_box: Top, left, height and width of the second global view in the image as it was.
        flip: The image is mirrored after the crop, and the local view with it.
        own_flip: The local view's flip where `flip_views_independently` is on; it has no effect otherwise.
        view2_flip: The second global view is mirrored.
        colours: Of the image.
        local_colours: Of the local view.
        view2_colours: Of the second global view.
        mirror: The image is mirrored before the crop as well. `draw_views` never does this: after a flip of either
            kind a view has the same distribution.
        turn: Of the image, last of all, and of the local view with it.
        view2_turn: Of the second global view.
    """

    scaled: tuple[int, int]
    pad: tuple[int, int]
    start: tuple[int, int]
    view2_box: Box
    flip: bool = False
    own_flip: bool = False
    view2_flip: bool = False
    colours: ColourDraws = NO_CHANGE
    local_colours: ColourDraws = NO_CHANGE
    view2_colours: ColourDraws = NO_CHANGE
    mirror: bool = False
    turn: Turn = NO_TURN
    view2_turn: Turn = NO_TURN


class TrainViews:
    """Makes the training views of an image: `draw_views`, then `apply_views`."""

    def __init__(self, cfg: Config, mean: Sequence[float], std: Sequence[float]) -> None:
        """Sizes and probabilities are in `cfg`; `mean` and `std` as in `normalise`."""
        self.cfg, self.mean, self.std = cfg, mean, std

    def __call__(self, image: np.ndarray, seed: int) -> Views:
        """Views of `image`, uint8 (H, W, 3); the same for the same `seed`, whatever else the process does."""
        return apply_views(self.cfg, image, draw_views(self.cfg, image.shape[:2], seed), self.mean, self.std)

    def mask(self, mask: np.ndarray, seed: int) -> Tensor:
        """The labels of `Views.image` for the same `seed`, see `apply_to_mask`; `mask` is uint8 (H, W)."""
        return apply_to_mask(self.cfg, mask, draw_views(self.cfg, mask.shape, seed))

    def motion(self, flow: Tensor, holds: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """The motion in `Views.image` for the same `seed`, see `apply_to_motion`."""
        return apply_to_motion(self.cfg, flow, holds, draw_views(self.cfg, holds.shape, seed))

    def no_mask(self) -> Tensor:
        """What stands for the labels of an image that has none, int64 (S, S): 255 everywhere."""
        return torch.full((self.cfg.crop_size, self.cfg.crop_size), IGNORE_INDEX)


def draw_views(cfg: Config, size: tuple[int, ...], seed: int) -> ViewDraws:
    """Draw the views of an image of `size` (height, width); the same for the same `seed`.

    The image is scaled at random and cut at random to the crop; where the scaled image is smaller, it lies at a random
    place in padding. Quirks change no number that is drawn, so an ablation compares the same crops.
    """
    blur, blur2, blur_local = cfg.blur_probability
    with _seeded(seed):  # each line draws: another order gives other views
        low, high = cfg.scale_range
        scale = low + (high - low) * torch.rand(()).item()
        height, width = (max(1, round(scale * side)) for side in size)
        start = _offset(height - cfg.crop_size), _offset(width - cfg.crop_size)
        pad = _offset(cfg.crop_size - height), _offset(cfg.crop_size - width)
        flip, own_flip, view2_flip = (torch.rand(3) < cfg.flip_probability).tolist()
        view2_box = _draw_view2_box(cfg, size)
        view2_colours = _draw_colours(cfg, blur2, cfg.solarise_probability)
        colours = _draw_colours(cfg, blur)
        jitter = cfg.consistency_jitter if cfg.w_consistency > 0 else cfg.jitter_probability
        local_colours = _draw_colours(cfg, blur_local, jitter=jitter)
        # last, so that everything else is drawn as without turns
        turn, view2_turn = (_draw_turn(), _draw_turn()) if cfg.turns else (NO_TURN, NO_TURN)
    return ViewDraws(
        scaled=(height, width), pad=pad, start=start, view2_box=view2_box,
        flip=flip, own_flip=own_flip, view2_flip=view2_flip,
        colours=colours, local_colours=local_colours, view2_colours=view2_colours,
        turn=turn, view2_turn=view2_turn,
    )  # fmt: skip


def apply_views(cfg: Config, image: np.ndarray, draws: ViewDraws, mean: Sequence[float], std: Sequence[float]) -> Views:
    """The views that `draws` describe.

    Padding is 0 after normalisation, which is the mean colour, or with `cfg.padding="black"` (released) grey level 0.
    Colours change before padding, so that padding keeps its colour, does not enter the mean of the contrast jitter and
    is not blurred into the image; with `cfg.colours_on="padded_crop"` (released) all of this happens, and each change
    is cut to whole grey levels.

    Further quirks of the released code: `cfg.flip_views_independently` gives `local_source` a flip of its own, so that
    the mask is mirrored against it in half of the samples; `cfg.flip_valid_box=False` leaves the box where it was
    before the flip.

    Args:
        cfg: Sizes and quirks.
        image: uint8 (H, W, 3).
        draws: What `draw_views` gives for the size of `image`, or numbers of your own.
        mean: Of each channel, see `normalise`.
        std: Of each channel.

    Raises:
        ValueError: If the crop or the second view of `draws` does not lie in this image and its padding.
    """
    _check_draws(cfg, image.shape[:2], draws)
    pixels = torch.from_numpy(image).permute(2, 0, 1)  # (3, H, W)
    flip_local = draws.own_flip if cfg.flip_views_independently else draws.flip
    with one_thread():
        content, box = _scaled_crop(pixels, draws, cfg.crop_size)
        finish = _Finish(cfg, box, mean, std)
        content = finish.levels(content)
        view2 = finish.levels(_resized_crop(pixels, draws.view2_box, cfg.view2_side))
        view2 = finish.coloured(view2, draws.view2_colours)
        box = _mirrored(box, cfg.crop_size) if draws.flip and cfg.flip_valid_box else box
        return Views(
            image=draws.turn.view(finish.padded(content, draws.colours, draws.flip)),
            view2=draws.view2_turn.view(view2.flip(-1) if draws.view2_flip else view2).contiguous(),
            local_source=draws.turn.view(finish.padded(content, draws.local_colours, flip_local)),
            valid_box=torch.tensor(draws.turn.box(box, cfg.crop_size)),
        )


def apply_to_mask(cfg: Config, mask: np.ndarray, draws: ViewDraws) -> Tensor:
    """The labels of `Views.image`, int64 (S, S): the mask scaled (nearest), cut, flipped and turned alike, 255 in the
    padding.

    Args:
        cfg: Gives the side S of the crop.
        mask: uint8 (H, W): 0 background, 1..C classes, 255 not counted.
        draws: Those of the image, which has the size of the mask.

    Raises:
        ValueError: As `apply_views`.
    """
    _check_draws(cfg, mask.shape, draws)
    numbers = torch.from_numpy(mask)[None]
    content, (top, bottom, left, right) = _scaled_crop(
        numbers, draws, cfg.crop_size, v2.InterpolationMode.NEAREST_EXACT
    )
    canvas = torch.full((cfg.crop_size, cfg.crop_size), IGNORE_INDEX)
    canvas[top:bottom, left:right] = content[0]
    return draws.turn.view(canvas.flip(-1) if draws.flip else canvas)


def apply_to_motion(cfg: Config, flow: Tensor, holds: Tensor, draws: ViewDraws) -> tuple[Tensor, Tensor]:
    """The flow between two frames that the same draws give the same view: scaled (nearest), cut, flipped and turned.

    Args:
        cfg: Gives the side S of the crop.
        flow: (2, H, W) in pixels, to the right and down.
        holds: Where it is known, (H, W) bool.
        draws: Those of both frames, which have the size of the flow.

    Returns:
        Flow (2, S, S) in pixels of the view, and where it holds and leads to a place in the view, (S, S) bool.

    Raises:
        ValueError: As `apply_views`.
    """
    _check_draws(cfg, holds.shape, draws)
    stacked = torch.cat([flow, holds[None].to(flow.dtype)])
    content, (top, bottom, left, right) = _scaled_crop(
        stacked, draws, cfg.crop_size, v2.InterpolationMode.NEAREST_EXACT
    )
    view = flow.new_zeros(3, cfg.crop_size, cfg.crop_size)
    view[:, top:bottom, left:right] = content
    view = view.flip(-1) if draws.flip else view
    down, across = (new / old for new, old in zip(draws.scaled, holds.shape, strict=True))
    across = -across if draws.flip != draws.mirror else across
    moved = draws.turn.flow(view[:2] * flow.new_tensor([across, down])[:, None, None])
    return moved, draws.turn.view(view[2]).bool() & in_image(moved[None])[0]


class _Finish:
    """The last steps of every view: colours, padding, normalisation."""

    def __init__(self, cfg: Config, box: Box, mean: Sequence[float], std: Sequence[float]) -> None:
        self.cfg, self.box, self.mean, self.std = cfg, box, mean, std
        self.as_released = cfg.colours_on == "padded_crop"

    def levels(self, pixels: Tensor) -> Tensor:
        """What colours are computed on: floats in 0..1, or with the released colours the uint8 pixels as they are."""
        return pixels if self.as_released else pixels.float() / 255

    def padded(self, content: Tensor, colours: ColourDraws, flip: bool) -> Tensor:
        """Float (3, S, S), normalised: the content, `levels` (3, h, w), in other colours at its box in padding."""
        black = self.cfg.padding == "black"
        if self.as_released:
            padding = torch.zeros(3) if black else 255 * torch.tensor(self.mean)
            view = self.coloured(self._surrounded(content, padding.round().byte()), colours)
        else:
            padding = self._normalised(torch.zeros(3, 1, 1)).flatten() if black else torch.zeros(3)
            view = self._surrounded(self.coloured(content, colours), padding)
        return view.flip(-1) if flip else view

    def coloured(self, pixels: Tensor, colours: ColourDraws) -> Tensor:
        """Float (3, h, w), normalised: the `levels` of pixels in other colours."""
        if self.as_released:
            return self._normalised(apply_colours_as_released(pixels, colours))
        return self._normalised(255 * apply_colours(pixels, colours))

    def _surrounded(self, content: Tensor, padding: Tensor) -> Tensor:
        top, bottom, left, right = self.box
        canvas = content.new_zeros(3, self.cfg.crop_size, self.cfg.crop_size)
        if padding.any():
            canvas += padding[:, None, None]
        canvas[:, top:bottom, left:right] = content
        return canvas

    def _normalised(self, pixels: Tensor) -> Tensor:
        return normalise(pixels, self.mean, self.std)


def _scaled_crop(
    pixels: Tensor, draws: ViewDraws, side: int, interpolation: v2.InterpolationMode = v2.InterpolationMode.BILINEAR
) -> tuple[Tensor, Box]:
    """The part of the scaled image that the crop shows, uint8 (3, h, w), and its box in the crop."""
    pixels = functional.resize(pixels, list(draws.scaled), interpolation)
    pixels = pixels.flip(-1) if draws.mirror else pixels
    (top, bottom), (left, right) = _shown(draws, side)
    y, x = (max(0, start - pad) for start, pad in zip(draws.start, draws.pad, strict=True))
    return pixels[:, y : y + bottom - top, x : x + right - left], (top, bottom, left, right)


def _shown(draws: ViewDraws, side: int) -> list[tuple[int, int]]:
    """Rows and columns of the crop that show the image, each from, up to."""
    sides = zip(draws.scaled, draws.pad, draws.start, strict=True)
    return [(max(0, pad - start), min(side, pad + size - start)) for size, pad, start in sides]


def _resized_crop(pixels: Tensor, box: Box, side: int) -> Tensor:
    """The part of an image at top, left, height, width in another size, (3, side, side)."""
    return functional.resized_crop(pixels, *box, [side, side], interpolation=v2.InterpolationMode.BICUBIC)


def _check_draws(cfg: Config, size: tuple[int, ...], draws: ViewDraws) -> None:
    """Whether the crop shows a part of the image, and the second view lies in it."""
    hidden = any(first >= last for first, last in _shown(draws, cfg.crop_size))
    if hidden or min(draws.pad + draws.start) < 0:
        raise ValueError(
            f"views: a crop of {cfg.crop_size} pixels at {draws.start} shows nothing of an image of {draws.scaled} "
            f"pixels at {draws.pad}: start and pad must not be negative, and the crop must reach the image"
        )
    top, left, height, width = draws.view2_box
    if min(top, left) < 0 or min(height, width) < 1 or top + height > size[0] or left + width > size[1]:
        raise ValueError(
            f"views: view2_box (top, left, height, width) {draws.view2_box} does not lie in an image of "
            f"{size[0]} x {size[1]} pixels"
        )


def _draw_turn() -> Turn:
    return Turn(int(torch.randint(4, ())), bool(torch.rand(()) < 0.5))


def _draw_view2_box(cfg: Config, size: tuple[int, ...]) -> Box:
    drawn = v2.RandomResizedCrop(cfg.view2_side, scale=cfg.view2_scale).make_params(
        [torch.empty(3, *size, device="meta")]
    )
    return drawn["top"], drawn["left"], drawn["height"], drawn["width"]


def _draw_colours(cfg: Config, blur: float, solarise: float = 0.0, *, jitter: float | None = None) -> ColourDraws:
    jitter = cfg.jitter_probability if jitter is None else jitter
    return draw_colours(cfg.jitter, jitter_probability=jitter, grey=cfg.grey_probability, blur=blur, solarise=solarise)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Inside this context random numbers come from `seed` alone; the caller's state returns afterwards.

    torchvision draws from torch's global generator. Only the CPU generator is seeded: `torch.manual_seed` would reseed
    CUDA as well.
    """
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside this context torch computes on one thread.

    The sum in the contrast jitter depends on how it is split: loader processes have one thread, the training process
    has several, and both must give the same bits.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _offset(slack: int) -> int:
    """A place where something fits that leaves so many pixels free; a negative number counts as none."""
    return int(torch.randint(max(0, slack) + 1, ()))


def _mirrored(box: Box, width: int) -> Box:
    top, bottom, left, right = box
    return top, bottom, width - right, width - left
