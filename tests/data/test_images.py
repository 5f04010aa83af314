"""One decoder: what becomes of every kind of pixel, what is refused, and that ordinary photos are left as they are."""

import io
import os
import re
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.folders import SAMPLES, needs_samples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageOps

from toco_lab.data.classes import DataError
from toco_lab.data.images import conversions, header, read_rgb, sizes

CASES = SAMPLES.parent / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason=f"no bad cases: {CASES} is not there")


@pytest.fixture
def noise(rng) -> np.ndarray:
    return rng.integers(0, 256, (20, 30, 3), np.uint8)


def saved(path: Path, picture: Image.Image | np.ndarray, **options) -> Path:
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path, **options)
    return path


def oriented(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


# --- ordinary files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_ordinary_photos_are_what_pillow_reads(tmp_path, noise, suffix, mode):
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(noise).convert(mode))
    np.testing.assert_array_equal(read_rgb(path), np.array(Image.open(path).convert("RGB")))
    assert conversions(path) == [] and sizes(header(path)) == ((30, 20), (30, 20))


@needs_samples
@pytest.mark.data
def test_real_photos_are_what_pillow_reads():
    paths = sorted(SAMPLES.rglob("*.jpg"))[::40]
    assert paths
    for path in paths:
        np.testing.assert_array_equal(read_rgb(path), np.array(Image.open(path).convert("RGB")))


def test_a_name_with_another_ending_says_nothing(tmp_path, noise):
    path = saved(tmp_path / "a.jpg", noise, format="png")
    np.testing.assert_array_equal(read_rgb(path), noise)


# --- orientation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("number", range(1, 9))
def test_exif_orientation_is_applied_once_in_every_format(tmp_path, noise, suffix, number):
    path = saved(tmp_path / f"a.{suffix}", noise, exif=oriented(number))
    with Image.open(path) as file:
        file.load()
        expected = np.array(ImageOps.exif_transpose(file).convert("RGB"))
    got = read_rgb(path)
    np.testing.assert_array_equal(got, expected)
    assert sizes(header(path))[0] == (got.shape[1], got.shape[0])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [oriented(9).tobytes(), oriented(0).tobytes(), b"Exif\0\0II*\0broken"])
def test_an_orientation_that_says_nothing_leaves_the_pixels(tmp_path, noise, exif):
    path = saved(tmp_path / "a.jpg", noise, exif=exif)
    np.testing.assert_array_equal(read_rgb(path), read_rgb(saved(tmp_path / "b.jpg", noise)))


# --- kinds of pixels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "order"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2")])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, suffix, order):
    deep = np.linspace(0, 65535, 600).reshape(20, 30).astype(order)
    got = read_rgb(saved(tmp_path / f"a.{suffix}", deep))
    np.testing.assert_array_equal(got, np.repeat((deep / 257).round().astype(np.uint8)[..., None], 3, 2))
    assert got.min() == 0 and got.max() == 255 and len(np.unique(got)) == 256
    assert conversions(tmp_path / f"a.{suffix}") == ["have more than 8 bits, scaled to 8"]


def test_integers_of_32_bits_are_read_as_16_bits(tmp_path):
    got = read_rgb(saved(tmp_path / "a.tif", np.array([[0, 257 * 77, 65535]], np.int32)))
    assert got[0, :, 0].tolist() == [0, 77, 255]


@pytest.mark.parametrize("values", [[0, 65536], [-1, 3000], [0, 255]])
def test_integers_of_an_unknown_range_are_refused(tmp_path, values):
    path = saved(tmp_path / "a.tif", np.array([values], np.int32))
    low, high = values
    with pytest.raises(DataError, match=rf"a\.tif holds integers .*from {low} to {high}: .*8-bit PNG"):
        read_rgb(path)


@pytest.mark.parametrize(
    ("values", "expected"), [([0, 0.5, 1], [0, 128, 255]), ([0, 1.2, 255], [0, 1, 255]), ([0, 0, 0], [0, 0, 0])]
)
def test_floating_point_colours(tmp_path, values, expected):
    got = read_rgb(saved(tmp_path / "a.tif", np.array([values], np.float32)))
    assert got[0, :, 0].tolist() == expected


