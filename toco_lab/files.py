"""What every room may use: files written whole, the project's folder, and the nearest name to a misspelt one."""

import difflib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_write(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file to write that takes the name `path` once it is complete and on disk; an error leaves nothing behind.

    Args:
        path: Final name; its folder is made if needed. A file of this name is replaced.
        mode: "wb" for bytes, "w" for UTF-8 text whose line ends are written as they are.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        encoding, newline = (None, None) if "b" in mode else ("utf-8", "")
        with temporary.open(mode.replace("w", "x"), encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest known one, or nothing.

    >>> did_you_mean("smok", ["smoke", "toy"])
    ", did you mean 'smoke'?"
    """
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def project_root() -> Path:
    """The folder that holds this package: in a checkout the project, with its notebooks and toy data."""
    return Path(__file__).resolve().parents[1]


def enter_project() -> Path:
    """Make the project's folder the current one, so that relative paths count from it: a notebook starts in notebooks/.

    Returns:
        The project's folder; outside a checkout the current one, and nothing changes.
    """
    here = Path.cwd()
    checkouts = (folder for folder in (here, *here.parents) if (folder / "notebooks" / "00_start_here.ipynb").is_file())
    os.chdir(project := next(checkouts, here))
    return project
