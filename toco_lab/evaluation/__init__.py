"""How good is it? Scores with their protocol, pseudo labels, and the CAM of every layer."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
