"""Clips of the toy world: the objects of a scene move and turn, the camera drifts, and every pixel's way is known.

A clip depends on (seed, index, frames, size) alone. Its draws are not those of the scene with the same numbers, so no
clip shows a scene of training or validation.
"""

from dataclasses import dataclass

import numpy as np

from toco_lab.data import toy_drawing
from toco_lab.data.toy import MIN_VISIBLE, TOY_CLASSES, Coat, check_scene_numbers, inside_shape

CLIPS = 1  # third number of the generator's seed, which keeps clips apart from the scenes of the same stream
SPEED = 3.0  # pixels a frame, at most, of an object over the ground
SPIN = np.pi / 30  # radians a frame (6 degrees), at most, by which an object turns
DRIFT = 1.5  # pixels a frame, at most, of the camera along rows and along columns
NOISE = 0.03  # standard deviation of the grain, which is new in every frame, as in scenes


@dataclass(frozen=True)
class Mover:
    """An object on its way, in pixels of the image.

    Attributes:
        kind: 0..5, of `TOY_CLASSES`.
        radius: In pixels.
        centre: Row and column in the middle of the clip.
        velocity: Rows and columns a frame, in the image: over the ground and by the camera.
        angle: In the middle of the clip, in radians, from the columns towards the rows.
        spin: Radians a frame.
        coat: What is painted on it.
    """

    kind: int
    radius: float
    centre: np.ndarray
    velocity: np.ndarray
    angle: float
    spin: float
    coat: Coat

    def body(self, time: float, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Body coordinates u, v of image points, `time` frames after the middle of the clip."""
        row, column = self.centre + time * self.velocity
        cos, sin = np.cos(self.angle + time * self.spin), np.sin(self.angle + time * self.spin)
        down, right = rows - row, columns - column
        return right * cos + down * sin, down * cos - right * sin

    def place(self, time: float, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of body coordinates: the inverse of `body`."""
        row, column = self.centre + time * self.velocity
        cos, sin = np.cos(self.angle + time * self.spin), np.sin(self.angle + time * self.spin)
        return row + u * sin + v * cos, column + u * cos - v * sin

    def covers(self, time: float, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Whether image points lie on the object, as bool."""
        return inside_shape(self.kind, *self.body(time, rows, columns), self.radius)


@dataclass(frozen=True)
class Clip:
    """A clip of T frames with its true motion.

    Attributes:
        image: (T, H, W, 3) uint8, RGB.
        mask: (T, H, W) uint8, 0 background, 1..6 the classes of `TOY_CLASSES`.
        forward: (T-1, H, W, 2) float32, pixels to the right and down: where what a pixel of frame t shows lies in
            frame t + 1, less where it lies in t, whether or not it is in sight there.
        backward: (T-1, H, W, 2) float32, the same from frame t + 1 back to frame t, of the pixels of frame t + 1.
        occluded: (T-1, H, W) bool: pixels of frame t that are not seen in frame t + 1, because they leave the image or
            something covers them.
        movers: The objects, each later one in front of those before.
        drift: Rows and columns a frame by which the ground moves in the image.
    """

    image: np.ndarray
    mask: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    occluded: np.ndarray
    movers: tuple[Mover, ...]
    drift: np.ndarray

    def __len__(self) -> int:
        """T."""
        return len(self.mask)

    @property
    def image_label(self) -> np.ndarray:
        """(C,) float32 in {0, 1}: the classes that any frame shows, the label of the whole clip."""
        shown = np.unique(self.mask)
        return np.isin(np.arange(1, len(TOY_CLASSES) + 1), shown).astype(np.float32)

    def motion(self, source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
        """True flow between any two frames.

        Args:
            source: A frame, 0..T-1.
            target: Another one, before or after it.

        Returns:
            Flow (H, W, 2) float32 as in `forward`, of the pixels of `source`; and (H, W) bool, those of them that are
            not seen in `target`.

        Raises:
            ValueError: If there is no such frame.
        """
        for name, frame in (("source", source), ("target", target)):
            if not 0 <= frame < len(self):
                raise ValueError(f"{name} must be a frame from 0 to {len(self) - 1}, got {frame!r}")
        return _motion(self.movers, self.drift, self.mask.shape[1], _time(source, len(self)), _time(target, len(self)))


def make_clip(seed: int, index: int, frames: int = 8, size: int = 96) -> Clip:
    """The clip number `index` of the stream `seed`: the objects of a toy scene on their way, seen by a moving camera.

    In the middle of the clip no object hides another one, as in a scene; before and after it they may cross, and leave
    the image. Each moves along a line by up to `SPEED` pixels a frame and turns by up to `SPIN`; the camera drifts.

    Args:
        seed: Non-negative; clips of different seeds are independent.
        index: Non-negative number of the clip.
        frames: T, at least 2.
        size: Side H = W in pixels, at least 48. Objects keep their size.

    Raises:
        ValueError: If one of the numbers is too small.
    """
    check_scene_numbers(seed, index, size)
    if not isinstance(frames, int | np.integer) or frames < 2:
        raise ValueError(f"frames must be a whole number of at least 2, got {frames!r}")
    rng = np.random.default_rng((seed, index, CLIPS))
    drift = rng.uniform(-DRIFT, DRIFT, 2)
    margin = int(np.ceil(DRIFT * (frames - 1) / 2)) + 1  # the ground must be there wherever the camera looks
    ground = toy_drawing.background(rng, size + 2 * margin)
    movers = _movers(rng, size, drift)
    images, masks = [], []
    for frame in range(frames):
        time = _time(frame, frames)
        image, mask = _shifted(ground, margin - time * drift, size), np.zeros((size, size), np.uint8)
        rows, columns = _pixels(size)
        for mover in movers:
            inside = mover.covers(time, rows, columns)
            u, v = mover.body(time, rows[inside], columns[inside])
            image[inside], mask[inside] = mover.coat.painted(u, v, mover.radius), mover.kind + 1
        image += rng.normal(0, NOISE, (size, size, 1)).astype(np.float32)
        images.append((image.clip(0, 1) * 255).astype(np.uint8))
        masks.append(mask)
    steps = [(_time(frame, frames), _time(frame + 1, frames)) for frame in range(frames - 1)]
    forward = [_motion(movers, drift, size, now, then) for now, then in steps]
    backward = [_motion(movers, drift, size, then, now)[0] for now, then in steps]
    flows, occluded = zip(*forward, strict=True)
    return Clip(
        np.stack(images), np.stack(masks), np.stack(flows), np.stack(backward), np.stack(occluded), movers, drift
    )


def _movers(rng: np.random.Generator, size: int, drift: np.ndarray) -> tuple[Mover, ...]:
    """One to three objects of unlike classes, placed in the middle of the clip as `make_scene` places them."""
    count = int(rng.choice([1, 2, 3], p=[0.35, 0.45, 0.2]))
    rows, columns = _pixels(size)
    placed: list[Mover] = []
    for kind in rng.permutation(len(TOY_CLASSES))[:count].tolist():
        radius = rng.uniform(15, 26) * (0.85 if count == 3 else 1.0)
        places = rng.uniform(0.7 * radius, size - 0.7 * radius, (8, 2))
        gaps = [min((np.hypot(*(place - other.centre)) for other in placed), default=0.0) for place in places]
        speed, heading = rng.uniform(0, SPEED), rng.uniform(0, 2 * np.pi)
        mover = Mover(
            kind=kind,
            radius=radius,
            centre=places[int(np.argmax(gaps))],
            velocity=drift + speed * np.array([np.sin(heading), np.cos(heading)]),
            angle=rng.uniform(0, 2 * np.pi),
            spin=rng.uniform(-SPIN, SPIN),
            coat=Coat.drawn(rng, kind),
        )
        seen = np.zeros((size, size), np.uint8)
        for number, one in enumerate([*placed, mover], start=1):
            seen[one.covers(0.0, rows, columns)] = number
        if np.bincount(seen.ravel(), minlength=len(placed) + 2)[1:].min() >= MIN_VISIBLE:
            placed.append(mover)  # else it would hide another object
    return tuple(placed)


def _motion(
    movers: tuple[Mover, ...], drift: np.ndarray, size: int, now: float, then: float
) -> tuple[np.ndarray, np.ndarray]:
    """Flow (H, W, 2) of the pixels at time `now` to time `then`, and which of them are not seen at `then`."""
    rows, columns = _pixels(size)
    front = np.zeros((size, size), np.int64)  # number of the object in front, 0 ground
    to_rows, to_columns = rows + (then - now) * drift[0], columns + (then - now) * drift[1]
    for number, mover in enumerate(movers, start=1):
        inside = mover.covers(now, rows, columns)
        body = mover.body(now, rows[inside], columns[inside])
        to_rows[inside], to_columns[inside] = mover.place(then, *body)
        front[inside] = number
    # a pixel is the square around its centre: up to half a pixel beyond the outermost centres is in the image
    hidden = ~((-0.5 <= to_rows) & (to_rows < size - 0.5) & (-0.5 <= to_columns) & (to_columns < size - 0.5))
    for number, mover in enumerate(movers, start=1):
        hidden |= (front < number) & mover.covers(then, to_rows, to_columns)
    return np.stack([to_columns - columns, to_rows - rows], axis=-1).astype(np.float32), hidden


def _shifted(ground: np.ndarray, corner: np.ndarray, size: int) -> np.ndarray:
    """The window (size, size, 3) of the ground whose first pixel is at `corner`, linear between its pixels."""
    row, column = np.floor(corner).astype(int)
    down, right = (corner - np.floor(corner)).astype(np.float32)
    window = ground[row : row + size + 1, column : column + size + 1]
    window = window[:-1] + down * (window[1:] - window[:-1])
    return window[:, :-1] + right * (window[:, 1:] - window[:, :-1])


def _pixels(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the centres of all pixels, each (size, size) float64."""
    rows, columns = np.mgrid[:size, :size].astype(np.float64)
    return rows, columns


def _time(frame: int, frames: int) -> float:
    """Frames after the middle of the clip."""
    return frame - (frames - 1) / 2
