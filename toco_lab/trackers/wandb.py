"""Weights & Biases. Without a login the folder `wandb` of the run keeps everything, and `wandb sync` sends it later."""

import io
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

import pandas as pd

from toco_lab.config import Config
from toco_lab.runs.run_dir import RunDir

PROJECT = "toco_lab"  # unless the variable WANDB_PROJECT names another
_PREFIXES = ("train", "validation", "final")


class WandB:
    """See `Tracker`. Every row brings its step: W&B counts rows itself, and takes none that comes late."""

    def start(self, run: RunDir, cfg: Config, record: Mapping[str, Any]) -> dict[str, Any]:
        """See `Tracker`. Nobody is asked for a key: training would wait for the answer."""
        import wandb

        chosen = "WANDB_MODE" in os.environ
        mode: Literal["offline"] | None = None if chosen or wandb.login(prompt=False, verify=False) else "offline"
        self._wandb, name = wandb, record.get("id") or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), group=run.path.resolve().parent.name, name=run.name,
            id=name, resume="allow", dir=str(run.path), config=asdict(cfg), allow_val_change=True, mode=mode,
            reinit="create_new", settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip
        for prefix in _PREFIXES:
            self._run.define_metric(f"{prefix}/*", step_metric="step")
        self._run.define_metric("smoothing/*", step_metric="layer")
        kept = f"kept in {run.path / 'wandb'}; `wandb sync {run.path / 'wandb'}/offline-run-*-{name}` sends it"
        return {"id": name, "where": kept if self._run.offline else str(self._run.url)}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`. What a run reached stands in its summary as well, where W&B compares runs."""
        self._run.log({"step": step, **values})

    def curve(self, name: str, points: Mapping[int, float]) -> None:
        """See `Tracker`."""
        for layer, value in points.items():
            self._run.log({"layer": layer, name: value})

    def picture(self, step: int, name: str, png: bytes) -> None:
        """See `Tracker`."""
        from PIL import Image

        self._run.log({"step": step, f"pictures/{name}": self._wandb.Image(Image.open(io.BytesIO(png)))})

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """See `Tracker`."""
        words = frame.astype(object).where(frame.notna(), None).map(_cell)
        self._run.log({f"tables/{name}": self._wandb.Table(columns=list(words), data=words.to_numpy().tolist())})

    def close(self, *, done: bool) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=0 if done else 1)


new = WandB


def _cell(value: Any) -> Any:
    """A number, word or nothing; of other things their text, because a column of W&B has one type."""
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
