"""timm's models as encoders: which kinds there are, and how to build them, load weights, and read every layer."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
