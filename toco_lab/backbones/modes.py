"""States of a module that hold inside a `with`: evaluation mode, and one cast of each weight for all passes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the `with`; afterwards every submodule is in its own mode again."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def weights_cast_once(module: nn.Module) -> torch.autocast:
    """A context in which all passes of a module in bf16 or fp16 share one cast of each weight.

    Without it every pass makes its own, and a training step asks for a fifth more operations. torch keeps the casts
    until the outermost autocast ends, and this one leaves the arithmetic as it is. Weights must not change inside it.
    """
    kind = next(module.parameters()).device.type
    return torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind))
