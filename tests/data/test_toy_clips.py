"""Toy clips: deterministic, apart from the scenes, and with a motion that is true to every pixel."""

import numpy as np
import pytest
import torch

from toco_lab.data import toy_clips
from toco_lab.data.toy import MIN_VISIBLE, make_scene
from toco_lab.data.toy_clips import DRIFT, SPEED, Clip, Mover, make_clip
from toco_lab.method.flow import warp


def shown_at(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """What `image` (H, W) shows at the nearest pixel of x + flow(x), flow (H, W, 2), by NumPy's indexing alone."""
    height, width = image.shape
    rows, columns = np.mgrid[:height, :width]
    to_rows = np.rint(rows + flow[..., 1]).astype(int).clip(0, height - 1)
    return image[to_rows, np.rint(columns + flow[..., 0]).astype(int).clip(0, width - 1)]


def test_a_clip_depends_on_its_numbers_alone_and_is_no_scene():
    first = make_clip(1, 4)
    make_scene(1, 4)
    again = make_clip(1, 4)
    for name in ("image", "mask", "forward", "backward", "occluded"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert first.image.shape == (8, 96, 96, 3) and first.image.dtype == np.uint8 and len(first) == 8
    assert first.forward.shape == first.backward.shape == (7, 96, 96, 2) and first.occluded.shape == (7, 96, 96)
    assert not np.array_equal(first.image, make_clip(1, 5).image)
    assert not np.array_equal(first.image, make_clip(2, 4).image)
    assert not any(np.array_equal(image, make_scene(1, 4).image) for image in first.image)


@pytest.mark.parametrize("index", range(6))
def test_the_flow_carries_masks_to_the_next_frame_and_back(index):
    """Of the pixels in sight: where an edge cuts a pixel, rounding may take the one beside it."""
    clip = make_clip(1, index)
    for frame in range(len(clip) - 1):
        seen = ~clip.occluded[frame]
        assert 0.5 < seen.mean()
        there = shown_at(clip.mask[frame + 1], clip.forward[frame])
        assert (there == clip.mask[frame])[seen].mean() >= 0.98
        flow, hidden = clip.motion(frame + 1, frame)
        assert np.array_equal(flow, clip.backward[frame])
        back = shown_at(clip.mask[frame], flow)
        assert (back == clip.mask[frame + 1])[~hidden].mean() >= 0.98


def test_the_flow_carries_colours_where_the_ground_lies(monkeypatch):
    """Without grain, a pixel of the ground has the colour it had, but for the mixing of neighbours."""
    monkeypatch.setattr(toy_clips, "NOISE", 0.0)
    clip = make_clip(1, 2)
    flow = torch.from_numpy(clip.forward).permute(0, 3, 1, 2)
    image = torch.from_numpy(clip.image).permute(0, 3, 1, 2).float()
    ground = torch.from_numpy(~clip.occluded & (clip.mask[:-1] == 0))
    wrong = (warp(image[1:], flow) - image[:-1]).abs().mean(1)[ground].mean()
    still = (image[1:] - image[:-1]).abs().mean(1)[ground].mean()
    assert wrong < 0.6 * still


def test_occlusion_of_a_square_by_hand():
    """A square of side 20 moves 4 pixels to the right over ground that moves 1 down: what it will cover is known."""
    square = Mover(1, 10 / 0.88, np.array([40.0, 40.0]), np.array([0.0, 4.0]), 0.0, 0.0, None)
    now, then = -0.5, 0.5
    flow, hidden = toy_clips._motion((square,), np.array([1.0, 0.0]), 96, now, then)
    inside = square.covers(now, *toy_clips._pixels(96))
    rows, columns = np.mgrid[:96, :96]
    assert np.array_equal(inside, (abs(rows - 40) < 10) & (abs(columns - 38) < 10))
    assert (flow[inside] == [4, 0]).all() and (flow[~inside] == [0, 1]).all()
    # what lies where the square will be, one row further up because the ground moves down, unless it is the square's
    covered = (abs(rows + 1 - 40) < 10) & (abs(columns - 42) < 10) & ~inside
    covered[95] = True  # the last row of the ground leaves the image
    assert np.array_equal(hidden, covered)


def test_an_object_turns_about_its_centre():
    mover = Mover(1, 20.0, np.array([48.0, 40.0]), np.array([1.0, -2.0]), 0.3, 0.1, None)
    rows, columns = np.array([48.0, 58.0]), np.array([40.0, 40.0])
    back = mover.place(0.0, *mover.body(0.0, rows, columns))
    assert np.allclose(back, [rows, columns])
    row, column = mover.place(2.0, *mover.body(0.0, rows, columns))
    assert (row[0], column[0]) == pytest.approx((50, 36))  # two frames along
    # ten pixels below the centre, turned by 0.2 from the columns towards the rows: below moves to the left
    assert (row[1], column[1]) == pytest.approx((50 + 10 * np.cos(0.2), 36 - 10 * np.sin(0.2)))


def test_objects_show_in_the_middle_and_move_within_their_limits():
    kinds, moving = set(), []
    for index in range(30):
        clip = make_clip(0, index, frames=3)
        middle = np.unique(clip.mask[1][clip.mask[1] > 0], return_counts=True)
        assert sorted(mover.kind + 1 for mover in clip.movers) == middle[0].tolist() and middle[1].min() >= MIN_VISIBLE
        kinds |= set(middle[0].tolist())
        moving += [np.hypot(*(mover.velocity - clip.drift)) for mover in clip.movers]
        assert abs(clip.drift).max() <= DRIFT
    assert kinds == {1, 2, 3, 4, 5, 6} and max(moving) <= SPEED and max(moving) > 0.8 * SPEED


def test_the_label_of_a_clip_is_of_all_its_frames():
    clip = make_clip(1, 0, frames=2)
    mask = np.zeros_like(clip.mask)
    mask[0, 0, 0], mask[1, 3, 3] = 2, 5
    other = Clip(clip.image, mask, clip.forward, clip.backward, clip.occluded, clip.movers, clip.drift)
    assert other.image_label.tolist() == [0, 1, 0, 0, 1, 0]


def test_a_longer_clip_keeps_its_ground():
    clip = make_clip(3, 1, frames=40, size=48)
    assert clip.image.shape == (40, 48, 48, 3)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [((-1, 0), "seed must"), ((0, 1.5), "index must"),
     ((0, 0, 1), "frames must be a whole number of at least 2, got 1"),
     ((0, 0, 8, 20), "size must be a whole number of at least 48")],
)  # fmt: skip
def test_wrong_numbers_are_named(numbers, message):
    with pytest.raises(ValueError, match=message):
        make_clip(*numbers)
    with pytest.raises(ValueError, match="target must be a frame from 0 to 1, got 2"):
        make_clip(0, 0, frames=2).motion(0, 2)
