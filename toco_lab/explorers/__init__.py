"""Click and slide: the token explorer, the CAM explorer, the run browser, and what they compute."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
