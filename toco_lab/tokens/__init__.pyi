from . import quantise as quantise
from . import snapshots as snapshots
from . import token_maps as token_maps
from .snapshots import Snapshots as Snapshots
from .snapshots import maps_of_model as maps_of_model
from .snapshots import maps_of_run as maps_of_run
from .token_maps import TokenMaps as TokenMaps
