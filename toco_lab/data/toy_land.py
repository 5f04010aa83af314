"""The toy world of land: aerial mosaics of fields, orchards, roads and roofs that touch, none of them in the middle.

Parcels tile the ground; some are fields or orchards, the others meadow, which is the background. Roads run from edge to
edge over them, roofs stand on all. A scene depends on (seed, index, size) alone; seeds are streams as in
`toco_lab.data.toy`. A larger scene shows more land at the same scale.
"""

import numpy as np

from toco_lab.data import toy_drawing
from toco_lab.data.toy import MIN_VISIBLE, Scene, check_scene_numbers

LAND_CLASSES: tuple[str, ...] = ("ploughed field", "orchard", "road", "roof")
FIELD, ORCHARD, ROAD, ROOF = 1, 2, 3, 4  # labels of the mask
EMPTY = 0.1  # share of the scenes without any class
SHOWN = {1: 0.3, 2: 0.4, 3: 0.3}  # how many of the classes another scene shows
SIDE = 96  # of a scene that has PARCELS parcels; their number grows more slowly than the area
PARCELS, ROOFS = 6, 3
MOST = 512  # pixels of a side: more would have more objects than 8 bits number


def make_land_scene(seed: int, index: int, *, size: int = SIDE) -> Scene:
    """The scene number `index` of the stream `seed`: meadow, and up to three of the four classes.

    Args:
        seed: Non-negative; scenes of different seeds are independent.
        index: Non-negative number of the scene.
        size: Side H = W in pixels, 48 to 512.

    Raises:
        ValueError: If one of the numbers is out of its range.
    """
    check_scene_numbers(seed, index, size)
    if size > MOST:
        raise ValueError(f"size must be a whole number of at most {MOST}, got {size!r}")
    rng = np.random.default_rng((seed, index))
    count = 0 if rng.random() < EMPTY else int(rng.choice(list(SHOWN), p=list(SHOWN.values())))
    shown = set((rng.permutation(len(LAND_CLASSES))[:count] + 1).tolist())
    while True:  # until what is shown can be seen: others may hide it
        scene = _draw(rng, size, shown)
        visible = np.bincount(scene.mask.ravel(), minlength=len(LAND_CLASSES) + 1)
        if all(visible[label] >= MIN_VISIBLE for label in shown):
            return scene


def _draw(rng: np.random.Generator, size: int, shown: set[int]) -> Scene:
    """A scene with these labels, each of them perhaps too small."""
    growth = (size / SIDE) ** 1.5
    image = _meadow(rng, size)
    mask, instances = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
    grown = sorted(shown & {FIELD, ORCHARD})
    parcels = _parcels(rng, size, round(growth * PARCELS) + int(rng.integers(0, 3)))
    # every second parcel or so is a field or orchard, and one of each at least
    kinds = [grown[place % len(grown)] if grown and rng.random() < 0.55 else 0 for place in range(parcels.max() + 1)]
    for place, label in zip(rng.permutation(len(kinds)), grown, strict=False):
        kinds[int(place)] = label
    number = 0
    for place, label in enumerate(kinds):
        inside = parcels == place
        if label == 0:
            image[inside] *= rng.uniform(0.85, 1.1)
            continue
        number += 1
        _paint_parcel(rng, image, inside, label)
        mask[inside], instances[inside] = label, number
    roads = _roads(rng, size, 1 + int(growth > 3)) if ROAD in shown else []
    for inside in roads:
        number += 1
        _paint_road(rng, image, inside)
        mask[inside], instances[inside] = ROAD, number
    if ROOF in shown:
        beside = np.logical_or.reduce(roads) if roads else None
        for _ in range(round(growth * ROOFS) + int(rng.integers(0, 3))):
            inside = _draw_roof(rng, image, beside)
            number += 1
            mask[inside], instances[inside] = ROOF, number
    image += rng.normal(0, 0.03, (size, size, 1)).astype(np.float32)
    return Scene((image.clip(0, 1) * 255).astype(np.uint8), mask, instances)


