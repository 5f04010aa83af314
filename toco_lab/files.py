"""What every room may use: files written whole, what the system refuses in words, text read, the nearest name."""

import codecs
import difflib
import errno
import os
import re
import secrets
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

# What numpy and zipfile raise for a damaged .npz: cut off, a wrong checksum, an array missing, ... A flipped bit can
# say that it is encrypted or packed in an unknown way, which is a RuntimeError.
DAMAGED_NPZ = (ValueError, TypeError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


@contextmanager
def atomic_write(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file to write that takes the name `path` once it is complete and on disk; an error leaves nothing behind.

    Args:
        path: Final name; its folder is made if needed. A file of this name is replaced.
        mode: "wb" for bytes, "w" for UTF-8 text whose line ends are written as they are.

    Raises:
        OSError: Naming `path`, if the system refuses: a full disk, no rights, ...
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        encoding, newline = (None, None) if "b" in mode else ("utf-8", "")
        with refusals_named(path, temporary):
            with temporary.open(mode.replace("w", "x"), encoding=encoding, newline=newline) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):  # it is not there, or the error on its way says what is wrong with its folder
            temporary.unlink()


def append_text(path: Path, text: str) -> None:
    """Add text to the end of a file, whose line ends are written as they are.

    Raises:
        OSError: Naming the file, if the system refuses; a part of the text may have been written.
    """
    with refusals_named(path), path.open("a", encoding="utf-8", newline="") as file:
        file.write(text)


@contextmanager
def refusals_named(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """The system names no file when a write fails, or the temporary one; this puts `path` into the error.

    torch hides what its file could not do behind an error of its own.
    """
    try:
        yield
    except Exception as error:
        refused = error if isinstance(error, OSError) else error.__context__
        if not isinstance(refused, OSError) or not refused.errno or refused.filename not in (None, str(temporary)):
            raise
        raise type(refused)(refused.errno, refused.strerror, str(path)) from error


def check_writable(path: Path) -> None:
    """Whether a file could be written, found out before the work whose result it will hold. Nothing stays behind.

    Raises:
        OSError: Naming the file, or the part of its path where the system refuses.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    probe = folder / f".{secrets.token_hex(4)}.tmp"
    with refusals_named(path, probe):
        probe.touch()
        probe.unlink()


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, sorted; [] if there is none. (`glob` takes a folder that may not be read for empty.)

    Raises:
        OSError: If the folder may not be read.
    """
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


# --- what the operating system refuses (a full disk, no rights, too many open files), with its remedy -----------------

_PLACE = "or choose another place"
_REMEDIES = {
    errno.ENOSPC: f"Free some space on that disk, {_PLACE}",
    errno.EDQUOT: f"Your share of that disk is used up: delete something, {_PLACE}",
    errno.EFBIG: "A limit on the size of files is set: raise it (ulimit -f), or choose another disk",
    errno.EMFILE: "Raise the limit of open files (ulimit -n), or take fewer workers",
    errno.ENFILE: "The whole machine has too many open: end other programs",
    errno.EACCES: f"Change its permissions, {_PLACE}",
    errno.EPERM: f"Change its owner or its permissions, {_PLACE}",
    errno.EROFS: "That disk can only be read: choose a folder on another one",
    errno.EEXIST: f"A folder is needed there: move the file away, {_PLACE}",
    errno.ENOTDIR: f"A folder is needed there, and a part of the path is a file: move it away, {_PLACE}",
    errno.EISDIR: f"A file is needed there, and a folder has its name: move it away, {_PLACE}",
    errno.ENOENT: "Check the path",
    errno.ELOOP: "Links lead in a circle: mend them",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.ENOMEM: "End other programs, or make the batch or the images smaller",
    errno.EIO: "The disk failed: check it and its cable or network",
    errno.ESTALE: "The network disk has gone: mount it again",
}
_REFUSAL = re.compile(
    r"\[Errno (?P<code>\d+)\] (?P<said>[^\n:]+)"  # as Python writes an OSError
    r"(?:: (?P<quote>['\"])(?P<file>[^\n]*?)(?P=quote)(?!\w))?"
)


def in_words(message: str) -> str:
    """The message of an error, in which what the system said has its file first and its remedy last.

    The text of an OSError is found wherever it stands, because it often arrives inside another error: of a process that
    loads images, of a notebook. Any other message is returned as it is.

    >>> in_words("[Errno 28] No space left on device: 'results/a/config.json'")
    'results/a/config.json: No space left on device. Free some space on that disk, or choose another place'
    """
    found = _REFUSAL.search(message)
    if found is None:
        return message
    code, file = int(found["code"]), found["file"]
    remedy = _REMEDIES.get(code, "")
    if file and code in (errno.ENOENT, errno.EEXIST, errno.ENOTDIR) and _leads_nowhere(Path(file)):
        remedy = "It is a link that leads nowhere: mend it, or remove it"
    said = f"{file}: {found['said']}" if file else found["said"]
    return message[: found.start()] + said + (f". {remedy}" if remedy else "") + message[found.end() :]


def _leads_nowhere(path: Path) -> bool:
    try:
        return path.is_symlink() and not path.exists()
    except OSError:  # nobody may look
        return False


# --- text, arguments, the project -------------------------------------------------------------------------------------


def read_text(path: Path | str, *, error: type[ValueError] = ValueError) -> str:
    r"""The text of a small file that a person wrote: a list, a table, a grid.

    UTF-8 with or without a byte order mark and UTF-16 with one are read; every line end becomes "\n". Marks further on,
    which joined files have, are left out.

    Args:
        path: The file.
        error: Raised for bytes that are neither; the message names the file and the line.
    """
    data = Path(path).read_bytes()
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as bad:
        before = data[: bad.start]
        line = (before.decode("utf-16", "replace") if wide else before.decode("latin-1")).count("\n") + 1
        raise error(_not_unicode(path, line, f"byte 0x{data[bad.start]:02x}")) from bad
    if "\0" in text:
        raise error(_not_unicode(path, text.partition("\0")[0].count("\n") + 1, "a zero byte"))
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "")


def _not_unicode(path: Path | str, line: int, found: str) -> str:
    return (
        f"{path}, line {line}: {found} is not UTF-8. Expected is text in UTF-8, or in UTF-16 with its byte order mark. "
        "Save the file again as UTF-8 (in an editor: Save as, encoding UTF-8; in Excel: CSV UTF-8)"
    )


def require(value: object, kind: type, name: str, remedy: str = "") -> None:
    """ValueError naming the argument `name` if `value` is not of a class."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be a {kind.__name__}, got {type(value).__name__} {str(value)[:60]!r}{remedy}")


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """The end of an error message about an unknown name: the nearest known ones, `most` at most, or nothing.

    >>> did_you_mean("smok", ["smoke", "toy"])
    ", did you mean 'smoke'?"
    """
    known = list(known)
    near = [other for other in known if other.casefold() == str(name).casefold()]
    *others, last = list(map(repr, near or difflib.get_close_matches(str(name), known, n=most))) or [""]
    return f", did you mean {', '.join(others)}{' or ' if others else ''}{last}?" if last else ""


def project_root() -> Path:
    """The folder that holds `notebooks`, `data/toy` and `results/studies`.

    In a checkout that is the project; a package that was installed from a wheel carries a copy (see setup.py).
    """
    package = Path(__file__).resolve().parent
    return travelled if (travelled := package / "_data").is_dir() else package.parent


def here_or_shipped(path: Path | str) -> Path:
    """`path`, or where nothing is there the project's own file of this name, like `notebooks/04_evaluate.ipynb`.

    Where neither is there, `path` itself, so that whoever opens it says what is missing.
    """
    shipped = project_root() / path
    return Path(path) if os.path.lexists(path) or not shipped.exists() else shipped


def enter_project() -> Path:
    """Make the project's folder the current one, so that relative paths count from it: a notebook starts in notebooks/.

    Returns:
        The project's folder; outside a checkout the current one, and nothing changes.
    """
    here = Path.cwd()
    checkouts = (folder for folder in (here, *here.parents) if (folder / "notebooks" / "00_start_here.ipynb").is_file())
    os.chdir(project := next(checkouts, here))
    return project
