"""The toy world: endless scenes of textured shapes with exact masks, a data set without files.

A scene depends on (seed, index) alone. Each seed is a stream of scenes: 0 for training, 1 for validation, 2 and 3 for
pretraining.
"""

from dataclasses import dataclass

import numpy as np

from toco_lab.data import toy_drawing

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
BESIDE = 1.8  # radii between the centres of an object and of one of the same class beside it
HUE_KNOWN = 0.95  # share of objects that wear the hue of their class; the others have any hue
TAIL = 0.25  # colour left at the tail, where the texture has faded away: the head tells most


@dataclass(frozen=True)
class Scene:
    """One scene.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        mask: (H, W) uint8, 0 background, 1..6 the classes of `TOY_CLASSES`.
        instances: (H, W) uint8, 0 background, from 1 on the objects in the order they were drawn, in sight alone.
    """

    image: np.ndarray
    mask: np.ndarray
    instances: np.ndarray


def make_scene(
    seed: int, index: int, *, size: int = 96, single_object: bool = False, same_class: bool = False
) -> Scene:
    """The scene number `index` of the stream `seed`: background, distractors, one to three objects.

    No two objects of a scene have the same class, or with `same_class` all have the same, and often touch.

    Args:
        seed: Non-negative; scenes of different seeds are independent.
        index: Non-negative number of the scene.
        size: Side H = W in pixels, at least 48. Objects keep their size, 30 to 52 pixels across.
        single_object: Exactly one object (pretraining).
        same_class: All objects are of one class, and each further one lies beside another.

    Raises:
        ValueError: If one of the numbers is too small.
    """
    check_scene_numbers(seed, index, size)
    rng = np.random.default_rng((seed, index))
    image = toy_drawing.background(rng, size)
    mask, instances = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
    count = 1 if single_object else int(rng.choice([1, 2, 3], p=[0.35, 0.45, 0.2]))
    centres: list[np.ndarray] = []
    kinds = rng.permutation(len(TOY_CLASSES))[:count]
    for kind in np.repeat(kinds[0], count) if same_class else kinds:
        radius = rng.uniform(15, 26) * (0.85 if count == 3 else 1.0)
        places = rng.uniform(0.7 * radius, size - 0.7 * radius, (8, 2))
        gaps = [min((np.hypot(*(place - other)) for other in centres), default=0.0) for place in places]
        # far from the objects already there, or beside one of them
        chosen = np.argmin(np.abs(np.subtract(gaps, BESIDE * radius))) if same_class else np.argmax(gaps)
        centre = places[int(chosen)]
        along, across = toy_drawing.turned(rng, size, centre)
        inside = inside_shape(kind, along, across, radius)
        left_over = [((instances == seen) & ~inside).sum() for seen in range(1, len(centres) + 1)]
        if inside.sum() < MIN_VISIBLE or min(left_over, default=MIN_VISIBLE) < MIN_VISIBLE:
            continue  # it would hide another object
        image[inside] = _paint(rng, kind, along[inside], across[inside], radius)
        mask[inside], instances[inside] = kind + 1, len(centres) + 1
        centres.append(centre)
    image += rng.normal(0, 0.03, (size, size, 1)).astype(np.float32)
    return Scene((image.clip(0, 1) * 255).astype(np.uint8), mask, instances)


def check_scene_numbers(seed: int, index: int, size: int) -> None:
    """Raise ValueError if one of the numbers is no whole one or too small; it is named."""
    for name, value, lowest in (("seed", seed, 0), ("index", index, 0), ("size", size, 48)):
        if not isinstance(value, int | np.integer) or value < lowest:
            raise ValueError(f"{name} must be a whole number of at least {lowest}, got {value!r}")


@dataclass(frozen=True)
class Coat:
    """The looks of one object: what is painted on it, wherever it lies.

    Attributes:
        kind: Of the object, 0..5.
        body: Colour of the body, (3,) in [0, 1].
        ink: Colour of the texture, (3,) in [0, 1].
        zoom: Scale of the texture.
        phase: Of the texture, in radians.
    """

    kind: int
    body: np.ndarray
    ink: np.ndarray
    zoom: float
    phase: float

    @classmethod
    def drawn(cls, rng: np.random.Generator, kind: int) -> "Coat":
        """Draw the looks of an object of a kind; most wear the hue of their class."""
        hue = kind / len(TOY_CLASSES) + rng.normal(0, 0.025) if rng.random() < HUE_KNOWN else rng.random()
        body = toy_drawing.rgb(hue, rng.uniform(0.45, 0.9), rng.uniform(0.5, 0.9))
        bright = rng.uniform(0.15, 0.4) if body.mean() > 0.45 else rng.uniform(0.8, 1.0)
        ink = toy_drawing.rgb(hue + rng.uniform(-0.04, 0.04), rng.uniform(0.2, 0.9), bright)
        return cls(kind, body, ink, rng.uniform(0.85, 1.25), rng.uniform(0, 2 * np.pi))

    def painted(self, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
        """Colours (n, 3) of pixels at body coordinates (n,): u, which is negative at the head, and v, in pixels."""
        head = np.clip(0.5 - u / (2 * radius), 0, 1)  # 1 at the head, 0 at the tail
        share = head * toy_drawing.texture(self.kind, u * self.zoom, v * self.zoom, self.phase)
        painted = self.body + (self.ink - self.body) * share[:, None]
        grey = painted.mean(1, keepdims=True)
        return grey + (painted - grey) * (TAIL + (1 - TAIL) * head)[:, None]


def _paint(rng: np.random.Generator, kind: int, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """Colours (n, 3) of an object with looks of its own at body coordinates (n,), see `Coat.painted`."""
    return Coat.drawn(rng, kind).painted(u, v, radius)


def inside_shape(kind: int, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """Whether points at body coordinates, in pixels, lie in the shape: disc, square, diamond, egg, clover, star."""
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
