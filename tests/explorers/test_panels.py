"""Rows of panels: which pixel gets which colour, what stands in the legend."""

import io
from dataclasses import astuple

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image, ImageColor

from toco_lab.explorers import panels
from toco_lab.explorers.panels import (
    CROP_STYLES,
    REGIONS,
    CropBox,
    Panel,
    as_figure,
    label_legend,
    panel_row,
    png_bytes,
)

IMAGE = np.full((60, 80, 3), 200, np.uint8)
PALETTE = np.zeros((256, 3), np.uint8)
PALETTE[1] = 128, 0, 0
LEGEND = label_legend(PALETTE, ("background", "cat"))


def picture(row, i=0, columns=4, shape=(60, 80), side=80):
    """The pixels of panel i of a row of panels that were not scaled."""
    x = 10 + i % columns * (190 + 10)  # a narrow panel's cell is 190 wide
    y = 5 + i // columns * (shape[0] + 46) + 36
    return row[y : y + shape[0], x : x + shape[1]]


def test_pictures_are_drawn_as_they_are(rng):
    image = rng.integers(0, 256, (60, 80, 3), np.uint8)
    np.testing.assert_array_equal(picture(panel_row(image, [Panel("image", image)], side=80)), image)


def test_cams_share_one_scale_and_mix_with_the_image():
    cam = np.full((60, 80), 0.5, np.float32)
    row = panel_row(IMAGE, [Panel("a", cam), Panel("b", cam / 2)], opacity=0.25, vmax=0.5, side=80)
    for i, level in ((0, 255), (1, 127)):
        colour = 255 * np.array(colormaps["inferno"](level)[:3])
        np.testing.assert_allclose(picture(row, i)[30, 40], 0.75 * 200 + 0.25 * colour, atol=1)


def test_labels_take_the_colours_of_the_legend_and_ignored_pixels_are_hatched():
    label = np.zeros((60, 80), np.int64)
    label[:20], label[40:] = 1, 255
    drawn = picture(panel_row(IMAGE, [Panel("label", label, legend=LEGEND)], opacity=1, side=80))
    assert (drawn[:20] == (128, 0, 0)).all()
    assert (drawn[20:40] == 0).all()
    hatched = drawn[40:].reshape(-1, 3)
    assert set(map(tuple, hatched.tolist())) == {(255, 255, 255), (60, 60, 60)}
    assert 0.2 < (hatched == 60).all(1).mean() < 0.3
    assert (label[40:] == 255).all(), "the caller's label is not changed"


def test_small_images_grow_by_a_whole_factor_and_large_ones_shrink():
    image = np.zeros((20, 30, 3), np.uint8)
    image[0, 0] = 255
    drawn = picture(panel_row(image, [Panel("x", image)], side=100), shape=(60, 90))
    assert (drawn[:3, :3] == 255).all()
    assert drawn.astype(int).sum() == 9 * 3 * 255
    large = panel_row(np.zeros((600, 800, 3), np.uint8), [Panel("x", np.zeros((600, 800, 3), np.uint8))], side=400)
    assert (large[41 : 41 + 300, 10 : 10 + 400] == 0).all()
    assert (large[41 + 301, 10 : 10 + 400] == 255).all()


def test_panels_break_into_rows():
    four, five = (panel_row(IMAGE, [Panel("x", IMAGE)] * count, side=80) for count in (4, 5))
    assert four.shape[1] == five.shape[1]
    assert five.shape[0] - four.shape[0] == 60 + 46
    assert (picture(five, 4) == 200).all()


def test_positive_crops_are_solid_negative_ones_dashed_and_ignored_ones_dotted():
    boxes = [CropBox(5, 5, 40, 1), CropBox(10, 60, 40, 0), CropBox(70, 60, 40, 255)]
    image = np.full((120, 120, 3), 200, np.uint8)
    region = np.ones((120, 120), np.int64)
    row = panel_row(image, [Panel("crops", region, legend=REGIONS, crops=boxes)], side=120)
    drawn = picture(row, shape=(120, 120))

    def is_line(line, kind):
        return (line == ImageColor.getrgb(CROP_STYLES[kind].colour)).all(-1)

    def pieces(line):
        return int((np.diff(line.astype(int), prepend=0) == 1).sum())

    solid, dashed, dotted = (is_line(drawn[*place], kind) for place, kind in (
        ((5, slice(8, 43)), 1), ((10, slice(60, 101)), 0), ((70, slice(60, 101)), 255)
    ))  # fmt: skip
    assert solid.all() and is_line(drawn[8:43, 45], 1).all()
    assert 0.3 < dashed.mean() < 0.8 and 0.2 < dotted.mean() < 0.7
    assert pieces(solid) == 1 < pieces(dashed) < pieces(dotted)
    assert not is_line(drawn[25, 10:40], 1).any()


def test_the_three_kinds_of_crops_differ_for_the_colour_blind_and_from_the_regions():
    """In dashes, in colour, and in brightness: no two are alike in a grey print."""
    assert len({style.dash for style in CROP_STYLES.values()}) == 3
    colours = [ImageColor.getrgb(style.colour) for style in CROP_STYLES.values()]
    brightness = sorted(0.299 * red + 0.587 * green + 0.114 * blue for red, green, blue in colours)
    assert min(np.diff(brightness)) > 5
    assert not {style.colour for style in CROP_STYLES.values()} & {colour for _, colour in REGIONS.values()}


def test_legend_names_what_is_there_once(monkeypatch):
    written = []
    original = panels._draw_entry
    monkeypatch.setattr(panels, "_draw_entry", lambda *a: (written.append(astuple(a[4])), original(*a)))
    label = np.zeros((60, 80), np.uint8)
    label[0] = 255
    cam, crop = np.zeros((60, 80)), CropBox(0, 0, 9, 0)
    panel_row(
        IMAGE, [Panel("l", label, legend=LEGEND), Panel("m", label, legend=LEGEND), Panel("c", cam, crops=[crop])]
    )
    assert written == [
        ("bar", "CAM score", "", 1), ("patch", "background", "#000000", 1),
        ("patch", "ignored (255)", "", 1), ("line", "negative crop", "", 0),
    ]  # fmt: skip


def test_titles_that_are_too_long_are_cut():
    assert panels._fitting_text("short", 13, 190) == "short"
    cut = panels._fitting_text("a very long title that can not fit", 13, 100)
    assert cut.endswith("…")
    assert panels._font(13).getlength(cut) <= 100


def test_no_panels_is_an_error():
    with pytest.raises(ValueError, match="at least one panel"):
        panel_row(IMAGE, [])


def test_figure_and_png_hold_the_same_pixels(rng):
    pixels = rng.integers(0, 256, (40, 60, 3), np.uint8)
    png = Image.open(io.BytesIO(png_bytes(pixels, text={"settings": "{}"})))
    np.testing.assert_array_equal(np.asarray(png), pixels)
    assert png.text == {"settings": "{}"}
    file = io.BytesIO()
    as_figure(pixels).savefig(file, format="png", dpi=110)
    np.testing.assert_array_equal(np.asarray(Image.open(file).convert("RGB")), pixels)