@pytest.mark.parametrize("values", [[0, 256], [-0.1, 1], [0, np.nan], [0, np.inf]])
def test_floating_point_numbers_that_are_no_colours_are_refused(tmp_path, values):
    path = saved(tmp_path / "a.tif", np.array([values], np.float32))
    with pytest.raises(DataError, match=r"a\.tif holds floating point numbers .*only those in \[0, 1\] or \[0, 255\]"):
        read_rgb(path)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "RGB colour", "L colour", "16-bit colour"])
def test_what_is_transparent_becomes_white(tmp_path, kind):
    """The left pixel is clear, the right one opaque and 90 in red."""
    path = tmp_path / "a.png"
    grey = np.array([[40, 90]], np.uint8)
    if kind in ("RGBA", "LA"):
        picture = Image.fromarray(grey).convert(kind)
        picture.putalpha(Image.fromarray(np.array([[0, 255]], np.uint8)))
        picture.save(path)
    elif kind == "palette":
        picture = Image.fromarray(np.array([[0, 1]], np.uint8))
        picture.putpalette([40, 40, 40, 90, 90, 90])
        picture.save(path, transparency=0)
    elif kind == "16-bit colour":
        saved(path, grey.astype(np.uint16) * 257, transparency=40 * 257)
    else:
        mode = kind.split()[0]
        Image.fromarray(grey).convert(mode).save(path, transparency=40 if mode == "L" else (40, 40, 40))
    assert read_rgb(path).tolist() == [[[255] * 3, [90] * 3]]
    assert any("transparent becomes white" in words for words in conversions(path))


def test_cmyk_palette_and_one_bit_become_rgb(tmp_path, noise):
    red = read_rgb(saved(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0))))[0, 0]
    assert red[0] > 200 > 60 > red[1]
    flat = noise // 128 * 255
    palette = Image.fromarray(flat).quantize(8)
    np.testing.assert_array_equal(read_rgb(saved(tmp_path / "b.png", palette)), flat)
    bits = flat[..., 0]
    one = saved(tmp_path / "c.png", Image.fromarray(bits).convert("1"))
    np.testing.assert_array_equal(read_rgb(one), np.repeat(bits[..., None], 3, 2))


@pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp"])
def test_of_several_pictures_the_first_is_read(tmp_path, suffix):
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    lossless = {"lossless": True} if suffix == "webp" else {}
    pictures[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=pictures[1:], **lossless)
    assert (read_rgb(tmp_path / f"a.{suffix}") == (255, 0, 0)).all()
    assert "hold several pictures, of which the first is read" in conversions(tmp_path / f"a.{suffix}")


def test_a_tiff_in_which_0_is_white_is_turned_round_or_refused(tmp_path):
    grey = np.full((4, 4), 200, np.uint8)
    assert (read_rgb(saved(tmp_path / "a.tif", grey, tiffinfo={262: 0})) == 200).all()
    for deep in (grey.astype(np.uint16) * 257, grey.astype(np.float32)):
        with pytest.raises(DataError, match=r"b\.tif is a TIFF of more than 8 bits in which 0 is white.*8-bit PNG"):
            read_rgb(saved(tmp_path / "b.tif", deep, tiffinfo={262: 0}))


def test_lab_colours_are_refused(tmp_path):
    path = saved(tmp_path / "a.tif", Image.new("LAB", (8, 8), (255, 0, 0)))
    with pytest.raises(DataError, match=r"a\.tif has pixels of mode LAB.*RGB PNG"):
        read_rgb(path)


