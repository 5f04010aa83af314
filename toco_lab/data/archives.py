"""Archives of data sets: fetched by torchvision or named for the user to fetch, checked, and unpacked whole."""

import errno
import shutil
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from toco_lab.data.classes import DataError
from toco_lab.data.layouts import guide
from toco_lab.files import in_words, refusals_named
from toco_lab.words import counted

LARGEST_RATIO = 100  # of what is unpacked to the archive: 1 for pictures, about 5 for COCO's json
SMALL_BYTES = 2**30  # what any archive may take
MOST_MEMBERS = 2_000_000  # COCO has some 125,000

# what says nothing against an archive
_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE)


@dataclass(frozen=True)
class Archive:
    """A file to fetch.

    Attributes:
        name: File name.
        url: Its address.
        folder: The folder in it.
        md5: Checksum in hex; without one the file is not checked and never downloaded.
        holds: What must be in that folder.
    """

    name: str
    url: str
    folder: str
    md5: str | None = None
    holds: tuple[str, ...] = ()


def fetch(folder: Path, archives: Sequence[Archive], *, download: bool) -> None:
    """Unpack archives that lie in `folder`; those that do not are downloaded first if `download`.

    Raises:
        DataError: If an archive is missing (all of them are named, with their addresses) or damaged.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is no folder: give the one that holds the archives, or what was in them")
    absent = [archive for archive in archives if not (folder / archive.name).is_file()]
    if absent and not download:
        raise DataError(_to_fetch(folder, absent))
    for archive in archives:
        if archive.md5:
            from torchvision.datasets.utils import check_integrity, download_url

            if download and archive in absent:
                try:
                    download_url(archive.url, folder, archive.name, archive.md5)
                except (OSError, RuntimeError) as error:  # no network, a refusal, a wrong checksum
                    raise DataError(
                        f"{archive.url} could not be downloaded ({in_words(str(error))}). {_to_fetch(folder, absent)}"
                    ) from error
            elif not check_integrity(str(folder / archive.name), archive.md5):
                raise DataError(
                    f"{folder / archive.name} is incomplete or damaged: its MD5 is not {archive.md5}. Remove it; "
                    f"{_to_fetch(folder, [archive])}"
                )
        _unpack(folder, archive)


def _to_fetch(folder: Path, archives: Sequence[Archive]) -> str:
    lines = "".join(f"\n  {archive.name} from {archive.url}" for archive in archives)
    return f"fetch and put into {folder}, packed or unpacked:{lines}\n({guide()}; --download does it for VOC)"


def _unpack(folder: Path, archive: Archive) -> None:
    """Unpack beside the final place, then rename: a killed unpacking leaves no half of a data set behind."""
    path, target, half = folder / archive.name, folder / archive.folder, folder / f".{archive.folder}.unpacking"
    if target.exists():
        raise DataError(f"{target} is there but incomplete. Remove it; {archive.name} is unpacked again")
    shutil.rmtree(half, ignore_errors=True)
    print(f"unpacking {path}", flush=True)
    try:
        with refusals_named(half):
            _extract(path, half)
        _check_members(path, half, archive)
        (half / archive.folder).replace(target)
    except DataError:
        raise
    except Exception as error:  # each kind of damage has an exception of its own
        if isinstance(error, OSError) and error.errno in _REFUSED:
            raise  # the archive is good
        cause = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot unpack {path}: {cause}. Remove it and fetch it again") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _extract(path: Path, target: Path) -> None:
    """Unpack a tar or zip; a member that would land outside `target` is refused, and so is a device or a link there.

    So is an archive whose files would take far more than pictures do: one of zeros, made to fill a disk.
    """
    if not zipfile.is_zipfile(path):
        with tarfile.open(path) as packed:
            _check_size(path, (member.size for member in packed))
            packed.extractall(target, filter="data")
        return
    with zipfile.ZipFile(path) as zipped:
        _check_size(path, (member.file_size for member in zipped.infolist()))
        for name in zipped.namelist():
            inside = PurePosixPath(name.replace("\\", "/"))
            if inside.is_absolute() or ".." in inside.parts:
                raise ValueError(f"its member {name!r} would land outside the folder")
        zipped.extractall(target)


def _check_size(path: Path, sizes: Iterable[int]) -> None:
    """ValueError as soon as the sizes of the members say that they are no pictures, which hardly can be packed."""
    limit = max(LARGEST_RATIO * path.stat().st_size, SMALL_BYTES)
    unpacked = 0
    for number, size in enumerate(sizes, 1):
        unpacked += size
        if unpacked > limit or number > MOST_MEMBERS:
            most = counted(f"{MOST_MEMBERS:,}", "file")
            raise ValueError(
                f"its first {counted(number, 'file')} would take {unpacked / 2**30:.1f} GiB; the limit is "
                f"{LARGEST_RATIO} times the archive ({limit / 2**30:.1f} GiB) and {most}"
            )


def _check_members(path: Path, half: Path, archive: Archive) -> None:
    for member in (archive.folder, *(f"{archive.folder}/{inside}" for inside in archive.holds)):
        if not (half / member).exists():
            above = (half / member).parent
            there = ", ".join(sorted(file.name for file in above.iterdir())[:5]) if above.is_dir() else ""
            raise DataError(
                f"{path} holds no {member}; beside it there is: {there or 'nothing'}. It is another archive, or of "
                f"another year. Fetch {archive.name} from {archive.url}"
            )
