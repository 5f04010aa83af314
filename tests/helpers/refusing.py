"""A system that refuses: a limit on the size of files, on their number, and a disk that is full at one place."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def limited(kind: str, amount: int) -> Iterator[None]:
    """This process under a limit, like RLIMIT_FSIZE in bytes; skipped where the system has none."""
    resource = pytest.importorskip("resource", reason="this system has no limits of processes")
    number = getattr(resource, kind)
    before = resource.getrlimit(number)
    resource.setrlimit(number, (amount, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(number, before)


def fill_disk(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No file whose path holds `name` reaches the disk any more: `files.atomic_write` meets ENOSPC."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc: which file is written cannot be seen")
    really = os.fsync

    def fsync(number: int) -> None:
        if name in str(Path(f"/proc/self/fd/{number}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        really(number)

    monkeypatch.setattr(os, "fsync", fsync)


def self_killing(place: str, times: int) -> list[str]:
    """The command line, in a process that kills itself with SIGKILL when it calls a function for the nth time.

    Args:
        place: Module and name of the function, like toco_lab.evaluation.label_folder:save_mask.
        times: n.
    """
    module, _, name = place.partition(":")
    code = (
        f"import importlib, os, signal, sys\nmodule, calls = importlib.import_module({module!r}), []\n"
        f"really = module.{name}\n"
        "def counted(*arguments, **options):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == {times}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return really(*arguments, **options)\n"
        f"module.{name} = counted\n"
        "from toco_lab.commands.app import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    return [sys.executable, "-c", code]
