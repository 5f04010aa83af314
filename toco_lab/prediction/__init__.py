"""Any image and a trained model: which classes it sees, where, and a mask. One image, or whole folders.

    model = tl.load("results/RUN")        # a run, a checkpoint file, the authors' file, or a sweep (its best run)
    result = model.predict("photo.jpg")   # a path, a PIL image or an array
    result.show()

`source` finds the weights, `recipe` says how a mask is made and what its protocol is, `predictor` makes it, `result`
holds it; `pictures_given` finds the images a person names, `output` and `folder` write many, `sheet` shows them.
`frames` reads a clip, and `video` predicts it with CAMs averaged along the optical flow. `onnx` writes a run as a file
for programs without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
