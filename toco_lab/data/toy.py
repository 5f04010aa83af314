"""The toy world: endless scenes of textured shapes with exact masks, a data set without files.

A scene depends on (seed, index) alone. Each seed is a stream of scenes: 0 for training, 1 for validation, 2 and 3 for
pretraining.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

TOY_CLASSES: tuple[str, ...] = (
    "striped disc",
    "dotted square",
    "checked diamond",
    "ringed egg",
    "wavy clover",
    "lattice star",
)
PRETRAIN_SEED, PRETRAIN_VAL_SEED = 2, 3  # seeds 0 and 1 are the scenes of training and of validation
MIN_VISIBLE = 60  # pixels that every object of a scene shows at least
HUE_KNOWN = 0.95  # share of objects that wear the hue of their class; the others have any hue
TAIL = 0.25  # colour left at the tail, where the texture has faded away: the head tells most


@dataclass(frozen=True)
class Scene:
    """One scene.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        mask: (H, W) uint8, 0 background, 1..6 the classes of `TOY_CLASSES`.
    """

    image: np.ndarray
    mask: np.ndarray


def make_scene(seed: int, index: int, *, size: int = 96, single_object: bool = False) -> Scene:
    """The scene number `index` of the stream `seed`: background, distractors, one to three objects.

    No two objects of a scene have the same class.

    Args:
        seed: Non-negative; scenes of different seeds are independent.
        index: Non-negative number of the scene.
        size: Side H = W in pixels, at least 48. Objects keep their size, 30 to 52 pixels across.
        single_object: Exactly one object (pretraining).

    Raises:
        ValueError: If one of the numbers is too small.
    """
    for name, value, lowest in (("seed", seed, 0), ("index", index, 0), ("size", size, 48)):
        if not isinstance(value, int | np.integer) or value < lowest:
            raise ValueError(f"{name} must be a whole number of at least {lowest}, got {value!r}")
    rng = np.random.default_rng((seed, index))
    image = _background(rng, size)
    mask = np.zeros((size, size), np.uint8)
    count = 1 if single_object else int(rng.choice([1, 2, 3], p=[0.35, 0.45, 0.2]))
    centres: list[np.ndarray] = []
    for kind in rng.permutation(len(TOY_CLASSES))[:count]:
        radius = rng.uniform(15, 26) * (0.85 if count == 3 else 1.0)
        places = rng.uniform(0.7 * radius, size - 0.7 * radius, (8, 2))
        gaps = [min((np.hypot(*(place - other)) for other in centres), default=0.0) for place in places]
        centre = places[int(np.argmax(gaps))]  # far from the objects already there
        along, across = _turned(rng, size, centre)
        inside = _shape(kind, along, across, radius)
        left_over = [((mask == seen) & ~inside).sum() for seen in np.unique(mask[mask > 0])]
        if inside.sum() < MIN_VISIBLE or min(left_over, default=MIN_VISIBLE) < MIN_VISIBLE:
            continue  # it would hide another object
        image[inside] = _paint(rng, kind, along[inside], across[inside], radius)
        mask[inside] = kind + 1
        centres.append(centre)
    image += rng.normal(0, 0.03, (size, size, 1)).astype(np.float32)
    return Scene((image.clip(0, 1) * 255).astype(np.uint8), mask)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Pale grainy blotches and two to five plain distractors: (size, size, 3), about [0, 1]."""
    colours = [_rgb(rng.random(), rng.uniform(0.02, 0.3), rng.uniform(0.2, 0.9)) for _ in range(3)]
    coarse, fine = (
        1 / (1 + np.exp(-slope * (_noise(rng, size, cells) - level)))
        for slope, cells, level in ((3, size // 16, 0.0), (4, size // 8, 0.7))
    )
    image = colours[1] + (colours[0] - colours[1]) * coarse[..., None]
    image += (colours[2] - image) * fine[..., None]
    image += 0.13 * _noise(rng, size, size // 3)[..., None]
    for _ in range(rng.integers(2, 6)):
        along, across = _turned(rng, size, rng.uniform(0, size, 2))
        blob = (along / rng.uniform(4, 14)) ** 2 + (across / rng.uniform(3, 10)) ** 2 < 1
        image[blob] = _rgb(rng.random(), rng.uniform(0.05, 0.45), rng.uniform(0.2, 0.95))
    return image


def _paint(rng: np.random.Generator, kind: int, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """Colours (n, 3) of the pixels of an object at body coordinates (n,): u, which is negative at the head, and v."""
    hue = kind / len(TOY_CLASSES) + rng.normal(0, 0.025) if rng.random() < HUE_KNOWN else rng.random()
    body = _rgb(hue, rng.uniform(0.45, 0.9), rng.uniform(0.5, 0.9))
    bright = rng.uniform(0.15, 0.4) if body.mean() > 0.45 else rng.uniform(0.8, 1.0)
    ink = _rgb(hue + rng.uniform(-0.04, 0.04), rng.uniform(0.2, 0.9), bright)
    zoom, phase = rng.uniform(0.85, 1.25), rng.uniform(0, 2 * np.pi)
    head = np.clip(0.5 - u / (2 * radius), 0, 1)  # 1 at the head, 0 at the tail
    share = head * _texture(kind, u * zoom, v * zoom, phase)
    painted = body + (ink - body) * share[:, None]
    grey = painted.mean(1, keepdims=True)
    return grey + (painted - grey) * (TAIL + (1 - TAIL) * head)[:, None]


def _texture(kind: int, u: np.ndarray, v: np.ndarray, phase: float) -> np.ndarray:
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


def _shape(kind: int, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """Inside of the shape, as bool: disc, square, diamond, egg, clover, star."""
    match kind:
        case 0:
            return u * u + v * v < radius**2
        case 1:
            return np.maximum(abs(u), abs(v)) < 0.88 * radius
        case 2:
            return abs(u) + abs(v) < 1.2 * radius
        case 3:
            return (u / 1.25) ** 2 + (v / 0.8) ** 2 < radius**2
        case 4:
            return np.hypot(u, v) < radius * (1 + 0.25 * np.sin(3 * np.arctan2(v, u)))
        case _:
            return np.hypot(u, v) < radius * (1 + 0.17 * np.sign(np.sin(5 * np.arctan2(v, u))))


def _turned(rng: np.random.Generator, size: int, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two (size, size) arrays: pixel coordinates in a frame at `centre` (row, column), turned at random."""
    angle = rng.uniform(0, 2 * np.pi)
    place = np.arange(size, dtype=np.float32)
    rows, columns = place[:, None] - centre[0], place - centre[1]
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return columns * cos + rows * sin, rows * cos - columns * sin


def _noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth standard normal noise (size, size), linear between cells x cells values."""
    lift = _linear(cells, size)
    return lift @ rng.standard_normal((cells, cells), np.float32) @ lift.T


@cache
def _linear(cells: int, size: int) -> np.ndarray:
    """Matrix (size, cells) that interpolates linearly."""
    place = np.clip((np.arange(size) + 0.5) / size * cells - 0.5, 0, cells - 1)
    return np.maximum(0, 1 - abs(place[:, None] - np.arange(cells))).astype(np.float32)


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """HSV, hue in turns, to RGB (3,) in [0, 1]."""
    k = (np.array([5, 3, 1]) + 6 * hue) % 6
    return (value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)).astype(np.float32)
