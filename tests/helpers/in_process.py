"""An executor of sweeps that starts no process."""

from pathlib import Path

from toco_lab.sweeps import worker


class Here:
    """An executor without processes: the same work, in this one."""

    slots = 1

    def __init__(self, workers: int = 1) -> None:
        self.tasks: list[tuple[Path, str]] = []

    def submit(self, folder: Path, task: str) -> None:
        self.tasks.append((folder, task))

    def ended(self) -> dict[Path, None]:
        folder, task = self.tasks.pop(0)
        worker.work(task)
        return {folder: None}

    def close(self) -> None:
        pass
