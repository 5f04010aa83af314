"""Overlays, strips and animations: the pixels that are written."""

import io

import numpy as np
import pytest
from PIL import Image

from toco_lab.data.classes import PALETTE
from toco_lab.figures.moving import GAP, LINE, beside, clip_rows, enlarged, gif_bytes, label_overlay, png_bytes, strip

GREY = np.full((6, 8, 3), 100, np.uint8)


def test_an_overlay_colours_the_classes_and_leaves_the_background():
    label = np.zeros((6, 8), np.uint8)
    label[2, 3] = 1
    made = label_overlay(GREY, label, PALETTE, alpha=0.5)
    assert made.dtype == np.uint8 and (np.delete(made.reshape(-1, 3), 2 * 8 + 3, axis=0) == 100).all()
    assert made[2, 3].tolist() == np.rint(0.5 * PALETTE[1] + 50).astype(int).tolist()


def test_pictures_stand_beside_and_below_each_other():
    row = beside([GREY, 2 * GREY])
    assert row.shape == (6, 16 + GAP, 3) and (row[:, 8 : 8 + GAP] == 255).all() and (row[:, 8 + GAP :] == 200).all()
    both = strip({"one": [GREY, GREY], "two": [2 * GREY, GREY]})
    assert both.shape == (2 * (6 + LINE), 16 + GAP, 3) and (both[6 + 2 * LINE :, :8] == 200).all()
    assert both[:LINE].min() < 128  # a heading is written there
    assert enlarged(GREY, 3).shape == (18, 24, 3)
    assert np.array_equal(np.array(Image.open(io.BytesIO(png_bytes(row)))), row)
    for rows in ({}, {"one": []}, {"one": [GREY], "two": [GREY, GREY]}, {"one": [GREY, GREY[1:]]}):
        with pytest.raises(ValueError, match="a strip needs rows of equally many pictures of one size"):
            strip(rows)


def test_rows_of_a_clip_have_each_label_over_its_frame():
    images = np.full((2, 4, 5, 3), 100, np.uint8)
    labels = np.zeros((2, 4, 5), np.uint8)
    labels[1, 0, 0] = 1
    rows = clip_rows(images, {"truth": labels}, PALETTE)
    assert list(rows) == ["frames", "truth"] and len(rows["truth"]) == 2
    assert np.array_equal(rows["truth"][0], images[0]) and np.array_equal(
        rows["truth"][1], label_overlay(images[1], labels[1], PALETTE)
    )
    assert (rows["truth"][1][0, 0] != 100).any()


def test_an_animation_holds_its_pictures_and_their_rate():
    pictures = [np.full((6, 8, 3), 40 * number, np.uint8) for number in range(5)]
    picture = Image.open(io.BytesIO(gif_bytes(iter(pictures), rate=10)))
    assert picture.n_frames == 5 and picture.info["duration"] == 100 and picture.info["loop"] == 0
    for number in range(5):
        picture.seek(number)
        assert (np.array(picture.convert("RGB")) == 40 * number).all()
    with pytest.raises(ValueError, match="at least one picture"):
        gif_bytes([])
    with pytest.raises(ValueError, match="rate must be positive, got 0"):
        gif_bytes(pictures, rate=0)
