"""How the toy worlds are drawn: backgrounds, textures, frames, smooth noise, colours."""

from functools import cache

import numpy as np


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Pale grainy blotches and two to five plain distractors: (size, size, 3), about [0, 1]."""
    colours = [rgb(rng.random(), rng.uniform(0.02, 0.3), rng.uniform(0.2, 0.9)) for _ in range(3)]
    coarse, fine = (
        1 / (1 + np.exp(-slope * (noise(rng, size, cells) - level)))
        for slope, cells, level in ((3, size // 16, 0.0), (4, size // 8, 0.7))
    )
    image = colours[1] + (colours[0] - colours[1]) * coarse[..., None]
    image += (colours[2] - image) * fine[..., None]
    image += 0.13 * noise(rng, size, size // 3)[..., None]
    for _ in range(rng.integers(2, 6)):
        along, across = turned(rng, size, rng.uniform(0, size, 2))
        blob = (along / rng.uniform(4, 14)) ** 2 + (across / rng.uniform(3, 10)) ** 2 < 1
        image[blob] = rgb(rng.random(), rng.uniform(0.05, 0.45), rng.uniform(0.2, 0.95))
    return image


def texture(kind: int, u: np.ndarray, v: np.ndarray, phase: float) -> np.ndarray:
    """Where the ink is, as bool: stripes, dots, checks, rings, waves, lattice; periods about a patch."""
    match kind:
        case 0:
            return np.sin(u + phase) > 0
        case 1:
            return np.sin(0.9 * u) * np.sin(0.9 * v) > 0.25
        case 2:
            return np.sin(0.75 * u) * np.sin(0.75 * v) > 0
        case 3:
            return np.sin(1.1 * np.hypot(u, v) + phase) > 0
        case 4:
            return np.sin(0.8 * u + 2 * np.sin(0.45 * v)) > 0
        case _:
            return np.maximum(np.sin(0.75 * u), np.sin(0.75 * v)) > 0.9


def turned(rng: np.random.Generator, size: int, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two (size, size) arrays: pixel coordinates in a frame at `centre` (row, column), turned at random."""
    return turned_by(rng.uniform(0, 2 * np.pi), size, centre)


def turned_by(angle: float, size: int, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`turned` by an angle in radians, from the columns towards the rows."""
    place = np.arange(size, dtype=np.float32)
    rows, columns = place[:, None] - centre[0], place - centre[1]
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return columns * cos + rows * sin, rows * cos - columns * sin


def noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth standard normal noise (size, size), linear between cells x cells values."""
    lift = _linear(cells, size)
    return lift @ rng.standard_normal((cells, cells), np.float32) @ lift.T


@cache
def _linear(cells: int, size: int) -> np.ndarray:
    """Matrix (size, cells) that interpolates linearly."""
    place = np.clip((np.arange(size) + 0.5) / size * cells - 0.5, 0, cells - 1)
    return np.maximum(0, 1 - abs(place[:, None] - np.arange(cells))).astype(np.float32)


def rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """HSV, hue in turns, to RGB (3,) in [0, 1]."""
    k = (np.array([5, 3, 1]) + 6 * hue) % 6
    return (value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)).astype(np.float32)
