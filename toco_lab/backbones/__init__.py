"""timm's models as encoders: which kinds there are, how they are built, loaded, and read layer by layer."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
