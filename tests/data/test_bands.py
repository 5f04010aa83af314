"""Bands of many bits: TIFFs written byte by byte here, the percentile window by hand, and what is refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toco_lab.data.bands import as_picture, read_bands, rule
from toco_lab.data.classes import DataError

KINDS = {"u": 1, "i": 2, "f": 3}


def write_tiff(
    path: Path, numbers: np.ndarray, *, order="<", coding=1, predictor=1, tile=0, rows=7, planar=False, big=False
) -> None:
    """A TIFF of (H, W, N), with strips of some rows or square tiles, as the specification has it."""
    height, width, bands = numbers.shape
    down, across = (tile, tile) if tile else (rows, width)
    parts = []
    for plane in [numbers[..., [band]] for band in range(bands)] if planar else [numbers]:
        for top in range(0, height, down):
            for left in range(0, width, across):
                part = plane[top : top + down, left : left + across]
                if tile:
                    edge = [(0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0)]
                    part = np.pad(part, edge)
                if predictor == 2:
                    part = np.concatenate([part[:, :1], part[:, 1:] - part[:, :-1]], 1)
                content = part.astype(part.dtype.newbyteorder(order)).tobytes()
                parts.append(zlib.compress(content) if coding != 1 else content)
    bits = numbers.dtype.itemsize * 8
    start = 16 if big else 8
    places = [start + sum(map(len, parts[:k])) for k in range(len(parts))]
    where, size = (324, 325) if tile else (273, 279)
    tags = {256: [width], 257: [height], 258: [bits] * bands, 259: [coding], 262: [1], where: places, 277: [bands],
            size: [len(part) for part in parts], 284: [2 if planar else 1], 317: [predictor],
            339: [KINDS[numbers.dtype.kind]] * bands}  # fmt: skip
    tags |= {322: [tile], 323: [tile]} if tile else {278: [rows]}
    after = start + sum(map(len, parts))
    count, slot = ("Q", "Q") if big else ("H", "I")
    room = 8 if big else 4
    directory, values = struct.pack(order + count, len(tags)), b""
    beyond = after + len(directory) + len(tags) * (20 if big else 12) + room
    for tag in sorted(tags):
        letter, number = ("I", 4) if max(tags[tag]) > 65535 or tag in (where, size) else ("H", 3)
        packed = struct.pack(f"{order}{len(tags[tag])}{letter}", *tags[tag])
        if len(packed) > room:
            packed, values = struct.pack(order + slot, beyond + len(values)), values + packed
        directory += struct.pack(f"{order}HH{slot}", tag, number, len(tags[tag])) + packed.ljust(room, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if big else 42)
    head += struct.pack(f"{order}HHQ", 8, 0, after) if big else struct.pack(f"{order}I", after)
    path.write_bytes(head + b"".join(parts) + directory + struct.pack(order + slot, 0) + values)


def some(dtype, bands=6, shape=(20, 33)) -> np.ndarray:
    return (np.random.default_rng(bands).random((*shape, bands)) * 3000).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.float32])
@pytest.mark.parametrize("layout", [{}, {"planar": True}, {"tile": 16}, {"tile": 16, "planar": True}, {"rows": 20}])
@pytest.mark.parametrize("coding", [{}, {"coding": 8}, {"coding": 32946, "predictor": 2}])
def test_the_numbers_of_a_tiff_are_read_as_they_are(tmp_path, dtype, layout, coding):
    if np.dtype(dtype).kind == "f":
        coding = coding | {"predictor": 1}
    numbers = some(dtype)
    write_tiff(tmp_path / "a.tif", numbers, **layout, **coding)
    found = read_bands(tmp_path / "a.tif")
    assert found.dtype == dtype and np.array_equal(found, numbers)


@pytest.mark.parametrize("options", [{"order": ">"}, {"big": True}, {"order": ">", "big": True}])
def test_byte_orders_and_big_files(tmp_path, options):
    numbers = some(np.uint16)
    write_tiff(tmp_path / "a.tif", numbers, **options)
    assert np.array_equal(read_bands(tmp_path / "a.tif"), numbers)


def test_colours_of_16_bits_keep_their_lower_ones_and_pictures_are_read_as_everywhere(tmp_path):
    numbers = some(np.uint16, bands=3)
    write_tiff(tmp_path / "a.tif", numbers)
    assert np.array_equal(read_bands(tmp_path / "a.tif"), numbers)  # Pillow gives 8 bits
    Image.fromarray(numbers[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(read_bands(tmp_path / "grey.png"), numbers[..., :1])
    Image.fromarray(numbers[..., 0]).save(tmp_path / "grey.tif")
    assert np.array_equal(read_bands(tmp_path / "grey.tif"), numbers[..., :1])
    picture = some(np.uint8, bands=3)
    Image.fromarray(picture).save(tmp_path / "b.tif")
    assert np.array_equal(read_bands(tmp_path / "b.tif"), picture)
    np.save(tmp_path / "c.npy", numbers)
    np.save(tmp_path / "d.npy", numbers[..., 0])
    assert np.array_equal(read_bands(tmp_path / "c.npy"), numbers) and read_bands(tmp_path / "d.npy").shape[2] == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: write_tiff(path, some(np.uint16), coding=5), "its compression LZW is not read.*DEFLATE"),
        (lambda path: write_tiff(path, some(np.float32), predictor=3), "its predictor 3 is not read"),
        (lambda path: path.write_bytes(path.read_bytes()[:900]), "cannot read .*a.tif: .*Copy it again"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, spoil, message):
    write_tiff(tmp_path / "a.tif", some(np.uint16))
    spoil(tmp_path / "a.tif")
    with pytest.raises(DataError, match=message):
        read_bands(tmp_path / "a.tif")


def test_arrays_that_are_no_images_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(5))
    with pytest.raises(DataError, match="is no array of numbers"):
        read_bands(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match=r"cannot read .*b.npy"):
        read_bands(tmp_path / "b.npy")


# --- three bands of 8 bits --------------------------------------------------------------------------------------------


def test_percentiles_1_to_99_become_0_to_255():
    levels = np.arange(1001, dtype=np.uint16).reshape(7, 143, 1) + 500  # percentiles 510 and 1490
    found = as_picture(levels, "it")
    by_hand = ((levels - 510.0) / (1490 - 510) * 255).clip(0, 255).round()
    assert np.array_equal(found, by_hand.astype(np.uint8).repeat(3, 2))
    assert (found == 0).mean() > 0.009 and (found == 255).mean() > 0.009 and found.dtype == np.uint8


def test_each_band_has_a_window_of_its_own_and_three_are_chosen():
    numbers = some(np.int16) * np.array([1, 2, 3, 4, 5, 6], np.int16)
    found = as_picture(numbers, "it", bands=(4, 2, 1))
    for place, band in enumerate((3, 1, 0)):
        assert np.array_equal(found[..., place], as_picture(numbers[..., [band]], "it")[..., 0])
    assert np.abs(found[..., 0].astype(int) - found[..., 2]).max() > 50


def test_range_is_that_of_the_type_and_8_bits_stay():
    numbers = some(np.uint16, bands=1)
    assert np.array_equal(as_picture(numbers, "it", levels="range")[..., 1], (numbers[..., 0] / 257).round())
    picture = some(np.uint8, bands=3)
    assert np.array_equal(as_picture(picture, "it"), picture)
    assert np.array_equal(as_picture(picture, "it", bands=(3, 2, 1)), picture[..., ::-1])


def test_range_may_be_that_of_the_bits_that_are_used():
    numbers = np.array([[[0], [4095], [2048], [100]]], np.uint16)
    assert as_picture(numbers, "it", levels="range", bits=12)[0, :, 0].tolist() == [0, 255, 128, 6]
    with pytest.raises(DataError, match=r"it holds 4095, which needs more than 11 bits\. Give"):
        as_picture(numbers, "it", levels="range", bits=11)


def test_no_number_and_one_number():
    numbers = np.array([[np.nan, 1.0, 2.0, np.inf]], np.float32)[..., None]
    assert as_picture(numbers, "it")[0, :, 0].tolist() == [0, 0, 255, 0]
    assert not as_picture(np.full((2, 2, 1), np.nan), "it").any()
    assert not as_picture(np.full((2, 2, 1), 7, np.uint16), "it").any()


@pytest.mark.parametrize(
    ("bands", "count", "dtype", "levels", "message"),
    [
        (None, 6, np.uint16, "percentile", "it has 6 bands: choose three that become red, green, blue"),
        ((1, 2, 7), 6, np.uint16, "percentile", "it has bands 1 to 6, and three of them are needed"),
        ((1, 2), 6, np.uint16, "percentile", "three of them are needed, got"),
        (None, 3, np.float32, "range", "it holds float32, which has no range of grey levels"),
    ],
)
def test_bands_that_are_not_there_or_not_chosen_are_refused(bands, count, dtype, levels, message):
    with pytest.raises(DataError, match=message):
        as_picture(some(dtype, bands=count), "it", bands=bands, levels=levels)


def test_the_rule_is_said_in_words():
    assert (
        rule("percentile", 0, (4, 3, 2))
        == "more than 8 bits: percentiles 1 to 99 of each band to 0..255; bands: [4, 3, 2]"
    )
    assert rule("range", 12, None) == "more than 8 bits: range of 12 bits; bands: the only one or all three"
