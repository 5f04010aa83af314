"""Images and masks: every mode and format as it should be read, and spoilt."""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from toco_lab.data.images import conversions, read_rgb
from toco_lab.data.masks import read_mask

from .cases import Case
from .mutate import spoil

_TURNED = {  # EXIF orientation -> the pixels as displayed
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}
_CLASSES = 20


def _noise(rng: Random) -> np.ndarray:
    size = rng.randrange(1, 40), rng.randrange(1, 40), 3
    return np.random.default_rng(rng.randrange(2**32)).integers(0, 256, size, np.uint8)


def _grey(plane: np.ndarray) -> np.ndarray:
    return np.repeat(plane[..., None], 3, 2)


def _written(rng: Random, folder: Path) -> tuple[Path, np.ndarray, str]:
    """An image of any mode in a lossless format: its file, its pixels as they should be read, and it in words."""
    pixels = _noise(rng)
    plane = pixels[..., 0]
    wide = plane.astype(np.uint16) * 257
    wide[0, 0] = 65535
    mode = rng.choice(("RGB", "L", "1", "P", "RGBA", "LA", "I;16", "I", "F", "F255", "CMYK"))
    pictures = {
        "RGB": lambda: (Image.fromarray(pixels), pixels),
        "L": lambda: (Image.fromarray(plane), _grey(plane)),
        "1": lambda: (Image.fromarray(plane > 127), _grey((plane > 127) * np.uint8(255))),
        "P": lambda: _palette(plane, pixels),
        "RGBA": lambda: _transparent(np.dstack([pixels, (plane > 127) * np.uint8(255)])),
        "LA": lambda: _transparent(np.dstack([plane, (plane > 127) * np.uint8(255)])),
        "I;16": lambda: (Image.fromarray(wide), _grey((wide / 257).round().astype(np.uint8))),
        "I": lambda: (Image.fromarray(wide.astype(np.int32)), _grey((wide / 257).round().astype(np.uint8))),
        "F": lambda: (Image.fromarray((plane / 255).astype(np.float32)), _grey(plane)),
        "F255": lambda: (Image.fromarray(np.maximum(plane, 2).astype(np.float32)), _grey(np.maximum(plane, 2))),
        "CMYK": lambda: (Image.fromarray(pixels).convert("CMYK"), pixels),
    }
    formats = {"RGB": "png bmp tif webp", "L": "png bmp tif", "1": "png bmp tif", "P": "png bmp tif", "RGBA": "png tif"}
    kind = rng.choice(formats.get(mode, "tif" if mode in ("I", "F", "F255", "CMYK") else "png").split())
    picture, shown = pictures[mode]()
    turn = rng.choice((1, *_TURNED)) if kind in ("png", "webp") else 1
    options: dict[str, Any] = {"lossless": True, "exact": True} if kind == "webp" else {}
    if turn > 1:
        options["exif"] = exif = Image.Exif()
        exif[0x0112] = turn
        shown = _TURNED[turn](shown)
    path = folder / f"picture.{kind}"
    picture.save(path, **options)
    return path, shown, f"{mode} as {kind}, orientation {turn}"


