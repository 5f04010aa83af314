"""Who works in a folder: a lock file that the operating system frees when its process ends, in whatever way.

The files are empty and hidden, and they stay: to remove one would let two processes hold two locks of one name.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

RUN_LOCK, WORK_LOCK, SWEEP_LOCK = ".run.lock", ".work.lock", ".sweep.lock"


def lock_of(path: Path) -> FileLock:
    """The lock with this file, not taken yet. All who ask in one process get the same object, in every thread."""
    return FileLock(os.path.realpath(path), timeout=0, thread_local=False, is_singleton=True)


def take(path: Path) -> FileLock:
    """The lock with this file, taken if it can be had. It is freed with the last reference to it."""
    lock = lock_of(path)
    if not lock.is_locked:
        with contextlib.suppress(Timeout, PermissionError):  # another process was first; the file is another user's
            lock.acquire(timeout=0.2)  # longer than `held_by_another` holds it in order to look
    return lock


def held_by_another(path: Path) -> bool | None:
    """Whether another process holds the lock with this file; None if the file may not be opened for writing."""
    lock = lock_of(path)
    if lock.is_locked or not path.is_file():  # a lock that nobody ever took has no file
        return False
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:
        return None
    lock.release()
    return False


@contextlib.contextmanager
def only_worker(folder: Path, work: str = "trains, evaluates or labels this run") -> Iterator[None]:
    """Inside, this is the only process that trains, evaluates or labels the run in a folder.

    A notebook that merely holds a run open is no worker. A lock file that may not be opened stops nobody.

    Args:
        folder: Of a run, or of other files that only one process should write.
        work: What another process does there, for the error.

    Raises:
        ValueError: If another living process is at it.
    """
    lock = lock_of(folder / WORK_LOCK)
    try:
        lock.acquire(timeout=0.2)  # longer than `held_by_another` holds it in order to look
    except Timeout:
        raise ValueError(f"{folder} is in use: another process {work}; wait for it, or stop it") from None
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()