def _meadow(rng: np.random.Generator, size: int) -> np.ndarray:
    """Grass and bare ground in clouds, with single trees: (size, size, 3)."""
    grass = toy_drawing.rgb(rng.uniform(0.2, 0.33), rng.uniform(0.25, 0.5), rng.uniform(0.4, 0.65))
    bare = toy_drawing.rgb(rng.uniform(0.08, 0.16), rng.uniform(0.15, 0.4), rng.uniform(0.5, 0.75))
    share = 1 / (1 + np.exp(-3 * (toy_drawing.noise(rng, size, max(3, size // 24)) - rng.uniform(0, 0.8))))
    image = grass + (bare - grass) * share[..., None]
    image += 0.05 * toy_drawing.noise(rng, size, size // 3)[..., None]
    for _ in range(rng.integers(1, 5) * size // SIDE):
        along, across = toy_drawing.turned(rng, size, rng.uniform(0, size, 2))
        tree = np.hypot(along, across) < rng.uniform(2, 5)
        image[tree] = toy_drawing.rgb(rng.uniform(0.25, 0.4), rng.uniform(0.3, 0.6), rng.uniform(0.2, 0.4))
    return image.astype(np.float32)


def _parcels(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """Which of `count` parcels a pixel lies in, (size, size): the nearest of their centres, along turned axes."""
    along, across = toy_drawing.turned(rng, size, np.full(2, size / 2))
    centres = rng.uniform(-0.7 * size, 0.7 * size, (8 * count, 2))
    near = np.abs(centres).max(1) < 0.6 * size
    centres = centres[near][:count]
    # city-block distance in a frame of the whole scene: borders run along few directions, as parcels do
    distance = np.abs(along[..., None] - centres[:, 0]) + 1.3 * np.abs(across[..., None] - centres[:, 1])
    return distance.argmin(-1)


def _paint_parcel(rng: np.random.Generator, image: np.ndarray, inside: np.ndarray, label: int) -> None:
    """Furrows along a direction, or trees in rows."""
    u, v = toy_drawing.turned(rng, len(image), np.zeros(2))
    phase = rng.uniform(0, 2 * np.pi)
    if label == FIELD:
        soil = toy_drawing.rgb(rng.uniform(0.04, 0.14), rng.uniform(0.25, 0.5), rng.uniform(0.45, 0.75))
        furrow = np.sin(rng.uniform(1.0, 1.4) * u + phase) > 0.2
        image[inside] = soil
        image[inside & furrow] = 0.72 * soil
    else:
        ground = toy_drawing.rgb(rng.uniform(0.15, 0.3), rng.uniform(0.2, 0.45), rng.uniform(0.5, 0.75))
        crown = toy_drawing.rgb(rng.uniform(0.25, 0.4), rng.uniform(0.35, 0.6), rng.uniform(0.2, 0.4))
        pace = rng.uniform(0.75, 0.95)
        trees = np.sin(pace * u + phase) * np.sin(pace * v + phase) > 0.25
        image[inside] = ground
        image[inside & trees] = crown


def _roads(rng: np.random.Generator, size: int, count: int) -> list[np.ndarray]:
    """Bands from edge to edge, bent a little, each (size, size) bool."""
    found = []
    for _ in range(count):
        u, v = toy_drawing.turned(rng, size, rng.uniform(0.1 * size, 0.9 * size, 2))
        middle = v + rng.uniform(0, 6) * np.sin(rng.uniform(0.02, 0.05) * u)
        found.append(np.abs(middle) < rng.uniform(3.5, 6))
    return found


def _paint_road(rng: np.random.Generator, image: np.ndarray, inside: np.ndarray) -> None:
    """Asphalt or gravel: one colour without a pattern."""
    image[inside] = toy_drawing.rgb(rng.random(), rng.uniform(0, 0.1), rng.uniform(0.45, 0.8))


def _draw_roof(rng: np.random.Generator, image: np.ndarray, beside: np.ndarray | None) -> np.ndarray:
    """Paint a roof with a ridge, one side in the sun, and give its inside, (H, W) bool.

    `beside` are roads, which it stands near to, or None: then it is anywhere.
    """
    size = len(image)
    centre = rng.uniform(0, size, 2)
    if beside is not None:
        rows, columns = beside.nonzero()
        place = int(rng.integers(len(rows)))
        angle = rng.uniform(0, 2 * np.pi)
        centre = np.array([rows[place], columns[place]]) + rng.uniform(9, 14) * np.array([np.sin(angle), np.cos(angle)])
    u, v = toy_drawing.turned(rng, size, centre)
    long, wide = rng.uniform(7, 11), rng.uniform(4.5, 7)
    inside = (np.abs(u) < long) & (np.abs(v) < wide)
    tile = toy_drawing.rgb(rng.uniform(0.97, 1.08), rng.uniform(0.05, 0.6), rng.uniform(0.55, 0.9))
    image[inside] = tile
    image[inside & (v > 0)] = 0.65 * tile
    image[inside & (np.abs(v) < 0.6)] = 0.4 * tile
    return inside
