"""The runs a CAM explorer may open, and what is known of one that is open."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from torch import Tensor

from toco_lab.config import Config
from toco_lab.data.classes import class_names
from toco_lab.data.loader import EvalSamples, eval_samples
from toco_lab.explorers.cam_session import CamSession
from toco_lab.method.face import CamModel
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model
from toco_lab.training.processes import resolve_device

Run = RunDir | tuple[CamModel, Config]  # a folder, or a model with its config


@dataclass(frozen=True, eq=False)
class SharedImage:
    """An image that every run is shown, with what is known of it.

    Attributes:
        name: For titles.
        raw: (H, W, 3) uint8.
        image_label: (C,) in {0, 1}; None has each model predict it.
        mask: (H, W) labels; None if unknown.
    """

    name: str
    raw: np.ndarray
    image_label: Tensor | None = None
    mask: Tensor | None = None

    def without_labels(self) -> "SharedImage":
        """For a model whose classes are others."""
        return replace(self, image_label=None, mask=None)

    def set_in(self, session: CamSession) -> None:
        """Have a session's model see it."""
        session.set_image(self.raw, image_label=self.image_label, mask=self.mask, name=self.name)

    def __eq__(self, other: object) -> bool:
        """Whether a session that has one of them need not see the other."""
        if not isinstance(other, SharedImage):
            return NotImplemented
        pairs = ((self.raw, other.raw), (self.image_label, other.image_label), (self.mask, other.mask))
        return self.name == other.name and all(
            one is two or (one is not None and two is not None and np.array_equal(one, two)) for one, two in pairs
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class OpenRun:
    """A run whose model is loaded.

    Attributes:
        session: Of its model.
        class_names: Of the classes 0..C-1.
        samples: Its images; None where they are not on this machine.
        problem: Why there are none; empty where there are some.
    """

    session: CamSession
    class_names: tuple[str, ...]
    samples: EvalSamples | None
    problem: str = ""

    def image_names(self, most: int) -> list[str]:
        """Names of the first images, `most` of them or fewer."""
        if self.samples is None:
            return []
        return list(self.samples.reader.names[: min(most, len(self.samples))])

    def sample(self, index: int) -> SharedImage:
        """An image by its place in `image_names`."""
        if self.samples is None:
            raise ValueError(self.problem)
        sample = self.samples[index]
        return SharedImage(sample.name, sample.raw, sample.image_label, sample.mask)


def open_run(run: Run, split: str | None) -> OpenRun:
    """Load a run's model and open its images; `split`: None takes `cfg.val_split`.

    Raises:
        ValueError, OSError: If there is no checkpoint that can be loaded. Images that are missing raise nothing.
    """
    model, cfg = load_run_model(run, resolve_device(run.config().device)) if isinstance(run, RunDir) else run
    session, names = CamSession(model, cfg), class_names(cfg)
    try:
        return OpenRun(session, names, eval_samples(cfg, model.mean, model.std, split))
    except (ValueError, OSError) as error:  # no data on this machine: uploads still work
        return OpenRun(session, names, None, f"no images to choose from, but you can upload one. {error}")


def config_of(run: Run) -> Config:
    """The config of a run, read without its model."""
    return run.config() if isinstance(run, RunDir) else run[1]


def runs_by_name(*runs: Run | Sequence[Run]) -> dict[str, Run]:
    """Runs, and lists of them, by name; equal names are numbered.

    Raises:
        ValueError: If there are none, or one is neither a RunDir nor a pair (model, config).
    """
    by_name: dict[str, Run] = {}
    for run in (one for some in runs for one in _as_list(some)):
        is_pair = isinstance(run, tuple) and len(run) == 2
        if not isinstance(run, RunDir) and not (
            is_pair and isinstance(run[0], CamModel) and isinstance(run[1], Config)
        ):
            raise ValueError(f"a run must be a RunDir, or a pair (model, config), got {type(run).__name__} {run!r:.60}")
        name = first = run.name if isinstance(run, RunDir) else run[1].run_name()
        count = 1
        while name in by_name:
            count += 1
            name = f"{first} ({count})"
        by_name[name] = run
    if not by_name:
        raise ValueError("CamExplorer needs at least one run: a RunDir, or a pair (model, config)")
    return by_name


def _as_list(runs: Run | Sequence[Run]) -> Sequence[Run]:
    if isinstance(runs, RunDir) or not isinstance(runs, Sequence) or isinstance(runs, str):
        return [cast("Run", runs)]
    is_pair = isinstance(runs, tuple) and bool(runs) and isinstance(runs[0], CamModel)
    return cast("Sequence[Run]", [runs] if is_pair else runs)
