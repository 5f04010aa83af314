"""Logging where people look: TensorBoard, Weights & Biases, MLflow. The folder of a run stays the truth.

Live or afterwards, a tracker is told the same things by the same code: `logbook.Logbook` reads the rows of metrics.csv
as they are written, or from the file. `tracker` says what a tracker must be able to do; each has a file of its own.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
