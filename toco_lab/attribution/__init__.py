"""Where did it come from? Attributions of a class or a direction to places in an image, and how faithful they are.

A CAM is what the classifier says at each patch. The maps here ask where a logit or a token came from: through attention
(`attention`), through the features of one layer (`gradients`), or by likeness to a token (`directions`, for models
without a classifier). `classifier_maps` gives the CAM of any block, `catalogue` lists all by name. `faithfulness` asks
whether a map is right about the model (insertion, deletion) and about the image (pointing game), `measured` over a
data set.

All work on a plain timm model and on ToCo, in evaluation mode, also inside `torch.no_grad()`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
