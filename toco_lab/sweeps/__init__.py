"""Many runs: notebooks without a screen, grids, workers, executors."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
