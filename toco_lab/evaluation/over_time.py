"""Maps of a frame averaged with those of its neighbours in time, each brought to it along the optical flow."""

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from toco_lab.evaluation.flow import PATCH, RADIUS, SIDE, agreement, composed, match_blocks, warp

WINDOW = 2  # frames before and after a frame that are averaged with it
# (frame, other) -> flow (2, H, W) from frame to other in pixels, and where it holds, (H, W) bool
Motion = Callable[[int, int], tuple[Tensor, Tensor]]


def fuse_frame(frame: int, maps: Mapping[int, Tensor], motion: Motion | None, *, window: int = WINDOW) -> Tensor:
    """Pixel-wise mean of a frame's maps and those of its neighbours, warped to it, over all where the motion holds.

    CAM_t = mean over k in -window..window of warp(CAM_{t+k}). Where no neighbour counts, the frame keeps its own maps.

    Args:
        frame: t.
        maps: By frame, (C, H, W) each; neighbours that are not there do not count.
        motion: Flow from the frame to another one, and where it holds; None takes the neighbours as they lie, without
            warping.
        window: Neighbours on each side; 0 gives the frame's own maps.

    Returns:
        (C, H, W).

    Raises:
        ValueError: If `window` is negative, or the frame has no maps.
    """
    if window < 0:
        raise ValueError(f"window must be at least 0 frames, got {window}")
    if frame not in maps:
        raise ValueError(f"frame {frame} has no maps; there are those of {sorted(maps)}")
    total = maps[frame].clone()
    count = torch.ones_like(total[0])
    for other in range(frame - window, frame + window + 1):
        if other == frame or other not in maps:
            continue
        if motion is None:
            total += maps[other]
            count += 1
        else:
            flow, holds = motion(frame, other)
            total += holds * warp(maps[other][None], flow[None])[0]
            count += holds
    return total / count


def fuse_over_time(maps: Tensor, motion: Motion | None, *, window: int = WINDOW) -> Tensor:
    """`fuse_frame` of every frame of a clip.

    Args:
        maps: (T, C, H, W).
        motion: As in `fuse_frame`.
        window: As in `fuse_frame`.

    Returns:
        (T, C, H, W).
    """
    by_frame = dict(enumerate(maps))
    return torch.stack([fuse_frame(frame, by_frame, motion, window=window) for frame in by_frame])


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
