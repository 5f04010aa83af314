from . import build as build
from . import getam as getam
from . import tscam as tscam
from . import vit as vit
from .build import build_model as build_model
from .build import model_class as model_class
from .getam import GETAM as GETAM
from .tscam import TSCAM as TSCAM
