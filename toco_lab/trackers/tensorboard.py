"""TensorBoard: event files in the folder `tensorboard` of the run. `tensorboard --logdir results` shows all runs."""

import io
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from toco_lab.config import Config
from toco_lab.runs.run_dir import RunDir
from toco_lab.runs.scores import SCORES


class TensorBoard:
    """See `Tracker`. Everything is on disk when a call returns: a killed run has lost nothing."""

    def start(self, run: RunDir, cfg: Config, record: Mapping[str, Any]) -> dict[str, Any]:
        """See `Tracker`. What lies there after the step on record, or without a record, is hidden: it comes again."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = run.path / "tensorboard"
        known = "id" in record and any(folder.glob("events.out.tfevents.*"))
        self._writer = SummaryWriter(str(folder), purge_step=record.get("step", 0) + 1 if known else 0)
        if not known:
            fields = {name: _plain(value) for name, value in asdict(cfg).items()}
            scores = {f"final/{name}": 0.0 for name in SCORES}  # names alone count
            for summary in hparams(fields, scores):  # `add_hparams` would make a second run of it
                self._writer._get_file_writer().add_summary(summary)
            self._writer.add_text("config", _markdown(cfg.to_frame().reset_index()), 0)
        self._writer.flush()
        return {"id": record["id"] if known else secrets.token_hex(4), "where": f"tensorboard --logdir {folder}"}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def curve(self, name: str, points: Mapping[int, float]) -> None:
        """See `Tracker`. The layer stands on the axis of steps."""
        for layer, value in points.items():
            self._writer.add_scalar(f"{name}_per_layer", value, layer)

    def picture(self, step: int, name: str, png: bytes) -> None:
        """See `Tracker`."""
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        self._writer.add_image(name, pixels, step, dataformats="HWC")
        self._writer.flush()

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """See `Tracker`."""
        self._writer.add_text(name, _markdown(frame), 0)

    def close(self, *, done: bool) -> None:
        """See `Tracker`."""
        self._writer.close()


new = TensorBoard


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float) else str(value)


def _markdown(frame: pd.DataFrame) -> str:
    """A table as TensorBoard's tab of texts shows it."""
    cells = [
        [str(name) for name in frame],
        ["---"] * len(frame.columns),
        *([str(value) for value in row] for row in frame.to_numpy(dtype=object)),
    ]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in cells)
