"""The motion between two frames of a toy clip, true or estimated, as maps of torch."""

import functools

import torch
from torch import Tensor

from toco_lab.data.readers import toy_clip
from toco_lab.data.toy_clips import Clip
from toco_lab.data.views import one_thread
from toco_lab.method.flow import EstimatedMotion, Motion


def true_motion(clip: Clip) -> Motion:
    """The true flow of a clip between any two frames, and where the other frame shows the pixel."""

    def motion(frame: int, other: int) -> tuple[Tensor, Tensor]:
        flow, hidden = clip.motion(frame, other)
        return torch.from_numpy(flow).permute(2, 0, 1), torch.from_numpy(~hidden)

    return motion


@functools.lru_cache(maxsize=4)  # the two frames of a pair come one after the other: each is matched once
def clip_motion(stream: int, index: int, size: int, *, estimated: bool) -> Motion:
    """The motion of `readers.toy_clip`: the true one, or by block matching of its frames."""
    clip = toy_clip(stream, index, size)
    if not estimated:
        return true_motion(clip)
    matched = EstimatedMotion(torch.from_numpy(clip.image).permute(0, 3, 1, 2).float())

    def motion(frame: int, other: int) -> tuple[Tensor, Tensor]:
        with one_thread():
            return matched(frame, other)

    return motion
