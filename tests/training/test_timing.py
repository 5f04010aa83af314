"""How long a step takes: by steps that were made."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from toco_lab.commands import train as train_command
from toco_lab.config import Config
from toco_lab.training import timing
from toco_lab.training.timing import BUDGET_SECONDS, Timing, timed_steps

CPU = torch.device("cpu")
CFG = Config.preset("smoke").replace(batch_size=8, accumulate=2)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps cost two seconds an image, the first one ten more; the number of images of each step."""
    now, images = [0.0], []

    def step(learner, batch, cfg, number):
        assert number == cfg.steps - 1, "with all losses"
        now[0] += 2.0 * len(batch.image) + (0 if images else 10)
        images.append(len(batch.image))
        return SimpleNamespace(terms=SimpleNamespace(total=torch.zeros(())))

    monkeypatch.setattr(timing, "train_step", step)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return images


def test_a_step_is_made_of_its_micro_batches(made: list[int]) -> None:
    assert timed_steps(CFG, CPU, expected=1.0, progress=False) == Timing(16.0, 2, 4, 4)
    assert made == [4, 4, 4], "a fourth would begin after the budget"


@pytest.mark.parametrize(("expected", "images"), [(8 * BUDGET_SECONDS / 4, 2), (8 * BUDGET_SECONDS / 2, 1)])
def test_slow_steps_are_timed_with_fewer_images(expected: float, images: int, made: list[int]) -> None:
    found = timed_steps(CFG, CPU, expected=expected, progress=False)
    assert found == Timing(16.0, 3, images, 4) and set(made) == {images}


def test_what_would_take_minutes_is_not_timed(made: list[int]) -> None:
    assert timed_steps(CFG, CPU, expected=4.1 * BUDGET_SECONDS, progress=False) is None and not made
    said = train_command._time_line(CFG.replace(steps=20000), CPU, 20000, expected=800.0)
    assert said.startswith("20000 steps would take more than 185 days on cpu, 13 minutes each: too slow to time one")


def test_real_steps_leave_nothing_behind(capsys: pytest.CaptureFixture) -> None:
    found = timed_steps(CFG, CPU, expected=0.1)
    assert found is not None and found.seconds > 0 and (found.steps, found.images) == (3, 4)
    said = train_command._time_line(CFG, CPU, 10, expected=0.1)
    assert said.startswith("10 steps of ") and said.endswith("3 steps timed on cpu just now; evaluation comes on top")


def test_a_micro_batch_that_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(timing, "train_step", refuse)
    said = train_command._time_line(CFG, CPU, 10, expected=0.1)
    assert said == ("not known: 4 images at once DO NOT FIT into the memory of cpu. A larger --accumulate needs less")


def test_what_bf16_gains_is_measured_and_the_faster_precision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0.05 < timing.bf16_gain(CPU) < 50
    now, halves = [0.0], []

    def autocast(device, dtype, enabled):
        now[0] += 1.0 if enabled else 3.0
        halves.append(enabled)
        return nullcontext()

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing.torch, "autocast", autocast)
    assert timing.bf16_gain(CPU) == 3.0 and halves == [False, True] * 4

    def said(precision: str, gain: float) -> list[str]:
        return list(train_command._precision_line(CFG.replace(precision=precision), gain))

    assert said("fp32", 3.0) == ["precision:  bf16 is 3.0 times as fast as fp32 here: --precision bf16"]
    assert said("bf16", 0.5) == ["precision:  fp32 is 2.0 times as fast as bf16 here: --precision fp32"]
    assert said("fp32", 1.1) == said("fp32", 0.5) == said("bf16", 3.0) == said("bf16", 0.9) == said("fp16", 3.0) == []
