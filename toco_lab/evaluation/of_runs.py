"""A measure of a run's last checkpoint, kept as a table and its protocol in the folder of the run."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import pandas as pd

from toco_lab.backbones.weights import weights_hash
from toco_lab.config import Config
from toco_lab.files import check_writable
from toco_lab.runs.locks import only_worker
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model
from toco_lab.training.processes import resolve_device


class Measured(Protocol):
    """What is kept: NAME.csv and NAME.json."""

    @property
    def table(self) -> pd.DataFrame: ...

    @property
    def protocol(self) -> dict[str, Any]: ...


Found = TypeVar("Found", bound=Measured)


def name_of_split(name: str, cfg: Config, split: str | None) -> str:
    """The name of the files: a split other than `val_split` has files of its own."""
    return name if split in (None, cfg.val_split) else f"{name}_{split}"


def measure_run(run: RunDir, name: str, measure: Callable[..., Found], *, split: str | None, device: str) -> Found:
    """Measure a run's last checkpoint; NAME.csv and NAME.json of the split are written into its folder.

    Args:
        run: A trained run.
        name: NAME.
        measure: Called as measure(model, cfg, split=split, checkpoint=hash of the weights).
        split: None takes `val_split`.
        device: As in `Config.device`.

    Raises:
        ValueError: As `measure`; if another process is at work in the folder of the run.
        OSError: Before the work, if nothing can be written there.
    """
    with only_worker(run.path):
        model, cfg = load_run_model(run, resolve_device(device))
        name = name_of_split(name, cfg, split)
        check_writable(run.path / f"{name}.json")
        found = measure(model, cfg, split=split, checkpoint=weights_hash(run.checkpoints()[-1]))
        run.write_table(name, found.table)
        run.write_json(name, found.protocol)
    return found
