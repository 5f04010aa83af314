"""What an evaluation has counted so far, kept on disk: one that is killed goes on where it was, to the same numbers."""

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toco_lab.backbones.weights import read_weights
from toco_lab.evaluation.counts import Counts
from toco_lab.files import atomic_write

Rows = dict[str, dict[str, np.ndarray | None]]
SECONDS = 60.0  # between two writings; an evaluation that ends sooner writes nothing


@dataclass
class Partial:
    """The share of one process.

    Attributes:
        path: The file; None keeps nothing.
        of: What its numbers depend on, as far as that is quickly known; a file of anything else is not read.
        done: How many images of the share are counted.
        rows: Maps of those among them that are shown, by name.
    """

    path: Path | None
    of: Sequence[Any]
    done: int = 0
    rows: Rows = field(default_factory=dict)
    _written: float = field(default_factory=time.monotonic)

    def take_up(self, counts: Counts) -> None:
        """Read into `counts`, `done` and `rows` what an earlier process has left, if it is of this evaluation."""
        if self.path is None or not self.path.is_file():
            return
        try:
            kept = read_weights(self.path)
            if kept["of"] != self._digest():
                return
            done, rows = int(kept["done"]), {name: _arrays(row) for name, row in kept["rows"].items()}
            counts.load(kept["counts"])
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError):
            return  # half a file of a machine that went down is as good as none
        self.done, self.rows = done, rows

    def count(self, images: int, rows: Rows, counts: Counts) -> None:
        """So many more images are in `counts`; write it if it is time."""
        self.done += images
        self.rows |= rows
        if self.path is not None and time.monotonic() - self._written >= SECONDS:
            rows_too = {name: _tensors(row) for name, row in self.rows.items()}
            state = {"of": self._digest(), "counts": counts.state(), "done": self.done, "rows": rows_too}
            with contextlib.suppress(OSError), atomic_write(self.path) as file:  # a full disk need not end the work
                torch.save(state, file)
            self._written = time.monotonic()

    def remove(self) -> None:
        """Nobody is to go on from here."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self.of).encode()).hexdigest()


def _tensors(row: Mapping[str, np.ndarray | None]) -> dict[str, Tensor | None]:
    return {title: None if one is None else torch.from_numpy(np.ascontiguousarray(one)) for title, one in row.items()}


def _arrays(row: Mapping[str, Tensor | None]) -> dict[str, np.ndarray | None]:
    return {title: None if one is None else one.numpy() for title, one in row.items()}
