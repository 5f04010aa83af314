"""A workbench around ToCo (token contrast for weakly-supervised segmentation, CVPR 2023): train, measure, look.

    commands, notebooks      what a person starts
       |
    reports, sweeps          many runs: grids and workers; tables, comparisons, one offline page
       |
    students                 a run, its pseudo labels, and a smaller network that learns from both
       |
    experiment               ONE run: train, evaluate, measure, keep tokens
       |
    explorers, trackers      click and slide; runs told to TensorBoard, W&B, MLflow
       |
    prediction, attribution  any image: its classes, CAMs and mask; where did a logit come from, is the map right?
       |
    evaluation, smoothing, tokens    how good is it? how alike are the tokens? the tokens a run keeps
       |
    training                 fit, kill, continue
       |
    data                     toy world, VOC, COCO, your folder ---> Batch
       |
    method                   THE PAPER: model, CAM, pseudo labels, refinement, losses
       |
    backbones, runs, figures     timm's encoders; the folder of a run; drawing

Each room imports only those below it (`pyproject.toml` holds the order, a test keeps it). `import toco_lab as tl` costs
nothing: names and rooms are imported when they are first used, and `__init__.pyi` lists them for editors.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
