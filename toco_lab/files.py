"""The ground: files that are whole or not there, the project's folder, and the nearest name to a misspelt one."""

import difflib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_write(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file that takes the name `path` only once it is complete and on disk; an error leaves nothing behind.

    Args:
        path: Final name; its folder is made if needed.
        mode: "wb" for bytes, "w" for UTF-8 text.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
        with temporary.open(mode.replace("w", "x"), **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ ", did you mean 'cat'?" for a name that is not among `known` but near one of them; else nothing."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def project_root() -> Path:
    """The folder that holds this package: in a checkout the project, with its notebooks and toy data."""
    return Path(__file__).resolve().parents[1]


def enter_project() -> Path:
    """Make the project's folder the current one, for relative paths: a notebook may start in notebooks/.

    Outside a checkout nothing changes.
    """
    here = Path.cwd()
    found = (folder for folder in (here, *here.parents) if (folder / "notebooks" / "00_start_here.ipynb").is_file())
    os.chdir(project := next(found, here))
    return project
