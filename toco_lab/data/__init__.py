"""From files to samples: the toy world, VOC, COCO, and any folder of images."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
