"""Who works in a folder: a lock file that the operating system frees when its process ends, in whatever way.

The files are empty and hidden, and they stay: to remove one would let two processes hold two locks of one name.
"""

import contextlib
from pathlib import Path

from filelock import FileLock, Timeout

RUN_LOCK, SWEEP_LOCK = ".run.lock", ".sweep.lock"


def lock_of(path: Path) -> FileLock:
    """The lock with this file, not taken yet. All who ask in one process get the same object, in every thread."""
    return FileLock(path.resolve(), timeout=0, thread_local=False, is_singleton=True)


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
    except PermissionError:
        return None
    lock.release()
    return False
