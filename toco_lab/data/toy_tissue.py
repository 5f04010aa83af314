"""The toy world of tissue: round cells on a stained ground, one of two kinds the class; two images in five show none.

Both kinds have the same sizes, outlines and colours. Only the nucleus tells: granules for the class, smooth for the
others. A scene depends on (seed, index, size) alone; seeds are streams as in `toco_lab.data.toy`.
"""

import numpy as np

from toco_lab.data import toy_drawing
from toco_lab.data.toy import Scene, check_scene_numbers

TISSUE_CLASSES: tuple[str, ...] = ("granular cell",)
EMPTY = 0.4  # share of the scenes without a cell of the class
AREA = (0.02, 0.048)  # of the image: what all cells of the class cover together
SMALLEST = 0.065  # radius of a cell as a share of the side: less would be no patch across
OTHERS = (3, 7)  # how many cells of the other kind, half-open: in every scene, empty or not
BETWEEN = 1.06  # radii between two cells, so that none hides another
TRIES = 60  # places that are tried for a cell of the other kind before a scene does without it
SIDE = 96  # of the scene in which lengths in pixels are meant; larger scenes are drawn larger


def make_tissue_scene(seed: int, index: int, *, size: int = SIDE) -> Scene:
    """The scene number `index` of the stream `seed`: stained ground, smooth cells, in 60 % of all granular ones.

    One or two granular cells lie whole in the image, none hidden, and cover 2 to 5 % of it. Cells of both kinds have
    the same sizes.

    Args:
        seed: Non-negative; scenes of different seeds are independent.
        index: Non-negative number of the scene.
        size: Side H = W in pixels, at least 48. A larger scene shows the same larger, with finer grain.

    Raises:
        ValueError: If one of the numbers is too small.
    """
    check_scene_numbers(seed, index, size)
    rng = np.random.default_rng((seed, index))
    granular = [] if rng.random() < EMPTY else _radii(rng, size)
    image = _ground(rng, size)
    mask, instances = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
    placed: list[tuple[np.ndarray, float]] = []
    smooth = [radius for _ in range(rng.integers(*OTHERS)) for radius in _radii(rng, size)[:1]]
    for number, radius in enumerate([*granular, *smooth]):
        is_granular = number < len(granular)
        centre = _free_place(rng, size, radius, placed, whole=is_granular)
        if centre is None:
            continue
        inside = _draw_cell(rng, image, centre, radius, granular=is_granular)
        placed.append((centre, radius))
        instances[inside & is_granular], mask[inside & is_granular] = number + 1, 1
    image += rng.normal(0, 0.02, (size, size, 1)).astype(np.float32)
    return Scene((image.clip(0, 1) * 255).astype(np.uint8), mask, instances)


def _radii(rng: np.random.Generator, size: int) -> list[float]:
    """Of one or two granular cells that cover a share of the image within `AREA` together."""
    area = rng.uniform(*AREA)
    count = 2 if rng.random() < 0.4 and np.sqrt(area / 2 / np.pi) > SMALLEST else 1
    return [size * float(np.sqrt(area / count / np.pi))] * count


def _free_place(
    rng: np.random.Generator, size: int, radius: float, placed: list[tuple[np.ndarray, float]], *, whole: bool
) -> np.ndarray | None:
    """A centre (row, column) beside all cells that are there; `whole` cells lie in the image, and always get one."""
    edge = radius + 1 if whole else 0.0
    for _ in range(TRIES * (1 + 9 * whole)):
        centre = rng.uniform(edge, size - edge, 2)
        if all(np.hypot(*(centre - other)) > BETWEEN * (radius + far) for other, far in placed):
            return centre
    return None


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """Stained ground, (size, size, 3): pink with violet clouds, and fibres that wave through it."""
    base = toy_drawing.rgb(rng.uniform(0.86, 0.95), rng.uniform(0.15, 0.35), rng.uniform(0.8, 0.95))
    cloud = toy_drawing.rgb(rng.uniform(0.74, 0.84), rng.uniform(0.2, 0.45), rng.uniform(0.65, 0.85))
    share = 1 / (1 + np.exp(-2.5 * (toy_drawing.noise(rng, size, 5) - 0.3)))
    image = base + (cloud - base) * share[..., None]
    along, across = (places * (SIDE / size) for places in toy_drawing.turned(rng, size, np.full(2, size / 2)))
    bend = 2.5 * toy_drawing.noise(rng, size, 4)
    fibre = np.sin(rng.uniform(0.35, 0.6) * across + bend + rng.uniform(0, 2 * np.pi)) ** 6
    image -= (rng.uniform(0.04, 0.1) * fibre * (0.6 + 0.4 * np.sin(0.1 * along)))[..., None]
    return (image + 0.05 * toy_drawing.noise(rng, size, size // 3)[..., None]).astype(np.float32)


def _draw_cell(
    rng: np.random.Generator, image: np.ndarray, centre: np.ndarray, radius: float, *, granular: bool
) -> np.ndarray:
    """Paint a cell, and give its inside, (H, W) bool: body, darker rim, a nucleus with or without granules."""
    size = len(image)
    u, v = toy_drawing.turned(rng, size, centre)
    distance = np.hypot(u, v)
    inside = distance < radius
    body = toy_drawing.rgb(rng.uniform(0.76, 0.9), rng.uniform(0.25, 0.45), rng.uniform(0.6, 0.8))
    nucleus = toy_drawing.rgb(rng.uniform(0.68, 0.8), rng.uniform(0.4, 0.65), rng.uniform(0.35, 0.55))
    image[inside] = body
    image[inside & (distance > radius - 0.13 * radius)] = 0.75 * body
    core = np.hypot(u - 0.12 * radius, v) < rng.uniform(0.72, 0.82) * radius
    image[core] = nucleus
    zoom, phase = rng.uniform(1.0, 1.3) * SIDE / size, rng.uniform(0, 2 * np.pi)
    dots = np.sin(zoom * u + phase) * np.sin(zoom * v + phase) > 0.2
    bright = rng.uniform(0.45, 0.65)  # drawn for both kinds: the same numbers then give the same cell but for this
    if granular:
        image[core & dots] = nucleus + (1 - nucleus) * bright
    else:  # of the same mean brightness
        image[core] = nucleus + (1 - nucleus) * bright * (core & dots).sum() / core.sum()
    return inside
