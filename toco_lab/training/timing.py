"""How long a training step takes on this machine: a few steps are made and timed, and nothing is kept of them."""

import time
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import nn

from toco_lab.config import Config
from toco_lab.method.batch import Batch
from toco_lab.methods import reads_images_without_mask, reads_masks
from toco_lab.peers.build import build_model
from toco_lab.progress import progress_bar
from toco_lab.training.learner import Learner, train_step
from toco_lab.training.processes import num_processes

BUDGET_SECONDS = 30.0  # that timing may take
TIMED_STEPS = 3
WORTH_IT = 1.2  # bf16 is named where it is faster by this factor: it rounds to three digits
_FEWEST = 2  # steps that are made in any case


@dataclass(frozen=True)
class Timing:
    """What was timed.

    Attributes:
        seconds: Of one optimiser step of the whole batch.
        steps: That were timed.
        images: Of each of these steps; fewer than `micro_batch` where that would have taken too long.
        micro_batch: Images that a step of the run computes at once.
    """

    seconds: float
    steps: int
    images: int
    micro_batch: int


def timed_steps(cfg: Config, device: torch.device, *, expected: float, progress: bool = True) -> Timing | None:
    """Make a few steps of random images with all losses, and time them; images are not loaded.

    Args:
        cfg: Sizes, batch, precision, losses. Blocks are not compiled.
        device: Where the steps are made.
        expected: Roughly, the seconds of a step: decides with how many images it can be timed.
        progress: Show a progress bar.

    Returns:
        None where a step of one image alone would take too long, or several processes share the batch.

    Raises:
        torch.OutOfMemoryError: If a GPU has too little memory for a micro-batch.
    """
    micro_batch = cfg.batch_size // cfg.accumulate
    of_an_image = expected / cfg.batch_size
    images = min(micro_batch, int(BUDGET_SECONDS / _FEWEST / max(of_an_image, 1e-9)))
    images -= images % 2 * cfg.train_on_clips  # pairs of frames
    if images < 1 or num_processes() > 1:
        return None
    small = cfg.replace(batch_size=images, accumulate=1)
    learner, batch = Learner.of(build_model(cfg).to(device).train(), small), _random_batch(small).to(device)
    seconds: list[float] = []
    began = time.perf_counter()
    for number in progress_bar(range(1 + TIMED_STEPS), "timing steps", unit="step", shown=progress):
        if number >= _FEWEST and time.perf_counter() - began > BUDGET_SECONDS:
            continue
        start = time.perf_counter()
        train_step(learner, batch, small, cfg.steps - 1).terms.total.item()  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    timed = seconds[1:]  # the first one warms up
    return Timing(fmean(timed) * cfg.batch_size / images, len(timed), images, micro_batch)


def bf16_gain(device: torch.device) -> float:
    """How many times as fast as fp32 a device is in bf16 autocast, by the MLP of a ViT-S, forward and backward.

    CPUs differ by more than four times: one has units for it, the next one takes longer than in fp32.
    """
    mlp = nn.Sequential(nn.Linear(384, 1536), nn.GELU(), nn.Linear(1536, 384)).to(device)
    tokens = torch.randn(8 * 196, 384, device=device)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for is_half in (False, True) * (1 + TIMED_STEPS):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=is_half):
            made = mlp(tokens)
        loss = made.float().square().mean()
        loss.backward()
        loss.item()  # waits for a GPU, for all that was asked of it before
        seconds[is_half].append(time.perf_counter() - start)
    return min(seconds[False]) / min(seconds[True])


def _random_batch(cfg: Config) -> Batch:
    """Noise in place of images; each shows two classes."""
    generator = torch.Generator().manual_seed(0)
    count, side = cfg.batch_size, cfg.crop_size

    def view(size: int) -> torch.Tensor:
        return torch.randn(count, 3, size, size, generator=generator)

    label = torch.zeros(count, cfg.num_classes)
    label[:, :2] = 1
    box = torch.tensor([[0, 0, side, side]]).repeat(count, 1)
    names = [f"noise {number}" for number in range(count)]
    mask, has_mask = None, None
    if reads_masks(cfg):
        mask = torch.randint(cfg.num_classes + 1, (count, side, side), generator=generator)
        has_mask = [number % 2 == 0 or not reads_images_without_mask(cfg) for number in range(count)]
    flow, holds = None, None
    if cfg.w_temporal > 0:
        flow, holds = torch.zeros(count, 2, side, side), torch.ones(count, side, side, dtype=torch.bool)
    views, shown = (view(side), view(cfg.view2_side), view(side)), int(label[0].sum())
    return Batch(names, *views, label, box, shown, mask, has_mask, flow, holds)
