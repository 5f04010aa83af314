"""Who works at a run, what state it is in for a reader, and whether its folder may be deleted."""

import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toco_lab.runs import locks

if TYPE_CHECKING:
    from toco_lab.runs.run_dir import RunDir

STALE_SECONDS = 3600  # a file that was written longer ago is not being written now: its process was killed


def busy(run: "RunDir") -> str:
    """Which living process may be at work in a run, in words; empty if none is. See `RunDir.busy`."""
    work = run.path / locks.WORK_LOCK
    if locks.lock_of(work).is_locked:
        return "this process trains, evaluates or labels it"
    if locks.held_by_another(work):
        return "another process trains, evaluates or labels it"
    try:
        if run.status()["state"] in ("done", "failed"):
            return ""
    except (ValueError, OSError):
        pass  # damaged: nothing is known
    if locks.held_by_another(run.path.parent / locks.SWEEP_LOCK):
        return f"a sweep is running in {run.path.parent}"
    return _holder(run)


def shown_state(run: "RunDir") -> str:
    """The state for a reader: as in `status`, but `stopped` where it says `running` and no process is at it.

    Raises:
        ValueError: Naming status.json, if it is damaged.
    """
    state = str(run.status()["state"])
    if state != "running" or any(_is_locked(run.path / name) for name in (locks.WORK_LOCK, locks.RUN_LOCK)):
        return state
    return state if _holder(run) else "stopped"  # a running sweep beside it may not have come to it again


def check_deletable(run: "RunDir", root: Path | str) -> None:
    """Raises ValueError if a folder should not be deleted, see `RunDir.check_deletable`."""
    path = run.path
    if path.absolute().is_relative_to(Path(root).absolute()):
        if not path.resolve().is_relative_to(Path(root).resolve()):
            raise ValueError(f"{path} leads out of {root}, to {path.resolve()}; give that path if it is to be deleted")
    if path.is_symlink():
        raise ValueError(f"{path} is a link; delete the folder it leads to, {path.resolve()}")
    if not any((path / name).is_file() for name in ("env.json", "status.json")):
        raise ValueError(f"{path} has neither env.json nor status.json: is it a run? Delete it by hand")
    inner = [found.parent for found in path.rglob("config.json") if found.parent != path]
    if inner:
        raise ValueError(f"{path} holds another run, {inner[0]}; move or delete that one first")
    if reason := busy(run):
        raise ValueError(f"{path} is in use: {reason}; stop it first")


def _is_locked(path: Path) -> bool:
    """Whether this process or another one holds a lock."""
    return locks.lock_of(path).is_locked or bool(locks.held_by_another(path))


def _holder(run: "RunDir") -> str:
    """Which other process may have a run open, in words; empty if none has."""
    last: dict[str, Any] = {}  # the process that was started last
    try:
        last = run.environments()[-1].get("process") or {}
    except (ValueError, IndexError, OSError):
        pass  # damaged, or of an older version: nothing is known
    here = last.get("host") == platform.node()
    held = locks.held_by_another(run.path / locks.RUN_LOCK)
    if held:
        return f"process {last['pid']} of this machine has it open" if here else "another process has it open"
    if (here and held is False) or (minutes := _minutes_since_written(run.path)) * 60 >= STALE_SECONDS:
        return ""
    where = f" on {last['host']}" if last else ""
    return f"it was written to {minutes:.0f} minutes ago, perhaps by a process{where} that still lives"


def _minutes_since_written(folder: Path) -> float:
    files = (folder / name for name in ("status.json", "metrics.csv", "log.txt"))
    return (time.time() - max((file.stat().st_mtime for file in files if file.is_file()), default=0)) / 60
