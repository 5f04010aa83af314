"""A run that is stopped in the middle and given again."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from toco_lab.experiment import open_run, train
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.learner import train_step


def made_in_two_parts(run: RunDir, root: Path, *, step: int) -> RunDir:
    """The run once more below `root`: stopped at `step` (0-based), after one checkpoint, and continued.

    Its last checkpoint and its metrics are those of `run`, to the byte.
    """

    def stopping(learner: Any, batch: Any, cfg: Any, number: int, **options: Any) -> Any:
        if number == step:
            raise KeyboardInterrupt
        return train_step(learner, batch, cfg, number, **options)

    again = open_run(run.config(), root)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("toco_lab.training.loop.train_step", stopping)
        train(again, progress=False)
    assert len(again.checkpoints()) == 1
    train(again, progress=False)
    assert again.checkpoints()[-1].read_bytes() == run.checkpoints()[-1].read_bytes()
    pd.testing.assert_frame_equal(again.metrics(), run.metrics())
    return again
