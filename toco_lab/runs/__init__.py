"""The folder of a run: what lies in it, all of them as a table, and what each one reached."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
