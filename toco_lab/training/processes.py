"""One training in several processes: what each of them must know of the others.

`torchrun` starts them (`torchrun --nproc-per-node 4 -m toco_lab train voc_vit_b`), each with a GPU of its own or,
without GPUs, on the CPU. A process that is alone never communicates: every function here then answers at once.

The numbers of a run do not depend on how many processes make it: the batch is cut into `Config.accumulate`
micro-batches, whose means define the losses, and the processes share the micro-batches.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from toco_lab.words import counted

PATIENCE = timedelta(hours=2)  # the others may wait while the first process paints masks or measures


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_processes() -> int:
    """How many processes train together; 1 for one that is alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes the files and shows the progress bar."""
    return rank() == 0


@contextmanager
def process_group() -> Iterator[None]:
    """Inside this context the processes that `torchrun` started belong together; in a process alone it does nothing.

    Raises:
        ValueError: If this machine has GPUs, but fewer than it has processes.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield
        return
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if gpus and local >= gpus:
        raise ValueError(f"process {local} has no GPU: this machine has {gpus}; use torchrun --nproc-per-node {gpus}")
    if gpus:
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def wait() -> None:
    """Return once every process has called this."""
    if num_processes() > 1:
        everywhere(None)


def everywhere(value: Any) -> list[Any]:
    """The value that each process passed, in their order; it must be picklable."""
    if num_processes() == 1:
        return [value]
    values: list[Any] = [None] * num_processes()
    dist.all_gather_object(values, value)
    return values


def total(values: Tensor) -> Tensor:
    """Sum of a tensor of any shape over the processes, the same in each; the argument is not changed."""
    if num_processes() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values


def share(count: int) -> range:
    """This process's part of `count` things: consecutive numbers from 0, the parts' lengths differ by at most one."""
    parts = num_processes()
    return range(count * rank() // parts, count * (rank() + 1) // parts)


def micro_batches(batch_size: int, accumulate: int, processes: int) -> int:
    """The least number of micro-batches, `accumulate` or more, of which each process gets equally many.

    Raises:
        ValueError: If the images do not divide among the processes.
    """
    if batch_size % processes:
        fitting = [count for count in range(1, batch_size + 1) if batch_size % count == 0]
        raise ValueError(
            f"a batch of {counted(batch_size, 'image')} does not divide among {counted(processes, 'process')}; start "
            f"{' or '.join(map(str, fitting))}, or change batch_size"
        )
    return next(
        parts for parts in range(accumulate, batch_size + 1) if parts % processes == 0 and batch_size % parts == 0
    )


def resolve_device(name: str) -> torch.device:
    """The device of a name as in `Config.device`; `auto` is this process's CUDA device if there is one, else the CPU.

    Raises:
        ValueError: For a device that is not there.
    """
    available = ["cpu"]
    if torch.cuda.is_available():
        available += ["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if name == "auto":
        return torch.device(f"cuda:{torch.cuda.current_device()}" if len(available) > 1 else "cpu")
    if name not in available:
        raise ValueError(f"device {name!r} is not there; use auto or one of {', '.join(available)}")
    return torch.device(name)
