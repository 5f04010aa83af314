"""The frames of a clip, one by one: of a folder of images in the order of their names, or of a video file.

Video files are read and written by PyAV, the optional extra `video`; nothing else here needs it.
"""

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from toco_lab.data.classes import DataError
from toco_lab.data.images import header, read_rgb, sizes
from toco_lab.data.layouts import files_below
from toco_lab.prediction.pictures_given import SUFFIXES

EXTRA = "install it with: pip install 'toco_lab[video]'"
RATE = 8.0  # frames a second of an animation of images, which say nothing of it
Frame = tuple[str, np.ndarray]  # name of its outputs, (H, W, 3) uint8


class Frames(ABC):
    """Frames of one size that can be gone through several times.

    Attributes:
        path: Of the folder or file.
        count: How many there are; None where that is only known at the end.
        rate: Frames a second.
    """

    path: Path
    count: int | None
    rate: float

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """The frames in their order."""


class FolderFrames(Frames):
    """The images of a folder in the order of their names, numbers in them by value: frame_2 before frame_10."""

    def __init__(self, path: Path) -> None:
        """Reads the sizes of all images.

        Raises:
            DataError: If there is no image, an image cannot be read, two of them differ in size or only in extension.
            OSError: If the folder may not be read.
        """
        self.path, self.rate = path, RATE
        files = (file for file in files_below(path, nested=False) if file.suffix.lower() in SUFFIXES)
        self._files = sorted(files, key=lambda file: (_by_number(file.stem), file.name))
        self.count = len(self._files)
        if not self._files:
            inner = [one.name for one in files_below(path, nested=False) if one.is_dir()]
            hint = f"; it has folders ({', '.join(inner[:3])}): name one of them" if inner else ""
            raise DataError(f"{path} has no frames: a folder of images ({', '.join(SUFFIXES)}) is expected{hint}")
        first, size = self._files[0], sizes(header(self._files[0]))[0]
        for before, file in zip(self._files, self._files[1:], strict=False):
            if file.stem == before.stem:
                raise DataError(f"{file} and {before.name} would have one mask: rename one of them")
            if (other := sizes(header(file))[0]) != size:
                raise DataError(
                    f"{file} has {other[0]} x {other[1]} pixels, and {first.name} {size[0]} x {size[1]}: frames of a "
                    "clip have one size. Move the images of another size away, or scale them"
                )

    def __iter__(self) -> Iterator[Frame]:
        for file in self._files:
            yield file.stem, read_rgb(file)


class VideoFrames(Frames):
    """The frames of the first picture track of a video file, named frame_000001 and so on."""

    def __init__(self, path: Path) -> None:
        """Reads what the file says of itself.

        Raises:
            ValueError: If PyAV is not installed.
            DataError: If it is no video.
        """
        need_pyav(f"{path} is read")
        import av

        self.path = path
        try:
            with av.open(str(path)) as file:
                track = file.streams.video[0]
                self.count, self.rate = track.frames or None, float(track.average_rate or RATE)
        except (av.FFmpegError, IndexError) as error:
            raise DataError(
                f"{path} cannot be read as a video ({error}): give a folder of images ({', '.join(SUFFIXES)}) or a "
                "video file that ffmpeg knows"
            ) from error

    def __iter__(self) -> Iterator[Frame]:
        import av

        size = None
        try:
            with av.open(str(self.path)) as file:
                for number, frame in enumerate(file.decode(video=0), start=1):
                    picture = frame.to_ndarray(format="rgb24")
                    size = size or picture.shape
                    if picture.shape != size:
                        raise DataError(
                            f"{self.path} changes its size at frame {number}, from {size[1]} x {size[0]} to "
                            f"{picture.shape[1]} x {picture.shape[0]} pixels: cut it there"
                        )
                    yield f"frame_{number:06d}", picture
        except av.FFmpegError as error:
            raise DataError(f"{self.path} is damaged ({error}): copy the file again") from error
        if size is None:
            raise DataError(f"{self.path} has no frames: is the file whole?")


def open_frames(path: Path | str) -> Frames:
    """The frames of a folder of images or of a video file.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        ValueError: If a video is to be read without PyAV.
        DataError: If there are no frames, they differ in size, or a file cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return FolderFrames(path)
    if not path.exists():
        raise FileNotFoundError(f"no frames at {path}: give a folder of images or a video file")
    if path.suffix.lower() in SUFFIXES:
        raise DataError(f"{path} is a single image: give the folder of its clip, or take `predict`")
    return VideoFrames(path)


def need_pyav(what: str) -> None:
    """ValueError naming the extra, if PyAV is not installed; `what` needs it."""
    if find_spec("av") is None:
        raise ValueError(f"{what} by the package av (PyAV); {EXTRA}. A folder of images needs none")


def mp4_bytes(pictures: Iterable[np.ndarray], *, rate: float = RATE) -> bytes:
    """Pictures, (H, W, 3) uint8 of one size, as an mp4 file (MPEG-4 part 2, which every build of PyAV can write).

    A side of odd length loses its last line.

    Raises:
        ValueError: If PyAV is not installed, or there is no picture.
    """
    need_pyav("an mp4 is written")
    from fractions import Fraction

    import av

    file, track = io.BytesIO(), None
    with av.open(file, "w", format="mp4") as out:
        for picture in pictures:
            height, width = (side // 2 * 2 for side in picture.shape[:2])
            if track is None:
                track = out.add_stream("mpeg4", rate=Fraction(rate).limit_denominator(1000))
                track.width, track.height, track.pix_fmt, track.bit_rate = width, height, "yuv420p", 4_000_000
            even = np.ascontiguousarray(picture[:height, :width])
            out.mux(track.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        if track is None:
            raise ValueError("an animation needs at least one picture")
        out.mux(track.encode())
    return file.getvalue()


def _by_number(name: str) -> list[tuple[int, int, str]]:
    """A key by which frame_2 comes before frame_10."""
    parts = re.split(r"(\d+)", name)
    return [(1, 0, part) if not part.isdecimal() else (0, int(part), "") for part in parts]
