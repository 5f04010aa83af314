"""The paper: everything ToCo computes, and nothing of the lab around it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
