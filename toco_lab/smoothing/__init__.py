"""How alike are the tokens? Every over-smoothing metric of the literature, per layer."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
