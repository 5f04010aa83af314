"""The tokens that a run keeps of its probe images while it trains, small enough to travel in a page.

`snapshots` takes them, `quantise` makes them small with a known error, `token_maps` is their file format. The token
explorer and the report show them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
