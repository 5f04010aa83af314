"""Maps of a frame averaged with those of its neighbours in time, each brought to it along the optical flow."""

from collections.abc import Mapping

import torch
from torch import Tensor

from toco_lab.method.flow import WINDOW, Motion, warp


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