def _palette(plane: np.ndarray, pixels: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    colours = np.resize(pixels.reshape(-1, 3), (256, 3))
    picture = Image.fromarray(plane)
    picture.putpalette(colours.tobytes())
    return picture, colours[plane]


def _transparent(pixels: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """Of a picture with alpha 0 or 255: what is transparent is white."""
    shown = np.where(pixels[..., -1:] > 0, pixels[..., :-1], 255).astype(np.uint8)
    return Image.fromarray(pixels), shown if shown.shape[2] == 3 else np.repeat(shown, 3, 2)


def _unlike(found: np.ndarray, shown: np.ndarray) -> str:
    if found.dtype != np.uint8 or found.shape != shown.shape:
        return f"{found.dtype} {found.shape} instead of uint8 {shown.shape}"
    return "" if (found == shown).all() else f"{(found != shown).any(-1).sum()} pixels are others"


def _read(path: Path) -> np.ndarray:
    conversions(path)
    return read_rgb(path)


def sound_image(rng: Random, folder: Path) -> Case:
    """Every mode, format and orientation."""
    path, shown, what = _written(rng, folder)
    return Case(what, lambda: _read(path), [path.name], lambda found: _unlike(found, shown), sound=True)


def spoilt_image(rng: Random, folder: Path) -> Case:
    """A PNG has checksums, so that it is refused or right; of other formats only the kind of array is certain."""
    if rng.random() < 0.25:
        path, shown, what = folder / "photo.jpg", _noise(rng), "JPEG"
        Image.fromarray(shown).save(path)
    else:
        path, shown, what = _written(rng, folder)
    how, data = spoil(rng, path.read_bytes())
    path.write_bytes(data)

    def wrong(found: np.ndarray) -> str:
        if path.suffix == ".png" and data.startswith(b"\x89PNG"):
            return _unlike(found, shown)
        return "" if found.dtype == np.uint8 and found.shape[2:] == (3,) else f"{found.dtype} {found.shape}"

    return Case(f"{what}, {how}", lambda: _read(path), [path.name], wrong)


def unfit_image(rng: Random, folder: Path) -> Case:
    """Numbers that are no colours."""
    plane = _noise(rng)[..., 0]
    arrays = {
        "16 bits that look like 8": np.maximum(plane, 1).astype(np.uint16),
        "32 bits above 65535": plane.astype(np.int32) + 70000,
        "negative numbers": plane.astype(np.int32) - 300,
        "floats of which one is NaN": np.where(np.arange(plane.size).reshape(plane.shape) == 0, np.nan, 0.5),
        "floats of which one is infinite": np.where(np.arange(plane.size).reshape(plane.shape) == 0, np.inf, 0.5),
        "floats above 255": plane.astype(np.float32) + 256,
        "negative floats": plane.astype(np.float32) - 256,
    }
    what = rng.choice(list(arrays))
    array = arrays[what]
    path = folder / ("picture.png" if array.dtype == np.uint16 else "picture.tif")
    Image.fromarray(array.astype(np.float32) if array.dtype == float else array).save(path)
    return Case(what, lambda: _read(path), [path.name], lambda found: f"read as {found.min()}..{found.max()}")


# --- masks ------------------------------------------------------------------------------------------------------------


def _mask(rng: Random, folder: Path) -> tuple[Path, Path, np.ndarray]:
    """Image, mask and the numbers in it."""
    size = rng.randrange(2, 40), rng.randrange(2, 40)
    numbers = np.random.default_rng(rng.randrange(2**32)).choice([*range(_CLASSES + 1), 255], size).astype(np.uint8)
    Image.new("RGB", size[::-1]).save(folder / "picture.png")
    picture = Image.fromarray(numbers)
    if rng.random() < 0.6:
        picture.putpalette(np.resize(np.arange(256, dtype=np.uint8), (256, 3)).tobytes())
    picture.save(folder / "mask.png")
    return folder / "picture.png", folder / "mask.png", numbers


def _mask_case(what: str, image: Path, path: Path, numbers: np.ndarray | None, *, sound: bool = False) -> Case:
    def wrong(found: np.ndarray) -> str:
        if numbers is None:
            return f"read as {np.unique(found).tolist()}"
        return _unlike(found[..., None], numbers[..., None])

    return Case(what, lambda: read_mask(path, image, _CLASSES), ["mask.png"], wrong, sound=sound)


def sound_mask(rng: Random, folder: Path) -> Case:
    """Palette and grey."""
    image, path, numbers = _mask(rng, folder)
    return _mask_case("a mask", image, path, numbers, sound=True)


def spoilt_mask(rng: Random, folder: Path) -> Case:
    """Spoilt bytes: refused, or the same numbers."""
    image, path, numbers = _mask(rng, folder)
    what, data = spoil(rng, path.read_bytes())
    path.write_bytes(data)
    return _mask_case(what, image, path, numbers)


def unfit_mask(rng: Random, folder: Path) -> Case:
    """A sound file that cannot be the mask."""
    image, path, numbers = _mask(rng, folder)
    numbers[0, 0] = 3
    exif = Image.Exif()
    exif[0x0112] = rng.randrange(2, 9)
    ways = {
        "a number above the classes": lambda: Image.fromarray(np.where(numbers == 3, 77, numbers)).save(path),
        "another size": lambda: Image.fromarray(np.pad(numbers, 1)).save(path),
        "one row less": lambda: Image.fromarray(numbers[1:]).save(path),
        "colours": lambda: Image.fromarray(numbers).convert("RGB").save(path),
        "an alpha channel": lambda: Image.fromarray(numbers).convert("LA").save(path),
        "16 bits": lambda: Image.fromarray(numbers.astype(np.uint16)).save(path),
        "floats": lambda: Image.fromarray(numbers.astype(np.float32)).save(path, "TIFF"),
        "one bit": lambda: Image.fromarray(numbers > 0).save(path),
        "a JPEG inside": lambda: Image.fromarray(numbers).save(path, "JPEG"),
        "a GIF inside": lambda: Image.fromarray(numbers).save(path, "GIF"),
        "a WebP inside": lambda: Image.fromarray(numbers).convert("RGB").save(path, "WEBP"),
        "an orientation": lambda: Image.fromarray(numbers).save(path, exif=exif),
        "no file": path.unlink,
        "a folder": lambda: (path.unlink(), path.mkdir()),
    }
    what = rng.choice(list(ways))
    ways[what]()
    return _mask_case(what, image, path, None)
