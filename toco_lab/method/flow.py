"""Optical flow without weights: block matching, warping, and the check of forward against backward flow.

A flow (B, 2, H, W) is in pixels: first to the right, then down. Flow from frame a to frame b belongs to the pixels of
a: what pixel x of a shows lies at x + flow(x) in b. So `warp(b, flow)` looks like a.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.method.cam import resize

RADIUS = 8  # pixels, the largest motion along each axis that is looked for
PATCH = 17  # side of the square in pixels whose grey levels have to agree
SIDE = 128  # pixels: longer sides are made this long before two frames are matched
LEVELS = 8.0  # grey levels of 0..255: a neighbour that is darker or lighter by less counts in part, as noise would
COLOURS = 3.0  # of a colour's difference in [0, 1] beside that of one of the eight signs
SHORT = 0.1  # added to the cost of a shift as long as the radius: of places that agree equally the nearest is taken
WINDOW = 2  # frames before and after a frame that are averaged with it
RELATIVE, ABSOLUTE = 0.01, 0.5  # of `agreement`; the latter in squared pixels

# (frame, other) -> flow (2, H, W) from frame to other in pixels, and where it holds, (H, W) bool
Motion = Callable[[int, int], tuple[Tensor, Tensor]]


def warp(maps: Tensor, flow: Tensor, *, nearest: bool = False) -> Tensor:
    """Maps of another frame, brought to this one: the value of `maps` at x + flow(x).

    Sampled by `grid_sample` with `align_corners=True`, in which -1 and 1 are the centres of the outermost pixels, so
    that pixels are the unit; beyond the image the nearest pixel is taken.

    Args:
        maps: (B, C, H, W) floats of the frame to which the flow leads.
        flow: (B, 2, H, W) in pixels, to the right and down.
        nearest: Take the nearest pixel, for labels; else linear between four.

    Raises:
        ValueError: If the flow does not fit the maps, or one of them is not of floats.
    """
    if not (maps.is_floating_point() and flow.is_floating_point()):
        raise ValueError(f"maps and flow must be of floats, got {maps.dtype} and {flow.dtype}")
    if maps.ndim != 4 or flow.shape != (len(maps), 2, *maps.shape[-2:]):
        raise ValueError(f"flow {tuple(flow.shape)} does not fit maps {tuple(maps.shape)}: it must be (B, 2, H, W)")
    height, width = maps.shape[-2:]
    right, down = (_pixels(flow) + flow).unbind(1)
    grid = torch.stack([_unit(right, width), _unit(down, height)], dim=-1)  # (B, H, W, 2)
    mode = "nearest" if nearest else "bilinear"
    return F.grid_sample(maps, grid.to(maps.dtype), mode=mode, padding_mode="border", align_corners=True)


def agreement(forward: Tensor, backward: Tensor) -> Tensor:
    """Where a flow there and back returns, and leads to a place in the image.

    That is ``|f + b|^2 < 0.01 (|f|^2 + |b|^2) + 0.5``, all in pixels.
    Source: the occlusion check of Sundaram, Brox and Keutzer (ECCV 2010), as UnFlow (AAAI 2018, section 3) has it.

    Args:
        forward: f, (B, 2, H, W) in pixels, from this frame to another one.
        backward: From the other frame to this one, (B, 2, H, W); b is its value where f leads to.

    Returns:
        (B, H, W) bool.

    Raises:
        ValueError: If the two do not fit.
    """
    back = warp(backward, forward)
    missed = (forward + back).square().sum(1)
    allowed = RELATIVE * (forward.square().sum(1) + back.square().sum(1)) + ABSOLUTE
    return (missed < allowed) & in_image(forward)


def in_image(flow: Tensor) -> Tensor:
    """Whether x + flow(x) lies in the image, up to half a pixel beyond the outermost centres: (B, H, W) bool."""
    height, width = flow.shape[-2:]
    right, down = (_pixels(flow) + flow).unbind(1)
    return (right >= -0.5) & (right < width - 0.5) & (down >= -0.5) & (down < height - 0.5)


def composed(first: Tensor, second: Tensor) -> Tensor:
    """Flow over two steps, (B, 2, H, W): from a to b by `first`, and on from there to c by `second`."""
    return first + warp(second, first)


def match_blocks(image: Tensor, other: Tensor, *, radius: int = RADIUS, patch: int = PATCH, side: int = SIDE) -> Tensor:
    """Dense flow from one image to another, by trying every whole shift up to a radius.

    The cost of a shift at a pixel is how far the census (each pixel compared with eight neighbours two pixels away, as
    Zabih and Woodfill, ECCV 1994, compare, but gradually) and the colours differ, averaged over a patch, and a little
    for its length. A parabola through the costs beside the lowest one gives a part of a pixel. Frames with a longer
    side than `side` are matched at that side, and the flow is scaled up: `radius` counts pixels of that size.

    Args:
        image: Frames a, (B, 3, H, W), grey levels 0..255.
        other: Frames b of the same shape.
        radius: Largest shift along each axis, at least 1.
        patch: Side of the averaged square, odd.
        side: Longest side at which frames are matched; 0 matches at full size.

    Returns:
        Flow (B, 2, H, W) float32 in pixels, from a to b.

    Raises:
        ValueError: If the frames do not fit, or a number is out of its range.
    """
    if image.ndim != 4 or image.shape[1] != 3 or image.shape != other.shape:
        raise ValueError(
            f"frames must be two (B, 3, H, W) of one shape, got {tuple(image.shape)}, {tuple(other.shape)}"
        )
    for name, value, allowed, rule in (
        ("radius", radius, radius >= 1, "at least 1"),
        ("patch", patch, patch >= 1 and patch % 2 == 1, "odd and at least 1"),
        ("side", side, side >= 0, "at least 0"),
    ):
        if not allowed:
            raise ValueError(f"{name} must be {rule}, got {value}")
    size = image.shape[-2:]
    image, other = image.float(), other.float()
    if side and max(size) > side:
        small = [max(1, round(side / max(size) * length)) for length in size]
        image, other = resize(image, small), resize(other, small)
    flow = torch.cat([_matched(a[None], b[None], radius, patch) for a, b in zip(image, other, strict=True)])
    if flow.shape[-2:] != size:
        factors = [size[1] / flow.shape[-1], size[0] / flow.shape[-2]]
        flow = resize(flow, size) * flow.new_tensor(factors)[:, None, None]
    return flow


class EstimatedMotion:
    """Flow between frames by block matching of neighbours; over more than one step it is composed.

    It holds where flow there and back agree (`flow.agreement`). Each pair of neighbours is matched once as long as it
    is among the last ones asked for.
    """

    def __init__(
        self,
        frames: Mapping[int, Tensor] | Sequence[Tensor] | Tensor,
        *,
        window: int = WINDOW,
        radius: int = RADIUS,
        patch: int = PATCH,
        side: int = SIDE,
    ) -> None:
        """Nothing is matched yet.

        Args:
            frames: By number, each (3, H, W), grey levels 0..255; read when they are needed.
            window: Most steps between two frames that will be asked for.
            radius: As in `match_blocks`, as the next two.
            patch: See there.
            side: See there.
        """
        self._frames = frames
        self._match = functools.partial(match_blocks, radius=radius, patch=patch, side=side)
        self._step = functools.lru_cache(maxsize=4 * window + 4)(self._matched)

    def __call__(self, frame: int, other: int) -> tuple[Tensor, Tensor]:
        """Flow (2, H, W) from a frame to another one, and where it holds, (H, W) bool."""
        flow = self.flow(frame, other)
        return flow[0], agreement(flow, self.flow(other, frame))[0]

    def flow(self, frame: int, other: int) -> Tensor:
        """Flow (1, 2, H, W) from a frame to another one.

        Raises:
            ValueError: If the two are one.
        """
        if frame == other:
            raise ValueError(f"frame {frame} has no flow to itself")
        towards = 1 if other > frame else -1
        steps = [self._step(place, place + towards) for place in range(frame, other, towards)]
        return functools.reduce(composed, steps)

    def _matched(self, frame: int, other: int) -> Tensor:
        return self._match(self._frames[frame][None], self._frames[other][None])


def _matched(image: Tensor, other: Tensor, radius: int, patch: int) -> Tensor:
    """Flow (1, 2, H, W) of one pair; the costs of all shifts are kept, (2 radius + 1)^2 maps."""
    height, width = image.shape[-2:]
    ours, theirs = _described(image), F.pad(_described(other), [radius] * 4, mode="replicate")
    by_row, by_column = _box(height, patch, ours), _box(width, patch, ours)
    span = 2 * radius + 1
    costs = ours.new_empty(span, span, height, width)
    for row in range(span):
        for column in range(span):
            seen = theirs[..., row : row + height, column : column + width]
            differs = (ours - seen).abs_().mean(1)[0]  # (H, W)
            length = ((row - radius) ** 2 + (column - radius) ** 2) ** 0.5
            costs[row, column] = by_row @ differs @ by_column.T + SHORT * length / radius
    best = costs.flatten(0, 1).min(0).indices  # (H, W)
    down, right = best // span, best % span
    flow = torch.stack([right - radius, down - radius]).float()
    flow += torch.stack([_part(costs, down, right, 0, 1), _part(costs, down, right, 1, 0)])
    return flow[None]


def _described(image: Tensor) -> Tensor:
    """What is compared of each pixel, (B, 11, H, W): eight signs of the census in [-0.5, 0.5], three colours."""
    grey = image.mean(1, keepdim=True)
    height, width = grey.shape[-2:]
    wide = F.pad(grey, [2] * 4, mode="replicate")
    around = [(row, column) for row in (0, 2, 4) for column in (0, 2, 4) if (row, column) != (2, 2)]
    beside = torch.cat([wide[..., row : row + height, column : column + width] for row, column in around], dim=1)
    signs = 0.5 * ((beside - grey) / LEVELS).clamp(-1, 1)
    return torch.cat([signs, COLOURS * image / 255], dim=1)


def _box(length: int, patch: int, like: Tensor) -> Tensor:
    """Matrix (length, length) that takes the mean over `patch` places, of those that there are, around each.

    A product with it on both sides of a map is the mean over squares, many times faster on a CPU than pooling.
    """
    place = torch.arange(length, device=like.device)
    near = ((place[:, None] - place).abs() <= patch // 2).to(like.dtype)
    return near / near.sum(1, keepdim=True)


def _part(costs: Tensor, down: Tensor, right: Tensor, by_row: int, by_column: int) -> Tensor:
    """Part of a pixel, (H, W) in [-0.5, 0.5], by which the lowest cost lies beside the best whole shift; 0 at the edge
    of the search.
    """
    span, height, width = len(costs), *costs.shape[-2:]
    rows, columns = torch.arange(height, device=costs.device)[:, None], torch.arange(width, device=costs.device)

    def at(step: int) -> Tensor:
        row, column = (down + step * by_row).clamp(0, span - 1), (right + step * by_column).clamp(0, span - 1)
        return costs[row, column, rows, columns]

    before, here, after = at(-1), at(0), at(1)
    moved = down if by_row else right
    bend = before - 2 * here + after
    inside = (moved > 0) & (moved < span - 1) & (bend > 1e-6)
    return torch.where(inside, 0.5 * (before - after) / bend.clamp(min=1e-6), 0.0).clamp(-0.5, 0.5)


def _pixels(flow: Tensor) -> Tensor:
    """Columns and rows of all pixels, (2, H, W)."""
    height, width = flow.shape[-2:]
    rows = torch.arange(height, dtype=flow.dtype, device=flow.device)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=flow.dtype, device=flow.device).expand(height, width)
    return torch.stack([columns, rows])


def _unit(place: Tensor, length: int) -> Tensor:
    """Pixels 0..length - 1 as `grid_sample` counts them, -1..1."""
    return 2 * place / max(1, length - 1) - 1