# --- no image at all --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path, rng, suffix, share):
    path = saved(tmp_path / f"a.{suffix}", rng.integers(0, 256, (200, 200, 3), np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=rf"cannot decode .*a\.{suffix}: .*copy it again"):
        read_rgb(path)


@pytest.mark.parametrize(
    ("content", "cause"),
    [(b"", "empty"), (b"hello", "no format fits"), (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "no format fits")],
)
def test_what_is_no_image_is_refused_with_the_cause(tmp_path, content, cause):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"cannot decode .*a\.jpg: .*{cause}.*save it again as PNG or JPEG"):
        read_rgb(tmp_path / "a.jpg")


def test_a_decompression_bomb_is_refused(tmp_path):
    """A PNG of 70 bytes that announces 60,000 x 60,000 pixels."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    (tmp_path / "a.png").write_bytes(png_of(parts))
    with pytest.raises(DataError, match=r"a\.png is too large for a photo: .*3600000000 pixels.*Scale it down"):
        read_rgb(tmp_path / "a.png")


@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, linked):
    path = tmp_path / "a.jpg"
    os.mkfifo(tmp_path / "pipe" if linked else path)
    if linked:
        path.symlink_to(tmp_path / "pipe")
    found: list[str] = []

    def read() -> None:
        with pytest.raises(DataError) as error:
            read_rgb(path)
        found.append(str(error.value))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert found and "a.jpg is no regular file, but a pipe" in found[0]


def test_folders_missing_files_and_broken_links_are_refused(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    (tmp_path / "b.jpg").symlink_to(tmp_path / "gone.jpg")
    for name, words in (
        ("a.jpg", r"a\.jpg is a folder"),
        ("b.jpg", r"no file .*b\.jpg"),
        ("c.jpg", r"no file .*c\.jpg"),
    ):
        with pytest.raises(DataError, match=words):
            read_rgb(tmp_path / name)
    with pytest.raises(DataError, match=r"xxx: File name too long. Choose a shorter name"):
        read_rgb(tmp_path / ("x" * 300))


# --- properties -------------------------------------------------------------------------------------------------------


PICTURES = hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))
FEW = settings(max_examples=60, derandomize=True, deadline=None)


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@FEW
@given(PICTURES, st.sampled_from(["png", "bmp", "tiff"]))
def test_what_is_written_is_read(pixels, kind):
    np.testing.assert_array_equal(read_rgb(encoded(pixels, kind), "a"), pixels)


@FEW
@given(PICTURES, st.data())
def test_a_png_with_other_bytes_is_refused_or_right(pixels, data):
    """Decoders do not look at its checksums: a flipped bit near the end of the pixels was read as other colours."""
    png = encoded(pixels, "png")
    place = data.draw(st.integers(0, len(png) - 1))
    spoilt = png[:place] + data.draw(st.binary(max_size=3)) + png[place + data.draw(st.integers(0, 3)) :]
    try:
        found = read_rgb(spoilt, "the upload")
    except DataError as error:
        assert re.search("(cannot decode )?the upload.*(Save|save|Scale)", str(error))
    else:
        np.testing.assert_array_equal(found, pixels)


def test_a_flipped_bit_of_a_png_is_named_with_its_part(tmp_path, noise):
    """Of pixels whose own checksum is cut off: Pillow reads another colour without a word."""
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in noise))[:-4]
    head = struct.pack(">IIBBBBB", noise.shape[1], noise.shape[0], 8, 2, 0, 0, 0)
    png = bytearray(png_of([(b"IHDR", head), (b"IDAT", packed), (b"IEND", b"")]))
    (tmp_path / "a.png").write_bytes(png)
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png"), noise)
    png[png.index(b"IEND") - 18] ^= 1
    (tmp_path / "a.png").write_bytes(png)
    with pytest.raises(DataError, match=r"cannot decode .*a\.png: its part 'IDAT' differs from its checksum.*copy it"):
        read_rgb(tmp_path / "a.png")


def png_of(parts: list[tuple[bytes, bytes]]) -> bytes:
    chunks = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@needs_cases
@pytest.mark.data
@pytest.mark.parametrize("case", ["img16", "sixteen_bit"])
def test_16_bit_cases_are_not_white(case):
    for path in (CASES / case / "images").iterdir():
        assert 20 < read_rgb(path).mean() < 235, path
