"""What a tracker is asked to do, which ones there are, and whether their packages are installed."""

import importlib.util
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from toco_lab.fields import shown
from toco_lab.files import did_you_mean

if TYPE_CHECKING:
    import pandas as pd

    from toco_lab.config import Config
    from toco_lab.runs.run_dir import RunDir

TrackerName = Literal["tensorboard", "wandb", "mlflow"]  # also the package it needs, and the extra that installs that
TRACKERS: tuple[TrackerName, ...] = get_args(TrackerName)


class Tracker(Protocol):
    """A place where people watch runs.

    Every call may fail, or wait for a network: `Lane` keeps both from the training. Steps are optimiser steps.
    """

    def start(self, run: "RunDir", cfg: "Config", record: Mapping[str, Any]) -> dict[str, Any]:
        """Open the run there, a new one or the one to be appended to, and tell it the whole config.

        Args:
            run: Gives the name, and the folder of what is kept on this machine.
            cfg: The run's config.
            record: What the last start returned, and `step`, the last one that was told; {} before the first.

        Returns:
            `id`, another one if the run was opened anew, and `where` people find it; fit for JSON.
        """

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers at a step; what stands before `/` in their names groups them."""

    def curve(self, name: str, points: Mapping[int, float]) -> None:
        """A number for each layer."""

    def picture(self, step: int, name: str, png: bytes) -> None:
        """A picture at a step."""

    def table(self, name: str, frame: "pd.DataFrame") -> None:
        """A table of the finished run."""

    def close(self, *, done: bool) -> None:
        """Send what is left. A run that is not `done` was stopped, and may be started again."""


def check_trackers(names: str | Sequence[str]) -> tuple[TrackerName, ...]:
    """Names of trackers, each once; found out before the work whose numbers they will get.

    Raises:
        ValueError: For a name that is none of `TRACKERS`, or a package that is not installed.
    """
    chosen = tuple(dict.fromkeys([names] if isinstance(names, str) else names))
    for name in chosen:
        if name not in TRACKERS:
            hint = did_you_mean(str(name), TRACKERS) or f"; there are: {', '.join(TRACKERS)}"
            raise ValueError(f"log_to: there is no tracker {shown(name)}{hint}")
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a folder `wandb` that some run left here is no package
            raise ValueError(
                f"log_to: {name} needs the package {name}, which is not installed; install it with: "
                f"pip install 'toco_lab[{name}]'"
            )
    return tuple(name for name in TRACKERS if name in chosen)


def new_tracker(name: TrackerName) -> Tracker:
    """The tracker of a name, not started yet."""
    return import_module(f"toco_lab.trackers.{name}").new()
