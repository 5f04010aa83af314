"""The systems that ToCo is compared with, each a model of `method.face.BringsLosses` and its pure functions.

All but the last one, which learns from masks, learn from image labels alone, over any plain ViT of timm, and share what
ToCo has: data, schedule, multi-scale maps, refinement, evaluation. What is their own is where the maps come from and
what a step minimises. `Config.method` says which one a run trains, `build.build_model` makes it; `toco_lab.methods`
says which options each reads.

| `method` | map `cam` | map `cam_aux` | losses | file |
|---|---|---|---|---|
| `toco` | CAM of the final tokens | CAM of block `aux_layer` | see `toco_lab.method` | `method/model.py` |
| `tscam` | class token's attention x semantic map | semantic map | classification | `tscam.py` |
| `getam` | attention x gradient x gradient | attention x gradient | and segmentation, later | `getam.py` |
| `mct` | fused map, spread by patch affinity | fused map before it | classification, of patches too | `mct.py` |
| `mct_plus` | the same | the same | and contrast between class tokens | `mct.py` |
| `afa` | CAM that makes the labels | the same after the walk | classification, affinity, segmentation | `afa.py` |
| `supervised` | - | - | segmentation, on masks | `supervised.py`, `consistency.py` |

To add a method: a class with `encode`, `cams`, `forward` and `losses` in a file of its own, a line in `build.MODELS`
and in `methods.METHODS`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
