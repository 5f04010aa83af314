"""Drawing: arrays and tables in, a figure out. It knows neither torch nor the other rooms.

`series` computes what is drawn: means, spreads, bars. `interactive` draws it with plotly, for the screen, `printed`
with matplotlib, for paper. `pictures` draws images, also with matplotlib.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
