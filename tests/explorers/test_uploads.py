"""Uploaded images: every kind of file becomes RGB, what is no image is refused with a way to mend it."""

import io
from pathlib import Path

import numpy as np
import pytest
from helpers.folders import make_voc, write_list
from PIL import Image

from toco_lab.data.classes import DataError
from toco_lab.data.readers import open_dataset
from toco_lab.explorers.uploads import decode_image


@pytest.fixture
def raw(rng) -> np.ndarray:
    return rng.integers(0, 256, (8, 10, 3), np.uint8).repeat(8, 0).repeat(8, 1)


def file_of(image: Image.Image, kind: str = "png", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_colours_come_through_bytes_and_path(raw, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(file_of(Image.fromarray(raw)))
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png"), raw)
    np.testing.assert_array_equal(decode_image(file_of(Image.fromarray(raw))), raw)


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (6, 4), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # turn by a quarter
    assert decode_image(file_of(image, "jpeg", exif=exif)).shape == (6, 4, 3)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (3, 2), 90), (90, 90, 90)),
        (Image.new("1", (3, 2), 1), (255, 255, 255)),
        (Image.new("RGBA", (3, 2), (200, 0, 100, 0)), (255, 255, 255)),
        (Image.new("RGBA", (3, 2), (200, 0, 100, 255)), (200, 0, 100)),
        (Image.new("LA", (3, 2), (10, 255)), (10, 10, 10)),
        (Image.new("RGB", (3, 2), (9, 200, 30)).quantize(4), (9, 200, 30)),
        (Image.fromarray(np.full((2, 3), 257 * 77, np.uint16)), (77, 77, 77)),
    ],
    ids=["grey", "one bit", "transparent", "opaque", "grey and alpha", "palette", "16 bit"],
)
def test_every_mode_becomes_rgb(image, expected):
    got = decode_image(file_of(image))
    assert got.dtype == np.uint8
    assert got.shape == (2, 3, 3)
    assert (got == expected).all(), got[0, 0]


def test_cmyk_becomes_rgb():
    got = decode_image(file_of(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "jpeg"))
    assert got[0, 0, 0] > 200 > 60 > got[0, 0, 1]


def test_large_images_are_scaled_down():
    assert decode_image(file_of(Image.new("RGB", (2000, 500)))).shape == (256, 1024, 3)
    assert decode_image(file_of(Image.new("RGB", (50, 200))), longest_side=100).shape == (100, 25, 3)
    assert decode_image(file_of(Image.new("RGB", (2000, 500))), longest_side=None).shape == (500, 2000, 3)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_damaged_files_say_how_to_mend_them(kind, rng):
    whole = file_of(Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)), kind)
    for content in (whole[: len(whole) // 2], b"", b"not an image", whole[:40] + bytes(40)):
        with pytest.raises(DataError, match=r"cannot decode the uploaded file: .*save it again as PNG or JPEG"):
            decode_image(content)


def test_missing_files_and_numbers_that_are_no_colours_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"no file .*none\.png"):
        decode_image(tmp_path / "none.png")
    with pytest.raises(DataError, match=r"the uploaded file holds floating point numbers from -3 to -3"):
        decode_image(file_of(Image.new("F", (3, 2), -3), "tiff"))


def test_an_upload_and_a_training_image_are_the_same_pixels(tmp_path: Path, rng):
    """Transparent, turned and of 16 bits: what training reads from disk, the explorer reads from the browser."""
    noise = rng.integers(0, 256, (20, 30, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 8
    files = {
        "alpha": file_of(Image.fromarray(noise, "RGBA")),
        "turned": file_of(Image.fromarray(noise[..., :3]), "jpeg", exif=exif),
        "deep": file_of(Image.fromarray(noise[..., 0].astype(np.uint16) * 200)),
    }
    cfg = make_voc(tmp_path)
    write_list(Path(cfg.data_root), files)
    for name, content in files.items():
        (Path(cfg.data_root) / f"JPEGImages/{name}.jpg").write_bytes(content)  # the name says nothing
    reader = open_dataset(cfg.replace(label_source="xml"), "train")
    for index, content in enumerate(files.values()):
        np.testing.assert_array_equal(reader.image(index), decode_image(content))
