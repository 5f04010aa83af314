"""The toy world of parts: long animals with a telling head and a coat that two kinds share, masks of both parts kept.

A head's texture says which of six kinds an animal is; its coat, which covers most of it, only says which two. So a
classifier looks at heads, and a CAM that shall cover whole animals has something to complete. A scene depends on (seed,
index, size, objects) alone; seeds are streams as in `toco_lab.data.toy`.
"""

from dataclasses import dataclass

import numpy as np

from toco_lab.data import toy_drawing
from toco_lab.data.toy import MIN_VISIBLE, Scene, check_scene_numbers

PARTS_CLASSES: tuple[str, ...] = (
    "striped-headed zebu",
    "dotted-headed zebu",
    "checked-headed okapi",
    "ringed-headed okapi",
    "wavy-headed tapir",
    "latticed-headed tapir",
)
HEAD, BODY = 1, 2  # of `PartsScene.part`
VISIBLE_HEAD = 0.75  # share of a head that every animal of a scene shows at least
TRIES = 12  # places and turns that are tried for an animal before a scene does without it


@dataclass(frozen=True)
class PartsScene(Scene):
    """A scene with the parts of its animals.

    Attributes:
        part: (H, W) uint8, 0 background, `HEAD`, `BODY`.
    """

    part: np.ndarray


@dataclass(frozen=True)
class _Animal:
    """One animal in its own frame: where its parts are, (H, W) bool, and the coordinates of every pixel."""

    head: np.ndarray
    body: np.ndarray
    along: np.ndarray
    across: np.ndarray

    @property
    def inside(self) -> np.ndarray:
        return self.head | self.body


def make_parts_scene(seed: int, index: int, *, size: int = 96, objects: int = 0) -> PartsScene:
    """The scene number `index` of the stream `seed`: background, distractors, one to three animals.

    No two animals of a scene have the same kind. An animal is 56 to 68 pixels long and its body 24 to 30 wide, however
    many there are, so three of them overlap; but three quarters of each head are always in sight.

    Args:
        seed: Non-negative; scenes of different seeds are independent.
        index: Non-negative number of the scene.
        size: Side H = W in pixels, at least 48.
        objects: How many animals, 1 to 3; 0 draws the number. A scene has fewer where there is no room.

    Raises:
        ValueError: If one of the numbers is out of its range.
    """
    check_scene_numbers(seed, index, size)
    if not isinstance(objects, int | np.integer) or not 0 <= objects <= 3:
        raise ValueError(f"objects must be a whole number from 0 to 3, got {objects!r}")
    rng = np.random.default_rng((seed, index))
    image = toy_drawing.background(rng, size)
    mask, instances, part = (np.zeros((size, size), np.uint8) for _ in range(3))
    count = objects or int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))
    full: dict[int, int] = {}  # pixels of the head of each label as it was drawn
    for kind in rng.permutation(len(PARTS_CLASSES))[:count]:
        animal = _placed(rng, mask, part, full)
        if animal is None:
            continue
        _paint(rng, image, animal, int(kind))
        mask[animal.inside], instances[animal.inside] = kind + 1, len(full) + 1
        part[animal.body], part[animal.head] = BODY, HEAD
        full[int(kind) + 1] = int(animal.head.sum())
    image += rng.normal(0, 0.03, (size, size, 1)).astype(np.float32)
    return PartsScene((image.clip(0, 1) * 255).astype(np.uint8), mask, instances, part)


def _placed(rng: np.random.Generator, mask: np.ndarray, part: np.ndarray, full: dict[int, int]) -> _Animal | None:
    """An animal at a place where its head is in the image and the others' heads stay in sight; None after `TRIES`."""
    for _ in range(TRIES):
        animal, head = _drawn(rng, len(mask))
        if animal.head.sum() < VISIBLE_HEAD * head or animal.body.sum() < 3 * MIN_VISIBLE:
            continue
        left = {label: ((mask == label) & ~animal.inside) for label in full}
        heads = all((left[label] & (part == HEAD)).sum() >= VISIBLE_HEAD * pixels for label, pixels in full.items())
        if heads and all((shown & (part == BODY)).sum() >= 2 * MIN_VISIBLE for shown in left.values()):
            return animal
    return None


def _drawn(rng: np.random.Generator, size: int) -> tuple[_Animal, float]:
    """An animal somewhere, turned at random, with the area of its head were it all in the image."""
    centre = rng.uniform(0.3 * size, 0.7 * size, 2) if size > 64 else rng.uniform(0.4 * size, 0.6 * size, 2)
    u, v = toy_drawing.turned(rng, size, centre)
    long, wide, radius = rng.uniform(22, 27), rng.uniform(12, 15), rng.uniform(8, 9.5)
    body = (abs(u) / long) ** 3 + (abs(v) / wide) ** 3 < 1  # a rounded box
    head = np.hypot(u + long + 0.5 * radius, v) < radius
    return _Animal(head, body & ~head, u, v), np.pi * radius**2


def _paint(rng: np.random.Generator, image: np.ndarray, animal: _Animal, kind: int) -> None:
    """Colours of an animal, into the image: a pale coat that its pair shares, a head with its own hue and texture."""
    pair = kind // 2
    pale = (pair + 0.25) / 3 + rng.uniform(-0.05, 0.05)
    shade = toy_drawing.rgb(pale, rng.uniform(0.12, 0.32), rng.uniform(0.35, 0.9))
    hue = kind / len(PARTS_CLASSES) + rng.normal(0, 0.025)
    face = toy_drawing.rgb(hue, rng.uniform(0.45, 0.9), rng.uniform(0.6, 0.9))
    zoom, phase = rng.uniform(0.85, 1.25), rng.uniform(0, 2 * np.pi)
    u, v = animal.along * zoom, animal.across * zoom
    ground = np.where(animal.head[..., None], face, shade)
    ink = np.where(animal.head, 0.75 * toy_drawing.texture(kind, u, v, phase), 0.5 * _coat(pair, u, v, phase))
    image[animal.inside] = (ground * (1 - ink[..., None]))[animal.inside]


def _coat(pair: int, u: np.ndarray, v: np.ndarray, phase: float) -> np.ndarray:
    """Where the ink of a coat is, as bool: large patches, bars across, or a saddle along the back."""
    match pair:
        case 0:
            return np.sin(0.33 * u + phase) + np.sin(0.41 * v + 0.2 * u) > 0.9
        case 1:
            return np.sin(0.38 * u + 0.8 * np.sin(0.3 * v) + phase) > 0.55
        case _:
            return abs(v + 2 * np.sin(0.25 * u + phase)) < 4
