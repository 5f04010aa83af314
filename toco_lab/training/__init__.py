"""Fit a model: the optimiser, one step, the loop that can be killed, checkpoints, several processes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
