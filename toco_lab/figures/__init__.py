"""Drawing alone: arrays and tables in, a figure out; no torch, nothing of the other rooms.

`pictures` and `printed` are matplotlib's: images, and curves for paper. `interactive` is plotly's: curves to look at.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
